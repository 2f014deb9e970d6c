"""The graph, run over what is not done yet until every image has its row.

A block whose process dies again and again, or whose node does, is given up by Ray; while the
cluster has not noticed that a node died, so are the blocks that come to its actors. Such images run
once more: together where they are many, then each alone, so that the culprits are known, which
become error rows, and no others.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from rich.console import Console

from af_pipeline.core.schema import ImageRow, rows_to_table
from af_pipeline.data.secrets import redact_text
from af_pipeline.indexing.graph import build_graph, run_graph, set_context, stage_names
from af_pipeline.indexing.meter import STOPPED, GraphError, shown_progress
from af_pipeline.indexing.pools import StageLayout
from af_pipeline.indexing.resume import (
    PART_ROWS,
    Finished,
    Pending,
    finished_ids,
    pending,
    write_pending,
)
from af_pipeline.indexing.stages import StageSettings, mark_failed
from af_pipeline.indexing.watch import TooManyErrors, watched
from af_pipeline.output.folder import DAMAGED, OutputFolder
from af_pipeline.output.place import OutputLostError
from af_pipeline.settings.index import OutputConfig
from af_pipeline.settings.ray import RayConfig

# Of one graph: a million images at the usual four a block. Its driver keeps up to 5 KB a block.
BLOCKS_PER_GRAPH = 250_000
FEW = 64  # so many lost images are done one by one at once
BARREN = 3  # passes in a row that may come to nothing: nodes die without fault of an image
PUT_ASIDE = "{} damaged parts of rows/ were put aside in {}; their images are done again"
CHANGED = (
    "{} images have changed since they were done and are done again "
    "(--set output.redo_changed=false keeps their rows)"
)
STOPPED_FILE = "stopped.json"  # there from a stop for too many errors to the next start
DIED = "its worker process died each time it was tried (crash or out of memory)"
DEATHS = (NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)(: |$)")
TELLER = "ray.data._internal.execution.streaming_executor_state"


@dataclass(frozen=True)
class State:
    """Where a run is between two passes.

    ``images`` are left to do; ``passes`` were made, the last ``barren`` of them for nothing;
    ``other``, ``death``: as of `LostBlocks` in the last one.
    """

    images: int
    passes: int = 0
    barren: int = 0
    other: str = ""
    death: str = ""


@dataclass(frozen=True)
class Together:
    """All images in blocks, as fast as it goes."""


@dataclass(frozen=True)
class OneByOne:
    """One image a block, so that it is known which one kills its process."""


@dataclass(frozen=True)
class Stop:
    """All is done, or nothing gets through for a ``reason``."""

    reason: str = ""


def next_pass(state: State) -> Together | OneByOne | Stop:
    """What is to be done next."""
    if not state.images:
        return Stop()
    if state.barren and (state.other or state.barren == BARREN):
        return Stop(state.other or state.death)
    if state.passes > 1 or (state.passes == 1 and state.images <= FEW):
        return OneByOne()
    return Together()


@dataclass(frozen=True)
class Result:
    """What the passes of one start left: all ``parts`` of rows/, how many images were done before,
    and the stages' account of the first pass."""

    parts: list[str]
    skipped: int
    stages: list[dict[str, Any]]


@dataclass(frozen=True)
class Passes:
    """One start of a run."""

    folder: OutputFolder
    manifest: Path
    settings: StageSettings
    layouts: Sequence[StageLayout]
    output: OutputConfig
    ray: RayConfig
    max_error_rate: float
    console: Console

    def execute(self) -> Result:
        """Run the graph until all images are done.

        Raises GraphError where nothing gets through, OutputLostError where another start has taken
        the folder, or it cannot be written to any more.
        """
        listed = pq.read_metadata(self.manifest).num_rows
        stopped = self.folder.exists(STOPPED_FILE)
        done, left = self._left(stopped or self.output.redo_errors, self.output.redo_changed)
        self.folder.remove(STOPPED_FILE)
        skipped = listed - left.images
        if skipped:
            self.console.print(f"resuming: {skipped} of {listed} images are done")
        stages: list[dict[str, Any]] = []
        state = State(left.images)
        while not isinstance(what := next_pass(state), Stop):
            alone = isinstance(what, OneByOne)
            if state.passes:
                how = "one by one" if alone else "once more"
                self.console.print(f"{left.images} images were lost with their worker; {how} now")
            account, lost = self._pass(left, alone, listed - left.images)
            stages = stages or account
            done, left = self._left()
            barren = state.barren + 1 if left.images == state.images else 0
            state = State(left.images, state.passes + 1, barren, lost.other, lost.death)
        if what.reason:
            raise GraphError(STOPPED.format(what.reason))
        self.folder.remove("todo")
        return Result(done.parts, skipped, stages)

    def _left(
        self, redo_errors: bool = False, redo_changed: bool = False
    ) -> tuple[Finished, Pending]:
        self.folder.check_owner()
        done = finished_ids(self.folder, self.manifest, redo_errors, redo_changed)
        if done.damaged:
            aside = f"{self.folder.uri}/{DAMAGED}"
            self.console.print(PUT_ASIDE.format(done.damaged, aside), soft_wrap=True)
        if done.changed:
            self.console.print(CHANGED.format(done.changed), soft_wrap=True)
        return done, write_pending(self.folder, self.manifest, done)

    def _pass(
        self, left: Pending, alone: bool, done: int
    ) -> tuple[list[dict[str, Any]], LostBlocks]:
        folder = self.folder
        set_context(self.ray)
        per_file = 1 if alone else self.output.images_per_file or _images_per_file(left.images)
        with (
            LostBlocks() as lost,
            shown_progress(left.images, stage_names(self.layouts), self.console) as counter,
        ):
            settings = replace(self.settings, counter=counter)
            for parts in rounds(left.parts, 1 if alone else self.ray.rows_per_block):
                graph = build_graph(self.ray, parts, folder.arrow, settings, self.layouts, alone)
                try:
                    watched(graph, counter, self.max_error_rate, done)
                    run_graph(graph, folder, per_file, self.ray.task_cpus)
                except TooManyErrors as error:
                    self._forget_errors(str(error))
                    raise
                except RayError as error:
                    # An actor that cannot start is no accident.
                    if not is_death(error) or getattr(error, "actor_init_failed", False):
                        raise GraphError(STOPPED.format(reason_in(str(error)))) from error
                    lost.death = reason_in(str(error))
                # The traceback of a lost block holds actors of the graph, and these the CPUs of
                # the next.
                del graph
                gc.collect()
            account: list[dict[str, Any]] = ray.get(counter.report.remote())
            accused: list[str] = ray.get(counter.accused.remote()) if alone else []
        if accused:
            self._write_errors(set(accused))
        return account, lost

    def _forget_errors(self, reason: str) -> None:
        """Take all failed rows out: what made this run stop may have made them fail.

        A worker may still write some, so that the next start does it again.
        """
        self.folder.check_owner()
        self.folder.write_json(STOPPED_FILE, {"reason": reason})
        finished_ids(self.folder, self.manifest, redo_errors=True)

    def _write_errors(self, guilty: Collection[str]) -> None:
        """Write error rows for those of ``guilty`` that are not done."""
        self.folder.check_owner()
        done = finished_ids(self.folder, self.manifest)
        for table in pending(self.manifest, done):
            rows = [ImageRow(**r) for r in table.to_pylist() if r["image_id"] in guilty]
            for row in rows:
                mark_failed(row, DIED)
            if rows:
                self.folder.write_part(rows_to_table(rows, stored=True))


def rounds(parts: Sequence[str], rows_per_block: int) -> Iterator[Sequence[str]]:
    """Parts of the list of images, as many at a time as one graph takes."""
    size = max(1, BLOCKS_PER_GRAPH * rows_per_block // PART_ROWS)
    return (parts[start : start + size] for start in range(0, len(parts), size))


def _images_per_file(images: int) -> int:
    """Files of a long run by the thousand, not by the million; a short one loses little by a kill.

    What a kill can cost is this many images per file that is being filled.
    """
    return min(1_024, max(1, images // 2_000))


class LostBlocks(logging.Handler):
    """Why blocks were lost within a ``with``: Ray Data goes on without them and tells its log only.

    ``other``: the first reason that is no death, or ""; ``death``: the last that is one.

    Only text is kept: an exception's traceback would hold the actors of the graph.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.other, self.death = "", "blocks were lost with their workers or nodes"
        self.teller = logging.getLogger(TELLER)

    def __enter__(self) -> LostBlocks:
        self.before = (self.teller.level, self.teller.propagate)
        self.teller.setLevel(logging.ERROR)
        self.teller.propagate = False
        self.teller.addHandler(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self.teller.removeHandler(self)
        self.teller.setLevel(self.before[0])
        self.teller.propagate = self.before[1]

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a lost block."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, OutputLostError):
            # Into Ray's loop, which then ends the graph: the rest would be in vain. Ray puts advice
            # of its own below the message.
            raise OutputLostError(str(cause).splitlines()[0])
        reason = reason_in(str(error) or type(error).__name__)
        if is_death(error):
            self.death = reason
        else:
            self.other = self.other or reason


def reason_in(text: str) -> str:
    """The line of a traceback that says why: the first error in it is what the others come from."""
    lines = [line.strip() for line in COLOUR.sub("", text).splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return redact_text((errors or lines[-1:] or ["no reason given"])[0])[:400]


def is_death(error: BaseException) -> bool:
    """Whether a process or node died, or what it held is gone: trying again may help."""
    if isinstance(error, DEATHS):
        return True
    causes = (error.cause if isinstance(error, RayTaskError) else None, error.__cause__)
    return any(cause is not None and cause is not error and is_death(cause) for cause in causes)

"""The graph, run over what is not done yet until every image has its row."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError
from rich.console import Console

from af_pipeline.core.schema import ImageRow
from af_pipeline.indexing.graph import build_graph, run_graph, set_context, stage_names
from af_pipeline.indexing.lost_blocks import STOPPED, Causes, GraphError, is_death, reason_in
from af_pipeline.indexing.pools import PoolPlan
from af_pipeline.indexing.progress import shown_progress
from af_pipeline.indexing.resume import PART_ROWS, Todo, left_to_do, settle, write_todo
from af_pipeline.indexing.stages import StageSettings, fail
from af_pipeline.indexing.watch import TooManyErrors, watched
from af_pipeline.output.folder import DAMAGED, RunFolder
from af_pipeline.settings.index import IndexConfig

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


@dataclass
class Passes:
    """One start of a run. ``done``: the finished images after `execute`."""

    config: IndexConfig
    folder: RunFolder
    manifest: Path
    settings: StageSettings
    pools: list[PoolPlan]
    console: Console

    def execute(self) -> tuple[int, list[dict[str, Any]]]:
        """Returns how many images were done before, and the stages' account of the first pass.

        A block whose process dies again and again, or whose node does, is given up by Ray; while
        the cluster has not noticed that a node died, so are the blocks that come to its actors.
        Such images run once more: together where they are many, then each alone, so that the
        culprits are known, which become error rows, and no others. Raises GraphError where nothing
        gets through, OutputLostError where another start has taken the folder, or it cannot be
        written to any more.
        """
        listed = pq.read_metadata(self.manifest).num_rows
        output, stopped = self.config.output, self.folder.exists(STOPPED_FILE)
        todo = self._todo(stopped or output.redo_errors, output.redo_changed)
        self.folder.remove(STOPPED_FILE)
        skipped = listed - todo.images
        if skipped:
            self.console.print(f"resuming: {skipped} of {listed} images are done")
        stages: list[dict[str, Any]] = []
        barren = 0
        for number in count():
            if not todo.images:
                break
            alone = number > 1 or (number == 1 and todo.images <= FEW)
            if number:
                how = "one by one" if alone else "once more"
                self.console.print(f"{todo.images} images were lost with their worker; {how} now")
            before = todo.images
            account, causes = self._pass(todo, alone, listed - todo.images)
            stages = stages or account
            todo = self._todo()
            barren = barren + 1 if todo.images == before else 0
            if barren and (causes.other or barren == BARREN):
                raise GraphError(STOPPED.format(causes.other or causes.death))
        self.folder.remove("todo")
        return skipped, stages

    def _todo(self, redo_errors: bool = False, redo_changed: bool = False) -> Todo:
        self.folder.check_owner()
        self.done = settle(self.folder, self.manifest, redo_errors, redo_changed)
        if self.done.damaged:
            aside = f"{self.folder.uri}/{DAMAGED}"
            self.console.print(PUT_ASIDE.format(self.done.damaged, aside), soft_wrap=True)
        if self.done.changed:
            self.console.print(CHANGED.format(self.done.changed), soft_wrap=True)
        return write_todo(self.folder, self.manifest, self.done)

    def _pass(self, todo: Todo, alone: bool, done: int) -> tuple[list[dict[str, Any]], Causes]:
        config, folder = self.config, self.folder
        set_context(config)
        per_file = 1 if alone else config.output.images_per_file or _images_per_file(todo.images)
        with (
            Causes() as causes,
            shown_progress(todo.images, stage_names(self.pools), self.console) as counter,
        ):
            settings = replace(self.settings, counter=counter)
            for parts in rounds(todo.parts, 1 if alone else config.ray.rows_per_block):
                graph = build_graph(config, parts, folder.arrow, settings, self.pools, alone)
                try:
                    watched(graph, counter, config.max_error_rate, done)
                    run_graph(graph, folder, per_file, config.ray.task_cpus)
                except TooManyErrors as error:
                    self._forget_errors(str(error))
                    raise
                except RayError as error:
                    # An actor that cannot start is no accident.
                    if not is_death(error) or getattr(error, "actor_init_failed", False):
                        raise GraphError(STOPPED.format(reason_in(str(error)))) from error
                    causes.death = reason_in(str(error))
                # The traceback of a lost block holds actors of the graph, and these the CPUs of
                # the next.
                del graph
                gc.collect()
            account: list[dict[str, Any]] = ray.get(counter.report.remote())
            accused: list[str] = ray.get(counter.accused.remote()) if alone else []
        if accused:
            self._write_errors(set(accused))
        return account, causes

    def _forget_errors(self, reason: str) -> None:
        """Take all failed rows out: what made this run stop may have made them fail.

        A worker may still write some, so that the next start does it again.
        """
        self.folder.check_owner()
        self.folder.write_json(STOPPED_FILE, {"reason": reason})
        settle(self.folder, self.manifest, redo_errors=True)

    def _write_errors(self, guilty: Collection[str]) -> None:
        """Write error rows for those of ``guilty`` that are not done."""
        self.folder.check_owner()
        done = settle(self.folder, self.manifest)
        for table in left_to_do(self.manifest, done):
            lost = [_lost_row(r) for r in table.to_pylist() if r["image_id"] in guilty]
            if lost:
                self.folder.append_rows(lost)


def rounds(parts: Sequence[str], rows_per_block: int) -> Iterator[Sequence[str]]:
    """Parts of the list of images, as many at a time as one graph takes."""
    size = max(1, BLOCKS_PER_GRAPH * rows_per_block // PART_ROWS)
    return (parts[start : start + size] for start in range(0, len(parts), size))


def _images_per_file(images: int) -> int:
    """Files of a long run by the thousand, not by the million; a short one loses little by a kill.

    What a kill can cost is this many images per file that is being filled.
    """
    return min(1_024, max(1, images // 2_000))


def _lost_row(record: dict[str, Any]) -> ImageRow:
    row = ImageRow(**record)
    fail(row, DIED)
    return row

"""Stages of the index graph: thin adapters between Arrow blocks and the cascade.

Errors of an image never leave a stage: one that cannot be read or detected carries the reason in
its row, is skipped by later stages and reaches the output like any other. Errors of the actor (a
card that is gone, memory that does not come back) are no image's: where the detector fails on a
black picture too, the actor ends, so that Ray starts another process in its place and does the
block again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from af_pipeline.core.budget import BudgetRule
from af_pipeline.core.cascade import Predictor, advance, look, pending_pixels, stack, start_row
from af_pipeline.core.chips import forward_pixels, next_chips
from af_pipeline.core.plan import Plan
from af_pipeline.core.schema import ImageRow, rows_to_table, table_to_rows
from af_pipeline.data.access import LOCAL, SourceError, Storage
from af_pipeline.data.secrets import redact_text
from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import DecodeError, decode_image, image_size
from af_pipeline.images.depth import BY_TYPE, DepthConfig
from af_pipeline.indexing.meter import ErrorKinds, GraphError, MeteredPredictor, StageMeter

STACK = "Stack"
NUMBER = re.compile(r"\d+")

# Originals, or network px of chips, that an actor holds at once: about 200 MB. A larger image is
# looked at alone.
GROUP_PIXELS = 64_000_000


@dataclass(frozen=True)
class DetectorSource:
    """Where actors get their detector: ``loader(threads, **options)``, called inside the actor.

    ``identity``: hash of the weights; ``class_names`` by label index; ``shape``: height and width
    of the only input that it takes, None: any.
    """

    loader: Callable[..., Predictor]
    options: dict[str, Any]
    class_names: tuple[str, ...]
    identity: str
    shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class StageSettings:
    """What a detecting stage needs; travels to the actors.

    ``scale`` and ``lanes``: the chips it looks at, None: all; ``last``: no later stage looks at
    this scale; ``counter``: a `meter.Counter`, None counts nowhere; ``alone``: one
    image a block, and which are begun is told.
    """

    plan: Plan
    detector: DetectorSource
    max_pixels: int
    storage: Storage = LOCAL
    depth: DepthConfig = BY_TYPE
    name: str = ""
    scale: int | None = 0
    lanes: tuple[int, ...] | None = None
    last: bool = True
    threads: int = 1
    counter: Any = None
    alone: bool = False


class ActorFault(GraphError):
    """The detector of this process fails whatever it is given: no image is to blame."""


class DetectStage:
    """Looks at the pending chips of one scale, or of some of its lanes."""

    def __init__(self, settings: StageSettings) -> None:
        cv2.setNumThreads(settings.threads)
        self.settings, self.plan = settings, settings.plan
        self.meter = StageMeter(settings.name, settings.counter, settings.alone)
        detector = settings.detector
        try:
            predict = detector.loader(settings.threads, **detector.options)
        except Exception as error:
            # Ray Data waits for ever for an actor that cannot start again.
            counted = settings.counter is not None
            if counted and ray.get_runtime_context().was_current_actor_reconstructed:
                self._end(repr(error))
            raise
        self.predict = MeteredPredictor(predict, settings.plan)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `ROW` in (the first stage: `MANIFEST`) and out, same rows in the same order.

        Raises ActorFault where nobody counts; else such a fault ends the process.
        """
        self.meter.begin(table)
        try:
            rows = self.work(table)
        except ActorFault as fault:
            self._end(str(fault))
            raise
        self.meter.end(self.predict.take())
        return rows_to_table(rows)

    def work(self, table: pa.Table) -> list[ImageRow]:
        """The rows of ``table``, looked at."""
        rows = table_to_rows(table)
        scale = self.settings.scale or 0
        sizes = [0 if row.error else pending_pixels(row, scale, self.plan) for row in rows]
        for group in groups_within(sizes, GROUP_PIXELS):
            self.look_safely([rows[i] for i in group if not rows[i].error], scale)
        return rows

    def _end(self, reason: str) -> None:
        """End this process, so that another is started in its place; not where nobody counts."""
        if self.settings.counter is not None:
            self.meter.broken(reason)
            os._exit(1)

    def check_detector(self) -> None:
        """Called when an image has failed: raise ActorFault if that was not its own fault."""
        try:
            self.predict.probe()
        except Exception as fault:
            raise ActorFault(f"the detector fails on a black picture too: {fault!r}") from fault

    def look_safely(self, rows: Sequence[ImageRow], scale: int) -> None:
        """Look at ``rows`` together; should that fail, one by one, so the culprit is known."""
        before = [_snapshot(row) for row in rows]
        try:
            look(rows, scale, self.plan, self.predict, self.settings.lanes)
            if self.settings.last:
                advance(rows, scale, self.plan)
        except Exception as error:
            for row, state in zip(rows, before, strict=True):
                _restore(row, state)
            if len(rows) == 1:
                self.check_detector()
                mark_failed(rows[0], f"detection at scale {scale} failed: {error!r}")
                return
            for row in rows:
                self.look_safely([row], scale)


class CoarseStage(DetectStage):
    """Reads and decodes images, looks at them whole, cuts the first FocusChips."""

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings)
        self.pool = ThreadPoolExecutor(max(1, settings.threads), "decode")

    def work(self, table: pa.Table) -> list[ImageRow]:
        """The images of a table of `MANIFEST`, read and looked at."""
        rows = [ImageRow(**record) for record in table.to_pylist()]
        for group in self._decoded_groups(rows):
            self.look_through(group)
        return rows

    def look_through(self, rows: Sequence[ImageRow]) -> None:
        """What is done with images that were just decoded."""
        self.look_safely(rows, 0)

    def _decoded_groups(self, rows: Sequence[ImageRow]) -> Iterator[list[ImageRow]]:
        """Rows decoded and started, in groups that keep memory bounded."""
        data = list(self.pool.map(self._read, rows))
        for group in groups_within([_header_pixels(content) for content in data], GROUP_PIXELS):
            yield self._start([rows[i] for i in group], [data[i] for i in group])
            for i in group:
                data[i] = None

    def _read(self, row: ImageRow) -> bytes | None:
        try:
            data = read_bytes(row.uri, self.settings.storage)
        except SourceError as error:
            mark_failed(row, str(error))
            return None
        row.bytes = len(data)
        return data

    def _start(self, rows: Sequence[ImageRow], data: Sequence[bytes | None]) -> list[ImageRow]:
        images = self.pool.map(self._decode, rows, data)
        for row, image in zip(rows, images, strict=True):
            if isinstance(image, MemoryError):
                self.check_detector()
            elif image is not None:
                start_row(row, image, self.settings.plan)
        return [row for row in rows if not row.error]

    def _decode(self, row: ImageRow, data: bytes | None) -> NDArray[np.uint8] | MemoryError | None:
        if data is None:
            return None
        began = time.perf_counter()
        try:
            image = decode_image(data, self.settings.max_pixels, self.settings.depth)
        except DecodeError as error:
            mark_failed(row, str(error))
            return error.__cause__ if isinstance(error.__cause__, MemoryError) else None
        except Exception as error:
            mark_failed(row, f"cannot decode: {error!r}")
            return None
        row.ledger.decode_ms = (time.perf_counter() - began) * 1000
        return image


class FusedStage(CoarseStage):
    """The whole cascade of an image in one actor: no pixels leave it."""

    def look_through(self, rows: Sequence[ImageRow]) -> None:
        """All scales, one after the other."""
        for scale in range(len(self.plan.scales)):
            left = [row for row in rows if not row.error]
            sizes = [pending_pixels(row, scale, self.plan) for row in left]
            for group in groups_within(sizes, GROUP_PIXELS):
                self.look_safely([left[i] for i in group], scale)


@dataclass(frozen=True)
class Worth:
    """One image: ``coarse`` network px of the coarsest look; of each chip the network px and the
    effective gain per megapixel, the least of its own and of those it was cut from."""

    coarse: int
    costs: tuple[int, ...] = ()
    gains: tuple[float, ...] = ()


class SampleStage(CoarseStage):
    """Takes every chip of an image, whatever it costs; what they are worth is kept."""

    def __init__(self, settings: StageSettings) -> None:
        unlimited = replace(settings.plan, budget=BudgetRule())
        super().__init__(replace(settings, name="sample", plan=unlimited))
        self.worths: list[Worth] = []

    def look_through(self, rows: Sequence[ImageRow]) -> None:
        """All scales of each image."""
        for row in rows:
            try:
                self.worths.append(self._worth(row))
            except Exception as error:
                self.check_detector()
                mark_failed(row, f"detection failed: {error!r}")

    def _worth(self, row: ImageRow) -> Worth:
        gains, costs = [float("inf")], [self._cost(row, 0)]
        for scale in range(len(self.plan.scales)):
            look([row], scale, self.plan, self.predict)
            for one in next_chips(row, scale, self.plan):
                costs.append(self._cost(row, len(costs)))
                gains.append(min(one.gain / max(costs[-1], 1) * 1e6, gains[one.parent]))
        return Worth(costs[0], tuple(costs[1:]), tuple(gains[1:]))

    def _cost(self, row: ImageRow, index: int) -> int:
        chip = row.chips[index]
        return forward_pixels(row, chip.scale, chip.box, self.plan)


def groups_within(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in order, in groups of at most ``limit`` in sum, one at least."""
    group: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(index)
        total += size
    if group:
        yield group


def _header_pixels(data: bytes | None) -> int:
    try:
        height, width = image_size(data) if data else (0, 0)
    except DecodeError:
        return 0
    return height * width


def _snapshot(row: ImageRow) -> tuple[Any, ...]:
    ledger = {
        key: list(value) if isinstance(value, list) else value
        for key, value in vars(row.ledger).items()
    }
    return row.detections, list(row.chips), list(row.candidates), ledger


def _restore(row: ImageRow, state: tuple[Any, ...]) -> None:
    row.detections, row.chips, row.candidates, ledger = state
    vars(row.ledger).update(ledger)


def mark_failed(row: ImageRow, message: str) -> None:
    """Mark a row as failed: one line of reason, no detections, no chips."""
    fresh = ImageRow(row.image_id, row.uri)
    text = redact_text(" ".join(message.split()))[:500].encode(errors="backslashreplace").decode()
    row.error = text or "unknown error"
    row.detections, row.chips, row.candidates = fresh.detections, [], []


def kinds_of(rows: Sequence[ImageRow]) -> ErrorKinds:
    """The errors of ``rows``; messages that differ in numbers and names of images are one kind."""
    kinds: ErrorKinds = {}
    for row in rows:
        if row.error:
            kind = NUMBER.sub("#", row.error.replace(row.uri, "").replace(row.image_id, ""))
            count, example = kinds.get(kind, (0, f"{row.image_id}: {row.error}"))
            kinds[kind] = (count + 1, example)
    return kinds


class StackStage:
    """Focus stacking and the stored form of the rows; counts where there is a counter."""

    def __init__(self, plan: Plan, counter: Any = None, alone: bool = False) -> None:
        self.plan, self.counter = plan, counter
        self.meter = StageMeter(STACK, counter, alone)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `ROW` in, of `STORED_ROW` out."""
        self.meter.begin(table)
        rows = table_to_rows(table)
        for row in rows:
            if row.error:
                continue
            try:
                stack(row, self.plan.stack)
            except Exception as error:
                mark_failed(row, f"stacking failed: {error!r}")
        self.meter.end({})
        if self.counter is not None:
            found = sum(len(row.detections) for row in rows)
            self.counter.add.remote(len(rows), kinds_of(rows), found)
        return rows_to_table(rows, stored=True)


def stage_class(base: type, name: str) -> type:
    """A subclass of ``base`` called ``name``: Ray Data tells stages apart by class name only."""
    return type(name, (base,), {"__doc__": base.__doc__})

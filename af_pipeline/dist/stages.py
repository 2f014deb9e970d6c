"""Stages of the index graph: thin adapters between Arrow blocks and the cascade.

Errors never leave a stage: an image that cannot be read or detected carries the reason in its
row, is skipped by later stages and reaches the output like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from af_pipeline.cascade import Plan, Predictor, look, start_row
from af_pipeline.codec import DecodeError, decode_image, image_size
from af_pipeline.data.sources import SourceError, read_bytes
from af_pipeline.dist.stacking_stage import fail
from af_pipeline.schema import ImageRow, rows_to_table, table_to_rows

DECODED_PIXELS = 64_000_000  # decoded originals a coarse actor holds at once, about 200 MB


@dataclass(frozen=True)
class DetectorSource:
    """Where actors get their detector: ``loader(threads, **options)``, called inside the actor.

    ``identity``: hash of the weights; ``class_names`` by label index.
    """

    loader: Callable[..., Predictor]
    options: dict[str, Any]
    class_names: tuple[str, ...]
    identity: str


@dataclass(frozen=True)
class StageSettings:
    """What a detecting stage needs besides its scale; travels to the actors."""

    plan: Plan
    detector: DetectorSource
    max_pixels: int
    threads: int = 1


class DetectStage:
    """Looks at the pending chips of one scale; a subclass per scale gives it its own name."""

    def __init__(self, settings: StageSettings, scale: int) -> None:
        cv2.setNumThreads(settings.threads)
        self.settings, self.scale = settings, scale
        detector = settings.detector
        self.predict = detector.loader(settings.threads, **detector.options)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `ROW` in and out, same rows in the same order."""
        rows = table_to_rows(table)
        self.look_safely([row for row in rows if not row.error])
        return rows_to_table(rows)

    def look_safely(self, rows: Sequence[ImageRow]) -> None:
        """Look at ``rows`` together; should that fail, one by one, so the culprit is known."""
        before = [_snapshot(row) for row in rows]
        try:
            look(rows, self.scale, self.settings.plan, self.predict)
        except Exception as error:
            for row, state in zip(rows, before, strict=True):
                _restore(row, state)
            if len(rows) == 1:
                fail(rows[0], f"detection at scale {self.scale} failed: {error!r}")
                return
            for row in rows:
                self.look_safely([row])


class CoarseStage(DetectStage):
    """Reads and decodes images, looks at them whole, cuts the first FocusChips."""

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings, 0)
        self.pool = ThreadPoolExecutor(max(1, settings.threads), "decode")

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `MANIFEST` in, of `ROW` out."""
        pairs = zip(table["image_id"].to_pylist(), table["uri"].to_pylist(), strict=True)
        rows = [ImageRow(image_id, uri) for image_id, uri in pairs]
        for group in self._decoded_groups(rows):
            self.look_safely(group)
        return rows_to_table(rows)

    def _decoded_groups(self, rows: Sequence[ImageRow]) -> Iterator[list[ImageRow]]:
        """Rows decoded and started, in groups that keep memory bounded."""
        data = list(self.pool.map(self._read, rows))
        group: list[int] = []
        pixels = 0
        for index, content in enumerate(data):
            size = _header_pixels(content)
            if group and pixels + size > DECODED_PIXELS:
                yield self._start([rows[i] for i in group], [data[i] for i in group])
                group, pixels = [], 0
            group.append(index)
            pixels += size
        yield self._start([rows[i] for i in group], [data[i] for i in group])

    def _read(self, row: ImageRow) -> bytes | None:
        try:
            data = read_bytes(row.uri)
        except SourceError as error:
            fail(row, str(error))
            return None
        except Exception as error:
            fail(row, f"cannot read {row.uri}: {error!r}")
            return None
        row.bytes = len(data)
        return data

    def _start(self, rows: Sequence[ImageRow], data: Sequence[bytes | None]) -> list[ImageRow]:
        images = self.pool.map(self._decode, rows, data)
        for row, image in zip(rows, images, strict=True):
            if image is not None:
                start_row(row, image, self.settings.plan)
        return [row for row in rows if not row.error]

    def _decode(self, row: ImageRow, data: bytes | None) -> NDArray[np.uint8] | None:
        if data is None:
            return None
        began = time.perf_counter()
        try:
            image = decode_image(data, self.settings.max_pixels)
        except DecodeError as error:
            fail(row, str(error))
            return None
        except Exception as error:
            fail(row, f"cannot decode: {error!r}")
            return None
        row.ledger.decode_ms = (time.perf_counter() - began) * 1000
        return image


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
    return row.detections, list(row.chips), ledger


def _restore(row: ImageRow, state: tuple[Any, ...]) -> None:
    row.detections, row.chips, ledger = state
    vars(row.ledger).update(ledger)

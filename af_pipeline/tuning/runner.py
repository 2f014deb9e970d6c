"""The parts of a tuning that run the detector: recording, confirming, certifying.

Each writes a file an image, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from af_pipeline.core.cascade import Predictor, run_cascade
from af_pipeline.core.plan import Plan
from af_pipeline.core.schema import ImageRow, rows_to_table, table_to_rows
from af_pipeline.data.storage import replacing
from af_pipeline.models.focus_network import FocusedPredictor
from af_pipeline.settings.index import IndexConfig
from af_pipeline.tuning.replay import Record, load_record, record_image, save_record
from af_pipeline.tuning.sample import SampleImage, read_sample
from af_pipeline.tuning.search import Progress, Reference

Item = TypeVar("Item")


def show_progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """``items`` with a bar on a terminal, with a line for every tenth elsewhere."""
    console = Console(highlight=False)
    if console.is_terminal:
        yield from track(items, f"{what:<16}", console=console)
        return
    step = max(1, len(items) // 10)
    for number, item in enumerate(items, start=1):
        yield item
        if number % step == 0 or number == len(items):
            console.print(f"{what:<16} {number} of {len(items)}")


@dataclass(frozen=True)
class Runner:
    """Runs a detector on images of ``config.source``; ``folder`` keeps what is done."""

    config: IndexConfig
    predict: Predictor
    folder: Path
    progress: Progress

    def record(self, images: Sequence[SampleImage], plan: Plan) -> list[Record]:
        """Every image seen whole at every scale."""
        records, predict = [], self.predict
        if isinstance(predict, FocusedPredictor):
            predict = predict.always()
        for path, image in self._images(images, "records", "full pyramid"):
            stored = path.with_suffix(".npz")
            if not stored.exists():
                pixels = read_sample(image, self.config)
                save_record(record_image(image.image_id, pixels, plan, predict), stored)
            records.append(load_record(stored))
        return records

    def confirm(
        self, images: Sequence[SampleImage], plans: Mapping[str, Plan], folder: str = "confirm"
    ) -> tuple[dict[str, list[ImageRow]], dict[str, float]]:
        """The real cascade under every plan, image by image in turns: rows, seconds an image.

        Seconds are of the cascade itself: resize, forward, chips and stacking, not decoding.
        """
        rows: dict[str, list[ImageRow]] = {name: [] for name in plans}
        seconds = dict.fromkeys(plans, 0.0)
        for path, image in self._images(images, folder, "real cascade"):
            found, times = self._timed(path, image, plans)
            for name, row in zip(plans, found, strict=True):
                rows[name].append(row)
                seconds[name] += times[name] / len(images)
        return rows, seconds

    def losses(
        self, images: Sequence[SampleImage], pyramid: Plan, plans: Sequence[Plan], rule: Reference
    ) -> NDArray[np.float64]:
        """Share of the pyramid's confident detections that each plan loses [plans, images].

        Images without such detections are left out. ``rule``: what counts as found again; its
        own detections play no part.
        """
        columns = []
        for path, image in self._images(images, "calibration", "calibration"):
            stored = path.with_suffix(".json")
            if not stored.exists():
                pixels = read_sample(image, self.config)
                rows = [self._run(image, pixels, plan) for plan in (pyramid, *plans)]
                wanted = rule.confident_detections(rows[0].detections)
                lost = [rule.lost(row, wanted) for row in rows[1:]] if len(wanted) else None
                write_json(stored, {"lost": lost})
            lost = json.loads(stored.read_text())["lost"]
            if lost is not None:
                columns.append(lost)
        return np.array(columns, float).reshape(-1, len(plans)).T

    def _images(
        self, images: Sequence[SampleImage], folder: str, what: str
    ) -> Iterable[tuple[Path, SampleImage]]:
        """Every image with the place of its files, without a suffix."""
        place = self.folder / folder
        place.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(self.progress(images, what)):
            yield place / f"{number:06d}", image

    def _timed(
        self, path: Path, image: SampleImage, plans: Mapping[str, Plan]
    ) -> tuple[list[ImageRow], dict[str, float]]:
        """Rows under every plan and seconds of each, from ``path`` where they are there."""
        times_path, rows_path = path.with_suffix(".json"), path.with_suffix(".parquet")
        if times_path.exists():
            times: dict[str, float] = json.loads(times_path.read_text())
            if list(times) == list(plans):
                return table_to_rows(pq.read_table(rows_path)), times
        pixels = read_sample(image, self.config)
        self._run(image, pixels, next(iter(plans.values())))  # warms up
        rows, times = [], {}
        for name, plan in plans.items():
            began = time.perf_counter()
            rows.append(self._run(image, pixels, plan))
            times[name] = time.perf_counter() - began
        pq.write_table(rows_to_table(rows, stored=True), rows_path)
        write_json(times_path, times)
        return rows, times

    def _run(self, image: SampleImage, pixels: NDArray[np.uint8], plan: Plan) -> ImageRow:
        row, predict = ImageRow(image.image_id, image.uri), self.predict
        if isinstance(predict, FocusedPredictor) and not any(plan.rules):
            predict = predict.predict  # a mode without focus has no use for the network
        run_cascade(row, pixels, plan, predict)
        return row


def write_json(path: Path, content: Any) -> None:
    """Write a json file in one step."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")

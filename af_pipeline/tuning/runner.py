"""The parts of a tuning that run the detector: recording, confirming, certifying.

Each writes a file an image, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from af_pipeline.core.cascade import Predictor, run_cascade
from af_pipeline.core.plan import Plan
from af_pipeline.core.schema import ImageRow, rows_to_table, table_to_rows
from af_pipeline.settings.index import IndexConfig
from af_pipeline.tuning.replay import Record, load_record, record_image, save_record
from af_pipeline.tuning.sample import SampleImage, read_sample
from af_pipeline.tuning.search import Reference

# Wraps the images of a stage to show progress: images, description -> the same images.
Progress = Callable[[Sequence[SampleImage], str], Iterable[SampleImage]]


@dataclass(frozen=True)
class Runner:
    """Runs a detector on images of ``config.source``; ``folder`` keeps what is done."""

    config: IndexConfig
    predict: Predictor
    folder: Path
    progress: Progress

    def record(self, images: Sequence[SampleImage], plan: Plan) -> list[Record]:
        """Every image seen whole at every scale."""
        place = _made(self.folder / "records")
        records = []
        for number, image in enumerate(self.progress(images, "full pyramid")):
            path = place / f"{number:06d}.npz"
            if not path.exists():
                pixels = read_sample(image, self.config)
                save_record(record_image(image.image_id, pixels, plan, self.predict), path)
            records.append(load_record(path))
        return records

    def confirm(
        self, images: Sequence[SampleImage], plans: Mapping[str, Plan]
    ) -> tuple[dict[str, list[ImageRow]], dict[str, float]]:
        """The real cascade under every plan, image by image in turns: rows, seconds an image.

        Seconds are of the cascade itself: resize, forward, chips and stacking, not decoding.
        """
        place = _made(self.folder / "confirm")
        rows: dict[str, list[ImageRow]] = {name: [] for name in plans}
        seconds = dict.fromkeys(plans, 0.0)
        for number, image in enumerate(self.progress(images, "real cascade")):
            found, times = self._image(place / f"{number:06d}", image, plans)
            for name, row in zip(plans, found, strict=True):
                rows[name].append(row)
                seconds[name] += times[name] / len(images)
        return rows, seconds

    def _image(
        self, path: Path, image: SampleImage, plans: Mapping[str, Plan]
    ) -> tuple[list[ImageRow], dict[str, float]]:
        """Rows under every plan and seconds of each, from ``path`` where they are there."""
        times_path, rows_path = path.with_suffix(".json"), path.with_suffix(".parquet")
        if times_path.exists():
            times: dict[str, float] = json.loads(times_path.read_text())
            if list(times) == list(plans):
                return table_to_rows(pq.read_table(rows_path)), times
        pixels = read_sample(image, self.config)
        run_cascade(ImageRow("", ""), pixels, next(iter(plans.values())), self.predict)  # warms up
        rows, times = [], {}
        for name, plan in plans.items():
            row = ImageRow(image.image_id, image.uri)
            began = time.perf_counter()
            run_cascade(row, pixels, plan, self.predict)
            times[name] = time.perf_counter() - began
            rows.append(row)
        pq.write_table(rows_to_table(rows, stored=True), rows_path)
        write_json(times_path, times)
        return rows, times

    def losses(
        self, images: Sequence[SampleImage], pyramid: Plan, plans: Sequence[Plan], rule: Reference
    ) -> NDArray[np.float64]:
        """Share of the pyramid's confident detections that each plan loses [plans, images].

        Images without such detections are left out. ``rule``: what counts as found again; its
        own detections play no part.
        """
        place = _made(self.folder / "calibration")
        columns = []
        for number, image in enumerate(self.progress(images, "calibration")):
            path = place / f"{number:06d}.json"
            if not path.exists():
                pixels = read_sample(image, self.config)
                write_json(path, {"lost": self._lost(image, pixels, pyramid, plans, rule)})
            lost = json.loads(path.read_text())["lost"]
            if lost is not None:
                columns.append(lost)
        return np.array(columns, float).reshape(-1, len(plans)).T

    def _lost(
        self,
        image: SampleImage,
        pixels: NDArray[np.uint8],
        pyramid: Plan,
        plans: Sequence[Plan],
        rule: Reference,
    ) -> list[float] | None:
        rows = []
        for plan in (pyramid, *plans):
            row = ImageRow(image.image_id, image.uri)
            run_cascade(row, pixels, plan, self.predict)
            rows.append(row)
        wanted = rule.sure(rows[0].detections)
        if not len(wanted):
            return None
        return [rule.lost(row, wanted) or 0.0 for row in rows[1:]]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write a json file in one step."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)

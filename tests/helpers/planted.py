"""Dark pictures with planted bright rectangles, and a detector that finds just these.

The blue channel is the picture's tag: it stays what it is through every crop and resize, so the
detector knows which picture it sees, and a tag can make it fail or kill its process.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from af_pipeline.core.cascade import Prediction, run_cascade
from af_pipeline.core.focus import STRIDE
from af_pipeline.core.lanes import make_lanes
from af_pipeline.core.schema import ImageRow
from af_pipeline.images.decode import decode_image
from af_pipeline.indexing.stages import DetectorSource
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan

CLASS_NAMES = ("red", "green")
RAISES, KILLS = 150, 200  # tags: the detector raises; the detector takes its process along
DEADLY_AREA = 1600  # network px: a rectangle of tag KILLS kills once it looks this large
LEAST_AREA = 16  # network px: smaller rectangles are not seen
CLOCKS = ("decode_ms", "forward_ms")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Planted:
    """A rectangle x0, y0, x1, y1 px and its label."""

    box: Box
    label: int


# One rectangle for each of the three scales: sides of 100, 50 and 22 px.
LARGE, MIDDLE, SMALL = (
    Planted((64, 80, 164, 180), 0),
    Planted((400, 96, 450, 146), 1),
    Planted((320, 360, 344, 380), 0),
)
SCENE = (LARGE, MIDDLE, SMALL)


def picture(tag: int, planted: Sequence[Planted] = SCENE) -> NDArray[np.uint8]:
    """RGB [480, 640, 3] with the rectangles in red or green."""
    image = np.zeros((480, 640, 3), np.uint8)
    image[..., 2] = tag
    for one in planted:
        x0, y0, x1, y1 = one.box
        image[y0:y1, x0:x1, one.label] = 255
    return image


def save(path: Path, image: NDArray[Any] | Image.Image, **options: Any) -> None:
    """In the format of the suffix."""
    whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, **options)


class FakeDetector:
    """Finds bright rectangles exactly; appends the tag of each crop to ``log``."""

    def __init__(self, threads: int, log: str | None = None) -> None:
        assert threads >= 1
        self.log = log

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Any) -> list[Prediction]:
        return [self.predict(crop) for crop in crops]

    def predict(self, crop: NDArray[np.uint8]) -> Prediction:
        tag = int(np.bincount(crop[..., 2].ravel()).argmax())
        bright = crop[..., :2].max(2) > 127
        _, _, stats, _ = cv2.connectedComponentsWithStats(bright.astype(np.uint8))
        found = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= LEAST_AREA]
        if tag == RAISES:
            raise RuntimeError("planted failure")
        if tag == KILLS and (found[:, cv2.CC_STAT_AREA] >= DEADLY_AREA).any():
            os._exit(1)
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{tag}\n")
        x0, y0, width, height = found[:, :4].T
        boxes = np.stack([x0, y0, x0 + width, y0 + height], 1).astype(np.float32)
        middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).astype(int)
        labels = (crop[middle[:, 1], middle[:, 0], 1] > 127).astype(np.int32)
        scores = (0.9 - 0.001 * boxes[:, 0] % 0.1).astype(np.float32)
        return Prediction(boxes, scores, labels, focus_map(bright))


def focus_map(bright: NDArray[np.bool_]) -> NDArray[np.float32]:
    """1 where a cell holds a bright pixel."""
    height, width = bright.shape
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    padded = np.zeros((rows * STRIDE, columns * STRIDE), bool)
    padded[:height, :width] = bright
    return padded.reshape(rows, STRIDE, columns, STRIDE).any((1, 3)).astype(np.float32)


def source(log: Path | None = None) -> DetectorSource:
    """The fake detector for `af_pipeline.indexing.index.index`."""
    options = {"log": str(log) if log else None}
    return DetectorSource(FakeDetector, options, CLASS_NAMES, "fake-detector-0001")


def index_config(images: Path, out: Path, **changes: Any) -> IndexConfig:
    """Three scales; ``changes`` replace whole sections."""
    tree: dict[str, Any] = {
        "source": {"uri": str(images)},
        "output": {"uri": str(out)},
        "device": "cpu",
        "pyramid": [
            {"factor": 0.5, "valid_range": [72, -1]},
            {"factor": 1.0, "valid_range": [34, 72]},
            {"factor": 2.0, "valid_range": [-1, 34]},
        ],
        "focus": {"steps": [{"min_size": 64}, {"min_size": 64}]},
        "lanes": {"sides": [128, 256, 512], "overlap": 128},
        "stack": {"min_score": 0.2},
        "ray": {"rows_per_block": 2},
    }
    return IndexConfig.model_validate(tree | changes)


def cascade_row(config: IndexConfig, path: Path) -> ImageRow:
    """One image through the cascade in this process."""
    plan, row = build_plan(config), ImageRow(path.name, str(path))
    assert plan.lanes == make_lanes(config.lanes.sides)
    run_cascade(row, decode_image(path.read_bytes()), plan, FakeDetector(1))
    return row


def table(out: Path, name: str) -> pa.Table:
    """All parts of one of a run's tables."""
    return pa.concat_tables([pq.read_table(p) for p in sorted((out / name).glob("*.parquet"))])


def by_image(out: Path, name: str, without: Sequence[str] = ()) -> dict[str, list[Any]]:
    """image_id -> its records, in a fixed order, without columns that differ between runs."""
    found: dict[str, list[Any]] = {}
    for record in table(out, name).to_pylist():
        kept = {k: v for k, v in record.items() if k not in without}
        found.setdefault(record["image_id"], []).append(kept)
    return {key: sorted(found[key], key=str) for key in sorted(found)}


def boxes_of(out: Path) -> dict[str, list[tuple[str, NDArray[np.float64]]]]:
    """image_id -> (label, box) of its detections, in the order of label and position."""
    found: dict[str, list[tuple[str, NDArray[np.float64]]]] = {}
    for r in table(out, "detections").to_pylist():
        box = np.array([r["x0"], r["y0"], r["x1"], r["y1"]])
        found.setdefault(r["image_id"], []).append((r["label"], box))
    return {key: sorted(found[key], key=lambda o: (o[0], *o[1])) for key in found}


TINY = {"backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head_depth": 0}


def write_tiny_checkpoint(path: Path) -> None:
    """A detector of random weights, the same each time."""
    import torch

    from af_pipeline.models.checkpoint import build_detector, save_checkpoint
    from af_pipeline.models.info import CheckpointInfo

    torch.manual_seed(0)
    state = build_detector(TINY, len(CLASS_NAMES)).state_dict()
    save_checkpoint(path, state, CheckpointInfo(TINY, CLASS_NAMES, {}))

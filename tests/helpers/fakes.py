"""Dark images with planted bright rectangles, and a predictor that finds just these."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.cascade import Prediction, run_block
from af_pipeline.core.focus import STRIDE, ChipRule
from af_pipeline.core.lanes import Lane, make_lanes
from af_pipeline.core.pixels import Pixels
from af_pipeline.core.plan import Plan
from af_pipeline.core.scales import Scale
from af_pipeline.core.schema import ImageRow
from af_pipeline.core.stacking import StackRule
from af_pipeline.settings.index import GuaranteeConfig

Image = NDArray[np.uint8]
Boxes = NDArray[np.int64]

SCALES = (
    Scale(0.5, valid_range=(72, -1)),
    Scale(1.0, valid_range=(34, 72)),
    Scale(2.0, valid_range=(-1, 34)),
)
# Sides of rectangles that one scale alone answers for.
SMALL, MIDDLE, LARGE = (10, 30), (40, 64), (80, 160)


class FakePredictor:
    """Thresholds a crop: its components are the detections, its bright cells the focus."""

    def __init__(self) -> None:
        self.found = 0
        self.batches: list[int] = []

    def __call__(self, crops: Sequence[Image], lane: Lane) -> list[Prediction]:
        assert all(c.shape[0] <= lane.height and c.shape[1] <= lane.width for c in crops)
        self.batches.append(len(crops))
        answers = [self.predict(crop) for crop in crops]
        self.found += sum(len(answer.boxes) for answer in answers)
        return answers

    def predict(self, crop: Image) -> Prediction:
        bright = (crop[..., 0] > 127).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bright)
        x0, y0, width, height = stats[1:, :4].T
        boxes = np.stack([x0, y0, x0 + width, y0 + height], 1).astype(np.float32)
        rows, columns = (-(-side // STRIDE) for side in bright.shape)
        canvas = np.zeros((rows * STRIDE, columns * STRIDE), np.uint8)
        canvas[: bright.shape[0], : bright.shape[1]] = bright
        focus = canvas.reshape(rows, STRIDE, columns, STRIDE).max((1, 3)).astype(np.float32)
        count = len(boxes)
        return Prediction(boxes, np.full(count, 0.9, np.float32), np.zeros(count, np.int32), focus)


class GradedPredictor:
    """Focus as bright as the crop, cell by cell; padding as a real detector's; finds nothing."""

    def __init__(self, plan: Plan) -> None:
        self.pad = plan.pad

    def __call__(self, crops: Sequence[Image], lane: Lane) -> list[Prediction]:
        shape = np.max([crop.shape[:2] for crop in crops], axis=0)
        rows, columns = (lane.height, lane.width) if self.pad else -(-shape // 32) * 32
        return [self.predict(crop, int(rows * columns)) for crop in crops]

    def predict(self, crop: Image, canvas: int) -> Prediction:
        height, width = crop.shape[:2]
        wide = np.pad(crop[..., 0], ((0, -height % STRIDE), (0, -width % STRIDE)), mode="edge")
        rows, columns = wide.shape[0] // STRIDE, wide.shape[1] // STRIDE
        cells = wide.reshape(rows, STRIDE, columns, STRIDE).mean((1, 3)) / 255
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
        return Prediction(*none, cells.astype(np.float32), canvas - height * width)


class TouchyPredictor(GradedPredictor):
    """A detector whose last bits hang on the shape and the size of its batch."""

    def __call__(self, crops: Sequence[Image], lane: Lane) -> list[Prediction]:
        answers = super().__call__(crops, lane)
        shape = np.max([crop.shape[:2] for crop in crops], axis=0)
        shift = float(shape @ [3, 7] + 11 * len(crops)) * 1e-4
        boxes = np.array([[8, 8, 24 + shift, 24]], np.float32)
        label = np.zeros(1, np.int32)
        return [
            replace(
                answer,
                boxes=boxes,
                scores=np.array([0.5 + shift / 100], np.float32),
                labels=label,
                focus=answer.focus + np.float32(shift / 100),
            )
            for answer in answers
        ]


def glow(rng: np.random.Generator, height: int, width: int, spots: int) -> Image:
    """Black with soft spots of any brightness: a graded focus map."""
    image = np.zeros((height, width), np.float32)
    for _ in range(spots):
        centre = int(rng.integers(width)), int(rng.integers(height))
        spot = np.zeros_like(image)
        cv2.circle(spot, centre, int(rng.integers(8, 60)), float(rng.uniform(60, 255)), -1)
        image = np.maximum(image, spot)
    return np.repeat(cv2.blur(image, (15, 15)).astype(np.uint8)[..., None], 3, 2)


def make_plan(mode: str = "autofocus", **changes: object) -> Plan:
    """Three scales of disjoint valid ranges and lanes of up to 512 px."""
    rule = ChipRule(0.5, 3, 64, "cost", 4096) if mode == "autofocus" else None
    plain: dict = {
        "scales": SCALES,
        "pyramid": SCALES,
        "rules": (rule, rule),
        "lanes": make_lanes((128, 256, 512)),
        "stack": StackRule("hard"),
        "overlap": 128,
    }
    return Plan(**(plain | changes))


def run_cascade(
    images: Sequence[Image | Pixels], plan: Plan, predictor: FakePredictor | None = None
) -> list[ImageRow]:
    """All images at once, through all scales and the stacking."""
    rows = [ImageRow(str(number), "") for number in range(len(images))]
    run_block(rows, images, plan, predictor or FakePredictor())
    return rows


def made_guarantee(settings: str) -> GuaranteeConfig:
    """A guarantee for the settings of that hash."""
    return GuaranteeConfig(
        alpha=0.1,
        delta=0.05,
        confident=0.5,
        found_score=0.25,
        iou=0.5,
        images=60,
        mean_lost=0.0123,
        p_value=0.031,
        method="wsr",
        source="photos",
        settings=settings,
    )


def paint(boxes: Boxes, height: int, width: int) -> Image:
    """White rectangles on black."""
    image = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 255
    return image


def scatter(
    rng: np.random.Generator,
    count: int,
    height: int,
    width: int,
    sides: Sequence[tuple[int, int]] = (SMALL, MIDDLE, LARGE),
) -> Boxes:
    """Up to ``count`` boxes [N, 4] anywhere in the image, 8 px apart at least."""
    placed = np.zeros((0, 4), np.int64)
    for _ in range(count):
        low, high = sides[int(rng.integers(len(sides)))]
        w, h = rng.integers(low, high + 1, 2)
        if h > height or w > width:
            continue
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        box = np.array([x, y, x + w, y + h])
        apart = (placed[:, :2] >= box[2:] + 8) | (placed[:, 2:] <= box[:2] - 8)
        if apart.any(1).all():
            placed = np.vstack([placed, box])
    return placed


def check_found(row: ImageRow, wanted: Boxes, tolerance: float) -> None:
    """Every box once, nothing else."""
    found = row.detections.boxes
    near = np.abs(found[:, None] - wanted[None]).max(-1) <= tolerance
    missed, extra = wanted[~near.any(0)], found[~near.any(1)]
    assert not len(missed), f"missed {missed.tolist()}; found {found.tolist()}"
    assert not len(extra), f"extra {extra.tolist()}"
    assert near.sum() == len(wanted)

"""Where a run looked, and how far it could come with an object of a given size and place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import clip_boxes
from af_pipeline.core.lanes import split_axis
from af_pipeline.core.plan import Plan, TileRule
from af_pipeline.core.scales import scaled_size
from af_pipeline.core.stacking import border_keep

CAUSES = ("range", "no_chip", "border", "seam", "no_detection")


@dataclass(frozen=True, eq=False)
class Looked:
    """Where a run looked.

    Attributes:
        plan: the run's scales, border rule, lanes and tiles.
        sizes: image_id -> (height, width) px of every image that was looked at.
        chips: image_id -> int [C, 5] of scale and x0, y0, x1, y1 (original px, half-open), only
            scales from 1 up: the one chip of scale 0 is the whole image.
    """

    plan: Plan
    sizes: Mapping[str, tuple[int, int]]
    chips: Mapping[str, NDArray[np.int64]]


def farthest(boxes: NDArray, image_id: str, looked: Looked) -> NDArray[np.int64]:
    """How far the run could come with each object of an image, index into `CAUSES`, int [G].

    ``boxes`` [G, 4]: x0, y0, x1, y1 original px; what lies outside the image is left out. Of all
    scales the one counts that came farthest: ``range``: no valid range holds the object's size;
    ``no_chip``: no chip of such a scale covers it whole; ``border``: chips do, but an inner edge
    of each is nearer than the border rule allows; ``seam``: a chip shows it, but cut into tiles of
    which none shows it whole; ``no_detection``: nothing was in the way.
    """
    plan = looked.plan
    height, width = looked.sizes[image_id]
    boxes = clip_boxes(np.asarray(boxes, np.float64), (0, 0, width, height))
    own = looked.chips.get(image_id, np.zeros((0, 5), np.int64))
    reached = np.zeros(len(boxes), np.int64)
    for number, scale in enumerate(plan.scales):
        valid = scale.valid(boxes)
        chips = own[own[:, 0] == number, 1:] if number else np.array([[0, 0, width, height]])
        steps = _in_chips(boxes, chips, number, (height, width), plan)
        # Each of these implies the one before, and being valid comes first.
        reached = np.maximum(reached, np.where(valid, 1 + steps, 0))
    return reached


def _in_chips(
    boxes: NDArray, chips: NDArray, number: int, size: tuple[int, int], plan: Plan
) -> NDArray[np.int64]:
    """How far chips [C, 4] of scale ``number`` come with each box [G, 4] -> int [G].

    0: none covers it whole; 1: one does; 2: the border rule keeps it too; 3: a tile shows it whole.
    """
    height, width = size
    factor = plan.scales[number].factor_for(height, width)
    tiles = plan.tiling(number, factor)
    far = np.zeros(len(boxes), np.int64)
    for x0, y0, x1, y1 in chips.tolist():
        whole = (boxes[:, :2] >= [x0, y0]).all(1) & (boxes[:, 2:] <= [x1, y1]).all(1)
        local = (boxes - [x0, y0, x0, y0]) * factor  # network px of the chip
        inner = (x0 > 0, y0 > 0, x1 < width, y1 < height)
        network = scaled_size(y1 - y0, x1 - x0, factor)
        kept = whole & border_keep(local, network, inner, plan.stack.border)
        tiled = kept.copy()
        for axis, length in ((0, network[1]), (1, network[0])):
            tiled &= _in_a_tile(local[:, [axis, axis + 2]], length, tiles, plan.stack.border)
        far = np.maximum(far, whole.astype(np.int64) + kept + tiled)
    return far


def _in_a_tile(spans: NDArray, length: int, tiles: TileRule, border: float) -> NDArray[np.bool_]:
    """Whether some tile shows each span [G, 2] of an axis of ``length`` px, clear of its seams."""
    held = np.zeros(len(spans), bool)
    for start, end in split_axis(length, tiles.side, tiles.overlap):
        low = spans[:, 0] >= start + border if start > 0 else np.True_
        high = spans[:, 1] <= end - border if end < length else np.True_
        held |= low & high
    return held

"""Where a run looked, and how far it could come with an object of a given size and place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.boxes import clip_boxes
from af_pipeline.scales import Scale
from af_pipeline.stacking import border_keep

CAUSES = ("range", "no_chip", "border", "no_detection")


@dataclass(frozen=True, eq=False)
class Looked:
    """Where a run looked.

    Attributes:
        scales: those of the run, coarse to fine.
        border: a box nearer than this to an inner chip edge was dropped, network px.
        sizes: image_id -> (height, width) px of every image that was looked at.
        chips: image_id -> int [C, 5] of scale and x0, y0, x1, y1 (original px, half-open), only
            scales from 1 up: the one chip of scale 0 is the whole image.
    """

    scales: tuple[Scale, ...]
    border: float
    sizes: Mapping[str, tuple[int, int]]
    chips: Mapping[str, NDArray[np.int64]]


def farthest(boxes: NDArray, image_id: str, looked: Looked) -> NDArray[np.int64]:
    """How far the run could come with each object of an image, index into `CAUSES`, int [G].

    ``boxes`` [G, 4]: x0, y0, x1, y1 original px; what lies outside the image is left out. Of all
    scales the one counts that came farthest: ``range``: no valid range holds the object's size;
    ``no_chip``: no chip of such a scale covers it whole; ``border``: chips do, but an inner edge
    of each is nearer than ``looked.border``; ``no_detection``: nothing was in the way.
    Edges between the tiles that a large chip runs as are no chip edges: the tiles overlap.
    """
    height, width = looked.sizes[image_id]
    boxes = clip_boxes(np.asarray(boxes, np.float64), (0, 0, width, height))
    own = looked.chips.get(image_id, np.zeros((0, 5), np.int64))
    reached = np.zeros(len(boxes), np.int64)
    for number, scale in enumerate(looked.scales):
        valid = scale.valid(boxes)
        chips = own[own[:, 0] == number, 1:] if number else np.array([[0, 0, width, height]])
        factor = scale.factor_for(height, width)
        covered, kept = _in_chips(boxes, chips, factor, (height, width), looked.border)
        # kept in one chip implies covered by it, and covered comes after being valid
        reached = np.maximum(reached, np.where(valid, 1 + covered + kept, 0))
    return reached


def _in_chips(
    boxes: NDArray, chips: NDArray, factor: float, size: tuple[int, int], border: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which boxes [G, 4] some chip [C, 4] covers whole, and which the border rule keeps too."""
    height, width = size
    covered, kept = np.zeros(len(boxes), np.bool_), np.zeros(len(boxes), np.bool_)
    for x0, y0, x1, y1 in chips.tolist():
        whole = (boxes[:, :2] >= [x0, y0]).all(1) & (boxes[:, 2:] <= [x1, y1]).all(1)
        local = (boxes - [x0, y0, x0, y0]) * factor  # network px of the chip
        inner = (x0 > 0, y0 > 0, x1 < width, y1 < height)
        network = (round((y1 - y0) * factor), round((x1 - x0) * factor))
        covered |= whole
        kept |= whole & border_keep(local, network, inner, border)
    return covered.astype(np.int64), kept.astype(np.int64)

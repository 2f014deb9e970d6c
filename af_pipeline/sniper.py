"""SNIPER training chips sampled online: which window of which image at which scale.

Stateless: everything follows from the generator passed in, so a sample is the same whichever
worker draws it. Source: Singh, Najibi, Davis, "SNIPER", NeurIPS 2018, §3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.boxes import box_side, visible_share
from af_pipeline.scales import Scale


@dataclass(frozen=True)
class ChipWindow:
    """A training chip: ``size`` x ``size`` network px at ``factor`` network px per original px.

    x0, y0: its corner in original px, integer; may lie outside the image (padding).
    """

    scale: int
    factor: float
    x0: int
    y0: int
    size: int

    @property
    def span(self) -> int:
        """Side of the window in original px."""
        return max(1, round(self.size / self.factor))


@dataclass(frozen=True)
class ChipBoxes:
    """Boxes of a chip in chip px. boxes [N, 4] clipped to the chip, unclipped [N, 4] as scaled;
    labels [N]; valid [N]: to be learned; ignored [N]: give no loss (out of the valid range, too
    small, cut, or crowd); crowd [N]. Every box that meets the chip is valid or ignored.
    """

    boxes: NDArray[np.float32]
    unclipped: NDArray[np.float32]
    labels: NDArray[np.int32]
    valid: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class WindowRule:
    """How windows are drawn: ``size`` network px; ``jitter`` bounds of the scale change.

    ``negative_share`` of them fall anywhere; ``focus_share`` hold a box of any size at any
    scale, since FocusPixels are the objects that a scale does *not* answer for; the rest hold a
    box in the valid range of their scale.
    """

    size: int
    jitter: tuple[float, float] = (1.0, 1.0)
    negative_share: float = 0.0
    focus_share: float = 0.0


def eligible_boxes(
    boxes: NDArray, crowd: NDArray, scale: Scale, change: float = 1.0
) -> NDArray[np.int64]:
    """Indices of the boxes [N, 4] (original px) valid at ``scale`` when resized by ``change``."""
    return np.flatnonzero(scale.valid(boxes * change) & ~crowd)


def sample_window(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    boxes: NDArray,
    crowd: NDArray,
    weights: NDArray,
    scales: tuple[Scale, ...],
    rule: WindowRule,
) -> ChipWindow:
    """Draw one chip of an image ``(height, width)``.

    The box a window is drawn around comes up by ``weights`` [N] among those it may be, and lies
    anywhere in it. A window falls anywhere where no box may be drawn.
    """
    height, width = image_size
    low, high = np.log(rule.jitter)
    change = float(np.exp(rng.uniform(low, high)))
    kind = rng.random()
    if kind < rule.negative_share:
        usable = {i: np.zeros(0, np.int64) for i in range(len(scales))}
    elif kind < rule.negative_share + rule.focus_share:
        usable = {i: np.flatnonzero(~crowd) for i in range(len(scales))}
    else:
        found = {i: eligible_boxes(boxes, crowd, s, change) for i, s in enumerate(scales)}
        usable = {i: members for i, members in found.items() if len(members)}
    index = int(rng.choice(list(usable) or len(scales)))
    members = usable.get(index, np.zeros(0, np.int64))
    if len(members):
        share = weights[members] / weights[members].sum()
        anchor = boxes[members[int(rng.choice(len(members), p=share))]]
    else:
        anchor = np.array([rng.uniform(0, width), rng.uniform(0, height)] * 2)
    factor = scales[index].factor_for(height, width) * change
    span = max(1, round(rule.size / factor))
    x0 = _place(rng, anchor[0], anchor[2], span, width)
    y0 = _place(rng, anchor[1], anchor[3], span, height)
    return ChipWindow(index, factor, x0, y0, rule.size)


def _place(rng: np.random.Generator, low: float, high: float, span: int, limit: int) -> int:
    """Start of a window of ``span`` px that holds [low, high) and, where it can, the image."""
    first, last = np.ceil(high) - span, np.floor(low)
    if first > last:  # the box is larger than the window: centre it
        return round((low + high - span) / 2)
    if span <= limit:
        first, last = max(first, 0), min(last, limit - span)
    else:
        first, last = limit - span, 0
    return int(rng.integers(int(first), int(last) + 1)) if first < last else int(last)


def boxes_in_window(
    window: ChipWindow,
    boxes: NDArray,
    labels: NDArray,
    crowd: NDArray,
    scale: Scale,
    nominal_factor: float,
    min_visible: float = 0.5,
    min_side: float = 10.0,
) -> ChipBoxes:
    """Boxes (original px) of an image as a training chip sees them.

    Valid: not crowd, at least ``min_visible`` of the area inside the chip, clipped side at least
    ``min_side`` chip px, and the size in chip px inside the scale's valid range at its nominal
    factor (both bounds, unlike the official code's RPN assignment).
    """
    factor = np.float32(window.size / window.span)
    shift = np.array([window.x0, window.y0] * 2, np.float32)
    scaled = (boxes.astype(np.float32) - shift) * factor
    bounds = (0.0, 0.0, float(window.size), float(window.size))
    share = visible_share(scaled, bounds)
    meets = share > 0
    scaled, share, crowd_in = scaled[meets], share[meets], crowd[meets]
    clipped = np.clip(scaled, 0, window.size).astype(np.float32)
    low, high = scale.valid_range_px(nominal_factor)
    side = box_side(scaled)
    valid = (share >= min_visible) & (box_side(clipped) >= min_side) & ~crowd_in
    valid &= (side > low) & (side <= high)
    return ChipBoxes(clipped, scaled, labels[meets].astype(np.int32), valid, ~valid, crowd_in)

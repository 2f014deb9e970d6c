"""The image pyramid: one scale factor an image and scale, SNIP valid ranges.

Scales are listed coarse to fine, the order of the AutoFocus cascade. Valid ranges compare the
square root of a box's area in original image px.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.boxes import box_side


@dataclass(frozen=True)
class Scale:
    """One level of the pyramid.

    Either ``factor`` (network px per original px) or ``min_side`` and ``max_side`` (the paper's
    resolution rule, SNIPER §3.1; -1 leaves a bound out). ``valid_low`` < side <= ``valid_high``
    in original px; -1 leaves a bound out.
    """

    factor: float | None = None
    min_side: int = -1
    max_side: int = -1
    valid_low: float = -1.0
    valid_high: float = -1.0

    def factor_for(self, height: int, width: int) -> float:
        """Resize factor of an image of ``height`` x ``width`` original px."""
        if self.factor is not None:
            return self.factor
        longest, shortest = max(height, width), min(height, width)
        if self.min_side < 0:
            return self.max_side / longest
        factor = self.min_side / shortest
        if self.max_side > 0 and round(factor * longest) > self.max_side:
            return self.max_side / longest
        return factor

    def valid(self, boxes: NDArray) -> NDArray[np.bool_]:
        """Which boxes [N, 4] (original px) belong to this scale -> bool [N]."""
        side = box_side(boxes)
        keep = np.ones(len(boxes), bool)
        if self.valid_low > 0:
            keep &= side > self.valid_low
        if self.valid_high > 0:
            keep &= side <= self.valid_high
        return keep

    def valid_range_px(self, factor: float) -> tuple[float, float]:
        """The valid range in network px at ``factor``: (low, high), high may be inf."""
        low = self.valid_low * factor if self.valid_low > 0 else 0.0
        high = self.valid_high * factor if self.valid_high > 0 else float("inf")
        return low, high


def scaled_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Network size (height, width) of ``height`` x ``width`` original px, at least 1 x 1."""
    return max(1, round(height * factor)), max(1, round(width * factor))


def pyramid_pixels(height: int, width: int, scales: tuple[Scale, ...]) -> int:
    """Network pixels of the full pyramid of one image: every scale whole, without padding."""
    total = 0
    for scale in scales:
        rows, columns = scaled_size(height, width, scale.factor_for(height, width))
        total += rows * columns
    return total

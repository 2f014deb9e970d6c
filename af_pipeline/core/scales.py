"""The image pyramid: one scale factor an image and scale, SNIP valid ranges.

Scales are listed coarse to fine, the order of the AutoFocus cascade. Valid ranges compare the
square root of a box's area in original image px.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from af_pipeline.config import Side, rule
from af_pipeline.core.boxes import box_side

OPEN = (-1.0, -1.0)  # a valid range that holds every size


@rule
class Scale:
    """One level of the pyramid: ``factor``, or the paper's resolution rule (SNIPER §3.1).

    An object belongs to it whose side (square root of its box's area) lies in ``valid_range``,
    low < side <= high.
    """

    factor: float | None = Field(
        default=None,
        ge=0.001,
        le=16,
        description="network px per original px; enlarged by more, it blurs",
    )
    min_side: Side = Field(
        default=-1, description="paper's rule: shorter side, network px; -1: none"
    )
    max_side: Side = Field(
        default=-1, description="paper's rule: cap of the longer side, network px"
    )
    valid_range: tuple[float, float] = Field(
        default=OPEN,
        description="sqrt(area) of objects this scale answers for, original px; -1: open",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Scale:
        for name, side in (("min_side", self.min_side), ("max_side", self.max_side)):
            if side < 1 and side != -1:
                raise ValueError(f"{name} must be 1 px or more, or -1 for none; found {side}")
        if self.factor is None and self.min_side < 0 and self.max_side < 0:
            raise ValueError("give factor, or min_side and max_side")
        if self.factor is not None and (self.min_side > 0 or self.max_side > 0):
            raise ValueError("give factor or min_side/max_side, not both")
        return self

    @model_validator(mode="after")
    def _range(self) -> Scale:
        low, high = self.valid_range
        if (low < 0 and low != -1) or (high <= 0 and high != -1):
            raise ValueError(f"valid_range takes px, or -1 for open; found {low:g} to {high:g}")
        if high > 0 and low >= high:
            raise ValueError(f"valid_range must rise; found {low:g} to {high:g}")
        return self

    @property
    def valid_low(self) -> float:
        """Sides up to here are too small, original px; -1: none is."""
        return self.valid_range[0]

    @property
    def valid_high(self) -> float:
        """Sides above are too large, original px; -1: none is."""
        return self.valid_range[1]

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


def check_pyramid(scales: Sequence[Scale]) -> None:
    """Raise ValueError unless there are scales, coarse to fine as far as they compare."""
    if not scales:
        raise ValueError("pyramid needs at least one scale")
    for number, (coarse, fine) in enumerate(pairwise(scales)):
        for name in ("factor", "min_side", "max_side"):
            low, high = getattr(coarse, name) or -1, getattr(fine, name) or -1
            if low > 0 and high > 0 and low >= high:
                raise ValueError(
                    f"pyramid goes coarse to fine: {name} must rise, but scale {number} has "
                    f"{low:g} and scale {number + 1} has {high:g}"
                )

"""The image pyramid: one scale factor an image and scale, SNIP valid ranges.

Scales are listed coarse to fine, the order of the AutoFocus cascade. Valid ranges compare the
square root of a box's area in original image px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from af_pipeline.config import Section, Side
from af_pipeline.core.boxes import box_side


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


class ScaleConfig(Section):
    """One pyramid level, coarse to fine: either ``factor`` or a resolution rule."""

    factor: float | None = Field(
        None, ge=0.001, le=16, description="network px per original px; enlarged by more, it blurs"
    )
    min_side: Side = Field(-1, description="paper's rule: shorter side, network px; -1: none")
    max_side: Side = Field(-1, description="paper's rule: cap of the longer side, network px")
    valid_range: tuple[float, float] = Field(
        (-1, -1), description="sqrt(area) of objects this scale answers for, original px; -1: open"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> ScaleConfig:
        for name, side in (("min_side", self.min_side), ("max_side", self.max_side)):
            if side < 1 and side != -1:
                raise ValueError(f"{name} must be 1 px or more, or -1 for none; found {side}")
        if self.factor is None and self.min_side < 0 and self.max_side < 0:
            raise ValueError("give factor, or min_side and max_side")
        if self.factor is not None and (self.min_side > 0 or self.max_side > 0):
            raise ValueError("give factor or min_side/max_side, not both")
        return self

    @model_validator(mode="after")
    def _range(self) -> ScaleConfig:
        low, high = self.valid_range
        if (low < 0 and low != -1) or (high <= 0 and high != -1):
            raise ValueError(f"valid_range takes px, or -1 for open; found {low:g} to {high:g}")
        if high > 0 and low >= high:
            raise ValueError(f"valid_range must rise; found {low:g} to {high:g}")
        return self

    def build(self) -> Scale:
        """The plain `Scale`."""
        low, high = self.valid_range
        return Scale(self.factor, self.min_side, self.max_side, low, high)


def check_pyramid(scales: Sequence[ScaleConfig]) -> None:
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

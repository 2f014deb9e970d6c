"""The cascade's plan, and how the index config becomes one.

The modes differ only in where chips come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field, model_validator

from af_pipeline.config import Section, Side
from af_pipeline.core.budget import BudgetRule
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.lanes import TILE_STEP, Lane, largest_side
from af_pipeline.core.scales import Scale
from af_pipeline.core.stacking import StackRule


@dataclass(frozen=True)
class TileRule:
    """Tiles of at most ``side`` network px that overlap by at least ``overlap`` px."""

    side: int
    overlap: int


@dataclass(frozen=True)
class Plan:
    """Everything the cascade needs to know.

    ``scales`` coarse to fine, as many as are run; ``pyramid`` all scales of the full pyramid,
    for the account; ``rules[i]`` makes the chips of scale i+1 out of the focus map of scale i,
    None: every chip goes on whole (modes pyramid and tiles). ``windows``: the tiles of the finest
    scale (mode tiles), None: see `tiling`. ``overlap`` in network px. ``pad``: crops
    are padded to their lane and batched across images; else batches hold crops of one shape and
    image. ``fill``: chips grow to their lane's shape. ``budget``: None: every candidate becomes a
    chip.
    """

    scales: tuple[Scale, ...]
    pyramid: tuple[Scale, ...]
    rules: tuple[ChipRule | None, ...]
    lanes: tuple[Lane, ...]
    stack: StackRule
    windows: TileRule | None = None
    overlap: int = 128
    batch_pixels: int = 1
    pad: bool = False
    fill: bool = False
    budget: BudgetRule | None = None

    @property
    def canvases(self) -> tuple[Lane, ...] | None:
        """The shapes that chips take at network input, None: any."""
        return self.lanes if self.pad or self.fill else None

    def tiling(self, scale: int, factor: float) -> TileRule:
        """How chips of ``scale`` that are too large for one forward are cut into tiles.

        ``factor``: network px per original px. Tiles overlap by the largest object that the scale
        answers for, as far as half of a tile allows, so that one of them sees it whole.
        """
        side = largest_side(self.lanes)
        if self.windows is not None and scale == len(self.scales) - 1:
            side = min(side, self.windows.side)
            return TileRule(side, min(self.windows.overlap, side - 3 * TILE_STEP))
        object_side = max(0.0, self.scales[scale].valid_high) * factor + 2 * self.stack.border
        wanted = -(-int(np.ceil(object_side)) // TILE_STEP) * TILE_STEP
        most = min(side // 2, side - 3 * TILE_STEP) // TILE_STEP * TILE_STEP
        return TileRule(side, max(self.overlap, min(wanted, most)))


def unfocused(plan: Plan) -> Plan:
    """The plan without focus and budget: every scale whole, as in mode pyramid."""
    return replace(plan, rules=(None,) * (len(plan.scales) - 1), budget=None)


def with_gain_floor(plan: Plan, least_gain: float) -> Plan:
    """The plan, leaving out chips of less gain per megapixel."""
    assert plan.budget is not None
    return replace(plan, budget=replace(plan.budget, least_gain=least_gain))


class TilesConfig(Section):
    """Mode tiles: fixed windows of one scale beside the whole image at the coarsest."""

    scale: int = Field(-1, description="pyramid entry that the windows are seen at; -1: finest")
    side: Side = Field(640, ge=64, description="side of a window, network px, multiple of 32")
    overlap: int = Field(128, ge=32, description="least overlap of neighbours, network px")

    @model_validator(mode="after")
    def _fits(self) -> TilesConfig:
        if self.side % 32:
            raise ValueError(f"side must be a multiple of 32, found {self.side}")
        if self.side - self.overlap < 3 * TILE_STEP:
            raise ValueError(f"side must exceed overlap by {3 * TILE_STEP} px or more")
        return self

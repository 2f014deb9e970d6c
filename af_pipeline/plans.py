"""The cascade's plan, and how the index config becomes one.

The modes differ only in where chips come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from af_pipeline.budget import BudgetRule
from af_pipeline.focus import ChipRule
from af_pipeline.lanes import TILE_STEP, Lane, largest_side, make_lanes
from af_pipeline.scales import Scale
from af_pipeline.settings import IndexConfig, StackConfig
from af_pipeline.stacking import StackRule


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
    scale (mode tiles), None: see `tiling`. ``border`` and ``overlap`` in network px. ``pad``: crops
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
    border: float = 4.0
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
        object_side = max(0.0, self.scales[scale].valid_high) * factor + 2 * self.border
        wanted = -(-int(np.ceil(object_side)) // TILE_STEP) * TILE_STEP
        most = min(side // 2, side - 3 * TILE_STEP) // TILE_STEP * TILE_STEP
        return TileRule(side, max(self.overlap, min(wanted, most)))


def build_plan(config: IndexConfig) -> Plan:
    """The plan of ``config.mode``.

    autofocus: FocusChips from the focus maps; pyramid: every scale whole; tiles: the coarsest
    scale whole and one finer scale in tiles of a fixed size; whole: the coarsest scale alone.
    In the last two scales are missing, so those run answer for objects of every size.
    """
    pyramid = tuple(scale.build() for scale in config.pyramid)
    scales = pyramid
    rules: tuple[ChipRule | None, ...] = (None,) * (len(scales) - 1)
    windows = None
    if config.mode == "autofocus":
        rules = tuple(step.build() for step in config.focus.steps)
    elif config.mode == "tiles":
        scales, rules = (pyramid[0], pyramid[config.tiles.scale]), (None,)
        windows = TileRule(config.tiles.side, config.tiles.overlap)
    elif config.mode == "whole":
        scales, rules = pyramid[:1], ()
    if config.mode in ("tiles", "whole") or not config.stack.valid_ranges:
        scales = tuple(replace(scale, valid_low=-1.0, valid_high=-1.0) for scale in scales)
    return Plan(
        scales=scales,
        pyramid=pyramid,
        rules=rules,
        lanes=make_lanes(config.lanes.sides),
        stack=_stack_rule(config.stack),
        windows=windows,
        overlap=config.lanes.overlap,
        border=config.stack.border,
        batch_pixels=config.lanes.batch_pixels,
        pad=config.lanes.pad,
        fill=config.lanes.fill,
        budget=_budget_rule(config),
    )


def unfocused(plan: Plan) -> Plan:
    """The plan without focus and budget: every scale whole, as in mode pyramid."""
    return replace(plan, rules=(None,) * (len(plan.scales) - 1), budget=None)


def _budget_rule(config: IndexConfig) -> BudgetRule | None:
    """The budget of one image; that of a run becomes one by a sample: `with_gain_floor`."""
    if config.mode != "autofocus" or config.focus.budget is None:
        return None
    return BudgetRule(config.focus.budget if config.focus.budget_per == "image" else None)


def with_gain_floor(plan: Plan, least_gain: float) -> Plan:
    """The plan, leaving out chips of less gain per megapixel."""
    assert plan.budget is not None
    return replace(plan, budget=replace(plan.budget, least_gain=least_gain))


def _stack_rule(stack: StackConfig) -> StackRule:
    return StackRule(
        stack.method,
        stack.sigma,
        stack.iou,
        stack.min_score,
        stack.max_detections,
        stack.class_agnostic,
    )

"""The cascade's plan, and how the index config becomes one.

The modes differ only in where chips come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from af_pipeline.budget import BudgetRule
from af_pipeline.focus import ChipRule
from af_pipeline.lanes import Lane, largest_side, make_lanes
from af_pipeline.scales import Scale
from af_pipeline.settings import IndexConfig, StackConfig
from af_pipeline.stacking import StackRule


@dataclass(frozen=True)
class GridRule:
    """Fixed windows of ``side`` network px of the next scale, overlapping by ``overlap`` px."""

    side: int
    overlap: int


@dataclass(frozen=True)
class Plan:
    """Everything the cascade needs to know.

    ``scales`` coarse to fine, as many as are run; ``pyramid`` all scales of the full pyramid,
    for the account; ``rules[i]`` makes the chips of scale i+1: out of the focus map of scale i, a
    fixed grid (mode tiles), or None: every chip goes on whole (mode pyramid). ``border`` and
    ``overlap`` in network px. ``pad``: crops are padded to their lane and batched across images;
    else batches hold crops of one shape and image. ``fill``: chips grow to their lane's shape.
    ``budget``: None: every candidate becomes a chip.
    """

    scales: tuple[Scale, ...]
    pyramid: tuple[Scale, ...]
    rules: tuple[ChipRule | GridRule | None, ...]
    lanes: tuple[Lane, ...]
    stack: StackRule
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

    @property
    def tiles(self) -> tuple[int, int]:
        """Largest side and overlap, network px, of the tiles of what no lane holds."""
        return largest_side(self.lanes), self.overlap


def build_plan(config: IndexConfig) -> Plan:
    """The plan of ``config.mode``.

    autofocus: FocusChips from the focus maps; pyramid: every scale whole; tiles: the coarsest
    scale whole and one finer scale in a fixed grid of windows; whole: the coarsest scale alone.
    In the last two scales are missing, so those run answer for objects of every size.
    """
    pyramid = tuple(scale.build() for scale in config.pyramid)
    scales = pyramid
    rules: tuple[ChipRule | GridRule | None, ...] = (None,) * (len(scales) - 1)
    if config.mode == "autofocus":
        rules = tuple(step.build() for step in config.focus.steps)
    elif config.mode == "tiles":
        scales = (pyramid[0], pyramid[config.tiles.scale])
        rules = (GridRule(config.tiles.side, config.tiles.overlap),)
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

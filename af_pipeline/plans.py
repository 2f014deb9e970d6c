"""From the index config to the cascade's plan: the modes differ only in where chips come from."""

from __future__ import annotations

from dataclasses import replace

from af_pipeline.cascade import GridRule, Plan
from af_pipeline.focus import ChipRule
from af_pipeline.lanes import make_lanes
from af_pipeline.settings import IndexConfig, StackConfig
from af_pipeline.stacking import StackRule


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
        rules = tuple(step.build() for step in config.focus)
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
    )


def _stack_rule(stack: StackConfig) -> StackRule:
    return StackRule(
        stack.method,
        stack.sigma,
        stack.iou,
        stack.min_score,
        stack.max_detections,
        stack.class_agnostic,
    )

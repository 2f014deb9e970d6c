"""From the index config to the cascade's plan: the modes differ only in where chips come from."""

from __future__ import annotations

from dataclasses import replace

from af_pipeline.cascade import Plan
from af_pipeline.lanes import make_lanes
from af_pipeline.settings import IndexConfig, StackConfig
from af_pipeline.stacking import StackRule


def build_plan(config: IndexConfig) -> Plan:
    """The plan of ``config.mode``.

    autofocus: FocusChips from the focus maps; pyramid: every scale whole; whole: the coarsest
    scale alone, which then answers for objects of every size.
    """
    pyramid = tuple(scale.build() for scale in config.pyramid)
    scales = pyramid
    if config.mode == "whole":
        scales = pyramid[:1]
    if config.mode == "whole" or not config.stack.valid_ranges:
        scales = tuple(replace(scale, valid_low=-1.0, valid_high=-1.0) for scale in scales)
    steps = len(scales) - 1
    rules = tuple(
        config.focus[i].build() if config.mode == "autofocus" else None for i in range(steps)
    )
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

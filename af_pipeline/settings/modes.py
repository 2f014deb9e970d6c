"""From the settings of an index job to the plan of its cascade."""

from __future__ import annotations

from dataclasses import replace

from af_pipeline.config import ConfigError
from af_pipeline.core.budget import BudgetRule
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.lanes import TILE_STEP, LaneConfig, make_lanes
from af_pipeline.core.plan import Plan, TileRule
from af_pipeline.core.scales import OPEN
from af_pipeline.settings.index import IndexConfig


def build_plan(config: IndexConfig) -> Plan:
    """The plan of ``config.mode``.

    autofocus: FocusChips from the focus maps; pyramid: every scale whole; tiles: the coarsest
    scale whole and one finer scale in tiles of a fixed size; whole: the coarsest scale alone.
    In the last two scales are missing, so those run answer for objects of every size.
    """
    pyramid = scales = config.pyramid
    rules: tuple[ChipRule | None, ...] = (None,) * (len(scales) - 1)
    windows = None
    if config.mode == "autofocus":
        rules = config.focus.steps
    elif config.mode == "tiles":
        scales, rules = (pyramid[0], pyramid[config.tiles.scale]), (None,)
        windows = TileRule(config.tiles.side, config.tiles.overlap)
    elif config.mode == "whole":
        scales, rules = pyramid[:1], ()
    if config.mode in ("tiles", "whole") or not config.stack.valid_ranges:
        scales = tuple(replace(scale, valid_range=OPEN) for scale in scales)
    return Plan(
        scales=scales,
        pyramid=pyramid,
        rules=rules,
        lanes=make_lanes(config.lanes.sides),
        stack=config.stack,
        windows=windows,
        overlap=config.lanes.overlap,
        batch_pixels=config.lanes.batch_pixels,
        pad=config.lanes.pad,
        fill=config.lanes.fill,
        budget=_budget_rule(config),
    )


def fit_lanes(config: IndexConfig, shape: tuple[int, int] | None) -> IndexConfig:
    """The config for a detector that takes only inputs of ``shape`` (height, width); None: any.

    Sides of lanes left at their default become the one that fits; an oblong input is used by its
    shorter side. Raises ConfigError for others that do not fit, and for an input that is too small
    for tiles.
    """
    if shape is None:
        return config
    side = min(shape) // TILE_STEP * TILE_STEP
    if config.lanes.sides == LaneConfig().sides:
        most = side - 3 * TILE_STEP  # what tiles leave of a side
        if most < 0:
            raise ConfigError(
                f"the detector takes inputs of {shape[0]}x{shape[1]} px only: sides of "
                f"{3 * TILE_STEP} at least are needed, export it with a larger input"
            )
        overlap = min(config.lanes.overlap, side // 4, most)
        fitted = {"sides": (side,), "overlap": overlap, "pad": True, "fill": True}
        lanes = config.lanes.model_copy(update=fitted)
        return config.model_copy(update={"lanes": lanes})
    if config.lanes.sides[-1] > side:
        raise ConfigError(
            f"the detector takes inputs of {shape[0]}x{shape[1]} px only, and lanes.sides go to "
            f"{config.lanes.sides[-1]}: leave lanes.sides out of the config, or end them at {side}"
        )
    return config


def _budget_rule(config: IndexConfig) -> BudgetRule | None:
    """The budget of one image; that of a run becomes one by a sample: `with_gain_floor`."""
    if config.mode != "autofocus" or config.focus.budget is None:
        return None
    return BudgetRule(config.focus.budget if config.focus.budget_per == "image" else None)

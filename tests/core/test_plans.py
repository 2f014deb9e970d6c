"""Plans: the modes differ only in the scales that run and in where chips come from."""

from dataclasses import replace
from typing import Any

import pytest

from af_pipeline.core.budget import BudgetRule
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.lanes import make_lanes
from af_pipeline.core.plan import TileRule, unfocused, with_gain_floor
from af_pipeline.core.scales import Scale
from af_pipeline.core.stacking import StackRule
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan

PYRAMID = (
    Scale(0.5, valid_range=(72, -1)),
    Scale(1.0, valid_range=(34, 90)),
    Scale(2.0, valid_range=(-1, 46)),
)


def config(**changes: Any) -> IndexConfig:
    tree: dict[str, Any] = {
        "pyramid": [
            {"factor": 0.5, "valid_range": [72, -1]},
            {"factor": 1.0, "valid_range": [34, 90]},
            {"factor": 2.0, "valid_range": [-1, 46]},
        ],
        "focus": {"steps": [{"threshold": 0.3, "merge": "paper"}, {"min_size": 64}]},
        "lanes": {"sides": [256, 512], "overlap": 96, "batch_pixels": 7},
    }
    return IndexConfig.model_validate(tree | changes)


def test_autofocus_takes_chips_from_the_focus_maps() -> None:
    plan = build_plan(config())
    assert plan.scales == plan.pyramid == PYRAMID
    assert plan.rules == (
        ChipRule(0.3, 3, 128, "paper", 4096),
        ChipRule(0.1, 3, 64, "cost", 4096),
    )
    assert plan.lanes == make_lanes((256, 512))
    assert (plan.overlap, plan.batch_pixels, plan.stack.border) == (96, 7, 4)


@pytest.mark.parametrize(
    ("scale", "factor", "overlap"),
    [
        (0, 0.5, 96),  # open to every size: as configured
        (1, 0.5, 96),  # 90 px and the borders take 53
        (1, 1.0, 128),
        (1, 2.0, 192),  # 188 px, in whole steps
        (1, 3.0, 256),  # no more than half of a tile
    ],
)
def test_tiles_overlap_by_what_their_scale_answers_for(
    scale: int, factor: float, overlap: int
) -> None:
    assert build_plan(config()).tiling(scale, factor) == TileRule(512, overlap)


def test_pyramid_sends_every_scale_on_whole() -> None:
    plan = build_plan(config(mode="pyramid"))
    assert plan.scales == plan.pyramid == PYRAMID
    assert plan.rules == (None, None)
    assert build_plan(config(mode="pyramid", focus={})) == plan


def test_whole_runs_the_coarsest_scale_for_every_size() -> None:
    plan = build_plan(config(mode="whole"))
    assert plan.scales == (Scale(0.5, valid_range=(-1, -1)),)
    assert plan.rules == ()
    assert plan.pyramid == PYRAMID  # what it is compared with


def test_tiles_are_a_grid_of_one_finer_scale() -> None:
    tiles = {"side": 512, "overlap": 96}
    plan = build_plan(config(mode="tiles", tiles=tiles))
    assert plan.scales == (Scale(0.5), Scale(2.0))  # open to every size
    assert (plan.rules, plan.windows) == ((None,), TileRule(512, 96))
    assert plan.tiling(1, 2.0) == TileRule(512, 96)
    assert plan.tiling(0, 0.5) == TileRule(512, 96)  # the whole image: tiles of the largest lane
    assert plan.pyramid == PYRAMID
    middle = build_plan(config(mode="tiles", tiles=tiles | {"scale": 1}, focus={}))
    assert middle.scales == (Scale(0.5), Scale(1.0))


def test_tiles_that_no_lane_holds_are_as_large_as_the_largest() -> None:
    """And leave three steps of 32 px beside their overlap, as the smallest windows do."""
    tiles, lanes = {"side": 512, "overlap": 320}, {"sides": [256], "overlap": 96}
    plan = build_plan(config(mode="tiles", tiles=tiles, lanes=lanes))
    assert plan.tiling(1, 2.0) == TileRule(256, 160)
    least = build_plan(config(mode="tiles", tiles={"side": 128, "overlap": 32}))
    assert least.tiling(1, 2.0) == TileRule(128, 32)


@pytest.mark.parametrize(
    ("tiles", "reason"),
    [
        ({"scale": 0}, "name one of the other 2"),
        ({"scale": -3}, "name one of the other 2"),
        ({"scale": 3}, "name one of the other 2"),
        ({"side": 500}, "multiple of 32"),
        ({"side": 128, "overlap": 64}, "exceed overlap"),
    ],
)
def test_tiles_that_cannot_be_are_refused(tiles: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        config(mode="tiles", tiles=tiles)


def test_one_scale_needs_no_focus() -> None:
    plan = build_plan(config(pyramid=[{"min_side": 480, "max_side": 512}], focus={}))
    assert plan.scales == (Scale(None, 480, 512),)
    assert plan.rules == ()


@pytest.mark.parametrize("mode", ["autofocus", "pyramid"])
def test_valid_ranges_can_be_left_out_of_the_stacking(mode: str) -> None:
    """Every scale then answers for objects of every size; where chips come from stays."""
    plan, plain = build_plan(config(mode=mode, stack={"valid_ranges": False})), config(mode=mode)
    assert plan.scales == (Scale(0.5), Scale(1.0), Scale(2.0))
    assert plan.pyramid == PYRAMID
    assert plan.rules == build_plan(plain).rules
    assert replace(plan, scales=PYRAMID, stack=StackRule()) == build_plan(plain)
    assert build_plan(config(mode=mode, stack={"valid_ranges": True})) == build_plan(plain)


def test_every_field_of_the_stacking_arrives() -> None:
    stack = {
        "method": "hard",
        "sigma": 0.7,
        "iou": 0.3,
        "min_score": 0.2,
        "max_detections": 11,
        "class_agnostic": True,
        "border": 9,
    }
    plan = build_plan(config(stack=stack))
    assert plan.stack == StackRule("hard", 0.7, 0.3, 0.2, 11, True, 9)


def test_the_budget_of_an_image_is_the_plans_and_that_of_a_run_waits_for_its_floor() -> None:
    focus = {"steps": [{"context": 24}, {}], "budget": 9e6}
    assert build_plan(config()).budget is None
    plan = build_plan(config(focus=focus))
    assert plan.budget == BudgetRule(9e6, 0.0)
    assert with_gain_floor(plan, 2.5).budget == BudgetRule(9e6, 2.5)
    assert unfocused(plan) == build_plan(config(mode="pyramid"))
    assert plan.rules[0] == ChipRule(0.1, chip_cost=4096, context=24)
    whole = build_plan(config(focus=focus | {"budget_per": "run"}))
    assert whole.budget == BudgetRule(None, 0.0)
    assert with_gain_floor(whole, 2.5).budget == BudgetRule(None, 2.5)
    # Where chips do not come from focus maps there is nothing to choose from.
    for mode in ("pyramid", "tiles", "whole"):
        assert build_plan(config(mode=mode, focus=focus)).budget is None


def test_canvases_are_lanes_where_chips_have_their_shape() -> None:
    lanes = {"sides": [256, 512], "overlap": 96}
    plain = build_plan(config(lanes=lanes))
    assert plain.canvases is None
    for changes in ({"pad": True}, {"fill": True}):
        plan = build_plan(config(lanes=lanes | changes))
        assert plan.canvases == plan.lanes
        assert (plan.pad, plan.fill) == ("pad" in changes, "fill" in changes)

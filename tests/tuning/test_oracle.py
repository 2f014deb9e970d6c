"""Bounds from ground truth: exact focus maps, monotone curves, known recalls."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.focus import STRIDE, ChipRule, FocusRule
from af_pipeline.tuning.oracle import (
    focus_recall,
    ideal_row,
    mean_pixels,
    speed_up_bound,
    true_maps,
    with_rule,
)
from af_pipeline.tuning.replay import record_image, replay
from tests.helpers.fakes import FakePredictor, make_plan, paint, scatter

PLAN = make_plan("autofocus")
PYRAMID = make_plan("pyramid")
LABELS = FocusRule(0.0, 64.0, 90.0)
NOBODY = np.zeros(0, bool)


def scene(seed: int, count: int = 6, height: int = 400, width: int = 600):
    boxes = scatter(np.random.default_rng(seed), count, height, width)
    record = record_image("a", paint(boxes, height, width), PLAN, FakePredictor())
    maps = true_maps(boxes, np.zeros(len(boxes), bool), height, width, PLAN, LABELS)
    return boxes, record, maps


def test_true_maps_mark_the_small_objects_of_each_scale() -> None:
    boxes = np.array([[0, 0, 20, 20], [200, 200, 300, 300]])
    maps = true_maps(boxes, np.zeros(2, bool), 400, 400, PLAN, LABELS)
    assert [one.shape for one in maps] == [(13, 13), (25, 25), (50, 50)]
    assert [int(one.sum()) for one in maps] == [1 + 16, 4, 9]  # 100 px: focus at 0.5 only
    crowd = true_maps(boxes, np.array([True, False]), 400, 400, PLAN, LABELS)
    assert [int(one.sum()) for one in crowd] == [16, 0, 0]


def test_no_object_costs_the_coarsest_look_alone() -> None:
    _, record, maps = scene(0, count=0)
    row = ideal_row(record, maps, PLAN)
    assert row.ledger.chips == [1, 0, 0]
    assert mean_pixels([row]) == 224 * 320  # 200 x 300 and padding


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_the_bound_falls_with_the_chip_size_and_is_never_above_the_pyramid(seed: int) -> None:
    _, record, maps = scene(seed)
    pyramid = mean_pixels([replay(record, PYRAMID)])
    bound = speed_up_bound([record], [maps], with_rule(PLAN, chip_cost=0.0), pyramid)
    assert {one["dilation"] for one in bound} == {1, 3}
    for one in bound:
        assert one["speed_up"] == pytest.approx(pyramid / one["pixels"])
        assert one["speed_up"] > 0.8  # chips may overlap, but not by much
    smallest = [one["pixels"] for one in bound if one["min_size"] == 16]
    largest = [one["pixels"] for one in bound if one["min_size"] == 512]
    assert min(smallest) <= min(largest)


def test_a_faultless_map_recalls_everything_a_blind_one_nothing() -> None:
    boxes, record, maps = scene(3, count=8)
    objects = [[boxes[scale.valid(boxes)].astype(float) for scale in PLAN.scales[1:]]]
    assert sum(map(len, objects[0])) > 2
    rule = ChipRule(0.5, 3, 64, "cost", 0.0)
    plan = replace(PLAN, rules=(rule, rule))
    seen = focus_recall([replace(record, maps=maps)], objects, plan, "ground truth")
    assert {one["recall"] for one in seen} == {1.0}
    blind = tuple(np.zeros_like(one) for one in maps)
    unseen = focus_recall([replace(record, maps=blind)], objects, plan, "ground truth")
    assert {one["recall"] for one in unseen} == {0.0}
    assert {one["area"] for one in unseen} == {0.0}


def test_touched_is_not_whole() -> None:
    box = np.array([[0.0, 0.0, 60.0, 20.0]])  # original px, 30 x 10 at factor 0.5
    focus = np.zeros((10, 10), np.float32)
    focus[0, 0] = 1
    record = replace(scene(0, 0, 320, 320)[1], maps=(focus, np.zeros((20, 20), np.float32), focus))
    rule = ChipRule(0.5, 1, 16)
    plan = replace(PLAN, rules=(rule, rule))
    found = focus_recall([record], [[box, box[:0]]], plan, "x")
    half = {one["of"]: one for one in found if one["scale"] == 0 and one["threshold"] == 0.5}
    assert half["FocusPixels"]["recall"] == 1
    assert half["FocusChips"]["recall"] == 0
    assert half["FocusPixels"]["area"] == pytest.approx(1 / 100)
    assert half["FocusChips"]["area"] == pytest.approx(STRIDE**2 / 160**2)

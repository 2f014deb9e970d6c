"""Parts of a pyramid: which scales, which sizes they answer for, what was recorded of them."""

import numpy as np
import pytest

from af_pipeline.core.cascade import run_cascade
from af_pipeline.core.scales import OPEN, Scale
from af_pipeline.core.schema import ImageRow
from af_pipeline.settings.index import IndexConfig
from af_pipeline.tuning.options import TuneRule
from af_pipeline.tuning.pyramids import (
    kept_scales,
    narrow_plan,
    narrow_record,
    parts_of,
    scales_name,
)
from af_pipeline.tuning.replay import record_image, replay
from af_pipeline.tuning.trials import Trial, choose
from af_pipeline.tuning.tune import tuned_config
from tests.helpers.fakes import FakePredictor, make_plan, paint, scatter

SCALES = (
    Scale(factor=0.25, valid_range=(112, -1)),
    Scale(factor=0.5, valid_range=(68, 160)),
    Scale(factor=1.0, valid_range=(-1, 92)),
)


def test_every_choice_of_scales_comes_once() -> None:
    assert parts_of(2) == [(0,), (1,), (0, 1)]
    assert len(set(parts_of(4))) == 15
    assert scales_name(SCALES, (0, 2)) == "0.25+1"
    assert scales_name((Scale(max_side=832), Scale(min_side=1400, max_side=2000)), (0, 1)) == (
        "832+2000"
    )


@pytest.mark.parametrize("kept", parts_of(3))
def test_every_size_has_a_scale(kept: tuple[int, ...]) -> None:
    scales = kept_scales(SCALES, kept)
    assert [one.factor for one in scales] == [SCALES[number].factor for number in kept]
    side = np.geomspace(2, 2000, 400)
    boxes = np.stack([np.zeros(400), np.zeros(400), side, side], 1)
    assert np.any([one.valid(boxes) for one in scales], 0).all()


def test_ranges_that_meet_stay() -> None:
    assert kept_scales(SCALES, (0, 1, 2)) == SCALES
    assert kept_scales(SCALES, (0, 1)) == (SCALES[0], Scale(factor=0.5, valid_range=(-1, 160)))
    coarse, fine = kept_scales(SCALES, (0, 2))
    assert coarse.valid_low < np.sqrt(92 * 112) < fine.valid_high
    open_ones = (Scale(factor=0.5), Scale(factor=1.0))
    assert [one.valid_range for one in kept_scales(open_ones, (1,))] == [OPEN]


@pytest.mark.parametrize("kept", [(0, 2), (1,), (0, 1, 2)])
def test_a_part_is_replayed_as_it_would_be_run(kept: tuple[int, ...]) -> None:
    plan = make_plan("autofocus")
    image = paint(scatter(np.random.default_rng(3), 12, 500, 700), 500, 700)
    record = record_image("a", image, plan, FakePredictor())
    narrow = narrow_plan(plan, kept)
    again, row = replay(narrow_record(record, kept), narrow), ImageRow("a", "")
    run_cascade(row, image, narrow, FakePredictor())
    assert len(row.detections) > 0
    assert np.array_equal(again.detections.boxes, row.detections.boxes)
    assert again.ledger.pixels == row.ledger.pixels


def scored(method: str, recall: float, pixels: float, seconds: float, **more: object) -> Trial:
    scores = {"AP": None, "recall": recall, "pixels": pixels}
    return Trial(method, scores=scores, seconds=seconds, confirmed=True, **more)


def test_the_cheapest_of_all_methods_is_chosen_by_pixels_and_time() -> None:
    pyramid = scored("pyramid", 1.0, 8e6, 1.0)
    slow = scored("autofocus", 0.97, 3e6, 1.2)
    fewer = scored("fewer scales", 0.97, 4e6, 0.5, scales=(1, 2))
    lossy = scored("whole", 0.5, 1e6, 0.1)
    rule = TuneRule(output="out", max_lost=0.05)
    assert choose([pyramid, slow, fewer, lossy], rule)[1].method == "fewer scales"
    assert choose([pyramid, slow, lossy], rule)[1].method == "autofocus"  # 3.6 against 8
    trials, chosen, kept = choose([pyramid, lossy], rule)
    assert (chosen.method, kept) == ("pyramid", True)
    assert [one.chosen for one in trials] == [True, False]
    hardly = scored("autofocus", 0.99, 7.6e6, 0.9)
    assert choose([pyramid, hardly], rule)[1].method == "pyramid"  # a tenth is not worth a loss
    promised = rule.model_copy(update={"alpha": 0.1})
    assert choose([pyramid, slow, fewer], promised)[1].method == "autofocus"
    strict = promised.model_copy(update={"max_lost": 0.0})
    assert choose([pyramid, slow, fewer], strict)[1:] == (
        Trial(**{**vars(slow), "chosen": True}), False
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "kept", "mode", "factors", "steps"),
    [
        ("pyramid", (0, 1, 2), "pyramid", [0.25, 0.5, 1.0], 2),
        ("fewer scales", (1, 2), "pyramid", [0.5, 1.0], 1),
        ("whole", (), "whole", [0.25, 0.5, 1.0], 2),
        ("autofocus", (0, 2), "autofocus", [0.25, 1.0], 1),
    ],
)
def test_what_was_chosen_becomes_a_config(
    method: str, kept: tuple[int, ...], mode: str, factors: list[float], steps: int
) -> None:
    config = IndexConfig(pyramid=SCALES, focus={"steps": [{"threshold": 0.1}, {"threshold": 0.2}]})
    rules = (config.focus.steps[1],) if method == "autofocus" else ()
    found = tuned_config(config, Trial(method, rules=rules, scales=kept), None)
    again = IndexConfig.model_validate(found.model_dump())
    assert (again.mode, [one.factor for one in again.pyramid]) == (mode, factors)
    assert len(again.focus.steps) == steps
    assert again.focus.steps[0].threshold == (
        0.2 if method == "autofocus" or kept == (1, 2) else 0.1
    )

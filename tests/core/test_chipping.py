"""From candidates to chips: what merging may cost, what filling and context add, what is kept."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.core.budget import BudgetRule
from af_pipeline.core.cascade import advance, look, start_row
from af_pipeline.core.chips import (
    Crop,
    Tile,
    focus_map,
    forward_pixels,
    network_size,
    next_chips,
    step_price,
)
from af_pipeline.core.focus import STRIDE, ChipRule, chips_from_map, component_rects, focus_cells
from af_pipeline.core.lanes import canvas_sides, lane_of, make_lanes
from af_pipeline.core.pixels import ArrayPixels
from af_pipeline.core.plan import Plan, TileRule
from af_pipeline.core.scales import Scale
from af_pipeline.core.schema import Candidate, Chip, ImageRow, rows_to_table
from tests.helpers.fakes import GradedPredictor, TouchyPredictor, glow, make_plan, run_cascade

SEEDS = st.integers(0, 10**6)
SCALES = {
    "even": (Scale(0.25), Scale(0.5), Scale(1.0)),
    "paper": tuple(Scale(None, *sides) for sides in ((130, 256), (230, 500), (420, 1000))),
    "odd": (Scale(0.31), Scale(0.77), Scale(1.23)),
}
SIDES = (64, 128, 256)
RULE = ChipRule(0.2, 1, 64, "cost", 0)


def plan_of(kind: str, rule: ChipRule = RULE, **changes: object) -> Plan:
    scales = SCALES[kind]
    plain = {"scales": scales, "pyramid": scales, "rules": (rule, rule)}
    return make_plan(**(plain | {"lanes": make_lanes(SIDES), "overlap": 64} | changes))


def any_image(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(40, 700, 2))
    return glow(rng, height, width, int(rng.integers(1, 14)))


def inside(inner: tuple[int, ...], outer: tuple[int, ...]) -> bool:
    low = inner[0] >= outer[0] and inner[1] >= outer[1]
    return low and inner[2] <= outer[2] and inner[3] <= outer[3]


Step = tuple[int, list[Candidate], list[Candidate]]  # scale looked at, candidates, what they became


def steps_of(image: NDArray[np.uint8], plan: Plan) -> tuple[ImageRow, list[Step]]:
    """The cascade, with the candidates of each step and the chips that came of them."""
    row, predict, steps = ImageRow("0", ""), GradedPredictor(plan), []
    start_row(row, image, plan)
    for scale in range(len(plan.scales)):
        look([row], scale, plan, predict)
        found = list(row.candidates)
        steps.append((scale, found, next_chips(row, scale, plan)))
    return row, steps


# ---- prices


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(sorted(SCALES)), st.booleans(), st.booleans())
def test_the_price_of_a_chip_is_what_it_takes(seed: int, kind: str, pad: bool, fill: bool) -> None:
    """Chips of every size, those of several tiles too."""
    rng = np.random.default_rng(seed)
    plan = plan_of(kind, pad=pad, fill=fill)
    row = ImageRow("0", "", *(int(side) for side in rng.integers(1, 900, 2)))
    corner = rng.integers(0, [row.width, row.height], (6, 2))
    size = rng.integers(1, [row.width, row.height] - corner + 1)
    image = np.zeros((row.height, row.width, 3), np.uint8)
    for scale in range(3):
        row.ledger.pixels, row.ledger.padded, row.ledger.chips = [0] * 3, [0] * 3, [0] * 3
        boxes = [tuple(map(int, (*low, *low + own))) for low, own in zip(corner, size, strict=True)]
        row.chips, row.candidates = [], []
        for x0, y0, x1, y1 in boxes:
            sizes = network_size(row, scale, (x0, y0, x1, y1), plan)
            lane = lane_of(*sizes, plan.lanes)
            row.chips.append(
                Chip(scale, lane, (x0, y0, x1, y1), 1.0, 0.0, ArrayPixels(image[y0:y1, x0:x1]))
            )
        known = np.array([network_size(row, scale, chip.box, plan) for chip in row.chips])
        prices = [forward_pixels(row, scale, chip.box, plan) for chip in row.chips]
        look([row], scale, plan, GradedPredictor(plan))
        assert sum(prices) == row.ledger.pixels[scale] + row.ledger.padded[scale]
        if pad or not fill:  # what merging goes by
            tiles = plan.tiling(scale, plan.scales[scale].factor_for(row.height, row.width))
            sides = canvas_sides(known, plan.canvases, (tiles.side, tiles.overlap))
            assert sides.prod(1).tolist() == prices


@settings(max_examples=150, deadline=None)
@given(
    SEEDS,
    st.sampled_from(sorted(SCALES)),
    st.booleans(),
    st.sampled_from([0.003, 0.02, 0.2]),
    st.sampled_from([0, 40]),
)
def test_merging_in_a_chip_never_costs(
    seed: int, kind: str, pad: bool, share: float, context: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(16, 700, 2))
    focus = (rng.random((-(-height // STRIDE), -(-width // STRIDE))) < share).astype(np.float32)
    rule = replace(RULE, context=context)
    price = step_price(ImageRow("0", "", 1500, 1300), int(rng.integers(2)), plan_of(kind, pad=pad))

    def cost(chip_cost: float) -> float:
        own: Any = SimpleNamespace(**asdict(rule) | {"chip_cost": chip_cost})
        rects, *_ = chips_from_map(focus, own, (height, width), price)
        return float(price.side(rects[:, 2:] - rects[:, :2]).prod(1).sum())

    # At a chip cost of less than nothing no two chips merge.
    assert cost(rule.chip_cost) <= cost(-1e12) + 1e-6


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(sorted(SCALES)), st.booleans())
def test_merging_in_an_image_never_costs(seed: int, kind: str, pad: bool) -> None:
    """In the forwards that are really made, tiles and all."""
    plan = plan_of(kind, pad=pad)
    row, steps = steps_of(any_image(seed), plan)
    for scale, found, made in steps[:-1]:

        def cost(these: Sequence[Candidate], scale: int = scale) -> int:
            return sum(forward_pixels(row, scale + 1, one.box, plan) for one in these)

        assert cost(made) <= cost(found)
        assert all(any(inside(one.box, chip.box) for chip in made) for one in found)


def test_a_merge_that_needs_tiles_is_charged_for_their_overlap() -> None:
    row, plan = ImageRow("0", "", 600, 600), plan_of("even", pad=True)
    price = step_price(row, 1, plan)
    one, union = (np.array([side]) for side in (112, 256 - 32))
    assert (price.side(one), price.per_px) == (256, 4)
    # 448 px at the next scale: two tiles of 256 px, whose overlap is forwarded twice.
    assert price.side(union) == 2 * price.side(one)
    assert price.side(np.array([257])) == 3 * price.side(one)


# ---- maps of tiles and candidates of several chips


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_where_tiles_overlap_the_higher_focus_counts(order: tuple[int, int]) -> None:
    crop = Crop(0, 0, Chip(0, -1, (0, 0, 80, 16), 1.0), 16, 80, (1.0, 1.0), TileRule(48, 16))
    maps = [
        (Tile(0, (0, 0, 48, 16), 0), np.array([[0.1, 0.2, 0.9]], np.float32)),
        (Tile(0, (32, 0, 80, 16), 0), np.array([[0.3, 0.4, 0.5]], np.float32)),
    ]
    whole = focus_map(crop, [maps[i] for i in order])
    np.testing.assert_allclose(whole, [[0.1, 0.2, 0.9, 0.4, 0.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("budget", "made"),
    [
        (None, [((60, 0, 100, 20), 0.5, 5.0, 0)]),
        # The second would change with whether the first is affordable.
        (BudgetRule(), [((60, 0, 80, 20), 0.25, 2.0, 0), ((80, 0, 100, 20), 0.75, 3.0, 1)]),
    ],
)
def test_chips_of_two_parents_are_one_with_the_gain_of_both_but_not_under_a_budget(
    budget: BudgetRule | None, made: list[tuple]
) -> None:
    row, plan = ImageRow("0", "", 200, 100), plan_of("even", replace(RULE, merge="paper"))
    row.ledger.pixels, row.ledger.padded, row.ledger.refused = [0] * 3, [0] * 3, [0] * 3
    row.chips = [Chip(0, 0, (0, 0, 120, 100), 1.0), Chip(0, 0, (50, 0, 200, 100), 1.0)]
    row.candidates = [
        Candidate((60, 0, 80, 20), 0.25, 2.0, 0),
        Candidate((80, 0, 100, 20), 0.75, 3.0, 1),
    ]
    found = next_chips(row, 0, replace(plan, budget=budget))
    assert found == [Candidate(*one) for one in made]


# ---- context


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.integers(0, 100), st.sampled_from([0.003, 0.05]), st.sampled_from([16, 128]))
def test_a_chip_has_its_context(seed: int, context: int, share: float, least: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(16, 600, 2))
    focus = (rng.random((-(-height // STRIDE), -(-width // STRIDE))) < share).astype(np.float32)
    rule = ChipRule(0.5, 1, least, "cost", 0, context)
    rects, *_ = chips_from_map(focus, rule, (height, width))
    for x0, y0, x1, y1 in component_rects(focus_cells(focus, rule)) * STRIDE:
        wanted = (
            max(0, x0 - context),
            max(0, y0 - context),
            min(width, x1 + context),
            min(height, y1 + context),
        )
        assert any(inside(wanted, tuple(rect)) for rect in rects)
    assert (rects[:, :2] >= 0).all()
    assert (rects[:, 2:] <= (width, height)).all()


def test_context_is_around_the_cells() -> None:
    focus = np.zeros((20, 20), np.float32)
    focus[8, 9] = 1
    rects, *_ = chips_from_map(focus, ChipRule(0.5, 1, 16, context=20), (320, 320))
    assert rects.tolist() == [[9 * 16 - 20, 8 * 16 - 20, 160 + 20, 144 + 20]]


# ---- filling


@settings(max_examples=40, deadline=None)
@given(
    SEEDS,
    st.sampled_from(sorted(SCALES)),
    st.booleans(),
    st.sampled_from(["cost", "paper"]),
    st.sampled_from([None, BudgetRule(), BudgetRule(300_000.0)]),
)
def test_a_filled_chip_has_its_lanes_shape(
    seed: int, kind: str, pad: bool, merge: str, budget: BudgetRule | None
) -> None:
    rule = replace(RULE, merge=merge)
    plan = plan_of(kind, rule, pad=pad, fill=True, budget=budget)
    row, steps = steps_of(any_image(seed), plan)
    for scale, found, made in steps[:-1]:
        factor = plan.scales[scale + 1].factor_for(row.height, row.width)
        for one in made:
            x0, y0, x1, y1 = one.box
            parent = row.chips[one.parent].box
            assert inside(one.box, parent)
            lane = lane_of(*network_size(row, scale + 1, one.box, plan), plan.lanes)
            if lane < 0:
                continue
            high, wide = plan.lanes[lane].height, plan.lanes[lane].width
            for low, end, side, (first, last) in (
                (x0, x1, wide, parent[0::2]),
                (y0, y1, high, parent[1::2]),
            ):
                assert end - low >= int(side / factor + 1e-6) or (low, end) == (first, last)
        boxes = [one.box for one in made]
        assert len(set(boxes)) == len(boxes)
        if budget is None or budget.pixels is None:
            assert all(any(inside(one.box, box) for box in boxes) for one in found)


def test_filling_shows_more_for_the_same_canvas() -> None:
    image = glow(np.random.default_rng(5), 600, 600, 8)
    rows = []
    for fill in (False, True):
        plan = plan_of("even", pad=True, fill=fill)
        rows += run_cascade([image], plan, GradedPredictor(plan))
    plain, full = rows
    assert full.ledger.padded[1] < plain.ledger.padded[1]
    assert full.ledger.pixels[1] + full.ledger.padded[1] == (
        plain.ledger.pixels[1] + plain.ledger.padded[1]
    )


# ---- in company


def plain_row(row: ImageRow) -> dict:
    timeless = replace(row, ledger=replace(row.ledger, forward_ms=0.0))
    (found,) = rows_to_table([timeless]).to_pylist()
    return found


def looked_at(images: Sequence[NDArray[np.uint8]], plan: Plan) -> list[dict]:
    rows = [ImageRow("0", "") for _ in images]
    for row, image in zip(rows, images, strict=True):
        start_row(row, image, plan)
    for scale in range(len(plan.scales)):
        look(rows, scale, plan, TouchyPredictor(plan))
        advance(rows, scale, plan)
    return [plain_row(row) for row in rows]


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 4), st.integers(1, 10**6), st.booleans())
def test_a_row_is_the_same_in_any_company(seed: int, count: int, batch: int, fill: bool) -> None:
    rng = np.random.default_rng(seed)
    sides = rng.integers(40, 500, 2)  # of one size: their batches would be common ones
    images = [glow(rng, int(sides[0]), int(sides[1]), 6) for _ in range(count)]
    plan = plan_of("even", batch_pixels=batch, fill=fill)
    together = looked_at(images, plan)
    order = rng.permutation(count)
    shuffled = looked_at([images[i] for i in order], plan)
    for number, image in enumerate(images):
        (alone,) = looked_at([image], plan)
        assert together[number] == alone
        assert shuffled[int(np.flatnonzero(order == number)[0])] == alone


@pytest.mark.parametrize("pad", [False, True])
def test_that_detector_feels_its_company_when_batches_are_shared(pad: bool) -> None:
    """The test above can fail: padded batches hold chips of many images."""
    images = [glow(np.random.default_rng(seed), 300, 300, 6) for seed in range(3)]
    plan = plan_of("even", batch_pixels=10**6, pad=pad)
    (alone,) = looked_at(images[:1], plan)
    assert (looked_at(images, plan)[0] == alone) is (not pad)

"""The budget: never exceeded, and more of it never loses a chip."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.budget import BudgetRule, allowance, gain_floor, take_chips
from af_pipeline.core.chips import forward_pixels
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.lanes import make_lanes
from af_pipeline.core.plan import Plan
from af_pipeline.core.scales import Scale
from af_pipeline.core.schema import ImageRow, rows_to_table
from af_pipeline.output.tables import images_table
from tests.helpers.fakes import GradedPredictor, glow, make_plan, run_cascade

SEEDS = st.integers(0, 10**6)
INF = float("inf")


def spent_by(row: ImageRow) -> list[int]:
    """Network px, padding included, per scale."""
    ledger = row.ledger
    return [sum(both) for both in zip(ledger.pixels, ledger.padded, strict=True)]


# ---- which chips


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(0, 30), st.sampled_from([0.0, 3.0]))
def test_the_best_come_first_within_a_parent(seed: int, count: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    gains, costs = rng.integers(0, 9, count).astype(float), rng.integers(1, 9, count) * 10**5
    parents = rng.integers(0, 4, count)
    every = take_chips(gains, costs, parents, INF, least)
    density = gains / costs * 1e6
    assert set(every) == set(np.flatnonzero(density >= least))
    assert (np.diff(parents[every]) >= 0).all()
    same = np.diff(parents[every]) == 0
    assert (np.diff(density[every])[same] <= 0).all()
    for limit in rng.uniform(0, costs.sum() + 1, 5):
        taken = take_chips(gains, costs, parents, limit, least)
        assert costs[taken].sum() <= limit
        np.testing.assert_array_equal(taken, every[: len(taken)])
        if len(taken) < len(every):  # not one too few
            assert costs[every[: len(taken) + 1]].sum() > limit
    higher = take_chips(gains, costs, parents, INF, least + 2)
    assert set(higher) <= set(every)


def test_what_takes_the_limit_to_the_px_is_taken() -> None:
    gains, costs, parents = np.array([9.0, 5.0, 0.01]), np.array([30, 20, 1]), np.zeros(3, int)
    assert take_chips(gains, costs, parents, 50).tolist() == [0, 1]
    assert take_chips(gains, costs, parents, 49).tolist() == [0]


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(0, 30))
def test_the_floor_is_the_lowest_that_keeps_the_limit(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    gains = rng.integers(0, 6, count) / rng.choice([1, 3, 7])  # many ties
    costs = rng.integers(1, 9, count)
    for limit in (0, *rng.uniform(0, costs.sum() + 1, 5), INF):
        floor = gain_floor(list(gains), list(costs), limit)
        assert costs[gains >= floor].sum() <= limit
        lower = gains[gains < floor]
        if len(lower):  # the next lower one takes too much
            assert costs[gains >= lower.max()].sum() > limit
    assert gain_floor(list(gains), list(costs), INF) == 0.0
    floors = [gain_floor(list(gains), list(costs), limit) for limit in range(0, 200, 20)]
    assert floors == sorted(floors, reverse=True)


# ---- trees of chips


@dataclass
class Node:
    """A chip: its gain, its price, and what could be cut from it."""

    gain: float
    cost: int
    below: list["Node"] = field(default_factory=list)


def grow(rng: np.random.Generator, depth: int) -> Node:
    node = Node(float(rng.integers(0, 9)), int(rng.integers(1, 7)))
    if depth:
        node.below = [grow(rng, depth - 1) for _ in range(int(rng.integers(0, 4)))]
    return node


Taken = list[list[Node]]


def take(root: Node, rule: BudgetRule, factors: Sequence[float]) -> tuple[Taken, list[int]]:
    """Chips by scale, and how many were refused, as the cascade does it."""
    taken, refused = [[root]], [0] * len(factors)
    for scale in range(1, len(factors)):
        found = [(child, i) for i, node in enumerate(taken[-1]) for child in node.below]
        spent = [sum(node.cost for node in own) for own in taken]
        limit = allowance(rule, factors, spent, refused, scale)
        gains = np.array([node.gain for node, _ in found])
        costs = np.array([node.cost for node, _ in found], np.int64)
        parents = np.array([parent for _, parent in found], np.int64)
        kept = take_chips(gains, costs, parents, limit, rule.least_gain)
        refused[scale] = len(found) - len(kept)
        taken.append([found[i][0] for i in kept])
    return taken, refused


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(1, 3), st.sampled_from([0.0, 2e5]))
def test_a_larger_budget_loses_no_chip_of_any_tree(seed: int, steps: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    root = grow(rng, steps)
    factors = np.sort(rng.uniform(0.1, 3, steps + 1)).tolist()
    every, none = take(root, BudgetRule(None, least), factors)
    total = sum(node.cost for own in every for node in own)
    odd = rng.uniform(0, 3 * total, 4)
    many = np.linspace(0, 4 * total, 160)
    budgets = sorted([0, root.cost, *many, *odd, *np.nextafter(odd, INF), 1e9])
    before: Taken = []
    for budget in budgets:
        taken, refused = take(root, BudgetRule(budget, least), factors)
        assert sum(node.cost for own in taken[1:] for node in own) <= max(0, budget - root.cost)
        for less, more in zip(before, taken, strict=False):
            assert {id(node) for node in less} <= {id(node) for node in more}
        offered = [sum(len(node.below) for node in own) for own in taken[:-1]]
        kept = [len(own) for own in taken[1:]]
        assert [a - b for a, b in zip(offered, kept, strict=True)] == refused[1:]
        before = taken
    assert [list(map(id, own)) for own in before] == [list(map(id, own)) for own in every]
    assert least > 0 or not any(none)


def test_what_a_scale_does_not_need_goes_to_the_finer_ones() -> None:
    rule, factors = BudgetRule(700), [1.0, 2.0, 4.0]
    assert allowance(rule, factors, [100], [0, 0, 0], 1) == 200
    assert allowance(rule, factors, [100, 50], [0, 0, 0], 2) == 550
    assert allowance(rule, factors, [100, 50], [0, 1, 0], 2) == 400
    assert allowance(BudgetRule(50), factors, [100], [0, 0, 0], 1) == 0
    assert allowance(BudgetRule(None, 3.0), factors, [100], [0, 5, 0], 1) == INF


def test_what_is_left_is_not_passed_on_once_any_coarser_scale_refused_a_chip() -> None:
    """Of 800 px a quarter each for the two middle scales, half for the finest."""
    rule, factors, spent = BudgetRule(900), [1.0, 1.0, 1.0, 2.0], [100, 200, 50]
    assert allowance(rule, factors, spent, [0, 1, 0, 0], 3) == 400
    assert allowance(rule, factors, spent, [0, 0, 0, 0], 3) == 550


# ---- the cascade itself

EVEN = (Scale(0.25), Scale(0.5), Scale(1.0))
PAPER = tuple(Scale(None, *sides) for sides in ((130, 256), (230, 500), (420, 1000)))
RULE = ChipRule(0.2, 1, 64, "cost", 1024)


def plan_of(scales: Sequence[Scale], **changes: object) -> Plan:
    plain = {
        "scales": tuple(scales),
        "pyramid": tuple(scales),
        "rules": (RULE,) * (len(scales) - 1),
    }
    sides = {"lanes": make_lanes((64, 128, 256)), "overlap": 64}
    return make_plan(**(plain | sides | changes))


def boxes_of(row: ImageRow) -> Counter[tuple[int, tuple[int, int, int, int]]]:
    return Counter((chip.scale, chip.box) for chip in row.chips)


@settings(max_examples=25, deadline=None)
@given(
    SEEDS,
    st.sampled_from([EVEN, EVEN[1:], PAPER, PAPER[:2]]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 24]),
)
def test_a_larger_budget_loses_no_chip_of_an_image(
    seed: int, scales: tuple[Scale, ...], pad: bool, fill: bool, context: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(60, 700, 2))
    image = glow(rng, height, width, int(rng.integers(1, 12)))
    rules = (replace(RULE, context=context),) * (len(scales) - 1)
    plan = plan_of(scales, pad=pad, fill=fill, rules=rules)

    def run(rule: BudgetRule) -> ImageRow:
        made = replace(plan, budget=rule)
        (row,) = run_cascade([image], made, GradedPredictor(made))
        return row

    every = run(BudgetRule())
    coarse, *rest = spent_by(every)
    assert sum(every.ledger.refused) == 0
    least = coarse + sum(rest)
    budgets = sorted([1, coarse, *rng.uniform(coarse, 2 * least, 6), 8 * least + 1])
    before = Counter[tuple[int, tuple[int, int, int, int]]]()
    for budget in budgets:
        row = run(BudgetRule(budget))
        assert before <= boxes_of(row)
        assert sum(spent_by(row)) <= max(budget, coarse)
        before = boxes_of(row)
        assert max(before.values()) == 1
        assert images_table(rows_to_table([row], stored=True), "").to_pylist()[0][
            "num_refused"
        ] == sum(row.ledger.refused)
    assert before == boxes_of(every)
    gains = [chip.gain / 0.01 for chip in every.chips[1:]] or [1.0]
    for least_gain in sorted([0.0, *rng.choice(gains, 3)], reverse=True):
        row = run(BudgetRule(None, least_gain))
        assert boxes_of(row) <= boxes_of(every)
        if least_gain:
            assert boxes_of(run(BudgetRule(None, 2 * least_gain))) <= boxes_of(row)
    assert boxes_of(row) == boxes_of(every)


@pytest.mark.parametrize("pad", [False, True])
def test_refused_chips_are_counted_and_the_best_are_kept(pad: bool) -> None:
    image = glow(np.random.default_rng(3), 600, 900, 14)
    plan = plan_of(EVEN[1:], pad=pad)
    predict = GradedPredictor(plan)
    (every,) = run_cascade([image], replace(plan, budget=BudgetRule()), predict)
    coarse, rest = spent_by(every)
    budget = coarse + rest / 2
    (row,) = run_cascade([image], replace(plan, budget=BudgetRule(budget)), predict)
    refused = len(every.chips) - len(row.chips)
    assert row.ledger.refused == [0, refused]
    assert 0 < refused < len(every.chips) - 1

    def density(chip: object) -> float:
        cost = forward_pixels(every, chip.scale, chip.box, plan)  # type: ignore[attr-defined]
        return chip.gain / cost  # type: ignore[attr-defined]

    order = [density(chip) for chip in every.chips[1:]]
    assert order == sorted(order, reverse=True)
    assert boxes_of(row) == boxes_of(replace(every, chips=every.chips[: len(row.chips)]))


def test_without_a_budget_nothing_is_refused() -> None:
    image = glow(np.random.default_rng(3), 600, 900, 14)
    plan = plan_of(EVEN)
    (row,) = run_cascade([image], plan, GradedPredictor(plan))
    assert row.ledger.refused == [0, 0, 0]

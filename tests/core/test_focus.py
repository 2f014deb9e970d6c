"""From focus maps to FocusChips: the paper's rules, and no cell that counts is ever lost."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.core.focus import (
    AREA,
    STRIDE,
    ChipRule,
    Price,
    chips_from_map,
    component_rects,
    focus_cells,
    grow_rects,
    merge_rects,
    project_chips,
)

Rects = NDArray[np.int64]
PAPER = "paper"


def rects_of(*rows: tuple[int, int, int, int]) -> Rects:
    return np.array(rows, np.int64).reshape(-1, 4)


def random_map(seed: int, rows: int, columns: int, share: float) -> NDArray[np.float32]:
    """Mostly silence, with single cells and some blobs above it."""
    rng = np.random.default_rng(seed)
    focus = rng.uniform(0, 0.3, (rows, columns))
    focus[rng.random((rows, columns)) < share] = 0.9
    return focus.astype(np.float32)


def random_rects(seed: int, count: int, side: int = 40) -> Rects:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, side, (count, 2))
    return np.hstack([corner, corner + rng.integers(1, 9, (count, 2))]).astype(np.int64)


def area(rects: Rects) -> int:
    return int((rects[:, 2:] - rects[:, :2]).prod(1).sum())


def holds(outer: NDArray, inner: NDArray) -> NDArray[np.bool_]:
    """Which outer rectangle [N, 4] holds which inner one [M, 4] -> [N, M]."""
    low = (outer[:, None, :2] <= inner[None, :, :2]).all(-1)
    return low & (outer[:, None, 2:] >= inner[None, :, 2:]).all(-1)


# ---- chips of a map


def test_an_empty_map_gives_no_chip() -> None:
    for merge in ("paper", "cost"):
        rects, focus, _ = chips_from_map(np.zeros((24, 32)), ChipRule(0.1, merge=merge), (384, 512))
        assert rects.shape == (0, 4)
        assert rects.dtype == np.int64
        assert focus.shape == (0,)
        assert focus.dtype == np.float32


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.002, 0.01, 0.05, 0.3]))
def test_half_a_map_wide_chips_never_are_two(seed: int, share: float) -> None:
    rule = ChipRule(0.5, 3, min_size=256, merge=PAPER)
    focus = random_map(seed, 24, 32, share)
    rects, *_ = chips_from_map(focus, rule, (384, 512))
    assert len(rects) == int((focus >= 0.5).any())


@pytest.mark.parametrize(
    ("second", "count"),
    [
        ((5, 0, 9, 4), 2),  # a free column between
        ((4, 0, 8, 4), 1),  # none
        ((4, 4, 8, 8), 1),  # a corner
        ((5, 5, 9, 9), 2),  # a free corner
        ((2, 2, 6, 6), 1),
    ],
)
def test_touching_rectangles_fuse(second: tuple[int, int, int, int], count: int) -> None:
    merged = merge_rects(rects_of((0, 0, 4, 4), second), PAPER)
    assert len(merged) == count
    focus = np.zeros((20, 20))
    for x0, y0, x1, y1 in ((0, 0, 4, 4), second):
        focus[y0:y1, x0:x1] = 1
    chips, *_ = chips_from_map(focus, ChipRule(0.5, 1, 16, PAPER), (320, 320))
    assert sorted(map(tuple, chips)) == sorted(map(tuple, merged * STRIDE))


def test_fusing_goes_on_until_nothing_touches() -> None:
    chain = rects_of((0, 0, 4, 4), (4, 4, 8, 8), (8, 0, 12, 4), (20, 0, 21, 1))
    assert merge_rects(chain, PAPER).tolist() == [[0, 0, 12, 8], [20, 0, 21, 1]]


RULES = st.builds(
    ChipRule,
    threshold=st.just(0.5),
    dilation=st.sampled_from([1, 2, 3, 5]),
    min_size=st.sampled_from([16, 64, 100, 128, 256]),
    merge=st.sampled_from(["paper", "cost"]),
    chip_cost=st.sampled_from([0.0, 4096.0, 100_000.0]),
)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from([0.0, 0.005, 0.03, 0.2]),
    RULES,
)
def test_every_focus_cell_lies_in_some_chip(
    seed: int, height: int, width: int, share: float, rule: ChipRule
) -> None:
    padded = random_map(seed, 34, 36, share)  # the canvas is larger than the chip
    rects, focus, _ = chips_from_map(padded, rule, (height, width))
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    y, x = np.nonzero(padded[:rows, :columns] >= 0.5)
    ends = np.minimum(np.stack([x + 1, y + 1], 1) * STRIDE, (width, height))
    cells = np.hstack([np.stack([x, y], 1) * STRIDE, ends])
    assert holds(rects, cells).any(0).all()
    assert len(rects) <= len(cells)
    assert (rects[:, :2] >= 0).all()
    assert (rects[:, 2:] <= (width, height)).all()
    assert (rects[:, 2:] - rects[:, :2] >= np.minimum(rule.min_size, (width, height))).all()
    assert (focus >= 0.5).all()
    assert len(focus) == len(rects)
    # nothing outside the chip's own area counts
    own, own_focus, _ = chips_from_map(padded[:rows, :columns], rule, (height, width))
    np.testing.assert_array_equal(own, rects)
    np.testing.assert_array_equal(own_focus, focus)
    assert len(np.unique(rects, axis=0)) == len(rects)


@pytest.mark.parametrize(("width", "left"), [(129, 113), (135, 119), (143, 127), (144, 128)])
def test_a_chip_in_a_partial_cell_ends_with_the_map(width: int, left: int) -> None:
    focus = np.zeros((10, 9))
    focus[2, 8] = 1
    rects, *_ = chips_from_map(focus, ChipRule(0.5, 1, 16), (160, width))
    assert rects.tolist() == [[left, 32, width, 48]]
    rects, *_ = chips_from_map(focus, ChipRule(0.5, 1, 64), (160, width))
    assert rects.tolist() == [[width - 64, 8, width, 72]]
    wide, *_ = chips_from_map(focus, ChipRule(0.5, 1, 500), (160, width))
    assert wide.tolist() == [[0, 0, width, 160]]


def test_padding_gives_no_chip() -> None:
    focus = np.zeros((20, 20))
    focus[10:, :] = focus[:, 10:] = 1
    rects, *_ = chips_from_map(focus, ChipRule(0.5, 3, 64), (160, 160))
    assert rects.shape == (0, 4)


def test_focus_is_the_mean_of_what_counts() -> None:
    focus = np.zeros((20, 20))
    focus[4, 4], focus[4, 5], focus[5, 5] = 0.5, 0.7, 0.3
    rects, mean, gain = chips_from_map(focus, ChipRule(0.5, 3, 64), (320, 320))
    assert len(rects) == 1
    assert mean[0] == pytest.approx(0.6)
    assert gain[0] == pytest.approx(1.2)


def test_a_crowded_map_is_quick() -> None:
    rng = np.random.default_rng(0)
    focus = np.zeros((250, 250))
    focus[rng.integers(0, 250, 1200), rng.integers(0, 250, 1200)] = 1
    began = time.perf_counter()
    for merge in ("paper", "cost"):
        chips_from_map(focus, ChipRule(0.5, 3, 128, merge, 4096), (4000, 4000))
    assert time.perf_counter() - began < 10  # about 1 s; 40 s when every pair is tried anew


def test_components_touch_at_corners() -> None:
    cells = np.zeros((6, 6), np.uint8)
    cells[0, 0] = cells[1, 1] = cells[5, 3] = 1
    found = sorted(map(tuple, component_rects(cells).tolist()))
    assert found == [(0, 0, 2, 2), (3, 5, 4, 6)]
    assert component_rects(np.zeros((3, 3), np.uint8)).shape == (0, 4)


def test_dilation_is_in_cells_and_the_threshold_counts() -> None:
    focus = np.zeros((9, 9))
    focus[4, 4] = 0.2
    assert focus_cells(focus, ChipRule(0.2, 1)).sum() == 1
    assert focus_cells(focus, ChipRule(0.2, 3)).sum() == 9
    assert focus_cells(focus, ChipRule(0.2, 5)).sum() == 25
    assert focus_cells(focus, ChipRule(0.21, 5)).sum() == 0


# ---- growing


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_growing_covers_and_stays_inside(seed: int, height: int, width: int, least: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.sort(rng.integers(0, width + 1, (20, 2)), 1)
    y = np.sort(rng.integers(0, height + 1, (20, 2)), 1)
    rects = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    before = rects.copy()
    grown = grow_rects(rects, least, (height, width))
    np.testing.assert_array_equal(rects, before)
    assert (grown[:, :2] <= rects[:, :2]).all()
    assert (grown[:, 2:] >= rects[:, 2:]).all()
    assert (grown[:, :2] >= 0).all()
    assert (grown[:, 2:] <= (width, height)).all()
    sides = grown[:, 2:] - grown[:, :2]
    wanted = np.maximum(rects[:, 2:] - rects[:, :2], np.minimum(least, (width, height)))
    np.testing.assert_array_equal(sides, wanted)


def test_growing_is_about_the_centre() -> None:
    assert grow_rects(rects_of((10, 10, 12, 12)), 6, (40, 40)).tolist() == [[8, 8, 14, 14]]
    assert grow_rects(rects_of((0, 38, 2, 40)), 6, (40, 40)).tolist() == [[0, 34, 6, 40]]


# ---- merging


MERGES = {
    "seed": st.integers(0, 10**6),
    "count": st.integers(0, 14),
    "rule": st.sampled_from(["paper", "cost"]),
    "cost": st.sampled_from([0.0, 5.0, 40.5]),
}


@settings(max_examples=100, deadline=None)
@given(**MERGES)
def test_merging_covers_and_is_a_fixpoint(seed: int, count: int, rule: str, cost: float) -> None:
    rects = random_rects(seed, count)
    merged = merge_rects(rects, rule, cost)
    assert holds(merged, rects).any(0).all()
    np.testing.assert_array_equal(merge_rects(merged, rule, cost), merged)
    order = np.random.default_rng(seed).permutation(count)
    np.testing.assert_array_equal(merge_rects(rects[order], rule, cost), merged)
    np.testing.assert_array_equal(np.unique(merged, axis=0), merged)
    if rule == "cost":
        single = np.unique(rects, axis=0)
        assert area(merged) + cost * len(merged) <= area(single) + cost * len(single)
    else:
        low = np.maximum(merged[:, None, :2], merged[None, :, :2])
        high = np.minimum(merged[:, None, 2:], merged[None, :, 2:])
        assert np.triu((low <= high).all(-1), 1).sum() == 0


def plain_merge(rects: Rects, rule: str, cost: float, containers: Rects | None) -> Rects:
    """The definition: look at every pair, merge the one that saves most, begin anew."""
    left = sorted({tuple(map(int, rect)) for rect in rects})
    while True:
        found = None
        for i, a in enumerate(left):
            for b in left[i + 1 :]:
                union = (*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:]))
                whole, parts = area(rects_of(union)), area(rects_of(a, b))
                near = all(max(a[k], b[k]) <= min(a[k + 2], b[k + 2]) for k in (0, 1))
                fits = containers is None or holds(containers, rects_of(union)).any()
                saved = parts + cost - whole
                if fits and (near if rule == PAPER else saved >= 0):
                    found = max(
                        found or (-np.inf, None), (saved, (a, b, union)), key=lambda f: f[0]
                    )
        if found is None:
            return rects_of(*left)
        a, b, union = found[1]
        left = sorted({*left, union} - ({a, b} - {union}))


@settings(max_examples=100, deadline=None)
@given(**MERGES, held=st.booleans())
def test_merging_is_the_definition(
    seed: int, count: int, rule: str, cost: float, held: bool
) -> None:
    rects = random_rects(seed, count, side=24)
    containers = random_rects(seed + 1, 3, 8) * [1, 1, 3, 3] if held else None
    merged = merge_rects(rects, rule, cost, containers)
    np.testing.assert_array_equal(merged, plain_merge(rects, rule, cost, containers))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from(["paper", "cost"]))
def test_merged_chips_stay_in_one_container(seed: int, count: int, rule: str) -> None:
    containers = rects_of((0, 0, 26, 50), (20, 0, 50, 50))
    rects = random_rects(seed, count)
    rects = rects[holds(containers, rects).any(0)]
    merged = merge_rects(rects, rule, 60.0, containers)
    assert holds(containers, merged).any(0).all()
    assert holds(merged, rects).any(0).all()


def test_containers_keep_neighbours_apart() -> None:
    rects = rects_of((0, 0, 10, 10), (10, 0, 20, 10))
    assert len(merge_rects(rects, PAPER)) == 1
    assert len(merge_rects(rects, PAPER, 0, rects)) == 2
    assert len(merge_rects(rects, PAPER, 0, rects_of((0, 0, 20, 10)))) == 1


@pytest.mark.parametrize("price", [AREA, Price(lambda sides: 2 * sides, 4.0)])
def test_cost_decides_at_its_bound(price: Price) -> None:
    """In px of the map's scale, whatever the next one's factor is."""
    rects = rects_of((0, 0, 4, 4), (5, 0, 9, 4))  # the union has 4 cells more
    assert len(merge_rects(rects, "cost", 3.9, price=price)) == 2
    assert len(merge_rects(rects, "cost", 4.0, price=price)) == 1


def test_unknown_merge_rule() -> None:
    with pytest.raises(ValueError, match="'paper' or 'cost'"):
        merge_rects(rects_of((0, 0, 1, 1)), "greedy")


# ---- projecting


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 5000),
    st.integers(0, 5000),
    st.integers(20, 3000),
    st.integers(20, 3000),
    st.floats(0.2, 4),
)
def test_projection_holds_the_exact_rectangle(
    seed: int, x0: int, y0: int, width: int, height: int, factor: float
) -> None:
    parent = (x0, y0, x0 + width, y0 + height)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    factors = size[0] / height, size[1] / width
    rng = np.random.default_rng(seed)
    x = np.sort(rng.integers(0, size[1] + 1, (10, 2)), 1)
    y = np.sort(rng.integers(0, size[0] + 1, (10, 2)), 1)
    rects = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    chips = project_chips(rects, parent, factors)
    assert chips.dtype == np.int64
    assert holds(np.array([parent]), chips).all()
    exact = rects / np.array([*factors[::-1]] * 2) + np.array([x0, y0] * 2)
    assert (chips[:, :2] <= exact[:, :2] + 1e-5).all()
    assert (chips[:, 2:] >= exact[:, 2:] - 1e-5).all()
    assert (chips[:, :2] > exact[:, :2] - 1).all()
    assert (chips[:, 2:] < exact[:, 2:] + 1).all()
    whole = project_chips(rects_of((0, 0, size[1], size[0])), parent, factors)
    assert whole.tolist() == [list(parent)]


def test_projection_of_a_known_chip() -> None:
    parent = (100, 50, 740, 530)
    chips = project_chips(rects_of((16, 32, 160, 128)), parent, (0.5, 0.5))
    assert chips.tolist() == [[132, 114, 420, 306]]


def test_projection_of_whole_px_takes_no_further_ones() -> None:
    # Divided by the factors the edges are 50 - 7e-15 and 49 + 7e-15.
    chips = project_chips(rects_of((0, 112, 64, 224)), (0, 0, 98, 100), (224 / 100, 128 / 98))
    assert chips.tolist() == [[0, 50, 49, 100]]

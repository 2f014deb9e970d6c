"""Risk control: p-values against brute force, and the promise itself by simulation."""

import math
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.tuning.risk import (
    certify,
    fewest_images,
    lost_share,
    wsr_p_values,
)

INSIDE = st.floats(0.01, 0.99)
LOSSES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def slow_wsr(losses: list[float], alpha: float, delta: float) -> float:
    wealth = largest = 1.0
    total, squares, variance = alpha, 0.25, 0.25
    for seen, loss in enumerate(losses, start=1):
        bet = math.sqrt(2 * math.log(1 / delta) / (len(losses) * variance))
        wealth *= 1 + min(bet, 0.75 / (1 - alpha)) * (alpha - loss)
        largest = max(largest, wealth)
        total += loss
        squares += (loss - total / (seen + 1)) ** 2
        variance = squares / (seen + 1)
    return 1 / largest


@settings(deadline=None)
@given(LOSSES, INSIDE, INSIDE)
def test_wsr_is_its_formula(losses: list[float], alpha: float, delta: float) -> None:
    found = float(wsr_p_values(np.array(losses), alpha, delta))
    assert 0 < found <= 1
    assert found == pytest.approx(slow_wsr(losses, alpha, delta), rel=1e-9)


def test_p_values_of_a_table_are_those_of_its_rows() -> None:
    losses = np.random.default_rng(0).random((2, 3, 40)) ** 4
    whole = wsr_p_values(losses, 0.3, 0.1)
    assert whole.shape == (2, 3)
    assert whole[1, 2] == pytest.approx(float(wsr_p_values(losses[1, 2], 0.3, 0.1)))


@settings(deadline=None)
@given(INSIDE, st.floats(0.01, 0.5))
def test_wsr_falls_with_the_mean_and_with_images(alpha: float, delta: float) -> None:
    by_count = [float(wsr_p_values(np.zeros(n), alpha, delta)) for n in range(1, 80)]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(by_count))
    constant = np.repeat(np.linspace(0, 1, 21)[:, None], 60, 1)
    by_mean = wsr_p_values(constant, alpha, delta)
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(by_mean.tolist()))


@pytest.mark.parametrize(
    ("values", "chances"),
    [((0.0, 1.0), (0.8, 0.2)), ((0.0, 0.25, 1.0), (0.7, 0.1333333, 0.1666667)), ((0.2,), (1.0,))],
)
def test_p_values_are_valid_over_all_outcomes(
    values: tuple[float, ...], chances: tuple[float, ...]
) -> None:
    """Every sequence of 8 losses whose mean is alpha: P(p <= t) is t at most, for each t."""
    alpha = float(np.dot(values, chances))
    places = np.array(list(product(range(len(values)), repeat=8)))
    chance = np.array(chances)[places].prod(1)
    assert chance.sum() == pytest.approx(1)
    found = wsr_p_values(np.array(values)[places], alpha, 0.1)
    order = np.argsort(found)
    reached = np.cumsum(chance[order])
    last = np.append(np.diff(found[order]) > 1e-12, True)  # ties count together
    assert np.all(reached[last] <= found[order][last] + 1e-9)
    assert found.min() < 0.7 or len(values) == 1


def test_wsr_profits_from_small_variance() -> None:
    """Hoeffding's and Bentkus' bounds of a mean of 0.04 of 200 images stay above 0.1 here."""
    assert wsr_p_values(np.full(200, 0.04), 0.06, 0.1) < 0.1


def test_certify_stops_before_the_first_that_fails() -> None:
    losses = np.zeros((4, 300))
    losses[2] = 0.5
    found = certify(losses, 0.1, 0.1)
    assert found.index == 1  # the last would pass, but is out of reach
    assert found.p_values[3] <= 0.1 < found.p_values[2]
    np.testing.assert_allclose(found.means, [0, 0, 0.5, 0])
    assert certify(losses[2:], 0.1, 0.1).index is None
    assert certify(losses[:2], 0.1, 0.1).index == 1
    assert certify(losses[:0], 0.1, 0.1).index is None


@pytest.mark.parametrize(("alpha", "delta"), [(0.05, 0.1), (0.2, 0.05), (0.01, 0.1), (0.9, 0.5)])
def test_fewest_images_are_the_fewest(alpha: float, delta: float) -> None:
    count = fewest_images(alpha, delta)
    assert certify(np.zeros((1, count)), alpha, delta).index == 0
    if count > 1:
        assert certify(np.zeros((1, count - 1)), alpha, delta).index is None


@pytest.mark.parametrize(
    ("losses", "alpha", "delta", "message"),
    [
        (np.zeros(5), 0.1, 0.1, "must be"),
        (np.zeros((3, 0)), 0.1, 0.1, "with images"),
        (np.full((1, 5), 1.1), 0.1, 0.1, r"lie in \[0, 1\]"),
        (np.full((1, 5), np.nan), 0.1, 0.1, r"lie in \[0, 1\]"),
        (np.zeros((1, 5)), 0.0, 0.1, "alpha"),
        (np.zeros((1, 5)), 1.0, 0.1, "alpha"),
        (np.zeros((1, 5)), 0.1, 0.0, "delta"),
    ],
)
def test_certify_refuses(losses: NDArray, alpha: float, delta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(losses, alpha, delta)


def test_an_alpha_out_of_reach_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than"):
        fewest_images(1e-9, 0.1)


# The promise: over many draws of the calibration images, how often is the certified setting's
# true risk above alpha? Losses of all settings come from the same images.
ALPHA, DELTA, TRIALS, IMAGES = 0.08, 0.1, 2000, 120
RISKS = ALPHA * np.array([0.3, 0.6, 1.02, 1.1, 1.6])  # true means, safest first
Draw = Callable[[np.random.Generator], NDArray]  # losses [TRIALS, settings, IMAGES]


def all_or_nothing(rng: np.random.Generator) -> NDArray:
    return (rng.random((TRIALS, 1, IMAGES)) < RISKS[:, None]).astype(float)


def smooth(rng: np.random.Generator) -> NDArray:
    return rng.beta(2, 8, (TRIALS, 1, IMAGES)) * (RISKS[:, None] / 0.2)


def mostly_zero(rng: np.random.Generator) -> NDArray:
    lost = rng.random((TRIALS, 1, IMAGES)) < RISKS[:, None] / 0.4
    return lost * rng.beta(2, 3, (TRIALS, len(RISKS), IMAGES))


def rarely_all(rng: np.random.Generator) -> NDArray:
    """Small losses everywhere and, rarely, a whole image."""
    small = RISKS[:, None] / 2
    lost = rng.random((TRIALS, 1, IMAGES)) < small / (1 - small)
    return np.where(lost, 1.0, small)


DRAWS = [all_or_nothing, smooth, mostly_zero, rarely_all]


def naive_choice(losses: NDArray, alpha: float) -> int | None:
    """What the promise needs p-values for: the last setting whose own mean is low enough."""
    passed = int(np.logical_and.accumulate(losses.mean(1) <= alpha).sum())
    return passed - 1 if passed else None


def share_wrong(choices: list[int | None]) -> float:
    return float(np.mean([i is not None and RISKS[i] > ALPHA for i in choices]))


@pytest.mark.parametrize("draw", DRAWS)
def test_the_promise_holds_and_a_naive_rule_breaks_it(draw: Draw) -> None:
    trials = draw(np.random.default_rng(7))
    np.testing.assert_allclose(trials.mean((0, 2)), RISKS, rtol=0.03)  # the risks are as stated
    allowed = DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / TRIALS)
    assert share_wrong([certify(losses, ALPHA, DELTA).index for losses in trials]) <= allowed
    assert share_wrong([naive_choice(losses, ALPHA) for losses in trials]) > 2 * allowed


def test_the_promise_is_not_kept_by_certifying_nothing() -> None:
    for draw in DRAWS:
        trials = draw(np.random.default_rng(8))[:500]
        found = [certify(losses, ALPHA, DELTA).index is not None for losses in trials]
        assert np.mean(found) > 0.6, draw


def test_the_promise_holds_over_random_parts_of_one_data_set() -> None:
    """The same images for all trials, some of them drawn to calibrate on."""
    rng = np.random.default_rng(9)
    images = rng.beta(0.3, 3, 5000) * (rng.random(5000) < 0.5)
    losses = np.minimum(np.array([[0.5], [1.0], [1.05], [1.3]]) * images, 1)
    alpha = float(losses[1].mean()) * 1.02  # the first two are allowed
    parts = (rng.choice(5000, 150, replace=False) for _ in range(TRIALS))
    found = [certify(losses[:, part], alpha, DELTA).index for part in parts]
    wrong = np.mean([index is not None and index > 1 for index in found])
    assert wrong <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / TRIALS)
    assert np.mean([index is not None for index in found]) > 0.5


BOX = np.array([[0, 0, 10, 10]], np.float32)
ONE = np.array([1], np.int32)


def test_lost_share_by_hand() -> None:
    nobody, none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    assert lost_share(nobody, none, BOX, ONE) is None
    assert lost_share(BOX, ONE, nobody, none) == 1
    assert lost_share(BOX, ONE, BOX, ONE) == 0
    assert lost_share(BOX, ONE, BOX, ONE + 1) == 1  # another label
    half = np.array([[0, 0, 10, 5]], np.float32)
    assert lost_share(BOX, ONE, half, ONE) == 0  # IoU is exactly 0.5
    assert lost_share(BOX, ONE, half, ONE, iou=0.51) == 1


def test_one_detection_stands_for_one_reference() -> None:
    twins, labels = BOX.repeat(2, 0), ONE.repeat(2)
    assert lost_share(twins, labels, BOX, ONE) == 0.5
    assert lost_share(BOX, ONE, twins, labels) == 0
    # The closer pair goes first, so that both references find a partner.
    references = np.array([[0, 0, 10, 10], [0, 0, 10, 7]], np.float32)
    detections = np.array([[0, 0, 10, 7], [0, 0, 10, 9]], np.float32)
    assert lost_share(references, labels, detections, labels) == 0


@st.composite
def boxes_and_labels(draw: st.DrawFn) -> tuple[NDArray, NDArray]:
    count = draw(st.integers(0, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    corner = rng.integers(0, 6, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 8, (count, 2))], 1)
    return boxes.astype(np.float32), rng.integers(0, 3, count).astype(np.int32)


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    inter = width * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inter / (areas - inter)


@given(boxes_and_labels(), boxes_and_labels(), st.sampled_from([0.3, 0.5, 0.75]))
def test_lost_share_is_the_greedy_matching(
    reference: tuple[NDArray, NDArray], found: tuple[NDArray, NDArray], iou: float
) -> None:
    share = lost_share(*reference, *found, iou=iou)
    if not len(reference[0]):
        assert share is None
        return
    pairs = [
        (overlap(a, b), i, j)
        for i, a in enumerate(reference[0].tolist())
        for j, b in enumerate(found[0].tolist())
        if reference[1][i] == found[1][j]
    ]
    left_i, left_j = set(range(len(reference[0]))), set(range(len(found[0])))
    for value, i, j in sorted(pairs, key=lambda pair: (-np.float32(pair[0]), pair[1], pair[2])):
        if value >= iou - 1e-7 and i in left_i and j in left_j:
            left_i.remove(i)
            left_j.remove(j)
    assert share == pytest.approx(len(left_i) / len(reference[0]))

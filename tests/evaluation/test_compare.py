"""The paired bootstrap: the same draws for all runs, the same numbers for a seed."""

import numpy as np
import pyarrow as pa
import pytest

from af_pipeline.evaluation.coco import check_inputs, evaluate_detections, run_coco
from af_pipeline.evaluation.compare import LEVEL, compare_matches
from af_pipeline.evaluation.matches import Accumulator, Matches, matches_of
from tests.helpers.truth import Json, ground_truth, made_up


def matched(truth: Json, detections: pa.Table) -> Matches:
    inputs = check_inputs(ground_truth(truth), detections)
    return matches_of(inputs, run_coco(inputs))


def weaker(detections: pa.Table, seed: int) -> pa.Table:
    """Half of the detections."""
    keep = np.random.default_rng(seed).random(detections.num_rows) < 0.5
    return detections.filter(pa.array(keep))


@pytest.fixture(scope="module")
def pair() -> tuple[Json, pa.Table, pa.Table]:
    truth, detections = made_up(11, images=30)
    return truth, detections, weaker(detections, 1)


def test_values_are_those_of_the_single_evaluation(pair: tuple[Json, pa.Table, pa.Table]) -> None:
    truth, *tables = pair
    standings = compare_matches([matched(truth, table) for table in tables], 50)
    for table, standing in zip(tables, standings, strict=True):
        overall = evaluate_detections(ground_truth(truth), table).overall
        for name, estimate in standing.scores.items():
            assert estimate.value == pytest.approx(overall[name])
            assert estimate.low < estimate.value < estimate.high
    for name, estimate in standings[1].differences.items():
        first, second = (standing.scores[name].value for standing in standings)
        assert estimate.value == pytest.approx(second - first)
        assert estimate.low <= estimate.value <= estimate.high < 0  # clearly worse


def test_the_first_run_and_its_twin_differ_in_no_draw(
    pair: tuple[Json, pa.Table, pa.Table],
) -> None:
    truth, detections, _ = pair
    for standing in compare_matches([matched(truth, detections)] * 2, 20):
        for estimate in standing.differences.values():
            assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_a_seed_gives_the_same_numbers(pair: tuple[Json, pa.Table, pa.Table]) -> None:
    truth, *tables = pair
    runs = [matched(truth, table) for table in tables]
    assert compare_matches(runs, 40, seed=3) == compare_matches(runs, 40, seed=3)
    assert compare_matches(runs, 40, seed=3) != compare_matches(runs, 40, seed=4)


def test_other_runs_do_not_change_the_draws(pair: tuple[Json, pa.Table, pa.Table]) -> None:
    truth, *tables = pair
    first, second = (matched(truth, table) for table in tables)
    assert compare_matches([first, second], 30)[1] == compare_matches([first, first, second], 30)[2]


def test_intervals_are_quantiles_of_paired_draws(pair: tuple[Json, pa.Table, pa.Table]) -> None:
    truth, *tables = pair
    runs = [matched(truth, table) for table in tables]
    standing = compare_matches(runs, 25, seed=5)[1]
    rng, images = np.random.default_rng(5), len(truth["images"])
    draws = []
    for _ in range(25):
        weights = np.bincount(rng.integers(0, images, images), minlength=images)
        first, second = (Accumulator(run).scores(weights)["AP"] for run in runs)
        draws.append(second - first)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    assert (standing.differences["AP"].low, standing.differences["AP"].high) == (low, high)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    # Many small samples of one population of images, whose whole score stands for the truth.
    truth, detections = made_up(21, images=400, classes=1)
    run, other = matched(truth, detections), matched(truth, weaker(detections, 2))
    accumulators = [Accumulator(one) for one in (run, other)]
    rng, images = np.random.default_rng(0), 40

    def difference(weights: np.ndarray) -> float:
        first, second = (one.scores(weights)["AP"] for one in accumulators)
        return second - first

    everything = difference(np.ones(400, np.int64))
    held = 0
    for _ in range(40):
        sample = rng.choice(400, images, replace=False)
        draws = [
            difference(np.bincount(sample[rng.integers(0, images, images)], minlength=400))
            for _ in range(60)
        ]
        low, high = np.quantile(draws, [0.025, 0.975])
        held += low <= everything <= high
    assert held >= 33  # 38 of 40 if it were exact


def test_impossible_requests_are_refused(pair: tuple[Json, pa.Table, pa.Table]) -> None:
    truth, detections, _ = pair
    run = matched(truth, detections)
    with pytest.raises(ValueError, match="resamples is 0"):
        compare_matches([run, run], 0)
    other, table = made_up(2)
    with pytest.raises(ValueError, match="different ground truths"):
        compare_matches([run, matched(other, table)])

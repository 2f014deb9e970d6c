"""Runs on the same ground truth side by side, with intervals from a paired bootstrap over images.

Images are what varies from one sample to the next, objects of an image are not independent: so
images are drawn with replacement, as many as there are, and the whole score is taken anew. Every
run is scored on the same draws; what is hard in a draw is hard for all, and differences of runs
vary less than the runs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.evaluation.matches import Accumulator, Matches

NAMES = ("AP", "AP50")
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A score or a difference, and the interval it lies in; None where nothing is defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Standing:
    """One run: its scores, fractions in [0, 1], and how far they are from the first run's."""

    scores: dict[str, Estimate]
    differences: dict[str, Estimate]


def compare_matches(
    runs: Sequence[Matches], resamples: int = 1000, seed: int = 0
) -> list[Standing]:
    """AP and AP50 of every run and their differences to the first run.

    Args:
        runs: matches with the same ground truth.
        resamples: draws of all images.
        seed: of the draws; the same numbers come out again.

    Intervals hold `LEVEL` of the draws, as much left out below as above. A class without objects
    in a draw is left out of that draw's mean, as COCO does.

    Raises:
        ValueError: ``resamples`` below 1, or different numbers of images.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: it must be at least 1")
    images = {len(run.objects) for run in runs}
    if len(images) != 1:
        raise ValueError("the runs were matched with different ground truths")
    number = images.pop()
    accumulators = [Accumulator(run) for run in runs]
    whole = _scores(accumulators, np.ones(number, np.int64))
    rng = np.random.default_rng(seed)
    draws = np.stack([_scores(accumulators, _draw(rng, number)) for _ in range(resamples)])
    return [
        Standing(
            scores=_estimates(whole[run], draws[:, run]),
            differences=_estimates(whole[run] - whole[0], draws[:, run] - draws[:, 0]),
        )
        for run in range(len(runs))
    ]


def _draw(rng: np.random.Generator, images: int) -> NDArray[np.int64]:
    """How often each image is drawn, int [images]."""
    return np.bincount(rng.integers(0, images, images), minlength=images)


def _scores(runs: Sequence[Accumulator], weights: NDArray[np.int64]) -> Floats:
    """`NAMES` of every run, float [runs, 2]."""
    scores = [run.scores(weights) for run in runs]
    return np.array([[each[name] for name in NAMES] for each in scores])


def _estimates(values: Floats, draws: Floats) -> dict[str, Estimate]:
    """From values [2] and their draws [B, 2]; draws without any object do not count."""
    out = {}
    for name, value, column in zip(NAMES, values.tolist(), draws.T, strict=True):
        known = column[~np.isnan(column)]
        if np.isnan(value) or not len(known):
            out[name] = Estimate(None, None, None)
            continue
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        out[name] = Estimate(value, low, high)
    return out

"""Runs on the same ground truth side by side, with intervals from a paired bootstrap over images.

Images are what varies from one sample to the next, objects of an image are not independent: so
images are drawn with replacement, as many as there are, and the whole score is taken anew. Every
run is scored on the same draws; what is hard in a draw is hard for all, and differences of runs
vary less than the runs do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.text_table import cell, text_table
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.evaluation.coco import pixel_summary, run_coco
from af_pipeline.evaluation.inputs import (
    IMAGE_COLUMNS,
    not_indexed,
    open_run,
    read_ground_truth,
    read_inputs,
)
from af_pipeline.evaluation.matches import Accumulator, Matches, matches_of
from af_pipeline.evaluation.voc import score_voc

NAMES = ("AP", "AP50")
LEVEL = 0.95
HEADER = ("run", "AP", "AP50", "px/image", "of first", "FP/image", "AP - first", "AP50 - first")

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


def compare_runs(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """What to print, and the same for a json; ``args``: of jobs/compare.py. Raises ValueError."""
    if len(args.detections) < 2 or len(set(args.detections)) < len(args.detections):
        raise ValueError("--detections takes the outputs of two runs or more, each once")
    if args.seed < 0:
        raise ValueError(f"seed is {args.seed}: it must be at least 0")
    truth = read_ground_truth(args)
    scored = [_score_run(uri, truth, args) for uri in args.detections]
    standings = compare_matches([matches for matches, _ in scored], args.resamples, args.seed)
    first = scored[0][1]["mean_pixels_processed"]
    rows = []
    for uri, (_, cost), standing in zip(args.detections, scored, standings, strict=True):
        own = cost["mean_pixels_processed"]
        share = own / first if own is not None and first else None
        rows.append({"run": uri, **cost, "pixels_of_first": share, **asdict(standing)})
    text = (
        f"{_table(rows, standings)}\n\nin brackets: {LEVEL:.0%} of {args.resamples} resamples of "
        f"{len(truth.image_ids)} images"
    )
    resampling = {"resamples": args.resamples, "seed": args.seed, "level": LEVEL}
    return text, {"runs": rows, "bootstrap": resampling, "ground_truth": args.ground_truth}


def _score_run(
    uri: str, truth: AnnotatedDataset, args: argparse.Namespace
) -> tuple[Matches, dict[str, Any]]:
    """One run's matches with the ground truth, and what it cost."""
    run = open_run(uri, args.allow_incomplete)
    inputs = read_inputs(run, truth, args)
    images = run.table("images", IMAGE_COLUMNS)
    pixels = pixel_summary(images)
    cost = {key: pixels[key] for key in ("mean_pixels_processed", "images", "errors")}
    fp_score = max(args.fp_score, args.min_score)  # below it nothing was read
    false = score_voc(inputs, fp_score=fp_score).false_positives_per_image
    return matches_of(inputs, run_coco(inputs, args.max_dets)), {
        **cost,
        "missing_images": not_indexed(truth, images, f"{uri}: "),
        "false_positives_per_image": {"score": fp_score, "value": false},
    }


def _table(rows: Sequence[dict[str, Any]], standings: Sequence[Standing]) -> str:
    """A row a run; differences of the first run to itself are left out."""
    table = [list(HEADER)]
    for place, (row, standing) in enumerate(zip(rows, standings, strict=True)):
        table.append(
            [
                row["run"],
                *(cell(standing.scores[name].value, ".3f") for name in NAMES),
                cell(row["mean_pixels_processed"], ",.0f"),
                cell(row["pixels_of_first"], ".3f"),
                cell(row["false_positives_per_image"]["value"], ".2f"),
                *(_span(standing.differences[name]) if place else "-" for name in NAMES),
            ]
        )
    return text_table(table, total=False)


def _span(estimate: Estimate) -> str:
    """A difference with its interval."""
    value, low, high = (cell(v, "+.3f") for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


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

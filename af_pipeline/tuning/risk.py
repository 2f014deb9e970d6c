"""Distribution-free risk control: settings whose mean loss is certified from a few images.

"Learn then Test" (Angelopoulos et al. 2021, arXiv 2110.01052): per setting a p-value for "its mean
loss is above alpha", and settings tested in an order fixed in advance until the first that stays.
Losses lie in [0, 1], one per setting and image; nothing is assumed of how they are distributed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import Boxes, iou_matrix

_LARGEST_BET = 0.75  # share of the wealth that one image can lose
_MOST_IMAGES = 1 << 20


@dataclass(frozen=True)
class Certified:
    """What `certify` found: the row chosen (None: not even the first), and all p-values."""

    index: int | None
    p_values: NDArray[np.float64]  # [K]
    means: NDArray[np.float64]  # [K] mean loss on the calibration images


def certify(losses: NDArray, alpha: float, delta: float) -> Certified:
    """The boldest setting that may be trusted to lose at most ``alpha`` on average.

    Guarantee: with probability at least 1 - ``delta`` over the draw of the calibration images, the
    setting returned has an expected loss of at most ``alpha`` on a further image, or none is
    returned. It is for any number of calibration images, settings and any dependence between
    settings. It is not about each image, nor about the realised mean of a batch, which scatters
    around the expected one. It holds if:

    - the calibration images are drawn independently from the images that the setting is meant for,
      as by a random pick from the run (a pick without replacement from a much larger run);
    - settings, their order, ``alpha``, ``delta`` and the number of images were chosen without
      looking at these losses, and certify is called once;
    - the order of the images does not depend on the losses: shuffle by a stated seed.

    Losses need not rise along the order, but settings after the first that fails are out of reach.

    Args:
        losses: [K, N] in [0, 1]; rows are settings from safest to boldest, columns are images.
        alpha: the mean loss that is allowed, inside (0, 1).
        delta: the risk of being wrong that is allowed, inside (0, 1).
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2 or not losses.shape[1]:
        raise ValueError(f"losses must be [settings, images] with images, not {losses.shape}")
    if not np.all((losses >= 0) & (losses <= 1)):
        raise ValueError("losses must lie in [0, 1]")
    p_values = wsr_p_values(losses, alpha, delta)
    passed = int(np.logical_and.accumulate(p_values <= delta).sum())
    return Certified(passed - 1 if passed else None, p_values, losses.mean(1))


def fewest_images(alpha: float, delta: float) -> int:
    """The fewest calibration images that can certify anything: all their losses are 0."""

    def suffices(count: int) -> bool:
        return bool(wsr_p_values(np.zeros((1, count)), alpha, delta)[0] <= delta)

    enough = 1
    while not suffices(enough):
        enough *= 2
        if enough > _MOST_IMAGES:
            raise ValueError(f"alpha {alpha:g} takes more than {_MOST_IMAGES} images")
    counts = range(enough // 2 + 1, enough + 1)
    return counts[bisect_left(counts, True, key=suffices)]


def wsr_p_values(losses: NDArray, alpha: float, delta: float) -> NDArray[np.float64]:
    """P-values [...] of "the expected loss is above ``alpha``" from losses [..., N], by betting.

    Waudby-Smith & Ramdas 2020 (arXiv 2010.09686): a gambler stakes before each image that it loses
    less than ``alpha``. Where the hypothesis holds, no bet pays on average, so the wealth exceeds
    1 / p at any time with probability p at most (Ville): p is 1 / the largest wealth. The bets are
    the paper's predictable plug-in from the images before, at most ``_LARGEST_BET`` of the wealth.
    They are tuned to reach ``delta`` at the last image; the p-value is valid whatever ``delta`` is.
    """
    for name, share in (("alpha", alpha), ("delta", delta)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie inside (0, 1), not {share:g}")
    losses = np.asarray(losses, np.float64)
    count = losses.shape[-1]
    seen = np.arange(1, count + 1)
    # Mean and variance so far begin from one image's worth of alpha and 1/4, the largest variance.
    mean = (np.cumsum(losses, -1) + alpha) / (seen + 1)
    variance = (np.cumsum((losses - mean) ** 2, -1) + 0.25) / (seen + 1)
    before = np.concatenate([np.full_like(losses[..., :1], 0.25), variance[..., :-1]], -1)
    bets = np.sqrt(2 * math.log(1 / delta) / (count * before))
    bets = np.minimum(bets, _LARGEST_BET / (1 - alpha))
    log_wealth = np.cumsum(np.log1p(bets * (alpha - losses)), -1)
    return np.exp(-np.maximum(log_wealth.max(-1), 0.0))


def lost_share(
    reference_boxes: Boxes,
    reference_labels: NDArray,
    boxes: Boxes,
    labels: NDArray,
    iou: float = 0.5,
) -> float | None:
    """Share of the reference detections that were not found again; None without references.

    A reference is found by a detection of its label that overlaps it with at least ``iou``. Pairs
    are taken greedily by falling overlap, so that one detection does not stand for two references.

    Args:
        reference_boxes: [R, 4], same frame as ``boxes``; ``reference_labels`` [R].
        boxes: [D, 4]; ``labels`` [D].
        iou: inside (0, 1].
    """
    if not len(reference_boxes):
        return None
    found = 0
    for label in np.intersect1d(reference_labels, labels):
        of_reference = reference_boxes[reference_labels == label]
        found += _count_pairs(iou_matrix(of_reference, boxes[labels == label]), iou)
    return 1 - found / len(reference_boxes)


def _count_pairs(overlap: NDArray, least: float) -> int:
    """Size of the greedy one-to-one matching of rows and columns of overlap [R, D]."""
    rows, columns = np.nonzero(overlap >= least)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
    return len(used_rows)

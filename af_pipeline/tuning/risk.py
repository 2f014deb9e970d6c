"""Distribution-free risk control: settings whose mean loss is certified from a few images.

"Learn then Test" (Angelopoulos et al. 2021, arXiv 2110.01052): per setting a p-value for "its mean
loss is above alpha", and settings tested in an order fixed in advance until the first that stays.
Losses lie in [0, 1], one per setting and image; nothing is assumed of how they are distributed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from af_pipeline.core.boxes import Boxes, iou_matrix

Method = Literal["wsr", "hb"]
_LARGEST_BET = 0.75  # share of the wealth that one image can lose
_MOST_IMAGES = 1 << 20


@dataclass(frozen=True)
class Certified:
    """What `certify` found: the row chosen (None: not even the first), and all p-values."""

    index: int | None
    p_values: NDArray[np.float64]  # [K]
    means: NDArray[np.float64]  # [K] mean loss on the calibration images


def certify(losses: NDArray, alpha: float, delta: float, method: Method = "wsr") -> Certified:
    """The boldest setting that may be trusted to lose at most ``alpha`` on average.

    Guarantee: with probability at least 1 - ``delta`` over the draw of the calibration images, the
    setting returned has an expected loss of at most ``alpha`` on a further image, or none is
    returned. It is for any number of calibration images, settings and any dependence between
    settings. It is not about each image, nor about the realised mean of a batch, which scatters
    around the expected one. It holds if:

    - the calibration images are drawn independently from the images that the setting is meant for,
      as by a random pick from the run (a pick without replacement from a much larger run);
    - settings, their order, ``alpha``, ``delta``, ``method`` and the number of images were chosen
      without looking at these losses, and certify is called once;
    - for "wsr" the order of the images does not depend on the losses: shuffle by a stated seed.

    Losses need not rise along the order, but settings after the first that fails are out of reach.

    Args:
        losses: [K, N] in [0, 1]; rows are settings from safest to boldest, columns are images.
        alpha: the mean loss that is allowed, inside (0, 1).
        delta: the risk of being wrong that is allowed, inside (0, 1).
        method: "wsr", see `wsr_p_values`, or "hb", see `hoeffding_bentkus`.

    Raises:
        ValueError: losses of another shape or range, or no images.
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2 or not losses.shape[1]:
        raise ValueError(f"losses must be [settings, images] with images, not {losses.shape}")
    if not np.all((losses >= 0) & (losses <= 1)):
        raise ValueError("losses must lie in [0, 1]")
    p_values = _p_values(losses, alpha, delta, method)
    passed = int(np.logical_and.accumulate(p_values <= delta).sum())
    return Certified(passed - 1 if passed else None, p_values, losses.mean(1))


def fewest_images(alpha: float, delta: float, method: Method = "wsr") -> int:
    """The fewest calibration images that can certify anything: all their losses are 0."""

    def suffices(count: int) -> bool:
        return bool(_p_values(np.zeros((1, count)), alpha, delta, method)[0] <= delta)

    enough = 1
    while not suffices(enough):
        enough *= 2
        if enough > _MOST_IMAGES:
            raise ValueError(f"alpha {alpha:g} takes more than {_MOST_IMAGES} images")
    counts = range(enough // 2 + 1, enough + 1)
    return counts[bisect_left(counts, True, key=suffices)]


def _p_values(
    losses: NDArray[np.float64], alpha: float, delta: float, method: Method
) -> NDArray[np.float64]:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie inside (0, 1), not {delta:g}")
    if method == "wsr":
        return wsr_p_values(losses, alpha, delta)
    if method == "hb":
        return hoeffding_bentkus(losses.mean(-1), losses.shape[-1], alpha)
    raise ValueError(f"method must be 'wsr' or 'hb', not {method!r}")


def hoeffding_bentkus(mean_loss: ArrayLike, count: int, alpha: float) -> NDArray[np.float64]:
    """P-values of "the expected loss is above ``alpha``" from mean losses of ``count`` images.

    The smaller of Hoeffding's bound exp(-n KL(mean, alpha)) and Bentkus' e P(Bin(n, alpha) <=
    ceil(n mean)); their minimum is one valid p-value (Bates et al. 2021, Learn then Test). Does not
    profit from a small variance. ``mean_loss`` of any shape gives p-values of that shape.
    """
    _check_alpha(alpha)
    mean = np.asarray(mean_loss, np.float64)
    hoeffding = np.exp(-count * _bernoulli_kl(np.minimum(mean, alpha), alpha))
    whole = np.ceil(np.round(count * mean, 9)).astype(np.int64)  # 3 losses of 1 stay 3
    bentkus = math.e * _binomial_cdf(count, alpha)[np.clip(whole, 0, count)]
    return np.clip(np.minimum(hoeffding, bentkus), 0.0, 1.0)


def _bernoulli_kl(mean: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of Bernoulli(mean), at most ``alpha``, from Bernoulli(alpha)."""
    rest = 1 - mean
    hit = mean * np.log(np.where(mean > 0, mean, 1) / alpha)
    return np.maximum(hit + rest * np.log(rest / (1 - alpha)), 0)


def _binomial_cdf(count: int, share: float) -> NDArray[np.float64]:
    """P(Bin(count, share) <= k) for k = 0 to count, [count + 1]."""
    log_factorial = np.array([math.lgamma(k + 1) for k in range(count + 1)])
    hits = np.arange(count + 1)
    log_mass = log_factorial[-1] - log_factorial - log_factorial[::-1]
    log_mass += hits * math.log(share) + (count - hits) * math.log1p(-share)
    return np.minimum(np.cumsum(np.exp(log_mass)), 1.0)


def wsr_p_values(losses: NDArray, alpha: float, delta: float) -> NDArray[np.float64]:
    """P-values [...] of "the expected loss is above ``alpha``" from losses [..., N], by betting.

    Waudby-Smith & Ramdas 2020 (arXiv 2010.09686): a gambler stakes before each image that it loses
    less than ``alpha``. Where the hypothesis holds, no bet pays on average, so the wealth exceeds
    1 / p at any time with probability p at most (Ville): p is 1 / the largest wealth. The bets are
    the paper's predictable plug-in from the images before, at most ``_LARGEST_BET`` of the wealth.
    They are tuned to reach ``delta`` at the last image; the p-value is valid whatever ``delta`` is.
    """
    _check_alpha(alpha)
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


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie inside (0, 1), not {alpha:g}")


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

"""A pixel budget: which FocusChips are worth their price.

The expected gain of a chip is the expected number of FocusPixels in it, the sum of their
probabilities; its price the network px of its forward. Not in the AutoFocus paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BudgetRule:
    """``pixels``: network px that one image may take, padding and the coarsest look included, None:
    any number; ``least_gain``: chips below this gain per megapixel are left out."""

    pixels: float | None = None
    least_gain: float = 0.0


def allowance(
    rule: BudgetRule,
    factors: Sequence[float],
    spent: Sequence[int],
    refused: Sequence[int],
    scale: int,
) -> float:
    """Network px that the chips of ``scale`` may take in one image.

    ``factors`` of all scales, coarse to fine, ``spent`` network px and ``refused`` chips of those
    before ``scale``. The coarsest scale is always looked at. What it leaves is shared out in
    proportion to the factors; what a scale does not need goes to the finer ones, but only while no
    chip was refused, so that a larger budget never leaves a finer scale less.
    """
    if rule.pixels is None:
        return math.inf
    # Exact: rounding could give a larger budget one px less.
    shares = [Fraction(factor) for factor in factors]
    left = Fraction(rule.pixels) - spent[0]
    for step in range(1, scale):
        share = left * shares[step] / sum(shares[step:])
        left -= share if any(refused[1 : step + 1]) else spent[step]
    return max(0, math.floor(left * shares[scale] / sum(shares[scale:])))


def take_chips(
    gains: NDArray, costs: NDArray, parents: NDArray, limit: float, least_gain: float = 0.0
) -> NDArray[np.int64]:
    """Indices of the chips taken, of ``gains``, ``costs`` (network px) and ``parents`` [M].

    By rising parent, then by falling gain per px, up to the first that goes beyond ``limit`` px in
    sum; chips of less than ``least_gain`` per megapixel are not taken. Parents are numbered in
    the order in which they were taken themselves: so the chips at a larger budget are those at a
    smaller one and more.
    """
    density = gains / np.maximum(costs, 1)
    order = np.lexsort((np.arange(len(gains)), -density, parents))
    order = order[density[order] * 1e6 >= least_gain]
    return order[np.cumsum(costs[order]) <= limit]


def gain_floor(gains: Sequence[float], costs: Sequence[float], limit: float) -> float:
    """The least gain per megapixel with which chips take ``limit`` px at most in sum, >= 0.

    ``gains`` are per megapixel, each at most that of the chip it was cut from.
    """
    gain, cost = np.asarray(gains, float), np.asarray(costs, float)
    order = np.argsort(-gain, kind="stable")
    beyond = np.flatnonzero(np.cumsum(cost[order]) > limit)
    if not len(beyond):
        return 0.0
    return float(np.nextafter(gain[order][beyond[0]], np.inf))


@dataclass(frozen=True)
class Floor:
    """``least_gain`` per megapixel of the chips that a run takes, by ``sample`` images; what is
    expected of it with these: ``coarse`` and ``expected`` network px in all."""

    least_gain: float
    sample: int
    coarse: float
    expected: float

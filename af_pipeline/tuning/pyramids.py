"""Parts of a pyramid: what some of its scales would find without the others.

Not in the AutoFocus paper, whose pyramid is given. A scale that finds nothing the others do not is
left out before focus is searched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from af_pipeline.core.plan import Plan, unfocused
from af_pipeline.core.scales import Scale
from af_pipeline.tuning.replay import Record

Kept = tuple[int, ...]  # numbers of the scales that are used, coarse to fine

MEET = 1.15  # how far the valid ranges of two scales reach beyond where they meet


def parts_of(count: int) -> list[Kept]:
    """Every choice of one scale or more out of ``count``, the fewest first."""
    sizes = range(1, count + 1)
    return [one for size in sizes for one in itertools.combinations(range(count), size)]


def kept_scales(scales: Sequence[Scale], kept: Kept) -> tuple[Scale, ...]:
    """The ``kept`` ones of ``scales``; their valid ranges take over those of the others.

    The outer bounds stay those of the whole pyramid; a gap between two kept scales is closed at its
    geometric mean, beyond which both reach.
    """
    if len(kept) == len(scales):
        return tuple(scales)
    chosen = [scales[number] for number in kept]
    lows, highs = [one.valid_low for one in chosen], [one.valid_high for one in chosen]
    highs[0], lows[-1] = scales[0].valid_high, scales[-1].valid_low
    for coarse in range(len(chosen) - 1):
        low, high = lows[coarse], highs[coarse + 1]
        if 0 < high < low:
            meeting = math.sqrt(low * high)
            lows[coarse] = min(low, meeting / MEET)
            highs[coarse + 1] = max(high, meeting * MEET)
    return tuple(
        replace(one, valid_range=(low, high))
        for one, low, high in zip(chosen, lows, highs, strict=True)
    )


def narrow_plan(plan: Plan, kept: Kept) -> Plan:
    """``plan`` with the ``kept`` scales only, each of them whole."""
    return unfocused(replace(plan, scales=kept_scales(plan.scales, kept)))


def narrow_record(record: Record, kept: Kept) -> Record:
    """What was recorded of the ``kept`` scales, which get new numbers."""
    if kept == tuple(range(len(record.maps))):
        return record
    found = record.found.select(np.flatnonzero(np.isin(record.found.scales, kept)))
    scales = np.searchsorted(kept, found.scales).astype(found.scales.dtype)
    maps = tuple(record.maps[number] for number in kept)
    return replace(record, found=replace(found, scales=scales), maps=maps)


def scales_name(scales: Sequence[Scale], kept: Kept) -> str:
    """The ``kept`` scales in a few letters: 0.25+1, or 832+2496 by their sides."""
    named = [scales[number] for number in kept]
    return "+".join(
        f"{max(one.min_side, one.max_side) if one.factor is None else one.factor:g}"
        for one in named
    )

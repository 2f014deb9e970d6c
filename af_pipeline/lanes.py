"""Lanes: size buckets of chips at network input, tiles of larger chips, batches by pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TILE_STEP = 32  # tiles start at multiples of the coarsest stride, so their maps fit together


@dataclass(frozen=True)
class Lane:
    """A bucket of ``height`` x ``width`` network px."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Area in network px."""
        return self.height * self.width


def make_lanes(sides: Sequence[int]) -> tuple[Lane, ...]:
    """All pairs of ``sides``, smallest area first; square before oblong at equal area."""
    pairs = [Lane(h, w) for h in sides for w in sides]
    return tuple(sorted(pairs, key=lambda p: (p.pixels, abs(p.height - p.width), p.height)))


def lane_of(height: int, width: int, lanes: Sequence[Lane]) -> int:
    """Index of the smallest lane that holds ``height`` x ``width`` network px; -1: none does."""
    for index, lane in enumerate(lanes):
        if height <= lane.height and width <= lane.width:
            return index
    return -1


def split_axis(length: int, limit: int, overlap: int) -> list[tuple[int, int]]:
    """Cover [0, length) by pieces of at most ``limit`` px that overlap by at least ``overlap``.

    Starts are multiples of `TILE_STEP` and evenly spread; pieces are as small as their number
    allows. ``limit`` must exceed ``overlap`` by at least three steps.
    """
    if length <= limit:
        return [(0, length)]
    if limit - overlap < 3 * TILE_STEP:
        raise ValueError(f"overlap {overlap} leaves no step for tiles of {limit} px")
    for count in itertools.count(2):
        size = -(-(length + (count - 1) * overlap) // count)
        last = -(-(length - size) // TILE_STEP) * TILE_STEP
        starts = [i * last // (count - 1) // TILE_STEP * TILE_STEP for i in range(count)]
        ends = [min(start + overlap, length) for start in starts[1:]] + [length]
        pieces = list(zip(starts, ends, strict=True))
        if all(end - start <= limit for start, end in pieces):
            return pieces
    raise AssertionError("unreachable: pieces shrink as their number grows")


def tile_rects(height: int, width: int, side: int, overlap: int) -> NDArray[np.int64]:
    """Tiles [T, 4] (x0, y0, x1, y1 network px) that cover ``height`` x ``width``, row by row."""
    rows = split_axis(height, side, overlap)
    columns = split_axis(width, side, overlap)
    return np.array([[x0, y0, x1, y1] for y0, y1 in rows for x0, x1 in columns], np.int64)


def pack(
    lane_ids: Sequence[int], lanes: Sequence[Lane], pixel_budget: int
) -> list[NDArray[np.int64]]:
    """Batches of item indices: one lane each, at most ``pixel_budget`` px at the lane's size.

    A batch holds at least one item. Items keep their order within a lane; lanes rise.
    """
    ids = np.asarray(lane_ids, np.int64)
    batches: list[NDArray[np.int64]] = []
    for lane in np.unique(ids):
        members = np.flatnonzero(ids == lane)
        size = max(1, pixel_budget // lanes[lane].pixels)
        batches += [members[i : i + size] for i in range(0, len(members), size)]
    return batches

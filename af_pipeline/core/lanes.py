"""Lanes: size buckets of chips at network input, tiles of larger chips, batches by pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from af_pipeline.config import Pixels, Section, Side

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


def largest_side(lanes: Sequence[Lane]) -> int:
    """The largest side of any lane, network px: what is larger is cut into tiles of it."""
    return max(max(lane.height, lane.width) for lane in lanes)


def split_axis(length: int, limit: int, overlap: int) -> list[tuple[int, int]]:
    """Cover [0, length) by pieces of at most ``limit`` px that overlap by at least ``overlap``.

    Starts are multiples of `TILE_STEP` and evenly spread; pieces are as small as their number
    allows. ``limit`` must exceed ``overlap`` by at least three steps.
    """
    if length <= limit:
        return [(0, length)]
    if limit - overlap < 3 * TILE_STEP:
        raise ValueError(f"overlap {overlap} leaves no step for tiles of {limit} px")
    for count in itertools.count(max(2, -(-(length - overlap) // (limit - overlap)))):
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


def canvas_sides(
    length: NDArray, lanes: Sequence[Lane] | None = None, tiles: tuple[int, int] | None = None
) -> NDArray[np.int64]:
    """Network px that a side of ``length`` [M] takes in forwards, padding included.

    It is rounded up to a side of ``lanes``, or to a multiple of `TILE_STEP` without them and
    beyond the largest. ``tiles``: the largest side of a tile and the overlap, network px, of what
    is larger, whose tiles are summed. What a chip takes is the product of its two sides.
    """
    known = np.asarray(length, np.int64)
    sides = tuple(sorted({lane.height for lane in lanes or ()}))
    size = 1 << int(known.max(initial=1)).bit_length()
    return _canvas_table(sides, tiles, size)[known]


@lru_cache(maxsize=32)
def _canvas_table(
    sides: tuple[int, ...], tiles: tuple[int, int] | None, size: int
) -> NDArray[np.int64]:
    """`canvas_sides` of 0 to ``size``: prices ask for the same lengths again and again."""
    known = np.arange(size + 1)
    table = -(-known // TILE_STEP) * TILE_STEP
    if sides:
        index = np.searchsorted(sides, known)
        table = np.where(index < len(sides), np.array(sides)[index.clip(max=len(sides) - 1)], table)
    if tiles is not None:
        for one in range(tiles[0] + 1, size + 1):
            table[one] = sum(int(table[end - start]) for start, end in split_axis(one, *tiles))
    table.flags.writeable = False
    return table


def pack(
    keys: Sequence[tuple[int, ...]], pixels: Sequence[int], pixel_budget: int
) -> list[NDArray[np.int64]]:
    """Batches of item indices: of one key each, at most ``pixel_budget`` px.

    ``pixels``: what one item of a key takes, the same for all of it. A batch holds one item at
    least; items keep their order within a key, keys rise.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    batches: list[NDArray[np.int64]] = []
    for _, own in sorted(members.items()):
        size = max(1, pixel_budget // pixels[own[0]])
        batches += [np.array(own[i : i + size]) for i in range(0, len(own), size)]
    return batches


class LaneConfig(Section):
    """Size buckets of chips at network input."""

    sides: tuple[Side, ...] = Field(
        (256, 384, 512, 768, 1024, 1536),
        max_length=100,
        description="bucket sides, network px, multiples of 32",
    )
    overlap: int = Field(
        128, ge=0, description="overlap of the tiles of a chip above the largest lane, network px"
    )
    batch_pixels: Pixels = Field(1, ge=1, description="network px of a batch, one chip at least")
    pad: bool = Field(
        False,
        description="pad chips to their lane's shape and batch them across images (GPU, compiled "
        "shapes), or batch those of one image that have one shape",
    )
    fill: bool = Field(
        False, description="chips grow to their lane's shape where their parent has more to show"
    )

    @model_validator(mode="after")
    def _sides(self) -> LaneConfig:
        if not self.sides or any(side % 32 or side <= 0 for side in self.sides):
            raise ValueError("sides must be positive multiples of 32")
        if list(self.sides) != sorted(set(self.sides)):
            raise ValueError("sides must rise")
        if self.overlap >= self.sides[-1] // 2:
            raise ValueError("overlap must be less than half of the largest side")
        if self.sides[-1] - self.overlap < 3 * TILE_STEP:
            raise ValueError(f"overlap must leave {3 * TILE_STEP} px of the largest side")
        return self

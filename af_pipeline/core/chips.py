"""Chips: as the detector sees them (crops, tiles), and those of the next scale cut from them.

Source: AutoFocus (ICCV 2019) Algorithm 1, per chip. The rest is ours: merging across the chips of
an image, prices of whole forwards, chips that fill their lane, the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.budget import allowance, take_chips
from af_pipeline.core.focus import (
    STRIDE,
    ChipRule,
    Price,
    chips_from_map,
    grow_rects,
    merge_rects,
    project_chips,
)
from af_pipeline.core.lanes import TILE_STEP, Lane, canvas_sides, lane_of, tile_rects
from af_pipeline.core.pixels import Pixels
from af_pipeline.core.plan import Plan, TileRule
from af_pipeline.core.scales import scaled_size
from af_pipeline.core.schema import Candidate, Chip, ImageRow

# Network px of resized chips held at once, about 200 MB; the tiles of a larger chip are resized
# one by one.
HELD_PIXELS = 64_000_000

Box = tuple[int, int, int, int]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Crop:
    """A chip and its size at network input; factors (y, x) are network px per original px;
    ``row``: its row's number, ``index``: the chip's among those of its row; ``tiling``: how it is
    cut where it is too large for one forward."""

    row: int
    index: int
    chip: Chip
    height: int
    width: int
    factors: tuple[float, float]
    tiling: TileRule

    @property
    def pixels(self) -> int:
        """Area in network px."""
        return self.height * self.width


@dataclass(frozen=True)
class Tile:
    """The part of a crop that one forward sees: rect x0, y0, x1, y1 network px of the crop."""

    crop: int
    rect: Box
    lane: int


def crop_of(number: int, index: int, row: ImageRow, plan: Plan) -> Crop:
    """The crop of chip ``index`` of ``row``, which is the ``number``th."""
    chip = row.chips[index]
    x0, y0, x1, y1 = chip.box
    native_h, native_w = y1 - y0, x1 - x0
    factor = plan.scales[chip.scale].factor_for(row.height, row.width)
    height, width = scaled_size(native_h, native_w, factor)
    factors = (height / native_h, width / native_w)
    return Crop(number, index, chip, height, width, factors, plan.tiling(chip.scale, factor))


def tiles_of(index: int, crop: Crop, lanes: Sequence[Lane]) -> list[Tile]:
    """What is forwarded of a crop: all of it where one tile holds it, else overlapping tiles."""
    rects = tile_rects(crop.height, crop.width, crop.tiling.side, crop.tiling.overlap)
    return [
        Tile(index, (x0, y0, x1, y1), lane_of(y1 - y0, x1 - x0, lanes))
        for x0, y0, x1, y1 in rects.tolist()
    ]


def canvas_of(tile: Tile, plan: Plan) -> tuple[int, int]:
    """Height and width of the network input that a forward of ``tile`` takes."""
    if plan.pad:
        return plan.lanes[tile.lane].height, plan.lanes[tile.lane].width
    x0, y0, x1, y1 = tile.rect
    return -(-(y1 - y0) // TILE_STEP) * TILE_STEP, -(-(x1 - x0) // TILE_STEP) * TILE_STEP


def forward_pixels(row: ImageRow, scale: int, box: Box, plan: Plan) -> int:
    """Network px that a chip ``box`` (original px) takes at ``scale``, padding included."""
    chip = Chip(scale, -1, box, 0.0)
    crop = crop_of(0, 0, replace(row, chips=[chip]), plan)
    canvases = (canvas_of(tile, plan) for tile in tiles_of(0, crop, plan.lanes))
    return sum(rows * columns for rows, columns in canvases)


class Cutter:
    """Cuts tiles out of crops; holds `HELD_PIXELS` of resized ones at most, the latest.

    Several threads may cut at once.
    """

    def __init__(self, crops: Sequence[Crop]) -> None:
        self.crops = crops
        self.held: dict[int, NDArray[np.uint8]] = {}
        self.lock = Lock()

    def cut(self, tile: Tile) -> NDArray[np.uint8]:
        """The network input of one tile."""
        crop = self.crops[tile.crop]
        assert crop.chip.pixels is not None
        if tile.rect == (0, 0, crop.width, crop.height):
            return crop.chip.pixels.read(crop.height, crop.width)
        if crop.pixels > HELD_PIXELS:
            return crop.chip.pixels.read(crop.height, crop.width, tile.rect)
        x0, y0, x1, y1 = tile.rect
        with self.lock:
            return self._whole(tile.crop)[y0:y1, x0:x1]

    def _whole(self, index: int) -> NDArray[np.uint8]:
        if index not in self.held:
            crop = self.crops[index]
            held = sum(self.crops[other].pixels for other in self.held)
            while self.held and held + crop.pixels > HELD_PIXELS:
                oldest = next(iter(self.held))
                held -= self.crops[oldest].pixels
                del self.held[oldest]
            assert crop.chip.pixels is not None
            self.held[index] = crop.chip.pixels.read(crop.height, crop.width)
        return self.held[index]


TileMap = tuple[Tile, NDArray[np.float32]]  # a tile and the focus map of its forward


def make_chip(
    row: ImageRow,
    scale: int,
    box: Box,
    found: Candidate | None,
    pixels: Pixels | None,
    plan: Plan,
) -> Chip:
    """The chip ``box`` (original px) of ``scale``; ``found``: focus and gain, None: all of it."""
    height, width = network_size(row, scale, box, plan)
    focus, gain = (found.focus, found.gain) if found else (1.0, 0.0)
    return Chip(scale, lane_of(height, width, plan.lanes), box, focus, gain, pixels)


def network_size(row: ImageRow, scale: int, box: Box, plan: Plan) -> tuple[int, int]:
    """Height and width of ``box`` (original px) at the input of ``scale``."""
    factor = plan.scales[scale].factor_for(row.height, row.width)
    return scaled_size(box[3] - box[1], box[2] - box[0], factor)


def candidates_of(
    row: ImageRow, crop: Crop, maps: Sequence[TileMap], scale: int, plan: Plan
) -> list[Candidate]:
    """Chips of the next scale in one chip, original px, with their focus and gain."""
    rule = plan.rules[scale]
    if rule is None:
        return [Candidate(crop.chip.box, 1.0, 0.0, crop.index)]
    focus = focus_map(crop, maps)
    price = step_price(row, scale, plan)
    rects, mean, gain = chips_from_map(focus, rule, (crop.height, crop.width), price)
    rects = project_chips(rects, crop.chip.box, crop.factors)
    return [
        Candidate(_box(rect), float(mean[i]), float(gain[i]), crop.index)
        for i, rect in enumerate(rects)
    ]


def focus_map(crop: Crop, maps: Sequence[TileMap]) -> NDArray[np.float32]:
    """The focus map of a chip, put together from its tiles: the higher where they overlap."""
    height, width = crop.height, crop.width
    focus = np.zeros((-(-height // STRIDE), -(-width // STRIDE)), np.float32)
    for tile, own in maps:
        x0, y0, x1, y1 = tile.rect
        left, top = x0 // STRIDE, y0 // STRIDE
        rows, columns = -(-(y1 - y0) // STRIDE), -(-(x1 - x0) // STRIDE)
        part = focus[top : top + rows, left : left + columns]
        np.maximum(part, own[:rows, :columns], out=part)
    return focus


def step_price(row: ImageRow, scale: int, plan: Plan) -> Price:
    """What a chip cut from a map of ``scale`` costs at the next scale, by px of the map's scale."""
    own, finer = (plan.scales[s].factor_for(row.height, row.width) for s in (scale, scale + 1))
    ratio, tiles = finer / own, plan.tiling(scale + 1, finer)

    def side(length: NDArray) -> NDArray:
        lengths = np.ceil(length * ratio - 1e-6)
        return canvas_sides(lengths, plan.canvases, (tiles.side, tiles.overlap))

    return Price(side, ratio**2)


def next_chips(row: ImageRow, scale: int, plan: Plan) -> list[Candidate]:
    """Make the candidates of ``row`` into chips of scale + 1; pixels of ``scale`` are let go.

    Returns what became chips, in their order. Chips are merged over the whole image where one
    parent holds the result; under a budget only within their parent, since a chip must not change
    with what else is affordable.
    """
    found = sorted(row.candidates, key=lambda one: one.parent)
    parents = {index: row.chips[index] for index in sorted({one.parent for one in found})}
    row.chips = [replace(c, pixels=None) if c.scale == scale else c for c in row.chips]
    row.candidates = []
    if not found:
        return []
    rule = plan.rules[scale]
    if isinstance(rule, ChipRule):
        if len(parents) > 1 and plan.budget is None:
            found = _merged(row, found, parents, rule, scale, plan)
        if plan.fill:
            found = [_filled(row, one, parents, scale + 1, plan) for one in found]
        found = _affordable(row, _distinct(found), scale + 1, plan)
    # Crops that overlap may be more than what they are cut from, and then share its memory.
    keep = _area(found) >= _area(list(parents.values()))
    for one in found:
        parent = parents[one.parent]
        x0, y0, x1, y1 = (a - b for a, b in zip(one.box, parent.box[:2] * 2, strict=True))
        pixels = None if parent.pixels is None else parent.pixels.part((x0, y0, x1, y1), keep)
        row.chips.append(make_chip(row, scale + 1, one.box, one, pixels, plan))
    return found


def _distinct(found: Sequence[Candidate]) -> list[Candidate]:
    """Of candidates with the same box that of the first parent, there that of the highest gain.

    Chips of overlapping parents, or grown to their lane, may have become one.
    """
    best: dict[Box, Candidate] = {}
    for one in found:
        there = best.setdefault(one.box, one)
        if there.parent == one.parent and there.gain < one.gain:
            best[one.box] = one
    return list(best.values())


def _merged(
    row: ImageRow,
    found: Sequence[Candidate],
    parents: Mapping[int, Chip],
    rule: ChipRule,
    scale: int,
    plan: Plan,
) -> list[Candidate]:
    """Candidates merged across parents; each names the first parent that holds it."""
    own, finer = (plan.scales[s].factor_for(row.height, row.width) for s in (scale, scale + 1))
    members = np.array([one.box for one in found], np.int64)
    holders = np.array([parent.box for parent in parents.values()], np.int64)
    tiles = plan.tiling(scale + 1, finer)

    def side(length: NDArray) -> NDArray:
        lengths = np.maximum(1, np.round(length * finer))
        return canvas_sides(lengths, plan.canvases, (tiles.side, tiles.overlap))

    price = Price(side, (finer / own) ** 2)
    rects = merge_rects(members, rule.merge, rule.chip_cost, holders, price)
    focus = np.array([one.focus for one in found])
    gain = np.array([one.gain for one in found])
    merged = []
    for rect in rects:
        held = (members[:, :2] >= rect[:2]).all(1) & (members[:, 2:] <= rect[2:]).all(1)
        holding = (holders[:, :2] <= rect[:2]).all(1) & (holders[:, 2:] >= rect[2:]).all(1)
        parent = list(parents)[int(holding.argmax())]
        merged.append(
            Candidate(_box(rect), float(focus[held].mean()), float(gain[held].sum()), parent)
        )
    return merged


def _filled(
    row: ImageRow, one: Candidate, parents: Mapping[int, Chip], scale: int, plan: Plan
) -> Candidate:
    """The candidate grown to its lane's shape, as far as its parent has more to show."""
    factor = plan.scales[scale].factor_for(row.height, row.width)
    lane = lane_of(*network_size(row, scale, one.box, plan), plan.lanes)
    if lane < 0:
        return one
    x0, y0, x1, y1 = parents[one.parent].box
    sides = np.array([plan.lanes[lane].width, plan.lanes[lane].height])
    corner = np.array([x0, y0, x0, y0])
    own = np.array([one.box]) - corner
    grown = grow_rects(own, np.floor(sides / factor + 1e-6).astype(np.int64), (y1 - y0, x1 - x0))
    return replace(one, box=_box(grown[0] + corner))


def _affordable(
    row: ImageRow, found: Sequence[Candidate], scale: int, plan: Plan
) -> list[Candidate]:
    """The candidates of ``scale`` that the plan's budget takes; the others are counted."""
    if plan.budget is None:
        return list(found)
    costs = [forward_pixels(row, scale, one.box, plan) for one in found]
    ledger = row.ledger
    spent = [
        forwarded + padded for forwarded, padded in zip(ledger.pixels, ledger.padded, strict=True)
    ]
    factors = [one.factor_for(row.height, row.width) for one in plan.scales]
    limit = allowance(plan.budget, factors, spent, ledger.refused, scale)
    gains = np.array([one.gain for one in found])
    parents = np.array([one.parent for one in found])
    taken = take_chips(gains, np.array(costs), parents, limit, plan.budget.least_gain)
    ledger.refused[scale] += len(found) - len(taken)
    return [found[i] for i in taken]


def _box(rect: NDArray) -> Box:
    return int(rect[0]), int(rect[1]), int(rect[2]), int(rect[3])


def _area(boxed: Sequence[Candidate] | Sequence[Chip]) -> int:
    return sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one.box for one in boxed))

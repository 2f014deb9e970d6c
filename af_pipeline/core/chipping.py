"""From what was seen at one scale to the chips of the next: candidates, merging, cutting.

Source: AutoFocus (ICCV 2019) Algorithm 1, per chip. The rest is ours: merging across the chips of
an image, prices of whole forwards, chips that fill their lane, the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
from af_pipeline.core.lanes import canvas_sides, lane_of
from af_pipeline.core.pixels import Pixels
from af_pipeline.core.plan import Plan
from af_pipeline.core.scales import scaled_size
from af_pipeline.core.schema import Candidate, Chip, ImageRow
from af_pipeline.core.views import Box, Tile, View, forward_pixels

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
    row: ImageRow, view: View, maps: Sequence[TileMap], scale: int, plan: Plan
) -> list[Candidate]:
    """Chips of the next scale in one chip, original px, with their focus and gain."""
    rule = plan.rules[scale]
    if rule is None:
        return [Candidate(view.chip.box, 1.0, 0.0, view.index)]
    focus = focus_map(view, maps)
    price = step_price(row, scale, plan)
    rects, mean, gain = chips_from_map(focus, rule, (view.height, view.width), price)
    rects = project_chips(rects, view.chip.box, view.factors)
    return [
        Candidate(_box(rect), float(mean[i]), float(gain[i]), view.index)
        for i, rect in enumerate(rects)
    ]


def focus_map(view: View, maps: Sequence[TileMap]) -> NDArray[np.float32]:
    """The focus map of a chip, put together from its tiles: the higher where they overlap."""
    height, width = view.height, view.width
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
    factors = [plan.scales[s].factor_for(row.height, row.width) for s in (scale, scale + 1)]
    ratio = factors[1] / factors[0]
    tiles = plan.tiling(scale + 1, factors[1])

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
    # Crops that overlap may be more than what they are cut from, and then stay views of it.
    keep = _area(found) >= _area(list(parents.values()))
    for one in found:
        pixels = _cut(one.box, parents[one.parent], keep)
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


def _cut(box: Box, parent: Chip, keep: bool) -> Pixels | None:
    """The pixels of ``box`` out of its parent, None without any."""
    if parent.pixels is None:
        return None
    (x0, y0, x1, y1), (left, top) = box, parent.box[:2]
    return parent.pixels.part((x0 - left, y0 - top, x1 - left, y1 - top), keep)

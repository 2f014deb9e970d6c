"""FocusPixels and FocusChips, both directions: labels from boxes, chips from a focus map.

A FocusPixel is one 16 x 16 px cell of the network input (AutoFocus §3.1). Source of the rules:
Najibi, Singh, Davis, "AutoFocus: Efficient Multi-Scale Inference", ICCV 2019, §§3.1-3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from af_pipeline.boxes import box_side, intersection_area

STRIDE = 16  # network px of one FocusPixel

FOCUS, BACKGROUND, IGNORE = 1, 0, -1


@dataclass(frozen=True)
class FocusRule:
    """Sizes that make a FocusPixel, network px (square root of the box area).

    side < ``ignore_below``: -1; up to ``focus_below``: 1; up to ``ignore_until``: -1; else 0
    (AutoFocus §3.1: a, b, c = 5, 64, 90).
    """

    ignore_below: float = 5.0
    focus_below: float = 64.0
    ignore_until: float = 90.0


@dataclass(frozen=True)
class ChipRule:
    """How a focus map becomes FocusChips; lengths in network px of the map's scale.

    ``threshold``: probability at which a cell counts; ``dilation``: side of the square
    structuring element, cells (1 = none); ``min_size``: least chip side; ``merge``: "paper" merges
    chips that overlap or touch, "cost" merges two chips when one forward of their union is cheaper
    than both; ``chip_cost``: price of one more chip, px of area, for "cost"; ``context``: what a
    chip has around its cells at least, on each side.
    """

    threshold: float
    dilation: int = 3
    min_size: int = 128
    merge: str = "cost"
    chip_cost: float = 0.0
    context: int = 0


# Widths and heights [M] of rectangles -> what one forward of each costs [M], px of area.
Price = Callable[[NDArray, NDArray], NDArray]


def area_price(width: NDArray, height: NDArray) -> NDArray:
    """The plain area."""
    return width * height


def focus_labels(
    boxes: NDArray,
    height: int,
    width: int,
    rule: FocusRule | None = None,
    crowd: NDArray | None = None,
) -> NDArray[np.int64]:
    """FocusPixel labels of a chip of ``height`` x ``width`` network px.

    ``boxes`` [N, 4] are the scaled, unclipped boxes of all objects in chip px; those that do not
    meet the chip are skipped. Returns int64 [ceil(height/16), ceil(width/16)] in {-1, 0, 1}.
    A cell that any small object overlaps is 1 whatever else overlaps it (paper's precedence).
    ``crowd`` [N] marks regions of uncounted objects: -1, since nobody knows where they are.
    """
    rule = rule or FocusRule()
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    labels = np.zeros((rows, columns), np.int64)
    if not len(boxes):
        return labels
    meets = intersection_area(boxes, np.array([[0, 0, width, height]], np.float64))[:, 0] > 0
    side = box_side(boxes)
    small = (side >= rule.ignore_below) & (side < rule.focus_below)
    group_of_objects = np.zeros(len(boxes), bool) if crowd is None else crowd
    small &= ~group_of_objects
    unsure = (
        group_of_objects
        | (side < rule.ignore_below)
        | ((side >= rule.focus_below) & (side < rule.ignore_until))
    )
    for group, value in ((unsure, IGNORE), (small, FOCUS)):
        for x0, y0, x1, y1 in boxes[group & meets]:
            top, bottom = max(0, int(y0 // STRIDE)), -int(-y1 // STRIDE)
            left, right = max(0, int(x0 // STRIDE)), -int(-x1 // STRIDE)
            labels[top:bottom, left:right] = value
    return labels


def focus_cells(focus_map: NDArray, rule: ChipRule) -> NDArray[np.uint8]:
    """Threshold and dilate a probability map [h, w] -> uint8 {0, 1} [h, w]."""
    cells = (focus_map >= rule.threshold).astype(np.uint8)
    if rule.dilation <= 1 or not cells.any():
        return cells
    return np.asarray(cv2.dilate(cells, np.ones((rule.dilation, rule.dilation))), np.uint8)


def component_rects(cells: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bounding rectangles [M, 4] (x0, y0, x1, y1 cells, half-open) of 8-connected components."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(cells, connectivity=8)
    if count <= 1:
        return np.zeros((0, 4), np.int64)
    left, top, width, height = (stats[1:, i].astype(np.int64) for i in range(4))
    return np.stack([left, top, left + width, top + height], 1)


def grow_rects(
    rects: NDArray[np.int64], least: int | NDArray[np.int64], bounds: tuple[int, int]
) -> NDArray[np.int64]:
    """Grow rectangles about their centre to ``least`` and shift them into ``bounds``.

    ``least``: of both sides, or (width, height); ``bounds``: (height, width); a bound smaller than
    ``least`` limits the growth.
    """
    grown = rects.copy()
    sides = np.broadcast_to(least, 2)
    for axis, limit in ((0, bounds[1]), (1, bounds[0])):
        low, high = rects[:, axis], rects[:, axis + 2]
        size = np.minimum(np.maximum(high - low, sides[axis]), limit)
        start = (low + high - size) // 2
        # Never lose a cell of the rectangle itself to the rounding of the centre.
        start = np.clip(start, np.maximum(0, high - size), np.minimum(low, limit - size))
        grown[:, axis], grown[:, axis + 2] = start, start + size
    return grown


def merge_rects(
    rects: NDArray[np.int64],
    rule: str,
    chip_cost: float = 0.0,
    containers: NDArray[np.int64] | None = None,
    price: Price = area_price,
) -> NDArray[np.int64]:
    """Merge rectangles [M, 4] to a fixpoint, in an order that does not depend on theirs.

    "paper": two that overlap or touch become their bounding rectangle. "cost": two become it
    when its ``price`` is at most the sum of theirs plus ``chip_cost``. With ``containers`` [P, 4] a
    merge happens only when one container holds the result. Returns sorted rectangles.
    """
    if rule not in ("paper", "cost"):
        raise ValueError(f"merge rule {rule!r} is unknown: use 'paper' or 'cost'")
    todo = np.unique(rects, axis=0)
    if len(todo) < 2:
        return todo
    held = None if containers is None else _held_by(todo, containers)
    alive = np.ones(len(todo), bool)
    # savings[i, j]: what merging i and j saves, -inf where they may not; best: its row maxima.
    # Kept up to date, not made anew: a crowded map has a thousand rectangles.
    savings = np.stack([_savings(todo, held, i, rule, chip_cost, price) for i in range(len(todo))])
    best = savings.max(1)
    while best.max() > -np.inf:
        i, j = _best_pair(todo, savings, best)
        todo[i, :2] = np.minimum(todo[i, :2], todo[j, :2])
        todo[i, 2:] = np.maximum(todo[i, 2:], todo[j, 2:])
        if held is not None:
            held[i] &= held[j]
        alive[j] = False
        stale = (savings[:, i] == best) | (savings[:, j] == best)
        savings[j], savings[:, j] = -np.inf, -np.inf
        row = np.where(alive, _savings(todo, held, i, rule, chip_cost, price), -np.inf)
        savings[i], savings[:, i] = row, row
        best = np.maximum(best, row)
        stale[[i, j]] = True
        best[stale] = savings[stale].max(1)
    return np.unique(todo[alive], axis=0)


def _held_by(rects: NDArray[np.int64], containers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which container [P, 4] holds which rectangle [M, 4] -> bool [M, P]."""
    low = rects[:, None, :2] >= containers[None, :, :2]
    high = rects[:, None, 2:] <= containers[None, :, 2:]
    return np.all(low & high, axis=-1)


def _savings(
    rects: NDArray[np.int64],
    held: NDArray[np.bool_] | None,
    i: int,
    rule: str,
    chip_cost: float,
    price: Price,
) -> NDArray[np.float64]:
    """What merging rectangle ``i`` with each other saves [M]; -inf where it is not allowed."""
    one = rects[i]
    low, high = np.minimum(rects[:, :2], one[:2]), np.maximum(rects[:, 2:], one[2:])
    alone = price(*(rects[:, 2:] - rects[:, :2]).T)
    saving = (alone + alone[i] - price(*(high - low).T)).astype(np.float64) + chip_cost
    if rule == "paper":
        near_low, near_high = np.maximum(rects[:, :2], one[:2]), np.minimum(rects[:, 2:], one[2:])
        allowed = (near_low <= near_high).all(-1)
    else:
        allowed = saving >= 0
    if held is not None:
        allowed &= (held & held[i]).any(1)  # a box that holds both holds their union
    allowed[i] = False
    return np.where(allowed, saving, -np.inf)


def _best_pair(
    rects: NDArray[np.int64], savings: NDArray[np.float64], best: NDArray[np.float64]
) -> tuple[int, int]:
    """The pair whose merge saves most; ties go to the first by coordinates."""
    top = best.max()
    i = _first(rects, np.flatnonzero(best == top))
    return i, _first(rects, np.flatnonzero(savings[i] == top))


def _first(rects: NDArray[np.int64], indices: NDArray[np.int64]) -> int:
    """The one of ``indices`` whose rectangle comes first by coordinates."""
    return int(indices[np.lexsort(rects[indices].T[::-1])[0]])


def chips_from_map(
    focus_map: NDArray, rule: ChipRule, size: tuple[int, int], price: Price = area_price
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """FocusChips of one chip, AutoFocus Algorithm 1.

    ``focus_map`` [h, w] probabilities of the (padded) network input; ``size`` (height, width) of
    the chip itself in network px: the map is cropped to it first; ``price`` as in `merge_rects`.
    Returns rectangles [M, 4] in network px of the chip (x0, y0, x1, y1, half-open, inside
    ``size``), no side below ``rule.min_size`` unless the chip's own is; and float32 [M] each, of
    the cells above the threshold: the mean probability and the sum, which is the expected number
    of FocusPixels.
    """
    height, width = size
    own = focus_map[: -(-height // STRIDE), : -(-width // STRIDE)]
    bounds = np.array([0, 0, 0, 0]), np.array([width, height, width, height])
    rects = np.clip(component_rects(focus_cells(own, rule)) * STRIDE, *bounds)
    rects = np.clip(rects + np.array([-1, -1, 1, 1]) * rule.context, *bounds)
    while len(rects):
        before = len(rects)
        grown = grow_rects(rects, rule.min_size, size)
        rects = merge_rects(grown, rule.merge, rule.chip_cost, price=price)
        if len(rects) == before:
            break
    focus = np.zeros((len(rects), 2), np.float32)
    low, high = rects[:, :2] // STRIDE, -(-rects[:, 2:] // STRIDE)
    for number, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True)):
        cells = own[y0:y1, x0:x1]
        above = cells[cells >= rule.threshold]
        focus[number] = above.mean(), above.sum()
    return rects, focus[:, 0], focus[:, 1]


def project_chips(
    rects: NDArray[np.int64], parent: tuple[int, int, int, int], factors: tuple[float, float]
) -> NDArray[np.int64]:
    """Chips in network px of their parent -> original px, snapped outwards to integers.

    ``parent`` is the parent chip x0, y0, x1, y1 (original px); ``factors`` (y, x) are network px
    per original px of the parent's crop. Results lie inside the parent.
    """
    x0, y0, x1, y1 = parent
    scale = np.array([factors[1], factors[0], factors[1], factors[0]])
    moved = rects / scale + np.array([x0, y0, x0, y0])
    snapped = np.concatenate([np.floor(moved[:, :2] + 1e-6), np.ceil(moved[:, 2:] - 1e-6)], 1)
    return np.clip(snapped, [x0, y0, x0, y0], [x1, y1, x1, y1]).astype(np.int64)

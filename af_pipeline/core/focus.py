"""FocusPixels and FocusChips, both directions: labels from boxes, chips from a focus map.

A FocusPixel is one 16 x 16 px cell of the network input (AutoFocus §3.1). Source of the rules:
Najibi, Singh, Davis, "AutoFocus: Efficient Multi-Scale Inference", ICCV 2019, §§3.1-3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from af_pipeline.config import Side, rule
from af_pipeline.core.boxes import box_side, intersection_area

STRIDE = 16  # network px of one FocusPixel

FOCUS, BACKGROUND, IGNORE = 1, 0, -1


@rule
class FocusRule:
    """Object sizes that make a FocusPixel, sqrt(area) in network px (AutoFocus §3.1: a, b, c)."""

    ignore_below: float = Field(default=5, ge=0, description="smaller objects give no focus loss")
    focus_below: float = Field(default=64, gt=0, description="smaller objects are FocusPixels")
    ignore_until: float = Field(
        default=90, gt=0, description="objects up to here give no focus loss"
    )

    @model_validator(mode="after")
    def _order(self) -> FocusRule:
        if not self.ignore_below < self.focus_below <= self.ignore_until:
            raise ValueError(
                "ignore_below < focus_below <= ignore_until must hold; found "
                f"{self.ignore_below:g}, {self.focus_below:g}, {self.ignore_until:g}"
            )
        return self


@rule
class ChipRule:
    """How the focus map of one scale becomes the FocusChips of the next finer one."""

    threshold: float = Field(
        default=0.1, ge=0, le=1, description="probability at which a cell counts"
    )
    dilation: int = Field(
        default=3, ge=1, le=31, description="square structuring element, cells; 1: none"
    )
    min_size: Side = Field(
        default=128, ge=16, description="least chip side, network px of this scale"
    )
    merge: Literal["cost", "paper"] = Field(
        default="cost",
        description="cost: merge where one forward of the union is cheaper; paper: touch",
    )
    chip_cost: float = Field(
        default=4096,
        ge=0,
        description="price of one more chip, network px of this scale, for merge=cost",
    )
    context: Side = Field(
        default=0,
        ge=0,
        description="least margin of a chip around its cells, network px of this scale",
    )


@dataclass(frozen=True)
class Price:
    """What one forward of a rectangle costs: the product of what its two sides count as.

    ``side``: lengths [M] -> their counts [M], which rise; ``per_px``: how much of it one px is
    worth in which a chip's own cost is stated. The default is the plain area.
    """

    side: Callable[[NDArray], NDArray] = np.asarray
    per_px: float = 1.0


AREA = Price()


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
        paint(labels, boxes[group & meets], value)
    return labels


def paint(cells: NDArray, boxes: NDArray, value: int) -> None:
    """Set the cells [h, w] that boxes [N, 4] (network px) overlap to ``value``, in place."""
    for x0, y0, x1, y1 in boxes:
        top, bottom = max(0, int(y0 // STRIDE)), -int(-y1 // STRIDE)
        left, right = max(0, int(x0 // STRIDE)), -int(-x1 // STRIDE)
        cells[top : max(0, bottom), left : max(0, right)] = value


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
    price: Price = AREA,
) -> NDArray[np.int64]:
    """Merge rectangles [M, 4] to a fixpoint, in an order that does not depend on theirs.

    "paper": two that overlap or touch become their bounding rectangle. "cost": two become it
    when its ``price`` is at most the sum of theirs plus ``chip_cost`` px; the pair that saves most
    comes first. With ``containers`` [P, 4] a merge happens only when one container holds the
    result. Returns sorted rectangles. Memory is O(M).
    """
    if rule not in ("paper", "cost"):
        raise ValueError(f"merge rule {rule!r} is unknown: use 'paper' or 'cost'")
    todo = np.unique(rects, axis=0)
    if rule == "paper" and containers is None:
        return _join_touching(todo)
    if len(todo) < 2:
        return todo
    pool = _MergePool(todo, rule, chip_cost, containers, price)
    while pool.merge_best():
        pass
    return np.unique(pool.left().T.astype(np.int64), axis=0)


def _join_touching(rects: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fixpoint of joining rectangles [M, 4] that overlap or touch, whatever the order.

    Sorted by their left edges, a rectangle meets those that begin before it ends.
    """
    while len(rects) > 1:
        rects = rects[np.lexsort(rects.T[::-1])]
        group = np.arange(len(rects))
        ends = np.searchsorted(rects[:, 0], rects[:, 2], side="right")
        for i in np.flatnonzero(ends > np.arange(1, len(rects) + 1)):
            near = slice(i, ends[i])
            meets = (rects[near, 1] <= rects[i, 3]) & (rects[near, 3] >= rects[i, 1])
            group[near][meets] = np.minimum(group[near][meets], group[i])
        if (group == np.arange(len(rects))).all():
            break
        joined = rects[np.unique(group)]
        place = np.searchsorted(np.unique(group), group)
        np.minimum.at(joined[:, :2], place, rects[:, :2])
        np.maximum.at(joined[:, 2:], place, rects[:, 2:])
        rects = joined
    return np.unique(rects, axis=0)


class _MergePool:
    """Rectangles that are merged one pair after the other, the pair that saves most first.

    They stay sorted by their left edges: a union takes the place of its left member. ``best`` [M]
    bounds from above what merging each rectangle with one behind it saves; a bound is made exact
    when it comes to the top. So a merge looks at few rows, and of these at the part within reach.
    """

    def __init__(
        self,
        rects: NDArray[np.int64],
        rule: str,
        chip_cost: float,
        containers: NDArray[np.int64] | None,
        price: Price,
    ) -> None:
        self.sides = np.ascontiguousarray(rects.T.astype(np.int32))  # x0, y0, x1, y1 of all
        lengths = np.arange(int((rects.max(0)[2:] - rects.min(0)[:2]).max()) + 1)
        self.counts = np.asarray(price.side(lengths), np.float64)
        self.touching, self.containers = rule == "paper", containers
        self.chip_cost = chip_cost * price.per_px
        # Every count lies in [unit * length, unit * length + slack].
        self.unit = float((self.counts[1:] / lengths[1:]).min())
        self.slack = float((self.counts - self.unit * lengths).max())
        self.alone = self._price(*self.sides)
        self.merged = 0  # taken in since the arrays were made: they still lie in them
        self.best = np.array([self._row(i).max(initial=-np.inf) for i in range(len(rects))])

    def merge_best(self) -> bool:
        """Merge the pair that saves most, ties by coordinates; False where no pair may merge."""
        while (top := self.best.max()) > -np.inf:
            first = np.flatnonzero(self.best == top)
            first = first[self.sides[0, first] == self.sides[0, first].min()]
            pairs = []
            for i in first.tolist():
                row = self._row(i)
                self.best[i] = row.max(initial=-np.inf)
                pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(row == top)]
            if pairs:
                self._join(*min(pairs, key=lambda pair: sorted(self.sides[:, pair].T.tolist())))
                return True
        return False

    def _join(self, i: int, j: int) -> None:
        self.sides[:2, i] = np.minimum(self.sides[:2, i], self.sides[:2, j])
        self.sides[2:, i] = np.maximum(self.sides[2:, i], self.sides[2:, j])
        self.alone[j], self.best[j] = -np.inf, -np.inf  # merging with it never pays
        self.alone[i] = self._price(*self.sides[:, i])
        self.best[i] = self._row(i).max(initial=-np.inf)
        self.best[:i] = np.maximum(self.best[:i], self._savings(i, slice(0, i)))
        self.merged += 1
        if self.merged > len(self.best) // 8:
            self.sides, self.best = self.left(), self.best[self.alone > -np.inf]
            self.alone, self.merged = self.alone[self.alone > -np.inf], 0

    def left(self) -> NDArray[np.int32]:
        """Sides x0, y0, x1, y1 [4, M] of the rectangles that no other has taken in."""
        return self.sides[:, self.alone > -np.inf]

    def _row(self, i: int) -> NDArray[np.float64]:
        """What merging rectangle ``i`` with those behind it and within reach saves."""
        left, top, right, low = self.sides[:, i].tolist()
        reach = right - left
        if not self.touching:
            # One that starts d px further right makes the union wider than itself by d at least,
            # which must not cost more than this rectangle alone and one more chip.
            spare = self.counts[right - left] + self.chip_cost / self.counts[low - top]
            reach = (spare + self.slack) / self.unit
        end = int(np.searchsorted(self.sides[0], left + reach, side="right"))
        return self._savings(i, slice(i + 1, max(end, i + 1)))

    def _price(self, x0: NDArray, y0: NDArray, x1: NDArray, y1: NDArray) -> NDArray[np.float64]:
        return self.counts[x1 - x0] * self.counts[y1 - y0]

    def _savings(self, i: int, others: slice) -> NDArray[np.float64]:
        """What merging rectangle ``i`` with each of ``others`` saves; -inf where it may not be."""
        x0, y0, x1, y1 = self.sides[:, others]
        left, top, right, low = self.sides[:, i]
        low_ends = np.minimum(x0, left), np.minimum(y0, top)
        union = *low_ends, np.maximum(x1, right), np.maximum(y1, low)
        saving = self.alone[others] + self.alone[i] - self._price(*union) + self.chip_cost
        if self.touching:
            allowed = (x0 <= right) & (x1 >= left) & (y0 <= low) & (y1 >= top)
        else:
            allowed = saving >= 0
        if self.containers is not None:
            near = np.flatnonzero(allowed)
            allowed[near] = _held(np.stack(union, 1)[near], self.containers)
        return np.where(allowed, saving, -np.inf)


def _held(rects: NDArray, containers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rectangles [M, 4] some container [P, 4] holds whole -> bool [M]."""
    held = np.zeros(len(rects), bool)
    for container in containers:
        held |= (rects[:, :2] >= container[:2]).all(1) & (rects[:, 2:] <= container[2:]).all(1)
    return held


def chips_from_map(
    focus_map: NDArray, rule: ChipRule, size: tuple[int, int], price: Price = AREA
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

"""Objects that lie across the seams between the tiles of one chip: nothing is lost there.

A chip larger than the largest lane is looked at in overlapping tiles. An object that a tile cuts is
taken from a neighbour that sees it whole; one that no tile sees whole is put together from its
parts. Not in the AutoFocus paper, whose chips are one forward each. Coordinates are network px of
the chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_union

Rect = tuple[int, int, int, int]  # x0, y0, x1, y1

SAME_EXTENT = 0.5  # IoU of two parts along their seam from which they are of one object


def cut_sides(
    boxes: NDArray, tile: Rect, size: tuple[int, int], tolerance: float
) -> NDArray[np.bool_]:
    """Which sides of boxes [N, 4] an edge of ``tile`` cuts -> bool [N, 4]: left, top, right, low.

    That is so within ``tolerance`` px of an edge that lies inside the chip of ``size`` (height,
    width).
    """
    x0, y0, x1, y1 = tile
    distance = (boxes - np.array(tile)) * np.array([1, 1, -1, -1])
    inside = [x0 > 0, y0 > 0, x1 < size[1], y1 < size[0]]
    return (distance < tolerance) & np.array(inside)


def seen_further(
    boxes: NDArray, cuts: NDArray[np.bool_], tile: Rect, tiles: Sequence[Rect], tolerance: float
) -> NDArray[np.bool_]:
    """Whether a neighbour of ``tile`` sees more of each box [N, 4] and cuts no other side: [N].

    Such a part is not needed. Without it the parts of an object are one from each tile on the
    shortest way along it, or the whole object from every tile that holds it.
    """
    further = np.zeros(len(boxes), bool)
    for low, high in ((0, 2), (1, 3)):
        following = min((one[low] for one in tiles if one[low] > tile[low]), default=np.inf)
        previous = max((one[high] for one in tiles if one[high] < tile[high]), default=-np.inf)
        further |= cuts[:, high] & ~cuts[:, low] & (boxes[:, low] - following >= tolerance)
        further |= cuts[:, low] & ~cuts[:, high] & (previous - boxes[:, high] >= tolerance)
    return further


def join_parts(
    boxes: NDArray, scores: NDArray, labels: NDArray, cuts: NDArray[np.bool_], cells: NDArray
) -> tuple[NDArray[np.int64], NDArray, NDArray[np.bool_], NDArray[np.int64]]:
    """Objects out of their parts on both sides of the seams.

    boxes [N, 4], scores [N], labels [N], ``cuts`` as of `cut_sides`, ``cells`` int [N, 2] column
    and row of the tile each lies in. Two parts of a label in neighbouring tiles are joined when
    their seam cuts both and they extend alike along it; of several the best pair, each once.

    Returns for each of M objects the index of its best part [M], whose score it has, its box [M, 4]
    and whether a side is still cut [M]; and for each part the number of its object [N].
    """
    group = np.arange(len(boxes))
    left_open = cuts.copy()
    for axis in (0, 1):
        for one, other in _pairs(boxes, scores, labels, cuts, cells, axis):
            if left_open[one, axis + 2] and left_open[other, axis]:
                left_open[one, axis + 2] = left_open[other, axis] = False
                group[group == group[other]] = group[one]
    best = np.lexsort((-scores, group))
    _, first, place = np.unique(group[best], return_index=True, return_inverse=True)
    whole = box_union(boxes[best], place, len(first))
    member = np.empty(len(boxes), np.int64)
    member[best] = place
    return best[first], whole, any_of(np.any(left_open, axis=1), member, len(first)), member


def any_of(flags: NDArray, member: NDArray[np.int64], objects: int) -> NDArray[np.bool_]:
    """Whether a flag [N] is set for any part of each object [M]; ``member`` [N]: their objects."""
    found = np.zeros(objects, bool)
    np.logical_or.at(found, member, flags)
    return found


def _pairs(
    boxes: NDArray, scores: NDArray, labels: NDArray, cuts: NDArray, cells: NDArray, axis: int
) -> Iterator[tuple[int, int]]:
    """Parts left of (above) and right of (below) a seam that may be one object, best first."""
    along = 1 - axis
    before, behind = np.flatnonzero(cuts[:, axis + 2]), np.flatnonzero(cuts[:, axis])
    found = []
    for one in before:
        near = behind[
            (cells[behind, axis] == cells[one, axis] + 1)
            & (cells[behind, along] == cells[one, along])
            & (labels[behind] == labels[one])
        ]
        ends = boxes[near][:, [along, along + 2]], boxes[one, [along, along + 2]]
        shared = np.minimum(ends[0][:, 1], ends[1][1]) - np.maximum(ends[0][:, 0], ends[1][0])
        extent = np.maximum(ends[0][:, 1], ends[1][1]) - np.minimum(ends[0][:, 0], ends[1][0])
        alike = shared >= SAME_EXTENT * extent
        rank = np.minimum(scores[near], scores[one])
        found += [
            (-float(r), -float(s / e), int(one), int(n))
            for r, s, e, n in zip(
                rank[alike], shared[alike], extent[alike], near[alike], strict=True
            )
        ]
    return ((one, other) for _, _, one, other in sorted(found))

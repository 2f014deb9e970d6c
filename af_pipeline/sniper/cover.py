"""Greedy cover: few equal windows of an image that hold every box of a list whole.

Source: SNIPER (NeurIPS 2018) §3.1. Windows stand on a grid whose product form keeps the work small:
a window holds a box exactly when its column holds the box in x and its row holds it in y, so how
many boxes each window holds is one matrix product of columns and rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """Candidate windows of ``span`` x ``span`` original px.

    xs [X], ys [Y] int64: their left and top edges, rising; every pair is a candidate.
    """

    xs: NDArray[np.int64]
    ys: NDArray[np.int64]
    span: int


def window_starts(length: int, span: int, stride: float) -> NDArray[np.int64]:
    """Starts of the windows along a side of ``length`` px: every ``stride`` px, and the last fit.

    A side no longer than the window has the start 0 alone. All px are original px; the result
    rises and its gaps are at most ceil(stride).
    """
    if length <= span:
        return np.zeros(1, np.int64)
    starts = np.floor(np.arange(0, length - span, max(1.0, stride))).astype(np.int64)
    return np.append(starts[starts < length - span], length - span)


def make_grid(image_size: tuple[int, int], span: int, stride: float) -> Grid:
    """Candidate windows of an image (height, width); with the corner and edge windows."""
    height, width = image_size
    xs, ys = window_starts(width, span, stride), window_starts(height, span, stride)
    return Grid(xs, ys, span)


def holds(grid: Grid, boxes: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which columns hold which boxes [N, 4] in x -> bool [X, N]; rows in y -> bool [Y, N].

    Boxes lie inside the image, so a side no longer than the window is held by its one window.
    """
    x = (grid.xs[:, None] <= boxes[:, 0]) & (boxes[:, 2] <= grid.xs[:, None] + grid.span)
    y = (grid.ys[:, None] <= boxes[:, 1]) & (boxes[:, 3] <= grid.ys[:, None] + grid.span)
    return x, y


def greedy_cover(
    rng: np.random.Generator, grid: Grid, boxes: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Take the window that holds most boxes not yet held, until none is left.

    boxes [N, 4] original px. Returns corners [M, 2] (x, y) of the windows in the order taken and
    held [M, N]: which boxes each holds whole. A box that no candidate holds is left out. M is at
    most N; ties are broken at random.
    """
    in_x, in_y = holds(grid, boxes)
    columns, rows = np.flatnonzero(in_x.any(1)), np.flatnonzero(in_y.any(1))
    in_x, in_y = in_x[columns], in_y[rows]
    open_x, open_y = in_x.astype(np.float32), in_y.astype(np.float32)
    # Counts are small integers, exact in float32; the fraction decides between equal ones.
    count = open_y @ open_x.T + 0.9 * rng.random((len(rows), len(columns)), np.float32)
    flat = count.ravel()
    corners: list[tuple[int, int]] = []
    held: list[NDArray[np.bool_]] = []
    todo = np.ones(len(boxes), bool)
    while flat.size and flat[best := int(flat.argmax())] >= 1:
        row, column = divmod(best, len(columns))
        inside = in_y[row] & in_x[column]
        new = (inside & todo).nonzero()[0]
        count -= open_y[:, new] @ open_x[:, new].T
        todo[new] = False
        corners.append((int(grid.xs[columns[column]]), int(grid.ys[rows[row]])))
        held.append(inside)
    shape = (len(corners), len(boxes))
    return np.array(corners, np.int64).reshape(-1, 2), np.array(held, bool).reshape(shape)

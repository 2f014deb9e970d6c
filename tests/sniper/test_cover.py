"""Windows on a grid hold every box that one of them can, the fullest first."""

from math import ceil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.sniper.cover import Grid, greedy_cover, make_grid, window_starts

SEEDS = st.integers(0, 10**6)


def random_boxes(seed: int, count: int, height: int, width: int) -> NDArray[np.float32]:
    """Boxes inside the image; every second one has whole corners, as windows have."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 1, (count, 2)) * (width, height)
    boxes = np.hstack([low, low + np.exp(rng.uniform(0, 5, (count, 2)))])
    boxes = boxes.clip(0, [width, height] * 2)
    boxes[::2] = np.round(boxes[::2])
    return boxes.astype(np.float32)


def is_held(corner: tuple[int, int], span: int, box: NDArray) -> bool:
    x, y = corner
    return bool(x <= box[0] and y <= box[1] and box[2] <= x + span and box[3] <= y + span)


def cover(seed: int, grid: Grid, boxes: NDArray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    return greedy_cover(np.random.default_rng(seed), grid, boxes)


# ---- candidates


@pytest.mark.parametrize(
    ("factor", "columns", "rows"), [(3.0, 26, 18), (1.667, 11, 7), (0.8, 1, 1)]
)
def test_candidates_of_a_640x480_image(factor: float, columns: int, rows: int) -> None:
    """512 px chips every 57 network px, here in whole original px.

    SNIPER's code has 470, 79 and 3: its corner windows top right and bottom left are in the edge
    column and row too (470 - 2 = 468 = 26 x 18, 79 - 2 = 77 = 11 x 7), and where the image fits
    into one chip its 3 corner windows are one. What each box is held by is the same.
    """
    grid = make_grid((480, 640), round(512 / factor), 57 / factor)
    assert (len(grid.xs), len(grid.ys)) == (columns, rows)
    assert (grid.xs[-1], grid.ys[-1]) == (max(0, 640 - grid.span), max(0, 480 - grid.span))


@settings(max_examples=300)
@example(375, 75, 10.714285714285714)  # 300 / 28; in float64 300 holds a little more than 28 of it
@given(st.integers(1, 3000), st.integers(1, 800), st.floats(0.01, 300))
def test_starts_reach_from_edge_to_edge(length: int, span: int, stride: float) -> None:
    starts = window_starts(length, span, stride)
    assert starts.dtype == np.int64
    assert starts[0] == 0
    assert starts[-1] == max(0, length - span)
    gaps = np.diff(starts)
    assert (gaps > 0).all()
    assert (gaps <= max(1, ceil(stride))).all()
    if length <= span:
        assert len(starts) == 1


def test_a_grid_follows_both_sides() -> None:
    grid = make_grid((100, 250), 90, 60.0)
    assert grid.xs.tolist() == [0, 60, 120, 160]
    assert grid.ys.tolist() == [0, 10]
    assert make_grid((50, 60), 90, 60.0).xs.tolist() == [0]


# ---- cover


@settings(max_examples=80, deadline=None)
@given(
    SEEDS,
    st.integers(0, 60),
    st.integers(150, 400),
    st.integers(150, 400),
    st.integers(50, 250),
    st.floats(0.1, 0.6),
)
def test_each_pick_holds_most_of_what_is_left(
    seed: int, count: int, height: int, width: int, span: int, stride: float
) -> None:
    """Ties may go either way, so each pick is judged by what the picks before it left."""
    grid = make_grid((height, width), span, stride * span)
    boxes = random_boxes(seed, count, height, width)
    windows = [(int(x), int(y)) for y in grid.ys for x in grid.xs]
    by_window = {w: {i for i, box in enumerate(boxes) if is_held(w, span, box)} for w in windows}
    corners, held = cover(seed, grid, boxes)
    assert corners.shape == (len(corners), 2)
    assert held.shape == (len(corners), count)
    left = set().union(*by_window.values())
    assert len(corners) <= len(left)
    for (x, y), row in zip(corners.tolist(), held, strict=True):
        assert set(np.flatnonzero(row)) == by_window[x, y]
        most = max(len(found & left) for found in by_window.values())
        assert len(by_window[x, y] & left) == most > 0
        left -= by_window[x, y]
    assert not left


@pytest.mark.parametrize(
    ("size", "span", "boxes", "held"),
    [
        ((400, 400), 100, [[10, 10, 30, 30], [60, 60, 90, 90], [300, 300, 320, 320]],
         [[1, 1, 0], [0, 0, 1]]),
        ((200, 200), 50, [], []),
        ((200, 200), 50, [[0, 0, 51, 10]], []),  # wider than a window
        ((50, 200), 50, [[20, 0, 70, 50]], [[1]]),  # as large as one, and exactly there
        ((50, 200), 50, [[20.5, 0, 70.5, 50]], []),
    ],
)  # fmt: skip
def test_what_few_windows_hold(
    size: tuple[int, int], span: int, boxes: list[list[float]], held: list[list[int]]
) -> None:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    corners, found = cover(0, make_grid(size, span, 10.0), array)
    assert found.astype(int).tolist() == held
    assert corners.shape == (len(held), 2)
    assert found.shape == (len(held), len(boxes))


def test_ties_are_broken_by_the_generator_alone() -> None:
    grid, boxes = make_grid((400, 400), 100, 10.0), np.array([[200, 200, 210, 210]], np.float32)
    picks = [tuple(cover(seed, grid, boxes)[0][0]) for seed in range(300)]
    assert picks == [tuple(cover(seed, grid, boxes)[0][0]) for seed in range(300)]
    assert len(set(picks)) > 80  # of the 10 x 10 windows that hold it
    x, y = np.array(picks).T
    assert set(x) == set(y) == set(range(110, 201, 10))

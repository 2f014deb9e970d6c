"""A focus map out of weak detections: the cells that small ones meet, by their highest score."""

import numpy as np
import pytest

from af_pipeline.core.weak import weak_focus

NONE: dict[tuple[int, int], float] = {}


def focus_of(boxes, scores, height=64, width=96, below=64.0):
    """{(row, column): score} of the cells that are not 0, rounded."""
    given = np.array(boxes, np.float32).reshape(-1, 4)
    focus = weak_focus(given, np.array(scores, np.float32), height, width, below)
    assert focus.dtype == np.float32
    assert focus.shape == (-(-height // 16), -(-width // 16))
    return {(int(r), int(c)): round(float(focus[r, c]), 3) for r, c in np.argwhere(focus)}


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((17, 1, 31, 15), {(0, 1)}),
        ((16, 0, 32, 16), {(0, 1)}),  # edges that cells share belong to one side only
        ((15.9, 0, 32.1, 16), {(0, 0), (0, 1), (0, 2)}),
        ((30, 14, 34, 18), {(0, 1), (0, 2), (1, 1), (1, 2)}),
        ((-30, -5, 4, 4), {(0, 0)}),
        ((90, 60, 140, 70), {(3, 5)}),
        ((-40, 5, -20, 9), set()),  # beside the chip, on each side of it
        ((5, -40, 9, -20), set()),
        ((100, 5, 120, 9), set()),
        ((5, 64, 9, 80), set()),
    ],
)
def test_a_small_detection_marks_the_cells_that_it_meets(box, cells):
    assert focus_of([box], [0.25]) == dict.fromkeys(cells, 0.25)


@pytest.mark.parametrize(
    ("box", "below", "marks"),
    [
        ((0, 0, 20, 20), 20.0, False),  # the side is not below the limit
        ((0, 0, 20, 20), 20.1, True),
        ((0, 0, 80, 5), 20.1, True),  # the root of the area counts, not the longer side
        ((0, 0, 80, 6), 20.1, False),
    ],
)
def test_large_detections_ask_for_nothing(box, below, marks):
    assert (focus_of([box], [0.5], below=below) != NONE) == marks


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_highest_score_of_a_cell_stays(order):
    boxes = [(2, 2, 30, 14), (18, 2, 30, 14), (20, 4, 28, 30)]
    scores = [0.2, 0.6, 0.4]
    found = focus_of([boxes[i] for i in order], [scores[i] for i in order])
    assert found == {(0, 0): 0.2, (0, 1): 0.6, (1, 1): 0.4}


def test_no_detections_and_a_chip_of_odd_sides():
    assert focus_of([], []) == NONE
    assert focus_of([(99, 49, 101, 51)], [0.3], height=50, width=101) == {(3, 6): 0.3}

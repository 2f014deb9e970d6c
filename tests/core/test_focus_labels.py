"""FocusPixel labels: which cells hold something small, by the paper's rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.core.focus import FocusRule, focus_labels


def boxes(*rows: tuple[float, float, float, float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32).reshape(-1, 4)


SMALL, UNSURE = (40, 40, 80, 80), (40, 40, 115, 115)


@pytest.mark.parametrize("order", [(SMALL, UNSURE), (UNSURE, SMALL)])
def test_a_small_object_wins_its_cells_in_either_order(order: tuple) -> None:
    labels = focus_labels(boxes(*order), 512, 512)
    assert (labels[2:5, 2:5] == 1).all()
    assert (labels[2:8, 7] == -1).all()
    assert (labels == 1).sum() == 9
    assert (labels != 0).sum() == 36


def test_an_aligned_object_marks_exactly_its_cells() -> None:
    labels = focus_labels(boxes((32, 64, 64, 96)), 512, 512)
    assert labels.shape == (32, 32)
    assert labels.dtype == np.int64
    assert (labels[4:6, 2:4] == 1).all()
    assert labels.sum() == 4


def test_any_overlap_marks_a_cell() -> None:
    labels = focus_labels(boxes((31.9, 64, 64.1, 96)), 512, 512)
    assert (labels[4:6, 1:5] == 1).all()
    assert labels.sum() == 8


def test_boxes_outside_write_nothing() -> None:
    outside = boxes((-50, 10, 0, 60), (512, 10, 560, 60), (10, 512, 60, 580), (90, -70, 160, 0))
    assert not focus_labels(outside, 512, 512).any()


def test_the_size_is_that_of_the_unclipped_box() -> None:
    # A 400 px object of which a sliver of 200x10 px is in the chip: no focus, though it looks small
    assert not focus_labels(boxes((100, -390, 300, 10)), 512, 512).any()
    # A 100 px object half outside would be 70 px clipped
    assert not focus_labels(boxes((-50, 0, 50, 100)), 512, 512).any()
    assert (focus_labels(boxes((-20, 0, 20, 40)), 512, 512)[0:3, 0:2] == 1).all()


@pytest.mark.parametrize(
    ("side", "label"),
    [(4.9, -1), (5, 1), (63.9, 1), (64, -1), (89.9, -1), (90, 0), (300, 0)],
)
def test_thresholds(side: float, label: int) -> None:
    labels = focus_labels(boxes((100, 100, 100 + side, 100 + side)), 512, 512)
    assert labels[7, 7] == label or side < 12
    assert set(np.unique(labels)) <= {0, label}
    assert (labels == label).any()


def test_rule_can_be_changed() -> None:
    rule = FocusRule(ignore_below=10, focus_below=20, ignore_until=30)
    for side, label in ((9, -1), (15, 1), (25, -1), (35, 0)):
        assert focus_labels(boxes((0, 0, side, side)), 64, 64, rule)[0, 0] == label


def test_a_partial_cell_at_the_end_counts() -> None:
    assert focus_labels(boxes(), 100, 33).shape == (7, 3)
    labels = focus_labels(boxes((32.2, 96.5, 50, 130)), 100, 33)
    assert labels[6, 2] == 1
    assert labels.sum() == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_labels_follow_the_definition_cell_by_cell(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-80, 200, (count, 2))
    made = np.hstack([corner, corner + rng.uniform(1, 130, (count, 2))]).astype(np.float32)
    wanted = np.zeros((8, 12), np.int64)
    sides = [float(np.sqrt((x1 - x0) * (y1 - y0))) for x0, y0, x1, y1 in made]
    for row in range(8):
        for column in range(12):
            over = [
                side
                for side, (x0, y0, x1, y1) in zip(sides, made, strict=True)
                if x0 < 16 * (column + 1) and x1 > 16 * column
                if y0 < 16 * (row + 1) and y1 > 16 * row
            ]
            if any(5 <= side < 64 for side in over):
                wanted[row, column] = 1
            elif any(side < 90 for side in over):
                wanted[row, column] = -1
    np.testing.assert_array_equal(focus_labels(made, 128, 192), wanted)


def test_a_crowd_is_unsure_whatever_its_size() -> None:
    """Nobody knows where its objects are; one known to be small still wins its cells."""
    for side in (3, 30, 80, 200):
        crowd = focus_labels(boxes((0, 0, side, side)), 256, 256, crowd=np.array([True]))
        assert (crowd == -1).sum() == (-(-side // 16)) ** 2
        assert (crowd == 1).sum() == 0
    both = boxes((0, 0, 96, 96), (40, 40, 60, 60))
    for order in ([0, 1], [1, 0]):
        labels = focus_labels(both[order], 256, 256, crowd=np.array([True, False])[order])
        assert (labels[2:4, 2:4] == 1).all()
        assert (labels == 1).sum() == 4
        assert (labels == -1).sum() == 32
    plain = focus_labels(both, 256, 256, crowd=np.zeros(2, bool))
    np.testing.assert_array_equal(plain, focus_labels(both, 256, 256))

"""Boxes of a chip: each that meets it is learned or ignored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.boxes import box_side, visible_share
from af_pipeline.sniper.chips import MIN_SIDE, ChipWindow
from af_pipeline.sniper.sample import ChipBoxes, boxes_in_window

SIZE = 320
RANGE = (34.0, 90.0)


def see(window: ChipWindow, *boxes: tuple[float, ...], crowd: bool = False) -> ChipBoxes:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(array)
    return boxes_in_window(window, array, np.arange(count), np.full(count, crowd), RANGE)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 20),
    st.floats(0.3, 3),
    st.integers(-200, 900),
    st.integers(-200, 900),
)
def test_every_box_that_meets_the_chip_is_valid_or_ignored(
    seed: int, count: int, factor: float, x0: int, y0: int
) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 1000, (count, 2))
    boxes = np.hstack([low, low + np.exp(rng.uniform(1, 6, (count, 2)))]).astype(np.float32)
    crowd, labels = rng.random(count) < 0.3, rng.integers(0, 5, count)
    window = ChipWindow(0, factor, x0, y0, SIZE)
    found = boxes_in_window(window, boxes, labels, crowd, RANGE)
    meets = visible_share(boxes, tuple(map(float, window.box))) > 0  # type: ignore[arg-type]
    assert len(found.boxes) == meets.sum()
    np.testing.assert_array_equal(found.valid, ~found.ignored)
    np.testing.assert_array_equal(found.labels, labels[meets])
    np.testing.assert_array_equal(found.crowd, crowd[meets])
    assert not (found.valid & found.crowd).any()
    assert found.boxes.dtype == found.unclipped.dtype == np.float32
    assert ((found.boxes >= 0) & (found.boxes <= SIZE)).all()
    np.testing.assert_array_equal(found.boxes, found.unclipped.clip(0, SIZE))
    back = found.unclipped * (window.span / SIZE) + np.array([x0, y0] * 2)
    np.testing.assert_allclose(back, boxes[meets], atol=1e-2)
    side = box_side(found.unclipped[found.valid])
    assert ((side > RANGE[0]) & (side <= RANGE[1])).all()
    assert (box_side(found.boxes[found.valid]) >= MIN_SIDE).all()


@pytest.mark.parametrize(
    ("box", "valid"),
    [
        ((10, 10, 50, 50), True),
        ((10, 10, 44, 44), False),  # 34 px: the lower bound is open
        ((10, 10, 100, 100), True),  # 90 px: the upper one is closed
        ((10, 10, 101, 101), False),
        ((-20, 10, 20, 50), True),  # half inside
        ((-21, 10, 19, 50), False),  # less
        ((300, 300, 340, 340), False),  # a quarter
    ],
)
def test_what_is_learned(box: tuple[float, ...], valid: bool) -> None:
    window = ChipWindow(1, 1.0, 0, 0, SIZE)
    found = see(window, box)
    assert found.valid.tolist() == [valid]
    assert found.ignored.tolist() == [not valid]
    crowd = see(window, box, crowd=True)
    assert crowd.ignored.tolist() == crowd.crowd.tolist() == [True]
    assert found.crowd.tolist() == [False]


def test_least_side_counts_what_is_inside_the_chip() -> None:
    window, open_range = ChipWindow(0, 1.0, 0, 0, SIZE), (0.0, float("inf"))
    boxes = np.array([[5, 5, 15, 15], [5, 5, 14.9, 15], [-9, 5, 9, 15]], np.float32)
    none = np.zeros(3, bool)
    found = boxes_in_window(window, boxes, np.arange(3), none, open_range)
    assert found.valid.tolist() == [True, False, False]


def test_how_much_must_be_visible() -> None:
    window = ChipWindow(0, 1.0, 0, 0, SIZE)
    boxes = np.array([[-30, 10, 30, 70]], np.float32)
    for share, valid in ((0.4, True), (0.5, True), (0.6, False)):
        none = np.zeros(1, bool)
        found = boxes_in_window(window, boxes, np.zeros(1, int), none, RANGE, share)
        assert found.valid.tolist() == [valid]


def test_a_chip_that_owns_boxes_learns_these_whatever_their_range() -> None:
    boxes = [(10, 10, 30, 30), (10, 10, 210, 210), (310, 40, 400, 60), (50, 50, 90, 90)]
    boxes += [(10, 10, 19, 19)]  # below the least side
    window = ChipWindow(0, 1.0, 0, 0, SIZE, owned=(0, 1, 2, 4))
    assert see(window, *boxes).valid.tolist() == [True, True, True, False, False]
    assert see(window, *boxes, crowd=True).ignored.all()
    nothing = ChipWindow(0, 1.0, 0, 0, SIZE, owned=())
    assert see(nothing, *boxes).ignored.all()


def test_owned_boxes_are_counted_among_those_of_the_image() -> None:
    window = ChipWindow(0, 1.0, 500, 0, SIZE, owned=(1,))
    found = see(window, (10, 10, 60, 60), (510, 10, 560, 60), (600, 10, 650, 60))
    assert found.labels.tolist() == [1, 2]
    assert found.valid.tolist() == [True, False]


def test_boxes_follow_the_pixels_of_a_rounded_span() -> None:
    # 320 px at factor 1.7 are 188.2 px, the crop has 188: its true factor is 320/188
    window = ChipWindow(0, 1.7, 7, 9, SIZE)
    assert window.span == 188
    assert window.box == (7, 9, 195, 197)
    found = see(window, window.box)
    np.testing.assert_allclose(found.unclipped, [[0, 0, SIZE, SIZE]], atol=1e-4)


def test_no_boxes() -> None:
    found = see(ChipWindow(0, 1.0, 0, 0, SIZE))
    assert found.boxes.shape == found.unclipped.shape == (0, 4)
    assert found.valid.shape == found.labels.shape == (0,)

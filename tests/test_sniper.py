"""SNIPER windows hold what they were drawn for; every box is learned or ignored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.boxes import box_side, visible_share
from af_pipeline.scales import Scale
from af_pipeline.sniper import (
    ChipWindow,
    WindowRule,
    boxes_in_window,
    eligible_boxes,
    sample_window,
)

SCALES = (
    Scale(0.5, valid_low=72),
    Scale(1.0, valid_low=34, valid_high=90),
    Scale(2.0, valid_high=46),
)
SIZE = 320
NO_JITTER = (1.0, 1.0)
SEEDS = st.integers(0, 10**6)


def random_boxes(seed: int, count: int, height: int, width: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (count, 2)) * (width, height)
    half = np.exp(rng.uniform(np.log(4), np.log(150), (count, 1))) * rng.uniform(
        0.3, 0.7, (count, 2)
    )
    boxes = np.hstack([centre - half, centre + half]).clip(0, [width, height] * 2)
    return boxes.astype(np.float32)


def draw(
    seed: int,
    boxes: NDArray,
    image: tuple[int, int] = (900, 1200),
    *,
    negative: float = 0.0,
    focus: float = 0.0,
    jitter: tuple[float, float] = (0.75, 1.33),
    crowd: NDArray | None = None,
    weights: NDArray | None = None,
    scales: tuple[Scale, ...] = SCALES,
) -> ChipWindow:
    crowd = np.zeros(len(boxes), bool) if crowd is None else crowd
    weights = np.ones(len(boxes)) if weights is None else weights
    rng = np.random.default_rng(seed)
    rule = WindowRule(SIZE, jitter, negative, focus)
    return sample_window(rng, image, boxes, crowd, weights, scales, rule)


def change_of(window: ChipWindow, scales: tuple[Scale, ...] = SCALES) -> float:
    """The jitter that a window was drawn with."""
    return window.factor / scales[window.scale].factor_for(900, 1200)


def span_of(window: ChipWindow) -> NDArray[np.float64]:
    corner = np.array([window.x0, window.y0], float)
    return np.concatenate([corner, corner + window.span])


def holds_a_box(window: ChipWindow, boxes: NDArray) -> bool:
    low = (boxes[:, :2] >= span_of(window)[:2]).all(1)
    return bool((low & (boxes[:, 2:] <= span_of(window)[2:]).all(1)).any())


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(1, 15))
def test_window_holds_an_eligible_box_of_its_scale(seed: int, count: int) -> None:
    boxes = random_boxes(seed, count, 900, 1200)
    crowd = np.random.default_rng(seed).random(count) < 0.3
    window = draw(seed, boxes, crowd=crowd)
    change = change_of(window)
    eligible = [boxes[eligible_boxes(boxes, crowd, scale, change)] for scale in SCALES]
    if not any(map(len, eligible)):
        return
    own = eligible[window.scale]
    assert len(own)
    # a box nearly as large as the window may not fit between whole pixels: it is centred then
    fitting = own[(own[:, 2:] - own[:, :2]).max(1) <= window.span - 1]
    if len(fitting) == len(own):
        assert holds_a_box(window, own)
    else:
        assert (visible_share(own, tuple(span_of(window))) > 0).any()


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(0, 10), st.integers(20, 1500), st.integers(20, 1500), st.floats(0, 1))
def test_window_keeps_to_the_image(
    seed: int, count: int, height: int, width: int, negative: float
) -> None:
    """Inside the image where that is larger than the window, else around it."""
    window = draw(
        seed, random_boxes(seed, count, height, width), (height, width), negative=negative
    )
    x0, y0, x1, y1 = span_of(window)
    for low, high, limit in ((x0, x1, width), (y0, y1, height)):
        if limit >= window.span:
            assert 0 <= low <= high <= limit
        else:
            assert low <= 0
            assert high >= limit
    assert 0.74 <= window.factor / SCALES[window.scale].factor <= 1.34  # type: ignore[operator]
    assert window.size == SIZE


def test_the_same_generator_gives_the_same_window() -> None:
    boxes = random_boxes(3, 10, 900, 1200)
    assert draw(5, boxes, negative=0.3) == draw(5, boxes, negative=0.3)
    assert len({draw(seed, boxes, negative=0.3) for seed in range(20)}) > 15


def test_every_scale_comes() -> None:
    boxes = np.array([[10, 10, 30, 30], [200, 200, 260, 260], [400, 300, 560, 460]], np.float32)
    drawn = {draw(seed, boxes).scale for seed in range(40)}
    assert drawn == {0, 1, 2}
    assert {draw(seed, boxes[:1]).scale for seed in range(20)} == {2}
    assert {draw(seed, boxes[2:]).scale for seed in range(20)} == {0}
    middle = np.array([[200, 200, 240, 240]], np.float32)  # 40 px: middle and fine
    assert {draw(seed, middle).scale for seed in range(20)} == {1, 2}


def test_eligible_is_what_the_jittered_size_answers_for() -> None:
    """A 40 px box is the fine scale's only while shrunk or kept: it is in no window it is not
    learned in."""
    boxes = np.array([[600, 400, 640, 440]], np.float32)
    none = np.zeros(1, bool)
    assert eligible_boxes(boxes, none, SCALES[2], 1.1).tolist() == [0]
    assert eligible_boxes(boxes, none, SCALES[2], 1.2).tolist() == []
    assert eligible_boxes(boxes, none, SCALES[1], 0.8).tolist() == []
    windows = [draw(seed, boxes) for seed in range(200)]
    assert {window.scale for window in windows} == {1, 2}
    for window in windows:
        scale = SCALES[window.scale]
        found = boxes_in_window(
            window, boxes, np.zeros(1, int), none, scale, scale.factor_for(900, 1200)
        )
        assert found.valid.tolist() == [True]
    shrunk = [window for window in windows if change_of(window) < 0.84]
    assert shrunk
    assert {window.scale for window in shrunk} == {2}


def test_focus_windows_hold_boxes_of_any_size_at_any_scale() -> None:
    boxes = np.array([[600, 400, 620, 420]], np.float32)
    windows = [draw(seed, boxes, focus=1.0) for seed in range(60)]
    assert {window.scale for window in windows} == {0, 1, 2}
    assert all(holds_a_box(window, boxes) for window in windows)
    crowd = np.array([True])
    away = [draw(seed, boxes, focus=1.0, crowd=crowd) for seed in range(60)]
    assert sum(holds_a_box(window, boxes) for window in away) < 40


def test_shares_of_the_kinds_of_windows() -> None:
    """The fine scale answers for the box, so the coarse one shows it in focus windows alone."""
    boxes = np.array([[600, 400, 620, 420]], np.float32)
    image, count = (4000, 4000), 1000
    drawn = [draw(s, boxes, image, negative=0.2, focus=0.3) for s in range(count)]
    held = np.array([holds_a_box(window, boxes) for window in drawn])
    scale = np.array([window.scale for window in drawn])
    assert np.mean(held) == pytest.approx(0.8, abs=0.05)
    assert np.mean(held & (scale == 0)) == pytest.approx(0.1, abs=0.03)
    assert np.mean(held & (scale == 2)) == pytest.approx(0.6, abs=0.05)


def test_images_without_boxes_give_windows_of_all_scales() -> None:
    none = np.zeros((0, 4), np.float32)
    windows = [draw(seed, none) for seed in range(40)]
    assert {window.scale for window in windows} == {0, 1, 2}
    assert len({(w.x0, w.y0) for w in windows}) > 20


def test_crowds_create_no_window() -> None:
    boxes = np.array([[10, 10, 30, 30], [300, 300, 460, 460]], np.float32)
    crowd = np.array([True, False])
    assert {draw(seed, boxes, crowd=crowd).scale for seed in range(20)} == {0}
    assert eligible_boxes(boxes, crowd, SCALES[2]).tolist() == []


def test_weights_choose_the_box() -> None:
    boxes = np.array([[10, 10, 30, 30], [1100, 800, 1120, 820]], np.float32)
    for seed in range(10):
        assert draw(seed, boxes, weights=np.array([0.0, 1.0])).x0 > 500
        assert draw(seed, boxes, weights=np.array([1.0, 0.0])).x0 < 500


def test_a_box_falls_anywhere_in_its_window() -> None:
    boxes = np.array([[600, 400, 620, 420]], np.float32)
    window = [draw(seed, boxes, jitter=NO_JITTER) for seed in range(300)]
    where = np.array([[600 - w.x0, 400 - w.y0] for w in window])
    assert (where >= 0).all()
    assert (where <= 140).all()  # the window spans 160 px
    assert (where.min(0) < 10).all()
    assert (where.max(0) > 130).all()


def test_a_box_larger_than_the_window_is_centred() -> None:
    boxes = np.array([[100, 100, 1100, 200]], np.float32)
    window = draw(0, boxes, jitter=NO_JITTER, scales=(Scale(1.0),))
    assert window.x0 + window.span / 2 == pytest.approx(600, abs=1)


# ---- boxes of a window


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(0, 15), st.integers(40, 1500), st.integers(40, 1500))
def test_every_box_that_meets_the_window_is_valid_or_ignored(
    seed: int, count: int, height: int, width: int
) -> None:
    boxes = random_boxes(seed, count, height, width)
    rng = np.random.default_rng(seed)
    crowd, labels = rng.random(count) < 0.3, rng.integers(0, 5, count)
    window = draw(seed, boxes, (height, width), negative=0.3, crowd=crowd)
    scale = SCALES[window.scale]
    nominal = scale.factor_for(height, width)
    found = boxes_in_window(window, boxes, labels, crowd, scale, nominal)
    meets = visible_share(boxes, tuple(span_of(window))) > 0
    assert len(found.boxes) == meets.sum()
    np.testing.assert_array_equal(found.valid, ~found.ignored)
    np.testing.assert_array_equal(found.labels, labels[meets])
    np.testing.assert_array_equal(found.crowd, crowd[meets])
    assert not (found.valid & crowd[meets]).any()
    assert ((found.boxes >= 0) & (found.boxes <= SIZE)).all()
    np.testing.assert_array_equal(found.boxes, found.unclipped.clip(0, SIZE))
    back = found.unclipped * (window.span / SIZE) + np.array([window.x0, window.y0] * 2)
    np.testing.assert_allclose(back, boxes[meets], atol=1e-2)
    low, high = scale.valid_range_px(nominal)
    side = box_side(found.unclipped[found.valid])
    assert ((side > low) & (side <= high)).all()
    assert (box_side(found.boxes[found.valid]) >= 10).all()


@pytest.mark.parametrize(
    ("box", "valid"),
    [
        ((10, 10, 50, 50), True),
        ((10, 10, 34, 34), False),  # 24 px: below the range
        ((10, 10, 110, 110), False),  # above it
        ((-20, 10, 25, 50), True),  # more than half inside
        ((-30, 10, 20, 50), False),  # less
        ((300, 300, 340, 340), False),  # a quarter
    ],
)
def test_what_is_learned(box: tuple[float, ...], valid: bool) -> None:
    window = ChipWindow(1, 1.0, 0, 0, SIZE)
    boxes = np.array([box], np.float32)
    found = boxes_in_window(
        window, boxes, np.array([2]), np.array([False]), SCALES[1], nominal_factor=1.0
    )
    assert found.valid.tolist() == [valid]
    assert found.ignored.tolist() == [not valid]
    crowd = boxes_in_window(window, boxes, np.array([2]), np.array([True]), SCALES[1], 1.0)
    assert crowd.ignored.tolist() == [True]
    assert crowd.crowd.tolist() == [True]
    assert found.crowd.tolist() == [False]


def test_boxes_follow_the_pixels_of_a_rounded_span() -> None:
    # 320 px at factor 1.7 are 188.2 px, the crop has 188: its true factor is 320/188
    window = ChipWindow(0, 1.7, 7, 9, SIZE)
    assert window.span == 188
    whole = np.array([[7, 9, 195, 197]], np.float32)
    found = boxes_in_window(window, whole, np.array([0]), np.array([False]), Scale(1.7), 1.7)
    np.testing.assert_allclose(found.unclipped, [[0, 0, SIZE, SIZE]], atol=1e-4)


def test_no_boxes() -> None:
    window = ChipWindow(0, 1.0, 0, 0, SIZE)
    none = np.zeros((0, 4), np.float32)
    found = boxes_in_window(window, none, np.zeros(0, int), np.zeros(0, bool), Scale(1.0), 1.0)
    assert found.boxes.shape == (0, 4)
    assert found.valid.shape == (0,)

"""SNIPER chips: what each scale answers for lies whole in its chips; the kinds of other chips."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_side, intersection_area
from af_pipeline.core.focus import FocusRule
from af_pipeline.core.scales import Scale
from af_pipeline.sniper.chips import (
    MIN_SIDE,
    ChipMaking,
    ChipWindow,
    ImageBoxes,
    SniperRule,
    creates_chips,
    image_chips,
)
from af_pipeline.sniper.cover import holds, make_grid
from af_pipeline.sniper.sample import boxes_in_window

SCALES = (
    Scale(0.5, valid_range=(72, -1)),
    Scale(1.0, valid_range=(34, 90)),
    Scale(2.0, valid_range=(-1, 46)),
)
SIZE = 320
SEEDS = st.integers(0, 10**6)
SIDES = st.integers(20, 1500)
BOUNDS = st.sampled_from(["both", "official"])
Bounds = Literal["both", "official"]


def random_boxes(seed: int, count: int, height: int, width: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (count, 2)) * (width, height)
    half = np.exp(rng.uniform(np.log(4), np.log(150), (count, 1))) * rng.uniform(
        0.3, 0.7, (count, 2)
    )
    boxes = np.hstack([centre - half, centre + half]).clip(0, [width, height] * 2)
    return boxes.astype(np.float32)


def random_image(seed: int, count: int, height: int, width: int) -> ImageBoxes:
    """Some of its boxes are crowds; half of such images have proposals too."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(seed, count, height, width)
    proposals = random_boxes(seed + 1, 60, height, width) if rng.random() < 0.5 else None
    return ImageBoxes((height, width), boxes, rng.random(count) < 0.2, proposals)


def image_of(
    boxes: Any,
    size: tuple[int, int] = (900, 1200),
    crowd: bool = False,
    proposals: NDArray | None = None,
) -> ImageBoxes:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageBoxes(size, array, np.full(len(array), crowd), proposals)


def chips(
    seed: int,
    image: ImageBoxes,
    scales: tuple[Scale, ...] = SCALES,
    focus: tuple[float, float] = (5, 64),
    **rule: Any,
) -> list[ChipWindow]:
    how = SniperRule(SIZE, **{"focus_chips": 0, **rule})
    making = ChipMaking(scales, how, FocusRule(*focus))
    return image_chips(np.random.default_rng(seed), image, making)


def of_kind(windows: list[ChipWindow], kind: str) -> list[ChipWindow]:
    return [window for window in windows if window.kind == kind]


def whole(boxes: NDArray, windows: list[ChipWindow]) -> NDArray[np.bool_]:
    """Which boxes [N, 4] lie whole in which windows -> [N, M]."""
    spans = np.array([window.box for window in windows]).reshape(-1, 4)[None]
    low, high = boxes[:, None, :2] >= spans[..., :2], boxes[:, None, 2:] <= spans[..., 2:]
    return np.all(low & high, axis=-1)


# ---- positive chips


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(0, 25), SIDES, SIDES, st.floats(0.05, 0.6), st.floats(0.75, 1.33), BOUNDS)
def test_each_box_lies_whole_in_a_chip_of_each_scale_that_answers_for_it(
    seed: int, count: int, height: int, width: int, stride: float, jitter: float, bounds: Bounds
) -> None:
    """Bounds that leave no choice make the grid known, and with it what a window can hold."""
    image = random_image(seed, count, height, width)
    rule: dict[str, Any] = {
        "stride": (stride, stride),
        "jitter": (jitter, jitter),
        "bounds": bounds,
    }
    found = of_kind(chips(seed, image, **rule), "positive")
    for number, scale in enumerate(SCALES):
        own = [window for window in found if window.scale == number]
        change = float(np.exp(np.log(np.array([jitter]))[0]))
        nominal = scale.factor_for(height, width)
        span = max(1, round(SIZE / (nominal * change)))
        factor, change = SIZE / span, SIZE / span / nominal
        assert {(window.factor, window.size) for window in own} <= {(factor, SIZE)}
        creating = image.boxes[creates_chips(image, scale, change, factor)]
        in_x, in_y = holds(make_grid((height, width), span, stride * span), creating)
        holdable = np.any(in_x, axis=0) & np.any(in_y, axis=0)
        assert np.any(whole(creating, own), axis=1)[holdable].all()
        assert len(own) <= holdable.sum()


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(0, 25), SIDES, SIDES, BOUNDS)
def test_windows_keep_to_the_image(
    seed: int, count: int, height: int, width: int, bounds: Bounds
) -> None:
    """Inside the image where that is larger than the window, else around it."""
    image = random_image(seed, count, height, width)
    rule: dict[str, Any] = {"jitter": (0.75, 1.33), "bounds": bounds, "min_proposals": (3, 3)}
    windows = chips(seed, image, **rule, focus_chips=3)
    for window in windows:
        x0, y0, x1, y1 = window.box
        for low, high, limit in ((x0, x1, width), (y0, y1, height)):
            if limit >= window.span:
                assert 0 <= low <= high <= limit
            elif bounds == "official":
                assert low == 0
            else:
                assert low <= 0 < limit <= high
        assert 0.74 < window.factor / (0.5, 1, 2)[window.scale] < 1.34
    assert windows == chips(seed, image, **rule, focus_chips=3)
    assert len(of_kind(windows, "negative")) <= 2
    assert len(of_kind(windows, "focus")) <= 3


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 25))
def test_what_a_chip_is_laid_for_is_learned_in_it(seed: int, count: int) -> None:
    """Except for the last digits at the bounds."""
    image = random_image(seed, count, 900, 1200)
    for window in of_kind(chips(seed, image, jitter=(0.75, 1.33)), "positive"):
        scale = SCALES[window.scale]
        nominal = scale.factor_for(900, 1200)
        low, high = scale.valid_range_px(nominal)
        side = box_side(image.boxes) * window.factor
        clear = (side > max(low, MIN_SIDE) * 1.00001) & (side < high * 0.99999)
        laid = creates_chips(image, scale, window.factor / nominal, window.factor)
        laid &= clear & whole(image.boxes, [window])[:, 0]
        found = boxes_in_window(window, image.boxes, np.arange(count), image.crowd, (low, high))
        assert set(np.flatnonzero(laid)) <= set(found.labels[found.valid])


@pytest.mark.parametrize(
    ("side", "scales"),
    [(4.9, set()), (5.1, {2}), (20, {2}), (40, {1, 2}), (60, {1}), (160, {0})],
)  # 5 px are 10 of a chip at factor 2
def test_a_box_creates_chips_at_the_scales_that_answer_for_it(
    side: float, scales: set[int]
) -> None:
    box = [300, 300, 300 + side, 300 + side]
    assert {window.scale for window in chips(0, image_of([box]))} == scales
    assert chips(0, image_of([box], crowd=True)) == []


def test_the_resized_size_decides() -> None:
    """A 40 px box is the fine scale's only while shrunk or kept, the middle's while not shrunk."""
    image = image_of([[600, 400, 640, 440]])
    for jitter, scales in ((0.8, {2}), (1.0, {1, 2}), (1.2, {1})):
        assert {window.scale for window in chips(0, image, jitter=(jitter, jitter))} == scales
    factors = {
        window.factor for seed in range(30) for window in chips(seed, image, jitter=(0.8, 1.2))
    }
    assert len(factors) > 30  # drawn anew for each scale and time


def test_an_image_that_fits_lies_anywhere_in_its_chip() -> None:
    image = image_of([[10, 5, 100, 95]], size=(100, 120))  # the fine scale spans 160 px
    scales = (Scale(2.0),)
    [[official]] = [chips(seed, image, scales, bounds="official") for seed in range(1)]
    assert official.box == (0, 0, 160, 160)
    windows = [window for seed in range(400) for window in chips(seed, image, scales)]
    assert {window.x0 for window in windows} == set(range(-40, 1))
    assert {window.y0 for window in windows} == set(range(-60, 1))


# ---- focus chips


def test_focus_chips_show_hidden_small_objects_to_the_coarser_scales() -> None:
    image = image_of([[600, 400, 620, 420]])
    windows = chips(0, image, focus_chips=5)
    assert [(window.scale, window.kind) for window in windows] == [
        (2, "positive"),
        (0, "focus"),
        (1, "focus"),
    ]
    assert whole(image.boxes, windows).all()
    assert len(of_kind(chips(0, image, focus_chips=1), "focus")) == 1
    assert {of_kind(chips(s, image, focus_chips=1), "focus")[0].scale for s in range(20)} == {0, 1}
    assert of_kind(chips(0, image), "focus") == []


def test_focus_chips_are_for_objects_of_focus_size_that_no_chip_shows() -> None:
    def focus_scales(box: list[float], **rule: Any) -> list[int]:
        image = image_of([box, [600, 400, 800, 600]])  # with a positive chip of the coarse scale
        return [w.scale for w in of_kind(chips(0, image, focus_chips=5, **rule), "focus")]

    assert focus_scales([10, 10, 30, 30]) == [0, 1]
    assert focus_scales([690, 490, 710, 510]) == [1]
    assert focus_scales([10, 10, 30, 30], focus=(10, 64)) == [1]  # 10 px at the coarse one
    assert focus_scales([10, 10, 30, 30], focus=(5, 20)) == [0]  # 20 px at the middle one
    crowd = image_of([[10, 10, 30, 30]], crowd=True)
    assert chips(0, crowd, focus_chips=5) == []


# ---- negative chips


def crowded(box: list[float], count: int) -> NDArray[np.float32]:
    return np.tile(np.array(box or [0] * 4, np.float32), (count, 1))


def test_an_image_without_boxes_gives_negative_chips_anywhere() -> None:
    windows = [window for seed in range(60) for window in chips(seed, image_of([]), negatives=3)]
    assert len(windows) == 180
    assert {window.kind for window in windows} == {"negative"}
    assert {window.scale for window in windows} == {0, 1, 2}
    assert len({window.box for window in windows}) > 60
    assert chips(0, image_of([]), negatives=0) == []
    assert of_kind(chips(0, image_of([[300, 300, 320, 320]])), "negative") == []
    assert chips(0, image_of([], proposals=crowded([], 0))) == []  # nothing was found in it


@pytest.mark.parametrize(("scale", "side", "least"), [(0, 150, 10), (1, 60, 10), (2, 30, 25)])
@pytest.mark.parametrize("boxes", [[], [[1150, 850, 1180, 880]]])
def test_mined_chips_hold_more_than_so_many_proposals(
    boxes: list[Any], scale: int, side: int, least: int
) -> None:
    for seed in range(5):
        for count in (least, least + 1):
            proposals = crowded([200, 200, 200 + side, 200 + side], count)
            image = image_of(boxes, proposals=proposals)
            mined = of_kind(chips(seed, image), "negative")
            assert [window.scale for window in mined] == [scale] * (count > least)
            assert whole(proposals, mined).all()


def test_proposals_that_a_positive_chip_touches_are_no_surprise() -> None:
    # the one window of the fine scale that holds the box ends at 160 px
    box = [[0, 10, 30, 40]]
    for x, count in ((159, 0), (160, 1)):
        image = image_of(box, size=(160, 1000), proposals=crowded([x, 50, x + 30, 80], 40))
        assert len(of_kind(chips(0, image), "negative")) == count
        assert [window.box for window in of_kind(chips(0, image), "positive")] == [(0, 0, 160, 160)]


def test_at_most_so_many_negative_chips_chosen_by_chance() -> None:
    places = [crowded([x, 50, x + 30, 80], 26) for x in range(0, 1200, 300)]
    image = image_of([], proposals=np.concatenate(places))
    assert len(chips(0, image, negatives=9)) == 4
    chosen = [tuple(w.x0 // 300 for w in chips(seed, image)) for seed in range(60)]
    assert {len(pair) for pair in chosen} == {2}
    assert len(set(chosen)) > 5
    assert len(chips(0, image, negatives=9, min_proposals=(26, 10))) == 0


# ---- official bounds: one bound a scale, each box learned by one chip of it


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 25), st.integers(100, 1500), st.integers(100, 1500))
def test_one_chip_of_a_scale_owns_each_box(seed: int, count: int, height: int, width: int) -> None:
    image = random_image(seed, count, height, width)
    found = chips(seed, image, bounds="official", focus_chips=2, min_proposals=(3, 3))
    assert {window.owned for window in found if window.kind != "positive"} <= {()}
    for number, scale in enumerate(SCALES):
        own = [w for w in of_kind(found, "positive") if w.scale == number]
        one_bound = (
            replace(scale, valid_range=(scale.valid_low, -1))
            if number == 0
            else replace(scale, valid_range=(-1, scale.valid_high))
        )
        loose = one_bound.valid(image.boxes) & ~image.crowd
        spans = np.array([window.box for window in own], np.float32).reshape(-1, 4)
        shown = intersection_area(image.boxes, spans)
        owned = np.zeros(shown.shape, bool)
        for column, window in enumerate(own):
            assert window.owned is not None
            owned[list(window.owned), column] = True
        np.testing.assert_array_equal(owned.sum(1), loose & (shown > 0).any(1))
        mine = owned.any(1)
        assert (shown[owned] == shown[mine].max(1, initial=0)).all()


def test_official_chips_learn_what_they_own_and_nothing_else() -> None:
    """The middle scale learns a small box that lies in its chip, too; its lower bound is unused."""
    image = image_of([[600, 400, 660, 460], [610, 470, 630, 490], [580, 300, 780, 500]])
    for bounds, learned in (("both", [0]), ("official", [0, 1])):
        [window] = [w for w in chips(0, image, bounds=bounds) if w.scale == 1]
        args = (window, image.boxes, np.arange(3), image.crowd, (34.0, 90.0))
        found = boxes_in_window(*args)
        assert found.labels[found.valid].tolist() == learned
        assert (found.valid != found.ignored).all()
    negative = replace(window, kind="negative", owned=())
    assert not boxes_in_window(negative, *args[1:]).valid.any()

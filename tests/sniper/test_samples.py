"""Samples: boxes, focus labels and pixels move together; each box is learned or ignored."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_side, visible_share
from af_pipeline.core.focus import FocusRule, focus_labels
from af_pipeline.core.scales import Scale
from af_pipeline.sniper.chips import MIN_SIDE, ChipMaking, ChipWindow, SniperRule
from af_pipeline.sniper.sample import (
    PAD_VALUE,
    ChipBoxes,
    LabelledImage,
    Sample,
    boxes_in_window,
    cut_window,
    make_sample,
    recolour,
)

Box = tuple[int, int, int, int]
Flips = Literal["none", "horizontal", "all"]
SIZE = 320
RANGE = (34.0, 90.0)
LABELS = FocusRule(5, 64, 90)


# ---- the boxes of a chip


def see(
    *boxes: tuple[float, ...],
    crowd: bool = False,
    owned: tuple[int, ...] | None = None,
    x0: int = 0,
) -> ChipBoxes:
    array, window = np.array(boxes, np.float32), ChipWindow(0, 1.0, x0, 0, SIZE, owned=owned)
    labels, crowds = np.arange(len(boxes)), np.full(len(boxes), crowd)
    return boxes_in_window(window, array.reshape(-1, 4), labels, crowds, RANGE)


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
    assert see(box).valid.tolist() == [valid]
    assert see(box, crowd=True).ignored.all()


def test_the_least_side_and_share_count_what_is_inside_the_chip() -> None:
    window, none = ChipWindow(0, 1.0, 0, 0, SIZE), np.zeros(4, bool)
    boxes = [[5, 5, 15, 15], [5, 5, 14.9, 15], [-9, 5, 9, 15], [-30, 10, 30, 70]]
    for share, valid in ((0.5, [1, 0, 0, 1]), (0.6, [1, 0, 0, 0])):
        array = np.array(boxes, np.float32)
        found = boxes_in_window(window, array, np.arange(4), none, (0.0, np.inf), share)
        assert found.valid.tolist() == valid


def test_a_chip_that_owns_boxes_learns_these_whatever_their_range() -> None:
    boxes = [(10, 10, 30, 30), (10, 10, 210, 210), (310, 40, 400, 60), (50, 50, 90, 90)]
    boxes += [(10, 10, 19, 19)]  # below the least side
    owned = (0, 1, 2, 4)
    assert see(*boxes, owned=owned).valid.tolist() == [True, True, True, False, False]
    assert see(*boxes, owned=owned, crowd=True).ignored.all()
    assert see(*boxes, owned=()).ignored.all()
    # They are counted among the boxes of the image.
    found = see((10, 10, 60, 60), (510, 10, 560, 60), (600, 10, 650, 60), owned=(1,), x0=500)
    assert (found.labels.tolist(), found.valid.tolist()) == ([1, 2], [True, False])


def test_boxes_follow_the_pixels_of_a_rounded_span() -> None:
    # 320 px at factor 1.7 are 188.2 px, the crop has 188: its true factor is 320/188
    window = ChipWindow(0, 1.7, 7, 9, SIZE)
    assert window.box == (7, 9, 195, 197)
    box = np.array([window.box], np.float32)
    found = boxes_in_window(window, box, np.zeros(1, int), np.zeros(1, bool), RANGE)
    np.testing.assert_allclose(found.unclipped, [[0, 0, SIZE, SIZE]], atol=1e-4)


# ---- whole samples


def rule(flips: Flips = "all", colour: float = 0.0) -> ChipMaking:
    return ChipMaking((Scale(1.0),), SniperRule(flips=flips, colour=colour), LABELS)


def planted(
    box: Box | None, height: int = 160, width: int = 200, crowd: bool = False
) -> LabelledImage:
    """Black, with one white rectangle that is the one object, if any."""
    image = np.zeros((height, width, 3), np.uint8)
    boxes = np.array([box] if box else [], np.float32).reshape(-1, 4)
    if box:
        image[box[1] : box[3], box[0] : box[2]] = 255
    return LabelledImage(image, boxes, np.ones(len(boxes), np.int32), np.full(len(boxes), crowd))


def window_over(seed: int, box: Box, factor: float = 1.0, size: int = 96) -> ChipWindow:
    """A window that holds ``box`` anywhere, in the image or over its edges."""
    rng = np.random.default_rng(seed)
    span = ChipWindow(0, factor, 0, 0, size).span
    x0, y0 = (int(rng.integers(box[i + 2] - span, box[i] + 1)) for i in (0, 1))
    return ChipWindow(0, factor, x0, y0, size)


def draw(seed: int, labelled: LabelledImage, window: ChipWindow, how: ChipMaking) -> Sample:
    return make_sample(np.random.default_rng(seed), labelled, window, how)


def bright(image: NDArray[np.uint8]) -> list[int]:
    """Bounding box of the pixels that are at least half white."""
    y, x = np.nonzero(image[..., 0] >= 128)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def lit_cells(sample: Sample) -> NDArray[np.bool_]:
    return sample.image[..., 0].reshape(6, 16, 6, 16).max((1, 3)) == 255


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 160),
    st.integers(0, 130),
    st.sampled_from(["none", "horizontal", "all"]),
    st.booleans(),
)
def test_boxes_and_focus_turn_with_the_pixels(
    seed: int, x: int, y: int, flips: Flips, crowd: bool
) -> None:
    # wide and off the centre: each of the eight turns puts it somewhere else
    box = (x, y, x + 37, y + 21)
    sample = draw(seed, planted(box, crowd=crowd), window_over(seed, box), rule(flips))
    assert sample.image.shape == (96, 96, 3)
    assert sample.image.flags.c_contiguous
    assert sample.boxes.boxes[0].tolist() == bright(sample.image)
    assert sample.boxes.unclipped[0].tolist() == bright(sample.image)
    assert sample.boxes.labels.tolist() == [1]
    assert sample.boxes.valid.tolist() == [not crowd]
    crowds = np.array([crowd])
    wanted = focus_labels(sample.boxes.unclipped, 96, 96, LABELS, crowds)
    np.testing.assert_array_equal(sample.focus, wanted)
    # A crowd gives no focus loss: nobody knows where its objects are.
    np.testing.assert_array_equal(sample.focus == (-1 if crowd else 1), lit_cells(sample))


def test_a_box_cut_by_the_chip_keeps_its_whole_size() -> None:
    """The clipped box is what the pixels show; the whole one follows it out of the chip."""
    for seed in range(16):
        sample = draw(seed, planted((20, 30, 80, 60)), ChipWindow(0, 1.0, 40, 20, 96), rule())
        assert sample.boxes.boxes[0].tolist() == bright(sample.image)
        low, high = sample.boxes.unclipped[0].reshape(2, 2)
        assert sorted((high - low).tolist()) == [30, 60]
        assert sample.boxes.valid.tolist() == [True]  # two thirds are inside


@pytest.mark.parametrize(("flips", "turns"), [("none", 1), ("horizontal", 2), ("all", 8)])
def test_all_turns_come(flips: Flips, turns: int) -> None:
    labelled, window = planted((20, 20, 57, 41), 96, 96), ChipWindow(0, 1.0, 0, 0, 96)
    boxes = [tuple(draw(seed, labelled, window, rule(flips)).boxes.boxes[0]) for seed in range(80)]
    assert len(set(boxes)) == turns
    assert (20, 20, 57, 41) in boxes
    if flips == "horizontal":
        assert set(boxes) == {(20, 20, 57, 41), (39, 20, 76, 41)}


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.75, 1.03, 1.4, 1.7, 2.0])
def test_boxes_follow_resized_pixels(factor: float) -> None:
    box = (60, 50, 92, 72)
    for seed in range(6):
        sample = draw(seed, planted(box), window_over(seed, box, factor, 128), rule())
        np.testing.assert_allclose(sample.boxes.boxes[0], bright(sample.image), atol=1.01)


def test_the_range_is_the_scales_whatever_the_change() -> None:
    """A resized chip answers for the sizes that the scale answers for in network px."""
    scales = (Scale(0.5, valid_range=(72, -1)), Scale(None, 320, 640, valid_range=(30, 80)))
    how = ChipMaking(scales, SniperRule(flips="none"), LABELS)
    for factor in (1.5, 2.0, 2.5):  # the nominal one of 160 x 200 px is 2
        sample = draw(0, planted((0, 0, 37, 37)), ChipWindow(1, factor, 0, 0, 96), how)
        assert sample.range_px == (60, 160)
        assert sample.boxes.valid.tolist() == [37 * 96 / sample.window.span > 60]
    coarse = draw(0, planted((0, 0, 9, 9)), ChipWindow(0, 0.5, 0, 0, 96), how)
    assert coarse.range_px == (36, np.inf)


def test_an_image_smaller_than_the_chip_is_padded_grey() -> None:
    for seed in range(10):
        window = ChipWindow(0, 1.0, -3 * seed, -5 * seed, 96)
        sample = draw(seed, planted((10, 10, 30, 25), 40, 60), window, rule())
        assert (sample.image == PAD_VALUE).all(-1).sum() == 96 * 96 - 40 * 60
        assert sample.boxes.boxes[0].tolist() == bright(sample.image)
    nothing = draw(0, planted(None, 80, 80), ChipWindow(0, 1.0, 0, 0, 96), rule())
    assert nothing.boxes.boxes.shape == nothing.boxes.unclipped.shape == (0, 4)
    assert not nothing.focus.any()


def test_cut_window_copies_and_pads() -> None:
    image = np.arange(50 * 60 * 3, dtype=np.uint32).reshape(50, 60, 3).astype(np.uint8)
    inside = cut_window(image, ChipWindow(0, 1.0, 5, 7, 32))
    np.testing.assert_array_equal(inside, image[7:39, 5:37])
    over = cut_window(image, ChipWindow(0, 1.0, -4, 30, 32))
    np.testing.assert_array_equal(over[:20, 4:], image[30:, :28])
    assert (over[:, :4] == PAD_VALUE).all()
    assert (over[20:] == PAD_VALUE).all()
    assert (cut_window(image, ChipWindow(0, 1.0, 500, 500, 32)) == PAD_VALUE).all()


@pytest.mark.parametrize("colour", [0.0, 0.7])
def test_a_sample_follows_from_its_generator(colour: float) -> None:
    labelled, window = planted((60, 50, 92, 72)), ChipWindow(0, 1.3, 40, 40, 96)
    before = labelled.image.copy()
    one, two = (draw(7, labelled, window, rule(colour=colour)) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.boxes.boxes, two.boxes.boxes)
    np.testing.assert_array_equal(one.focus, two.focus)
    assert one.window == two.window == window
    np.testing.assert_array_equal(labelled.image, before)


def test_colour_changes_keep_the_form_and_the_place() -> None:
    image = planted((60, 50, 92, 72)).image // 2 + 60
    changed = [recolour(np.random.default_rng(seed), image, 0.5) for seed in range(30)]
    assert all(c.shape == image.shape and c.dtype == np.uint8 for c in changed)
    brightness = [float(c.mean()) for c in changed]
    assert np.std(brightness) > 5
    # on average no colour cast and no drift
    assert np.mean(brightness) == pytest.approx(float(image.mean()), abs=12)
    assert recolour(np.random.default_rng(0), image, 0.0) is image

"""Samples: boxes, focus labels and pixels move together; grey where there is no image."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.core.focus import FocusRule, focus_labels
from af_pipeline.core.scales import Scale
from af_pipeline.sniper.chips import ChipMaking, ChipWindow, SniperRule
from af_pipeline.sniper.sample import (
    PAD_VALUE,
    LabelledImage,
    Sample,
    cut_window,
    make_sample,
    recolour,
)

Box = tuple[int, int, int, int]


def rule(flips: Literal["none", "horizontal", "all"] = "all", colour: float = 0.0) -> ChipMaking:
    return ChipMaking((Scale(1.0),), SniperRule(flips=flips, colour=colour), FocusRule(5, 64, 90))


def planted(box: Box, height: int = 160, width: int = 200) -> LabelledImage:
    """Black, with one white rectangle that is the one object."""
    image = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    boxes = np.array([box], np.float32)
    return LabelledImage(image, boxes, np.array([1], np.int32), np.array([False]))


def window_over(seed: int, box: Box, factor: float = 1.0, size: int = 96) -> ChipWindow:
    """A window that holds ``box`` anywhere, in the image or over its edges."""
    rng = np.random.default_rng(seed)
    span = ChipWindow(0, factor, 0, 0, size).span
    x0, y0 = (int(rng.integers(box[i + 2] - span, box[i] + 1)) for i in (0, 1))
    return ChipWindow(0, factor, x0, y0, size)


def draw(seed: int, labelled: LabelledImage, window: ChipWindow, how: ChipMaking) -> Sample:
    return make_sample(np.random.default_rng(seed), labelled, window, how)


def bright(image: NDArray[np.uint8], least: int = 128) -> list[int]:
    """Bounding box of the pixels that are at least ``least``."""
    y, x = np.nonzero(image[..., 0] >= least)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def lit_cells(sample: Sample) -> NDArray[np.bool_]:
    return sample.image[..., 0].reshape(6, 16, 6, 16).max((1, 3)) == 255


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 160),
    st.integers(0, 130),
    st.sampled_from(["none", "horizontal", "all"]),
)
def test_boxes_and_focus_turn_with_the_pixels(
    seed: int, x: int, y: int, flips: Literal["none", "horizontal", "all"]
) -> None:
    # wide and off the centre: each of the eight turns puts it somewhere else
    box = (x, y, x + 37, y + 21)
    sample = draw(seed, planted(box), window_over(seed, box), rule(flips))
    assert sample.image.shape == (96, 96, 3)
    assert sample.image.flags.c_contiguous
    assert sample.boxes.boxes[0].tolist() == bright(sample.image)
    assert sample.boxes.unclipped[0].tolist() == bright(sample.image)
    assert sample.boxes.labels.tolist() == [1]
    assert sample.boxes.valid.tolist() == [True]
    wanted = focus_labels(sample.boxes.unclipped, 96, 96, FocusRule(5, 64, 90))
    np.testing.assert_array_equal(sample.focus, wanted)
    np.testing.assert_array_equal(sample.focus == 1, lit_cells(sample))


def test_a_box_cut_by_the_chip_keeps_its_whole_size() -> None:
    """The clipped box is what the pixels show; the whole one follows it out of the chip."""
    labelled = planted((20, 30, 80, 60))
    for seed in range(16):
        sample = draw(seed, labelled, ChipWindow(0, 1.0, 40, 20, 96), rule())
        assert sample.boxes.boxes[0].tolist() == bright(sample.image)
        low, high = sample.boxes.unclipped[0].reshape(2, 2)
        assert sorted((high - low).tolist()) == [30, 60]
        assert sample.boxes.valid.tolist() == [True]  # two thirds are inside


@pytest.mark.parametrize(("flips", "turns"), [("none", 1), ("horizontal", 2), ("all", 8)])
def test_all_turns_come(flips: Literal["none", "horizontal", "all"], turns: int) -> None:
    labelled, window = planted((20, 20, 57, 41), 96, 96), ChipWindow(0, 1.0, 0, 0, 96)
    boxes = [tuple(draw(seed, labelled, window, rule(flips)).boxes.boxes[0]) for seed in range(80)]
    assert len(set(boxes)) == turns
    assert (20, 20, 57, 41) in boxes
    if flips == "horizontal":
        assert set(boxes) == {(20, 20, 57, 41), (39, 20, 76, 41)}


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.7, 2.0])
def test_boxes_follow_resized_pixels(factor: float) -> None:
    box = (60, 50, 92, 72)
    for seed in range(12):
        sample = draw(seed, planted(box), window_over(seed, box, factor, 128), rule())
        np.testing.assert_allclose(sample.boxes.boxes[0], bright(sample.image), atol=1.01)


def test_scale_changes_keep_boxes_on_the_pixels() -> None:
    box, sides = (60, 50, 92, 72), set()
    for seed, factor in enumerate(np.linspace(0.7, 1.4, 30)):
        sample = draw(seed, planted(box), window_over(seed, box, float(factor)), rule())
        np.testing.assert_allclose(sample.boxes.boxes[0], bright(sample.image), atol=1.01)
        sides.add(round(float(np.ptp(sample.boxes.boxes[0][[0, 2]]))))
    assert len(sides) > 8


def test_the_range_is_the_scales_whatever_the_change() -> None:
    """A resized chip answers for the sizes that the scale answers for in network px."""
    scales = (Scale(0.5, valid_range=(72, -1)), Scale(None, 320, 640, valid_range=(30, 80)))
    how = ChipMaking(scales, SniperRule(flips="none"), FocusRule())
    for factor in (1.5, 2.0, 2.5):  # the nominal one of 160 x 200 px is 2
        sample = draw(0, planted((0, 0, 37, 37)), ChipWindow(1, factor, 0, 0, 96), how)
        assert sample.range_px == (60, 160)
        assert sample.boxes.valid.tolist() == [37 * 96 / sample.window.span > 60]
    assert draw(0, planted((0, 0, 9, 9)), ChipWindow(0, 0.5, 0, 0, 96), how).range_px == (
        36,
        np.inf,
    )


def test_an_image_smaller_than_the_chip_is_padded_grey() -> None:
    for seed in range(10):
        window = ChipWindow(0, 1.0, -3 * seed, -5 * seed, 96)
        sample = draw(seed, planted((10, 10, 30, 25), 40, 60), window, rule())
        grey = (sample.image == PAD_VALUE).all(-1)
        assert grey.sum() == 96 * 96 - 40 * 60
        assert sample.boxes.boxes[0].tolist() == bright(sample.image)


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


def test_an_image_without_objects() -> None:
    none = LabelledImage(
        np.zeros((80, 80, 3), np.uint8),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int32),
        np.zeros(0, bool),
    )
    sample = draw(0, none, ChipWindow(0, 1.0, 0, 0, 96), rule())
    assert sample.boxes.boxes.shape == (0, 4)
    assert not sample.focus.any()


def test_a_crowd_gives_no_focus_loss() -> None:
    box = (30, 20, 67, 41)
    one = planted(box)
    image = LabelledImage(one.image, one.boxes, one.labels, np.array([True]))
    for seed in range(20):
        sample = draw(seed, image, window_over(seed, box), rule())
        assert sample.boxes.crowd.tolist() == sample.boxes.ignored.tolist() == [True]
        np.testing.assert_array_equal(sample.focus, np.where(lit_cells(sample), -1, 0))


def test_colour_changes_keep_the_form_and_the_place() -> None:
    image = planted((60, 50, 92, 72)).image // 2 + 60
    changed = [recolour(np.random.default_rng(seed), image, 0.5) for seed in range(30)]
    assert all(c.shape == image.shape and c.dtype == np.uint8 for c in changed)
    brightness = [float(c.mean()) for c in changed]
    assert np.std(brightness) > 5
    # on average no colour cast and no drift
    assert np.mean(brightness) == pytest.approx(float(image.mean()), abs=12)
    assert recolour(np.random.default_rng(0), image, 0.0) is image

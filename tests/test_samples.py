"""Samples: boxes, focus labels and pixels move together; grey where there is no image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.focus import FocusRule, focus_labels
from af_pipeline.samples import (
    PAD_VALUE,
    LabelledImage,
    Sample,
    SampleRule,
    cut_window,
    draw_sample,
    recolour,
)
from af_pipeline.scales import Scale
from af_pipeline.sniper import ChipWindow, WindowRule

WEIGHTS = np.ones(3)


def rule(
    factor: float = 1.0,
    size: int = 96,
    jitter: tuple[float, float] = (1.0, 1.0),
    negative: float = 0.0,
    colour: float = 0.0,
) -> SampleRule:
    window = WindowRule(size, jitter, negative)
    return SampleRule((Scale(factor),), FocusRule(5, 64, 90), window, colour)


def planted(box: tuple[int, int, int, int], height: int = 160, width: int = 200) -> LabelledImage:
    """Black, with one white rectangle that is the one object."""
    image = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    boxes = np.array([box], np.float32)
    return LabelledImage(image, boxes, np.array([1], np.int32), np.array([False]))


def draw(seed: int, labelled: LabelledImage, how: SampleRule) -> Sample:
    return draw_sample(np.random.default_rng(seed), labelled, WEIGHTS, how)


def bright(image: NDArray[np.uint8], least: int = 128) -> list[int]:
    """Bounding box of the pixels that are at least ``least``."""
    y, x = np.nonzero(image[..., 0] >= least)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 160), st.integers(0, 130))
def test_boxes_and_focus_turn_with_the_pixels(seed: int, x: int, y: int) -> None:
    # wide and off the centre: each of the eight turns puts it somewhere else
    sample = draw(seed, planted((x, y, x + 37, y + 21)), rule())
    assert sample.image.shape == (96, 96, 3)
    assert sample.image.flags.c_contiguous
    assert sample.boxes.boxes[0].tolist() == bright(sample.image)
    assert sample.boxes.labels.tolist() == [1]
    assert sample.boxes.valid.tolist() == [True]
    wanted = focus_labels(sample.boxes.unclipped, 96, 96, FocusRule(5, 64, 90))
    np.testing.assert_array_equal(sample.focus, wanted)
    lit = sample.image[..., 0].reshape(6, 16, 6, 16).max((1, 3)) > 0
    np.testing.assert_array_equal(sample.focus == 1, lit)


def test_all_eight_turns_come() -> None:
    labelled = planted((20, 20, 57, 41), 96, 96)
    seen = {tuple(draw(seed, labelled, rule()).boxes.boxes[0]) for seed in range(80)}
    assert len(seen) == 8


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.7, 2.0])
def test_boxes_follow_resized_pixels(factor: float) -> None:
    for seed in range(12):
        sample = draw(seed, planted((60, 50, 92, 72)), rule(factor, size=128))
        found = bright(sample.image)
        np.testing.assert_allclose(sample.boxes.boxes[0], found, atol=1.01)


def test_scale_jitter_keeps_boxes_on_the_pixels() -> None:
    sides = set()
    for seed in range(30):
        sample = draw(seed, planted((60, 50, 92, 72)), rule(jitter=(0.7, 1.4)))
        np.testing.assert_allclose(sample.boxes.boxes[0], bright(sample.image), atol=1.01)
        sides.add(round(float(np.ptp(sample.boxes.boxes[0][[0, 2]]))))
    assert len(sides) > 8


def test_an_image_smaller_than_the_chip_is_padded_grey() -> None:
    for seed in range(10):
        sample = draw(seed, planted((10, 10, 30, 25), 40, 60), rule())
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
    how = rule(colour=colour, negative=0.3, jitter=(0.7, 1.4))
    labelled = planted((60, 50, 92, 72))
    before = labelled.image.copy()
    one, two = draw(7, labelled, how), draw(7, labelled, how)
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.boxes.boxes, two.boxes.boxes)
    np.testing.assert_array_equal(one.focus, two.focus)
    assert one.window == two.window
    np.testing.assert_array_equal(labelled.image, before)


def test_an_image_without_objects() -> None:
    none = LabelledImage(
        np.zeros((80, 80, 3), np.uint8),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int32),
        np.zeros(0, bool),
    )
    sample = draw(0, none, rule())
    assert sample.boxes.boxes.shape == (0, 4)
    assert not sample.focus.any()


def test_a_crowd_gives_no_focus_loss() -> None:
    one = planted((30, 20, 67, 41))
    image = LabelledImage(one.image, one.boxes, one.labels, np.array([True]))
    found = 0
    for seed in range(20):
        sample = draw(seed, image, rule())
        if len(sample.boxes.boxes):
            assert sample.boxes.crowd.tolist() == sample.boxes.ignored.tolist() == [True]
            lit = sample.image[..., 0].reshape(6, 16, 6, 16).max((1, 3)) > 0
            np.testing.assert_array_equal(sample.focus, np.where(lit, -1, 0))
            found += 1
    assert found > 5


def test_colour_changes_keep_the_form_and_the_place() -> None:
    image = planted((60, 50, 92, 72)).image // 2 + 60
    changed = [recolour(np.random.default_rng(seed), image, 0.5) for seed in range(30)]
    assert all(c.shape == image.shape and c.dtype == np.uint8 for c in changed)
    brightness = [float(c.mean()) for c in changed]
    assert np.std(brightness) > 5
    # on average no colour cast and no drift
    assert np.mean(brightness) == pytest.approx(float(image.mean()), abs=12)
    assert recolour(np.random.default_rng(0), image, 0.0) is image

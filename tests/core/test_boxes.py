"""Box arithmetic: parity with torchvision, half-open edges, shares between 0 and 1."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.ops import box_iou

from af_pipeline.core.boxes import (
    box_area,
    box_side,
    clip_boxes,
    empty_boxes,
    intersection_area,
    iou_matrix,
    visible_share,
)

BOUNDS = (10.0, 20.0, 110.0, 90.0)


def random_boxes(seed: int, count: int, whole: bool = False) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-60, 200, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0, 120, (count, 2))])
    return (np.round(boxes) if whole else boxes).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(0, 12), st.booleans())
def test_iou_is_torchvisions(seed: int, first: int, second: int, whole: bool) -> None:
    a, b = random_boxes(seed, first, whole), random_boxes(seed + 1, second, whole)
    wanted = box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    # torchvision gives nan for two boxes without area; here that is no overlap
    np.testing.assert_allclose(iou_matrix(a, b), np.nan_to_num(wanted), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.booleans())
def test_visible_share_is_a_share(seed: int, count: int, whole: bool) -> None:
    boxes = random_boxes(seed, count, whole)
    share = visible_share(boxes, BOUNDS)
    assert share.shape == (count,)
    assert ((share >= 0) & (share <= 1)).all()
    inside = (boxes == clip_boxes(boxes, BOUNDS)).all(1) & (box_area(boxes) > 0)
    assert (share[inside] == 1).all()
    meets = intersection_area(boxes, np.array([BOUNDS], np.float32))[:, 0] > 0
    assert ((share > 0) == meets).all()


def test_ends_are_half_open() -> None:
    left, right = np.array([[0, 0, 10, 10]], np.float32), np.array([[10, 0, 20, 10]], np.float32)
    assert box_area(left)[0] == 100
    assert box_side(left)[0] == 10
    assert intersection_area(left, right)[0, 0] == 0
    assert iou_matrix(left, right)[0, 0] == 0
    assert visible_share(left, (10, 0, 20, 10))[0] == 0
    assert visible_share(left, (9, 0, 20, 10))[0] == pytest.approx(0.1)


def test_inside_out_and_empty_boxes_have_no_area() -> None:
    odd = np.array([[10, 10, 0, 0], [5, 5, 5, 9], [10, 0, 0, 8]], np.float32)
    assert (box_area(odd) == 0).all()
    assert (visible_share(odd, (0, 0, 20, 20)) == 0).all()
    assert (iou_matrix(odd, odd) == 0).all()


def test_no_boxes() -> None:
    none, one = empty_boxes(), np.array([[0, 0, 4, 4]], np.float32)
    assert iou_matrix(none, one).shape == (0, 1)
    assert iou_matrix(one, none).shape == (1, 0)
    assert visible_share(none, BOUNDS).shape == (0,)
    assert clip_boxes(none, BOUNDS).shape == (0, 4)


def test_clipped_boxes_keep_their_type() -> None:
    clipped = clip_boxes(np.array([[0, 0, 60, 95]], np.float32), BOUNDS)
    assert clipped.tolist() == [[10, 20, 60, 90]]
    assert clipped.dtype == np.float32


def test_integer_boxes_give_fractions() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10]], np.int64)
    assert iou_matrix(boxes, boxes)[0, 1] == pytest.approx(1 / 3)
    assert visible_share(boxes, (0, 0, 10, 10)).tolist() == [1, 0.5]

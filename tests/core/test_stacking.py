"""Focus stacking: cut boxes go, whole ones stay, duplicates fall, and large lists are quick."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from af_pipeline.core import stacking
from af_pipeline.core.boxes import iou_matrix
from af_pipeline.core.cascade import stack
from af_pipeline.core.schema import Detections, ImageRow
from af_pipeline.core.stacking import StackRule, border_keep, suppress

SEEDS = st.integers(0, 10**6)
Found = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]


def crowd(seed: int, count: int, classes: int = 3, side: float = 120.0) -> Found:
    """Boxes of 5 to 40 px in a square of ``side`` px, with scores and labels."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(5, 40, (count, 2))]).astype(np.float32)
    scores = rng.uniform(0.02, 1, count).astype(np.float32)
    return boxes, scores, rng.integers(0, classes, count).astype(np.int32)


# ---- the border rule


def kept(chip: tuple[int, ...], box: tuple[float, ...], tolerance: float = 10) -> bool:
    """Whether a box survives a chip (both original px) of an image of 640 x 480 px."""
    x0, y0, x1, y1 = chip
    inner = (x0 > 0, y0 > 0, x1 < 640, y1 < 480)
    own = np.array([box], np.float32) - np.array([x0, y0] * 2, np.float32)
    return bool(border_keep(own, (y1 - y0, x1 - x0), inner, tolerance)[0])


@pytest.mark.parametrize(
    ("chip", "box", "stays"),
    [
        ((100, 100, 300, 300), (105, 150, 180, 200), False),
        ((100, 100, 300, 300), (115, 150, 180, 200), True),
        ((0, 100, 300, 300), (0, 150, 180, 200), True),  # the image's own edge
        ((100, 100, 300, 300), (110, 150, 180, 200), True),  # just at the tolerance
        ((100, 100, 300, 300), (150, 150, 295, 200), False),
        ((100, 100, 300, 300), (150, 105, 180, 200), False),
        ((100, 100, 300, 300), (150, 150, 180, 295), False),
        ((100, 100, 640, 480), (150, 150, 640, 480), True),
        ((0, 0, 640, 480), (0, 0, 640, 480), True),
    ],
)
def test_border_rule(chip: tuple[int, ...], box: tuple[float, ...], stays: bool) -> None:
    assert kept(chip, box) is stays


def test_border_rule_of_nothing_and_of_tolerance_nought() -> None:
    none = np.zeros((0, 4), np.float32)
    assert border_keep(none, (10, 10), (True,) * 4, 4).shape == (0,)
    assert kept((100, 100, 300, 300), (100, 100, 300, 300), tolerance=0)


# ---- suppression


def plain_soft(boxes: NDArray, scores: NDArray, rule: StackRule) -> list[tuple[int, float]]:
    """The definition for one class: the best left is taken, the others fall by its overlap."""
    left = {i: float(s) for i, s in enumerate(scores) if s >= rule.min_score}
    taken = []
    while left:
        best = min(left, key=lambda i: (-left[i], i))
        taken.append((best, left.pop(best)))
        one = boxes[best : best + 1].astype(np.float64)
        for i in list(left):
            overlap = iou_matrix(one, boxes[i : i + 1].astype(np.float64))[0, 0]
            left[i] *= np.exp(-(overlap**2) / rule.sigma)
            if left[i] < rule.min_score:
                del left[i]
    return taken


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 60), st.sampled_from([0.1, 0.55, 2.0]), st.sampled_from([32, 0]))
def test_soft_is_the_definition(seed: int, count: int, sigma: float, pairs: int) -> None:
    """With the pairs listed, and box by box where there are too many."""
    rule = StackRule("soft", sigma=sigma, min_score=0.05)
    boxes, scores, labels = crowd(seed, count)
    wanted = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        wanted += [(int(own[i]), s) for i, s in plain_soft(boxes[own], scores[own], rule)]
    wanted = sorted(wanted, key=lambda pair: (-pair[1], pair[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacking, "PAIRS_PER_BOX", pairs)
        index, final = suppress(boxes, scores, labels, rule)
    assert index.tolist() == [i for i, _ in wanted]
    assert final == pytest.approx([s for _, s in wanted], rel=1e-5)
    assert final.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 120), st.sampled_from([0.2, 0.5, 0.8]))
def test_hard_is_torchvisions(seed: int, count: int, iou: float) -> None:
    boxes, scores, labels = crowd(seed, count)
    for agnostic in (False, True):
        rule = StackRule("hard", iou=iou, min_score=0.0, class_agnostic=agnostic)
        groups = torch.from_numpy(labels) * (not agnostic)
        wanted = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), groups, iou)
        index, final = suppress(boxes, scores, labels, rule)
        assert index.tolist() == wanted.tolist()
        np.testing.assert_array_equal(final, scores[index])


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from(["soft", "hard"]), st.booleans())
def test_the_order_of_the_boxes_does_not_matter(
    seed: int, count: int, method: str, agnostic: bool
) -> None:
    rule = StackRule(method, class_agnostic=agnostic)
    found = crowd(seed, count)
    order = np.random.default_rng(seed).permutation(count)
    index, final = suppress(*found, rule)
    again, same = suppress(*(part[order] for part in found), rule)
    np.testing.assert_array_equal(order[again], index)
    np.testing.assert_allclose(same, final, rtol=1e-6)
    assert (np.diff(final) <= 0).all()
    assert (final >= rule.min_score).all()
    assert len(set(index.tolist())) == len(index)


def test_classes_and_limits() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 60, 10]], np.float32)
    scores = np.array([0.8, 0.9, 0.005], np.float32)
    labels = np.array([0, 1, 0], np.int32)
    index, final = suppress(boxes, scores, labels, StackRule("hard"))
    assert index.tolist() == [1, 0]
    assert final == pytest.approx([0.9, 0.8])
    index, _ = suppress(boxes, scores, labels, StackRule("hard", class_agnostic=True))
    assert index.tolist() == [1]
    index, final = suppress(boxes, scores, labels, StackRule("soft", class_agnostic=True))
    assert index.tolist() == [1, 0]
    assert final == pytest.approx([0.9, 0.8 * np.exp(-1 / 0.55)])
    with pytest.raises(ValueError, match="'soft' or 'hard'"):
        StackRule("softer")  # type: ignore[arg-type]


def test_nothing() -> None:
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    index, final = suppress(*none, StackRule())
    assert index.shape == final.shape == (0,)


def test_a_hundred_thousand_boxes_take_memory_in_proportion() -> None:
    found = crowd(0, 100_000, classes=5, side=2_500)
    tracemalloc.start()
    index, _ = suppress(*found, StackRule("soft"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 80_000 < len(index) <= 100_000
    assert peak < 200e6


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_twenty_thousand_times_the_same_box(method: str) -> None:
    boxes = np.tile(np.array([[10, 10, 50, 50]], np.float32), (20_000, 1))
    scores = np.linspace(0.5, 0.9, 20_000).astype(np.float32)
    index, final = suppress(boxes, scores, np.zeros(20_000, np.int32), StackRule(method))
    assert index[0] == 19_999
    assert final[0] == np.float32(0.9)
    assert len(index) == (3 if method == "soft" else 1)


def test_the_account_tells_low_scores_from_suppression() -> None:
    row = ImageRow("a", "", 100, 100)
    row.detections = Detections(
        np.array([[0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 60, 10], [80, 0, 90, 10]], np.float32),
        np.array([0.9, 0.8, 0.1, 0.7], np.float32),
        np.zeros(4, np.int32),
        np.zeros(4, np.int8),
    )
    stack(row, StackRule("hard", min_score=0.5, max_detections=1))
    ledger = row.ledger
    assert (ledger.dropped_score, ledger.dropped_nms, ledger.dropped_image) == (1, 1, 1)
    assert row.detections.scores.tolist() == pytest.approx([0.9])


def test_an_overlap_of_exactly_the_limit_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 5, 10]], np.float32)  # IoU 0.5
    given = boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int32)
    for limit, kept in ((0.5, [0, 1]), (0.49, [0])):
        for pairs in (0, 32):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stacking, "PAIRS_PER_BOX", pairs)
                index, _ = suppress(*given, StackRule("hard", iou=limit))
            assert index.tolist() == kept

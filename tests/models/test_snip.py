"""What the two stages learn from a chip with a valid range: vectors by hand."""

import math

import pytest
import torch
from torch import Tensor

from af_pipeline.models.detector import select_proposals
from af_pipeline.models.rcnn import FasterRCNN
from af_pipeline.models.roi import RoiTargets, label_proposals, roi_losses, sample_proposals
from af_pipeline.models.rpn import RpnOutput, label_anchors, rpn_losses, share_sizes
from tests.helpers.chips import Box, chips, targets


def boxes(*rows: Box) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


# ---- anchors


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [
        ((32, 64, 112, 160, 208, 256, 384), ((32, 64), (112, 160), (208, 256, 384))),
        ((64, 128, 256), ((64,), (128,), (256,))),
        ((8, 16), ((8, 16), (16,), (16,))),
        ((500,), ((500,), (500,), (500,))),
    ],
)
def test_sizes_are_shared_out_over_levels(sizes: tuple, shares: tuple) -> None:
    assert share_sizes(sizes, (8, 16, 32)) == shares
    assert share_sizes(sizes, (16,)) == (sizes,)


@pytest.mark.parametrize("neck", ["fpn", "dilated"])
def test_anchors_cover_the_canvas(neck: str) -> None:
    made = FasterRCNN(
        2, "mobilenet_v2", 0.25, 8, neck, anchor_sizes=(32, 64, 128, 256), anchor_ratios=(0.5, 1)
    )
    batch = chips(2, 64, 96)
    out = made.rpn(made.features(batch).rpn, batch)
    count = 6 * 4 * 4 * 2 if neck == "dilated" else 2 * (8 * 12 * 2 + 4 * 6 + 2 * 3)
    assert out.objectness.shape == (2, count)
    assert out.deltas.shape == (2, count, 4)
    assert out.anchors.shape == (count, 4)
    width, height = (out.anchors[:, 2:] - out.anchors[:, :2]).unbind(1)
    assert set((height / width).round(decimals=1).tolist()) == {0.5, 1.0}
    centres = (out.anchors[:, :2] + out.anchors[:, 2:]) / 2
    assert centres[0].tolist() == [0, 0]
    assert (centres < torch.tensor([96, 64])).all()


# ---- RPN

ANCHORS = boxes((0, 0, 10, 10), (0, 0, 10, 14), (0, 0, 10, 22), (0, 0, 10, 30), (50, 50, 60, 60))


def labels_of(given: Tensor, valid: Tensor, ignored: Tensor) -> list[int]:
    return label_anchors(ANCHORS, given, valid, ignored, ignored & False)[0].tolist()


def test_anchors_by_iou_with_valid_boxes() -> None:
    """IoU 1, 0.71, 0.45, 0.33, 0."""
    labels, matched = label_anchors(ANCHORS, boxes((0, 0, 10, 10)), flags(1), flags(0), flags(0))
    assert labels.tolist() == [1, 1, -1, 0, 0]
    assert matched[:2].tolist() == [[0, 0, 10, 10]] * 2


def test_the_best_anchor_of_a_box_is_positive() -> None:
    """IoU 0.2 at most; both boxes get one, whoever else is better."""
    small = boxes((0, 0, 5, 4), (52, 52, 56, 57))
    assert labels_of(small, flags(1, 1), flags(0, 0)) == [1, 0, 0, 0, 1]


def test_a_box_that_no_anchor_meets_makes_no_positives() -> None:
    far = boxes((200, 200, 210, 210))
    assert labels_of(far, flags(1), flags(0)) == [0] * 5


def test_ignored_boxes_take_anchors_out() -> None:
    """IoU above 0.3 with an ignored box overrides positives, between and negatives alike."""
    both = boxes((0, 0, 10, 10), (0, 0, 10, 40))  # with the second: 0.25, 0.35, 0.55, 0.75, 0
    assert labels_of(both, flags(1, 0), flags(0, 1)) == [1, -1, -1, -1, 0]
    # the best anchor of a valid box is no exception
    same = boxes((0, 0, 10, 10), (0, 0, 10, 9))
    assert labels_of(same, flags(1, 0), flags(0, 1))[:2] == [-1, -1]


def test_an_overlap_of_exactly_the_threshold_is_no_reason_to_ignore() -> None:
    anchor = boxes((0, 0, 10, 10))
    just, above = boxes((0, 0, 10, 3)), boxes((0, 0, 10, 3.1))
    assert label_anchors(anchor, just, flags(0), flags(1), flags(0))[0].tolist() == [0]
    assert label_anchors(anchor, above, flags(0), flags(1), flags(0))[0].tolist() == [-1]


def test_chips_without_valid_boxes_are_negative_but_for_the_ignored() -> None:
    assert labels_of(boxes(), flags(), flags()) == [0] * 5
    assert labels_of(boxes((0, 0, 10, 10)), flags(0), flags(1)) == [-1, -1, -1, -1, 0]
    # padding of the targets is neither
    assert labels_of(boxes((0, 0, 10, 10)), flags(0), flags(0)) == [0] * 5


def test_rpn_losses_touch_only_what_is_learned() -> None:
    objectness = torch.zeros(1, 5, requires_grad=True)
    deltas = torch.zeros(1, 5, 4, requires_grad=True)
    out = RpnOutput(objectness, deltas, ANCHORS)
    coder = FasterRCNN(1, "mobilenet_v2", 0.25, 8).rpn.coder
    wanted = targets(64, [((0, 0, 10, 10), 0, True), ((50, 50, 60, 60), 0, False)])
    losses = rpn_losses(out, wanted, coder)
    assert losses["rpn_class"].item() == pytest.approx(math.log(2))
    torch.stack(list(losses.values())).sum().backward()
    assert objectness.grad is not None
    assert deltas.grad is not None
    assert objectness.grad.sign().tolist() == [[-1, -1, 0, 1, 0]]  # + pushes down
    # the first anchor is the box itself; the second must shrink and rise
    assert deltas.grad.sign().tolist()[0] == [[0] * 4, [0, 1, 0, 1], *([[0] * 4] * 3)]


# ---- proposals

SQUARES = boxes((0, 0, 10, 10), (0, 0, 20, 20), (1, 0, 21, 20), (0, 0, 40, 40), (0, 0, 200, 200))
SCORES = torch.tensor([0.9, 0.5, 0.4, 0.3, 1.0])
CHIP = torch.tensor([128, 128])


def test_proposals_out_of_range_do_not_exist() -> None:
    whole = select_proposals(SCORES, SQUARES, CHIP, 300)
    assert whole.boxes[:, 2].tolist() == [128, 10, 20, 40]  # cut, sorted, duplicate suppressed
    assert whole.scores.tolist() == pytest.approx([1, 0.9, 0.5, 0.3])
    assert not whole.labels.any()
    ranged = select_proposals(SCORES, SQUARES, CHIP, 300, (10, 40))
    assert ranged.boxes[:, 2].tolist() == [20, 40]  # above 10, up to 40
    assert select_proposals(SCORES, SQUARES, CHIP, 300, (300, math.inf)).boxes.shape == (0, 4)
    assert len(select_proposals(SCORES, SQUARES, CHIP, 2).boxes) == 2
    assert select_proposals(SCORES, SQUARES, CHIP, 300, pre_nms=2).boxes[:, 2].tolist() == [128, 10]


def test_a_proposal_out_of_range_suppresses_nothing() -> None:
    pair = boxes((0, 0, 20, 20), (0, 0, 20, 18))
    scores = torch.tensor([0.9, 0.8])
    assert len(select_proposals(scores, pair, CHIP, 300).boxes) == 1
    (kept,) = select_proposals(scores, pair, CHIP, 300, (0, 19)).boxes.tolist()
    assert kept == [0, 0, 20, 18]


def test_training_proposals_keep_to_each_chips_range() -> None:
    torch.manual_seed(0)
    made = FasterRCNN(2, "mobilenet_v2", 0.25, 8, anchor_sizes=(16, 32, 64)).train()
    batch = chips(2, 128, 128)
    wanted = targets(128, [((0, 0, 20, 20), 0, True)], [])
    ranges = torch.tensor([[0.0, 24.0], [40.0, math.inf]])
    limited = type(wanted)(**{**vars(wanted), "ranges": ranges})
    rpn = made.rpn(made.features(batch).rpn, batch)
    first, second = made.training_proposals(rpn, limited, (128, 128))
    for chip, (low, high) in ((first, (0, 24)), (second, (40, math.inf))):
        side = (chip.boxes[:, 2:] - chip.boxes[:, :2]).prod(1).sqrt()
        assert len(side) > 10
        assert (side > low).all()
        assert (side <= high).all()
    assert [0, 0, 20, 20] in first.boxes.tolist()
    assert not second.labels.any()
    assert not first.boxes.requires_grad


# ---- RCNN


def test_proposals_by_their_best_box() -> None:
    given = boxes((0, 0, 20, 20), (0, 0, 20, 30), (60, 60, 80, 80))
    proposals = boxes(
        (0, 0, 20, 20), (0, 0, 20, 29), (60, 60, 80, 78), (60, 60, 70, 78), (90, 90, 99, 99)
    )
    valid, ignored, labels = flags(1, 0, 0), flags(0, 1, 1), torch.tensor([4, 2, 3])
    found, matched = label_proposals(proposals, given, labels, valid, ignored, ignored & False)
    assert found.tolist() == [5, -1, -1, 0, 0]
    assert matched[0].tolist() == [0, 0, 20, 20]
    # no box at all, nor padding, which overlaps nothing
    for flag in (flags(0, 0, 0),):
        assert label_proposals(proposals, given, labels, flag, flag, flag)[0].tolist() == [0] * 5
    assert (
        label_proposals(boxes(), given, labels, valid, ignored, ignored & False)[0].tolist() == []
    )


def test_valid_boxes_are_proposals_and_the_ignored_are_not_sampled() -> None:
    given = boxes((0, 0, 20, 20), (60, 60, 80, 80))
    proposals = boxes((60, 60, 80, 79), (90, 90, 99, 99))
    chip = sample_proposals(
        proposals, given, torch.tensor([1, 0]), flags(1, 0), flags(0, 1), flags(0, 0)
    )
    assert chip.boxes.tolist() == [[90, 90, 99, 99], [0, 0, 20, 20]]
    assert chip.labels.tolist() == [0, 2]
    assert chip.matched[1].tolist() == [0, 0, 20, 20]


def test_all_of_300_are_sampled_but_for_a_surplus_of_positives() -> None:
    apart = boxes(*((90.0, 90.0, 99.0 + i / 100, 99.0) for i in range(300)))
    chip = sample_proposals(
        apart, boxes((0, 0, 20, 20)), torch.tensor([0]), flags(1), flags(0), flags(0)
    )
    assert len(chip.boxes) == 301
    same = boxes((0, 0, 20, 20)).repeat(300, 1)
    chip = sample_proposals(
        same, boxes((0, 0, 20, 20)), torch.tensor([0]), flags(1), flags(0), flags(0)
    )
    assert len(chip.boxes) == 128


def test_roi_losses() -> None:
    coder = FasterRCNN(1, "mobilenet_v2", 0.25, 8).roi_heads.coder
    logits = torch.zeros(2, 3, requires_grad=True)
    deltas = torch.zeros(2, 3, 4, requires_grad=True)
    proposals = boxes((0, 0, 20, 20), (50, 50, 60, 60))
    chip = RoiTargets(proposals, torch.tensor([2, 0]), boxes((2, 0, 22, 20), (0, 0, 0, 0)))
    losses = roi_losses(logits, deltas, [chip], coder)
    assert losses["class"].item() == pytest.approx(math.log(3))
    # 10 * 2 / 20 px to the right: smooth L1 of 1 with beta 1/9, mean over two proposals
    assert losses["box"].item() == pytest.approx((1 - 1 / 18) / 2)
    torch.stack(list(losses.values())).sum().backward()
    assert deltas.grad is not None
    assert deltas.grad.nonzero().tolist() == [[0, 2, 0]]
    none = RoiTargets(boxes(), torch.zeros(0, dtype=torch.int64), boxes())
    empty = roi_losses(logits[:0], deltas[:0], [none], coder)
    assert {name: value.item() for name, value in empty.items()} == {"class": 0, "box": 0}


def test_what_is_half_inside_a_crowd_is_no_background() -> None:
    """A crowd is larger than its members, so that no overlap measure of equals would tell."""
    crowd, small = boxes((0, 0, 200, 200)), boxes((10, 10, 40, 40), (190, 0, 230, 40))
    labels, _ = label_anchors(small, crowd, flags(0), flags(1), flags(1))
    assert labels.tolist() == [-1, 0]
    found, _ = label_proposals(
        small, crowd, torch.tensor([0]), flags(0), flags(1), flags(1)
    )  # fmt: skip
    assert found.tolist() == [-1, 0]
    found, _ = label_proposals(small, crowd, torch.tensor([0]), flags(0), flags(1), flags(0))
    assert found.tolist() == [0, 0]

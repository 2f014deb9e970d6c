"""What the two stages learn from a chip with a valid range: vectors by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from af_pipeline.models.checkpoint import build_detector
from af_pipeline.models.detector import select_proposals
from af_pipeline.models.rcnn import (
    CROWD,
    FasterRCNN,
    RpnOutput,
    Truth,
    ground_truth,
    share_sizes,
)
from tests.helpers.chips import Box, chips, padded, sizes, targets

CANVAS = (128, 128)


def made(classes: int = 5, neck: str = "fpn", **model: object) -> FasterRCNN:
    torch.manual_seed(0)
    small = {"kind": "faster_rcnn", "width": 0.25, "channels": 8, "anchor_sizes": [16, 32, 64]}
    detector = build_detector(small | {"neck": neck} | model, classes)
    assert isinstance(detector, FasterRCNN)
    return detector


def boxes(*rows: Box) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def truth(*rows: tuple[Box, int]) -> Truth:
    """Boxes and labels as torchvision's heads take them: class + 1, IGNORE or CROWD."""
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    return {"boxes": boxes(*(box for box, _ in rows)), "labels": labels}


def test_ground_truth_is_without_padding_and_valid_boxes_come_first() -> None:
    a, b, c = (0, 0, 9, 9), (1, 1, 9, 9), (2, 2, 9, 9)
    given = targets(64, [(a, 3, False), (b, 3, True), (c, 0, False)], [])
    crowd = given.crowd.clone()
    crowd[0, 2] = True
    first, second = ground_truth(replace(given, crowd=crowd))
    assert first["boxes"].tolist() == [list(map(float, box)) for box in (b, a, c)]
    assert first["labels"].tolist() == [4, -1, CROWD]
    assert second["boxes"].shape == (0, 4)
    assert second["labels"].shape == (0,)


# ---- anchors


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ((32, 64, 112, 160, 208, 256, 384), ((32, 64), (112, 160), (208, 256, 384))),
        ((64, 128, 256), ((64,), (128,), (256,))),
        ((8, 16), ((8, 16), (16,), (16,))),
        ((500,), ((500,), (500,), (500,))),
    ],
)
def test_sizes_are_shared_out_over_levels(given: tuple, shares: tuple) -> None:
    assert share_sizes(given, (8, 16, 32)) == shares
    assert share_sizes(given, (16,)) == (given,)


@pytest.mark.parametrize("neck", ["fpn", "dilated"])
def test_anchors_cover_the_canvas(neck: str) -> None:
    detector = made(neck=neck, anchor_sizes=[32, 64, 128, 256], anchor_ratios=[0.5, 1])
    batch = chips(2, 64, 96)
    out = detector.rpn(detector.features(batch).rpn, batch)
    count = 6 * 4 * 4 * 2 if neck == "dilated" else 2 * (8 * 12 * 2 + 4 * 6 + 2 * 3)
    assert out.objectness.shape == (2, count)
    assert out.deltas.shape == (2, count, 4)
    assert out.anchors.shape == (count, 4)
    width, height = (out.anchors[:, 2:] - out.anchors[:, :2]).unbind(1)
    assert set((height / width).round(decimals=1).tolist()) == {0.5, 1.0}
    centres = (out.anchors[:, :2] + out.anchors[:, 2:]) / 2
    assert centres[0].tolist() == [0, 0]
    assert (centres < torch.tensor([96, 64])).all()


@pytest.mark.parametrize("neck", ["fpn", "dilated"])
def test_anchors_in_the_padding_propose_nothing(neck: str) -> None:
    """However sure they are: their scores are raised above all others, and no box is theirs."""
    detector = made(neck=neck).eval()
    batch, own = padded(chips(1, 64, 64), 96, 128), sizes((64, 64))
    rpn = detector.rpn(detector.features(batch).rpn, batch)
    outside = ((rpn.anchors[:, :2] + rpn.anchors[:, 2:]) / 2 >= 64).any(1)
    assert 0 < int(outside.sum()) < len(outside)
    with torch.no_grad():
        rpn.objectness[0, outside] += 1000
    (proposed,) = detector.rpn.propose(rpn, own)
    assert proposed.scores.max() == rpn.objectness[0, ~outside].sigmoid().max()
    (everywhere,) = detector.rpn.propose(rpn, sizes((96, 128)))
    assert everywhere.scores.max() == 1


# ---- RPN

TALL = [(0, 0, 10, height) for height in (10, 14, 22, 30)]
ANCHORS = boxes(*TALL, (50, 50, 60, 60))


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        pytest.param([((0, 0, 10, 10), 1)], [1, 1, -1, 0, 0], id="IoU 1, 0.71, 0.45, 0.33, 0"),
        pytest.param(
            [((0, 0, 5, 4), 1), ((52, 52, 56, 57), 1)],
            [1, 0, 0, 0, 1],
            id="IoU 0.2 at most: each box gets its best anchor",
        ),
        pytest.param([((200, 200, 210, 210), 1)], [0] * 5, id="a box that no anchor meets"),
        pytest.param(
            [((0, 0, 10, 10), 1), ((0, 0, 10, 40), -1)],
            [1, -1, -1, -1, 0],
            id="IoU of the ignored 0.25, 0.35, 0.55, 0.75, 0: above 0.3 nothing is learned",
        ),
        pytest.param(
            [((0, 0, 10, 10), 1), ((0, 0, 10, 9), -1)],
            [-1, -1, -1, 0, 0],
            id="the best anchor of a valid box is no exception",
        ),
        pytest.param([((0, 0, 10, 3), -1)], [0] * 5, id="IoU of just 0.3 is no reason to ignore"),
        pytest.param([((0, 0, 10, 3.1), -1)], [-1, 0, 0, 0, 0], id="more than 0.3 is"),
        pytest.param([], [0] * 5, id="no boxes"),
        pytest.param([((0, 0, 10, 10), -1)], [-1, -1, -1, -1, 0], id="no valid ones"),
        pytest.param([((0, 0, 200, 200), -1)], [0] * 5, id="a large box is no crowd"),
        pytest.param([((0, 0, 200, 15), CROWD)], [-1, -1, -1, -1, 0], id="half inside a crowd"),
    ],
)
def test_labels_of_anchors(given: list, labels: list[int]) -> None:
    (found,), (matched,) = made().rpn.assign_targets_to_anchors([ANCHORS], [truth(*given)])
    assert found.tolist() == labels
    valid = [list(box) for box, label in given if label > 0]
    assert all(box in valid for box in matched[found > 0].tolist())


def test_rpn_losses_touch_only_what_is_learned() -> None:
    objectness = torch.zeros(1, 5, requires_grad=True)
    deltas = torch.zeros(1, 5, 4, requires_grad=True)
    out = RpnOutput(objectness, deltas, ANCHORS)
    wanted = truth(((0, 0, 10, 10), 1), ((50, 50, 60, 60), -1))
    losses = made().rpn.losses(out, [wanted])
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
    whole = select_proposals(SCORES, SQUARES, CHIP)
    assert whole.boxes[:, 2].tolist() == [128, 10, 20, 40]  # cut, sorted, duplicate suppressed
    assert whole.scores.tolist() == pytest.approx([1, 0.9, 0.5, 0.3])
    assert not whole.labels.any()
    ranged = select_proposals(SCORES, SQUARES, CHIP, (10, 40))
    assert ranged.boxes[:, 2].tolist() == [20, 40]  # above 10, up to 40
    assert select_proposals(SCORES, SQUARES, CHIP, (300, math.inf)).boxes.shape == (0, 4)
    assert select_proposals(SCORES, SQUARES, CHIP, pre_nms=2).boxes[:, 2].tolist() == [128, 10]


def test_a_proposal_out_of_range_suppresses_nothing() -> None:
    pair = boxes((0, 0, 20, 20), (0, 0, 20, 18))
    scores = torch.tensor([0.9, 0.8])
    assert len(select_proposals(scores, pair, CHIP).boxes) == 1
    (kept,) = select_proposals(scores, pair, CHIP, (0, 19)).boxes.tolist()
    assert kept == [0, 0, 20, 18]


def test_at_most_300_proposals_a_chip() -> None:
    apart = boxes(*((x, y, x + 4, y + 4) for x in range(0, 120, 5) for y in range(0, 120, 5)))
    found = select_proposals(torch.linspace(0, 1, len(apart)), apart, CHIP)
    assert len(apart) > len(found.boxes) == 300
    assert torch.equal(found.boxes[0], apart[-1])


def test_training_proposals_keep_to_each_chips_range() -> None:
    detector, batch = made().train(), chips(2, 128, 128)
    rpn = detector.rpn(detector.features(batch).rpn, batch)
    ranges = torch.tensor([[0.0, 24.0], [40.0, math.inf]])
    found = detector.rpn.propose(rpn, sizes(CANVAS, CANVAS), ranges)
    for chip, (low, high) in zip(found, ranges.tolist(), strict=True):
        side = (chip.boxes[:, 2:] - chip.boxes[:, :2]).prod(1).sqrt()
        assert len(side) > 10
        assert (side > low).all()
        assert (side <= high).all()
        assert not chip.boxes.requires_grad
    learned = []
    detector.roi_heads.losses = lambda maps, proposals, *_: learned.append(proposals) or {}
    detector.losses(batch, replace(targets(128, [], []), ranges=ranges))
    (proposals,) = learned
    assert [len(own) for own in proposals] == [len(chip.boxes) for chip in found]


# ---- second stage

PROPOSALS = boxes(
    (0, 0, 20, 20), (0, 0, 20, 29), (60, 60, 80, 78), (60, 60, 70, 78), (90, 90, 99, 99)
)
GIVEN = (((0, 0, 20, 20), 5), ((0, 0, 20, 30), -1), ((60, 60, 80, 80), -1))
LARGE: Box = (0, 0, 200, 200)


@pytest.mark.parametrize(
    ("proposals", "given", "labels"),
    [
        pytest.param(PROPOSALS, GIVEN, [5, -1, -1, 0, 0], id="by the best box, IoU 0.5"),
        pytest.param(PROPOSALS, (), [0] * 5, id="no box"),
        pytest.param(boxes(), (), [], id="nothing"),
        pytest.param(
            boxes((10, 10, 40, 40), (190, 0, 230, 40)),
            ((LARGE, CROWD),),
            [-1, 0],
            id="a crowd is larger than its members: no measure of equals would tell",
        ),
        pytest.param(boxes((10, 10, 40, 40)), ((LARGE, -1),), [0], id="a large box is no crowd"),
    ],
)
def test_labels_of_proposals(proposals: Tensor, given: tuple, labels: list[int]) -> None:
    wanted = truth(*given)
    (matched,), (found,) = made().roi_heads.assign_targets_to_proposals(
        [proposals], [wanted["boxes"]], [wanted["labels"]]
    )
    assert found.tolist() == labels
    assert (matched[found > 0] == 0).all()


def sampled(proposals: Tensor, *given: tuple[Box, int]) -> tuple[Tensor, Tensor]:
    (found,), _, (labels,), _ = made().roi_heads.select_training_samples(
        [proposals], [truth(*given)]
    )
    return found, labels


def test_valid_boxes_are_proposals_and_the_ignored_are_not_sampled() -> None:
    proposals = boxes((60, 60, 80, 79), (90, 90, 99, 99))
    found, labels = sampled(proposals, ((0, 0, 20, 20), 2), ((60, 60, 80, 80), -1))
    assert found.tolist() == [[90, 90, 99, 99], [0, 0, 20, 20]]
    assert labels.tolist() == [0, 2]


def test_all_of_300_are_sampled_but_for_a_surplus_of_positives() -> None:
    apart = boxes(*((90.0, 90.0, 99.0 + i / 100, 99.0) for i in range(300)))
    assert len(sampled(apart, ((0, 0, 20, 20), 1))[0]) == 301
    assert len(sampled(boxes((0, 0, 20, 20)).repeat(300, 1), ((0, 0, 20, 20), 1))[0]) == 128


def test_losses_of_the_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two proposals, one of which is a box 2 px off; and none at all."""
    heads = made(2).roi_heads
    given = {}

    def forward(maps: object, proposals: list[Tensor], canvas: object) -> tuple[Tensor, Tensor]:
        count = sum(map(len, proposals))
        given["boxes"] = torch.cat(proposals)
        given["deltas"] = torch.zeros(count, 12, requires_grad=True)
        return torch.zeros(count, 3, requires_grad=True), given["deltas"]

    monkeypatch.setattr(heads, "forward", forward)
    monkeypatch.setattr(heads, "add_gt_proposals", lambda proposals, boxes: proposals)
    proposals = boxes((0, 0, 20, 20), (50, 50, 60, 60))
    losses = heads.losses({}, [proposals], CANVAS, [truth(((2, 0, 22, 20), 2))])
    assert losses["class"].item() == pytest.approx(math.log(3))
    # 10 * 2 / 20 px to the right: smooth L1 of 1 with beta 1/9, mean over two proposals
    assert losses["box"].item() == pytest.approx((1 - 1 / 18) / 2)
    losses["box"].backward()
    assert given["deltas"].grad.nonzero().tolist() == [[0, 8]]
    none = heads.losses({}, [boxes()], CANVAS, [truth()])
    assert {name: value.item() for name, value in none.items()} == {"class": 0, "box": 0}

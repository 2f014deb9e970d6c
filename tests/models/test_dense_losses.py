"""Assignment and losses: what is learned, what is ignored, what has no gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from af_pipeline.models.dense import assign, detection_losses, pairwise_iou, points_inside
from af_pipeline.models.detector import Targets
from af_pipeline.models.focus_head import focus_loss
from tests.helpers.chips import Box, targets

SIDE, STRIDE, CLASSES = 128, 8, 3


def grid() -> Tensor:
    axis = (torch.arange(SIDE // STRIDE) + 0.5) * STRIDE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


POINTS = grid()


def predictions(count: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vague: low scores and boxes of 20 to 40 px about every point."""
    made = torch.Generator().manual_seed(seed)
    logits = -3 + 0.1 * torch.randn(count, len(POINTS), CLASSES, generator=made)
    reach = 10 + 10 * torch.rand(count, len(POINTS), 4, generator=made)
    boxes = torch.cat([POINTS - reach[..., :2], POINTS + reach[..., 2:]], -1)
    return logits.requires_grad_(), boxes.requires_grad_()


def inside(box: Box) -> Tensor:
    return points_inside(POINTS, torch.tensor([[box]]))[0, 0]


OBJECT: Box = (32, 32, 72, 72)


def test_pairwise_iou_and_padding() -> None:
    a = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]]])
    b = torch.tensor([[[5.0, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30]]])
    iou = pairwise_iou(a, b)
    assert iou.shape == (1, 2, 3)
    assert iou[0, 0].tolist() == pytest.approx([1 / 3, 1, 0])
    assert iou[0, 1].tolist() == [0, 0, 0]


def test_points_on_the_edge_are_outside() -> None:
    assert inside((4, 4, 12.1, 12.1)).sum() == 1
    assert inside((0, 0, 16, 16)).sum() == 4


def test_a_perfect_prediction_is_positive_with_full_score() -> None:
    logits, boxes = predictions()
    best = int(inside(OBJECT).nonzero()[7])
    with torch.no_grad():
        boxes[0, best] = torch.tensor(OBJECT)
        logits[0, best, 1] = 4
    found = assign(logits.sigmoid(), boxes, POINTS, targets(SIDE, [(OBJECT, 1, True)]))
    assert found.positive[0, best]
    assert found.scores[0, best].tolist() == pytest.approx([0, 1, 0], abs=1e-4)
    assert found.scores.max() == found.scores[0, best, 1]
    assert found.positive.sum() == 10  # topk
    assert (found.positive[0] <= inside(OBJECT)).all()
    assert (found.negative == ~found.positive).all()
    assert (found.scores[found.negative] == 0).all()


def test_a_point_of_two_objects_goes_to_the_better_fit() -> None:
    small: Box = (40, 40, 60, 60)
    logits, boxes = predictions()
    with torch.no_grad():
        boxes[0, inside(small)] = torch.tensor(small, dtype=torch.float32)
    both = targets(SIDE, [(OBJECT, 1, True), (small, 2, True)])
    found = assign(logits.sigmoid(), boxes, POINTS, both)
    assert (found.box_index[0, inside(small)] == 1).all()
    assert (found.scores[0, inside(small), 1] == 0).all()
    assert (found.scores[0, inside(small), 2] > 0.8).all()
    assert (found.scores.gt(0).sum(-1) <= 1).all()


def test_ignored_boxes_have_no_gradient_inside() -> None:
    logits, boxes = predictions()
    ignored: Box = (80, 80, 120, 120)
    losses = detection_losses(
        logits, boxes, POINTS, targets(SIDE, [(OBJECT, 1, True), (ignored, 0, False)])
    )
    (losses["class"] + losses["box"]).backward()
    assert not logits.grad[0, inside(ignored)].any()  # type: ignore[index]
    assert not boxes.grad[0, inside(ignored)].any()  # type: ignore[index]
    outside = ~inside(ignored)
    assert logits.grad[0, outside].abs().min() > 0  # type: ignore[index]


def test_an_object_within_an_ignored_region_is_still_learned() -> None:
    logits, boxes = predictions()
    region: Box = (0, 0, 128, 128)
    found = assign(
        logits.sigmoid(), boxes, POINTS, targets(SIDE, [(OBJECT, 1, True), (region, 0, False)])
    )
    assert found.positive.sum() == 10
    assert not found.negative.any()


THIN: Box = (5, 32, 11, 56)  # between two columns of points


def test_a_box_without_a_point_gets_the_nearest() -> None:
    logits, boxes = predictions()
    assert not inside(THIN).any()
    found = assign(logits.sigmoid(), boxes, POINTS, targets(SIDE, [(THIN, 1, True)]))
    (point,) = POINTS[found.positive[0]].tolist()
    assert point in ([4, 44], [12, 44])
    assert found.scores[found.positive][0, 1] > 0
    ignored = assign(logits.sigmoid(), boxes, POINTS, targets(SIDE, [(THIN, 1, False)]))
    assert not ignored.positive.any()


def test_a_thin_box_is_learned() -> None:
    logits = torch.full((1, len(POINTS), CLASSES), -4.0, requires_grad=True)
    reach = torch.full((1, len(POINTS), 4), 2.0, requires_grad=True)
    wanted = targets(SIDE, [(THIN, 1, True), (OBJECT, 0, True)])
    optimizer = torch.optim.Adam([logits, reach], lr=0.1)
    for _ in range(200):
        distances = F.softplus(reach) * STRIDE
        boxes = torch.cat([POINTS - distances[..., :2], POINTS + distances[..., 2:]], -1)
        losses = detection_losses(logits, boxes, POINTS, wanted)
        optimizer.zero_grad()
        (losses["class"] + losses["box"]).backward()
        optimizer.step()
    score, best = logits[0, :, 1].sigmoid().max(0)
    iou = pairwise_iou(torch.tensor([[THIN]]), boxes[:, best : best + 1])
    assert iou.item() > 0.7
    assert score.item() > 0.6


def test_images_without_boxes() -> None:
    for empty in (targets(SIDE, [], []), targets(SIDE, [], [(OBJECT, 1, True)])):
        logits, boxes = predictions(2)
        losses = detection_losses(logits, boxes, POINTS, empty)
        (losses["class"] + losses["box"]).backward()
        assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
        assert torch.isfinite(boxes.grad).all()  # type: ignore[arg-type]
        assert (logits.grad[0] > 0).all()  # type: ignore[index]
        assert not boxes.grad[0].any()  # type: ignore[index]
    assert detection_losses(*predictions(2), POINTS, targets(SIDE, [], []))["box"].item() == 0


def test_padding_changes_nothing() -> None:
    logits, boxes = predictions(2)
    alone = detection_losses(logits[:1], boxes[:1], POINTS, targets(SIDE, [(OBJECT, 1, True)]))
    padded = targets(SIDE, [(OBJECT, 1, True)], [(OBJECT, 1, True)] * 5)
    first = Targets(**{name: value[:1] for name, value in vars(padded).items()})
    again = detection_losses(logits[:1], boxes[:1], POINTS, first)
    for name, value in alone.items():
        assert value.item() == pytest.approx(again[name].item(), rel=1e-6)


def test_the_losses_fall_towards_the_truth() -> None:
    logits, boxes = predictions()
    wanted = targets(SIDE, [(OBJECT, 1, True)])
    vague = detection_losses(logits, boxes, POINTS, wanted)
    perfect = torch.full_like(logits, -12)
    perfect[0, inside(OBJECT), 1] = 12
    exact = torch.where(inside(OBJECT)[:, None], torch.tensor(OBJECT), boxes[0].detach())[None]
    # all 25 points are right but only the best 10 are asked for: the rest may not be confident
    best = assign(perfect.sigmoid(), exact, POINTS, wanted).positive
    perfect[~best] = -12
    right = detection_losses(perfect, exact, POINTS, wanted)
    assert right["box"].item() == pytest.approx(0, abs=1e-4)
    assert right["class"].item() == pytest.approx(0, abs=1e-4)
    assert vague["box"].item() > 0.1
    assert vague["class"].item() > 0.1


def test_gradients_are_finite_at_the_extremes() -> None:
    logits, boxes = predictions()
    with torch.no_grad():
        logits[0, ::2] = 60
        logits[0, 1::2] = -60
        boxes[0, ::3] = POINTS[::3].repeat(1, 2)  # no area
        boxes[0, 1::3] *= 1000
    losses = detection_losses(logits, boxes, POINTS, targets(SIDE, [(OBJECT, 1, True)]))
    total = losses["class"] + losses["box"]
    assert torch.isfinite(total)
    total.backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(boxes.grad).all()  # type: ignore[arg-type]


def test_focus_loss_leaves_out_ignored_cells() -> None:
    logits = torch.zeros(2, 4, 4, requires_grad=True)
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    labels[0, :2], labels[1, 0, 0] = -1, 1
    loss = focus_loss(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(0.6931, abs=1e-3)
    assert not logits.grad[0, :2].any()  # type: ignore[index]
    assert (logits.grad[0, 2:] > 0).all()  # type: ignore[index]
    assert logits.grad[1, 0, 0] < 0  # type: ignore[index]
    wild = torch.where(labels == -1, 50.0, 0.0)
    assert focus_loss(wild, labels).item() == pytest.approx(loss.item())
    alone = focus_loss(logits, torch.full((2, 4, 4), -1))
    assert alone.item() == 0
    assert not torch.autograd.grad(alone, logits)[0].any()

"""Named losses of the dense detector and of the FocusPixel head.

Assignment is task-aligned (TOOD, Feng et al. 2021 §3.2): an anchor point is positive for a box
when it is among the ``topk`` points inside it by score^alpha * IoU^beta. Boxes outside the
valid range of a chip (SNIP) are *ignored*: points inside them are neither positive nor negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from af_pipeline.models.detector import Targets


@dataclass(frozen=True)
class Assignment:
    """scores [N, A, C] soft class targets; box_index [N, A]; positive, negative [N, A] bool."""

    scores: Tensor
    box_index: Tensor
    positive: Tensor
    negative: Tensor


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """IoU of boxes [N, M, 4] against [N, A, 4] -> [N, M, A]."""
    a, b = boxes_a[:, :, None], boxes_b[:, None]
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    return intersection / (area_a + area_b - intersection).clamp(min=1e-6)


def points_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points [A, 2] lie inside which boxes [N, M, 4] -> bool [N, M, A]."""
    low = points[None, None] > boxes[:, :, None, :2]
    high = points[None, None] < boxes[:, :, None, 2:]
    return (low & high).all(-1)


@torch.no_grad()
def assign(
    class_scores: Tensor,
    predicted_boxes: Tensor,
    points: Tensor,
    targets: Targets,
    topk: int = 10,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Assignment:
    """Task-aligned assignment of class_scores [N, A, C], boxes [N, A, 4], points [A, 2]."""
    n, num_points, num_classes = class_scores.shape
    num_boxes = targets.boxes.shape[1]
    if num_boxes == 0:
        empty = torch.zeros(n, num_points, dtype=torch.bool, device=points.device)
        return Assignment(torch.zeros_like(class_scores), empty.long(), empty, ~empty)
    inside = points_inside(points, targets.boxes)
    candidate = _own_points(inside, points, targets.boxes) & targets.valid[..., None]
    iou = pairwise_iou(targets.boxes, predicted_boxes)
    index = targets.labels[..., None].expand(-1, -1, num_points)
    score = class_scores.transpose(1, 2).gather(1, index)
    metric = (score**alpha * iou**beta + 1e-9) * candidate
    best = metric.topk(min(topk, num_points), dim=-1).indices
    chosen = torch.zeros_like(candidate).scatter_(-1, best, True) & candidate
    # A point claimed by several boxes goes to the one it overlaps most.
    claim = torch.where(chosen, iou + 1e-9, iou.new_zeros(()))
    value, box_index = claim.max(dim=1)
    positive = value > 0
    won = chosen & F.one_hot(box_index, num_boxes).transpose(1, 2).bool()
    soft = _normalised(metric * won, iou * won)
    target = soft.gather(1, box_index[:, None]).squeeze(1) * positive
    label = targets.labels.gather(1, box_index)
    scores = F.one_hot(label, num_classes).to(class_scores.dtype) * target[..., None]
    dont_care = (inside & targets.ignored[..., None]).any(1)
    return Assignment(scores, box_index, positive, ~positive & ~dont_care)


def _own_points(inside: Tensor, points: Tensor, boxes: Tensor) -> Tensor:
    """Points of each box [N, M, A]: those inside, or the nearest where a thin box holds none."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    nearest = torch.cdist(centre, points.expand(len(boxes), -1, -1)).argmin(-1, keepdim=True)
    alone = torch.zeros_like(inside).scatter_(-1, nearest, True)
    return torch.where(inside.any(-1, keepdim=True), inside, alone)


def _normalised(metric: Tensor, iou: Tensor) -> Tensor:
    """Scale each box's metric [N, M, A] so that its best point scores its best IoU."""
    top = metric.amax(-1, keepdim=True)
    return metric / top.clamp(min=1e-12) * iou.amax(-1, keepdim=True)


def detection_losses(
    class_logits: Tensor, predicted_boxes: Tensor, points: Tensor, targets: Targets
) -> dict[str, Tensor]:
    """Class and box losses of a batch: logits [N, A, C], boxes [N, A, 4] xyxy chip px.

    Positive points learn the soft target by cross-entropy, negatives are down-weighted by their
    own score (varifocal loss, Zhang et al. 2021 eq. 2: alpha 0.75, gamma 2).
    """
    scores = class_logits.sigmoid()
    assigned = assign(scores.detach(), predicted_boxes.detach(), points, targets)
    normaliser = assigned.scores.sum().clamp(min=1.0)
    cross_entropy = F.binary_cross_entropy_with_logits(
        class_logits, assigned.scores, reduction="none"
    )
    is_target = assigned.scores > 0
    weight = torch.where(is_target, assigned.scores, 0.75 * scores.detach() ** 2)
    counted = (assigned.positive | assigned.negative)[..., None]
    class_loss = (cross_entropy * weight * counted).sum() / normaliser
    return {
        "class": class_loss,
        "box": _box_loss(predicted_boxes, targets, assigned) / normaliser,
    }


def _box_loss(predicted: Tensor, targets: Targets, assigned: Assignment) -> Tensor:
    """Complete-IoU loss summed over positive points, weighted by their soft target."""
    weight = assigned.scores.sum(-1)
    # The aspect term of a box without area is 0/0, which no weight would undo.
    learned = assigned.positive & (predicted[..., 2:] > predicted[..., :2]).all(-1)
    if not bool(learned.any()):
        return predicted.sum() * 0.0
    index = assigned.box_index[..., None].expand(-1, -1, 4)
    wanted = targets.boxes.gather(1, index)[learned]
    loss = complete_box_iou_loss(predicted[learned], wanted)
    return (loss * weight[learned]).sum()

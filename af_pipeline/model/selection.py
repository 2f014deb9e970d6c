"""From dense scores and boxes to few: thresholds, clipping to the chip, duplicates.

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

MAX_DETECTIONS = 1000  # that one chip answers with, unless asked otherwise
LEAST_CANDIDATES = 3000  # boxes that may enter the NMS of one chip, and as many times the
CANDIDATES_PER_DETECTION = 5  # detections that may leave it, where that is more
PROPOSAL_IOU = 0.7  # overlap at which a proposal suppresses another (SNIPER and its RPN)
MIN_SIDE = 1.0  # sides of the least proposal, px


@dataclass(frozen=True)
class Output:
    """Detections of one chip: boxes [D, 4], scores [D] descending, labels [D] int64.

    ``dropped``: boxes that were good enough but beyond the number that is kept.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    dropped: int = 0


def own_points(points: Tensor, size: Tensor) -> Tensor:
    """Which points [A, 2] (x, y) lie in a chip of ``size`` (height, width), not in padding: [A]."""
    return (points[:, 0] < int(size[1])) & (points[:, 1] < int(size[0]))


def clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes [D, 4] cut to a chip of ``size`` (height, width)."""
    height, width = int(size[0]), int(size[1])
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def select_detections(
    scores: Tensor,
    boxes: Tensor,
    size: Tensor,
    min_score: float,
    nms_iou: float,
    *,
    most: int = MAX_DETECTIONS,
) -> Output:
    """Detections of one chip: scores [A, C], boxes [A, C, 4] or, for all classes, [A, 1, 4].

    NMS at ``nms_iou`` is class by class; boxes are cut to ``size``. At most ``most`` are kept,
    and not all boxes enter the NMS where there are very many; the others are counted.
    """
    limit = max(LEAST_CANDIDATES, CANDIDATES_PER_DETECTION * most)
    point, label = (scores >= min_score).nonzero(as_tuple=True)
    score = scores[point, label]
    dropped = max(0, len(score) - limit)
    if dropped:
        score, order = score.topk(limit)
        point, label = point[order], label[order]
    box = clipped(boxes[point, label.clamp(max=boxes.shape[1] - 1)], size)
    solid = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
    box, score, label = box[solid], score[solid], label[solid]
    chosen = batched_nms(box, score, label, nms_iou)
    dropped += max(0, len(chosen) - most)
    chosen = chosen[:most]
    return Output(box[chosen], score[chosen], label[chosen], dropped)


def select_proposals(
    scores: Tensor,
    boxes: Tensor,
    size: Tensor,
    count: int,
    limits: tuple[float, float] = (0.0, math.inf),
    pre_nms: int = 2000,
) -> Output:
    """The best ``count`` class-agnostic boxes of one chip: scores [A], boxes [A, 4].

    Boxes are cut to ``size``; those whose sqrt(area) in px is not above and up to ``limits`` go
    *before* NMS, as in SNIPER, so that they suppress nothing. ``pre_nms`` bounds what enters it.
    """
    boxes = clipped(boxes, size)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    side = sides.prod(-1).sqrt()
    keep = (sides >= MIN_SIDE).all(-1) & (side > limits[0]) & (side <= limits[1])
    boxes, scores = boxes[keep], scores[keep]
    scores, order = scores.topk(min(pre_nms, len(scores)))
    boxes = boxes[order]
    chosen = nms(boxes, scores, PROPOSAL_IOU)[:count]
    return Output(boxes[chosen], scores[chosen], torch.zeros_like(chosen))

"""What every detector has in common: its input, its losses, its answers.

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from af_pipeline.models.backbones import Backbone

MAX_DETECTIONS = 1000  # that one chip answers with, unless asked otherwise
LEAST_CANDIDATES = 3000  # boxes that may enter the NMS of one chip, and as many times the
CANDIDATES_PER_DETECTION = 5  # detections that may leave it, where that is more
PROPOSAL_IOU = 0.7  # overlap at which a proposal suppresses another (SNIPER and its RPN)
MIN_SIDE = 1.0  # sides of the least proposal, px
PROPOSALS = 300  # a chip, as in SNIPER
PRE_NMS = 2000  # proposals of a chip that enter the NMS

INPUT_MULTIPLE = 32  # network input sides must be multiples of the coarsest stride
PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255, torchvision's ImageNet statistics
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Selection:
    """Which boxes of a chip are its detections.

    Those of ``min_score`` or more, after an NMS at IoU ``nms_iou`` among each class, and of them
    the best ``most``.
    """

    min_score: float = 0.01
    nms_iou: float = 0.6
    most: int = MAX_DETECTIONS


DEFAULT = Selection()


class Detector(nn.Module, ABC):
    """A detector with a FocusPixel head.

    ``num_classes``: object classes, without background; ``loss_names``: the parts that
    `losses` always returns, in order.
    """

    loss_names: tuple[str, ...] = ()
    backbone: Backbone
    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    def normalised(self, batch: Tensor) -> Tensor:
        """Batch uint8 [N, 3, H, W] RGB -> float [N, 3, H, W], channels last.

        Raises ValueError unless H and W are multiples of 32.
        """
        height, width = batch.shape[-2:]
        if height % INPUT_MULTIPLE or width % INPUT_MULTIPLE:
            raise ValueError(
                f"batch is {height}x{width}; pad both sides to multiples of {INPUT_MULTIPLE}"
            )
        images = (batch.float() - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last)

    @abstractmethod
    def losses(self, batch: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Loss parts `loss_names` of a training batch uint8 [N, 3, H, W].

        Every trainable parameter gets a gradient, of zeros where there is nothing to learn, so
        that DDP sees each of them in each step.
        """

    @abstractmethod
    def forward(
        self, batch: Tensor, sizes: Tensor, selection: Selection = DEFAULT
    ) -> tuple[list[Output], Tensor]:
        """Detections of each chip of a batch uint8 [N, 3, H, W] and FocusPixel probabilities.

        ``sizes`` int [N, 2] are the (height, width) of the chips inside the padded batch, which
        detections never leave; the probabilities are [N, H/16, W/16]. What a chip has beyond
        the ``selection``'s number is counted in its `Output`.
        """

    @abstractmethod
    def proposals(self, batch: Tensor, sizes: Tensor) -> list[Output]:
        """The likeliest object boxes of each chip whatever their class: labels are 0.

        At most 300 a chip, of any size, after NMS at IoU 0.7. Where they lie far from every
        object they make negative chips (SNIPER §3.2).
        """


@dataclass(frozen=True)
class Targets:
    """Targets of a batch, padded to M boxes an image; coordinates in chip px, half-open.

    boxes [N, M, 4] float32 xyxy; labels [N, M] int64; valid [N, M] bool: learn this box;
    ignored [N, M] bool: give no loss inside this box; crowd [N, M] bool: those of them around
    groups; focus [N, h, w] int64 in {-1, 0, 1}; ranges [N, 2] float32: sqrt(area) in chip px,
    above and up to, that each chip answers for.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignored: Tensor
    crowd: Tensor
    focus: Tensor
    ranges: Tensor


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


def select_detections(scores: Tensor, boxes: Tensor, size: Tensor, selection: Selection) -> Output:
    """Detections of one chip: scores [A, C], boxes [A, C, 4] or, for all classes, [A, 1, 4].

    Boxes are cut to ``size``. Not all of them enter the NMS where there are very many; those
    left out are counted.
    """
    limit = max(LEAST_CANDIDATES, CANDIDATES_PER_DETECTION * selection.most)
    point, label = (scores >= selection.min_score).nonzero(as_tuple=True)
    score = scores[point, label]
    dropped = max(0, len(score) - limit)
    if dropped:
        score, order = score.topk(limit)
        point, label = point[order], label[order]
    box = clipped(boxes[point, label.clamp(max=boxes.shape[1] - 1)], size)
    solid = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
    box, score, label = box[solid], score[solid], label[solid]
    chosen = batched_nms(box, score, label, selection.nms_iou)
    dropped += max(0, len(chosen) - selection.most)
    chosen = chosen[: selection.most]
    return Output(box[chosen], score[chosen], label[chosen], dropped)


def select_proposals(
    scores: Tensor,
    boxes: Tensor,
    size: Tensor,
    limits: tuple[float, float] = (0.0, math.inf),
    pre_nms: int = PRE_NMS,
) -> Output:
    """The best 300 class-agnostic boxes of one chip: scores [A], boxes [A, 4].

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
    chosen = nms(boxes, scores, PROPOSAL_IOU)[:PROPOSALS]
    return Output(boxes[chosen], scores[chosen], torch.zeros_like(chosen))

"""The light one-stage detector with a FocusPixel head, for CPUs and small GPUs, and its losses.

Assignment is task-aligned (TOOD, Feng et al. 2021 §3.2): an anchor point is positive for a box
when it is among the ``topk`` points inside it by score^alpha * IoU^beta. Boxes outside the
valid range of a chip (SNIP) are *ignored*: points inside them are neither positive nor negative.
Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FeaturePyramidNetwork, complete_box_iou_loss

from af_pipeline.models.backbones import STRIDES, build_backbone, focus_input
from af_pipeline.models.detector import (
    DEFAULT,
    Detector,
    Output,
    Selection,
    Targets,
    own_points,
    select_detections,
    select_proposals,
)
from af_pipeline.models.focus_head import FocusHead, focus_loss
from af_pipeline.settings.train import ModelConfig


@dataclass(frozen=True)
class RawOutput:
    """class_logits [N, A, C]; boxes [N, A, 4] chip px; points [A, 2] chip px; focus [N, h, w]."""

    class_logits: Tensor
    boxes: Tensor
    points: Tensor
    focus: Tensor


class DenseDetector(Detector):
    """Any backbone, FPN at strides 8, 16, 32, shared dense head, FocusPixel head."""

    loss_names = ("class", "box", "focus")

    def __init__(self, num_classes: int, model: ModelConfig) -> None:
        super().__init__(num_classes)
        self.backbone = build_backbone(model.backbone, model.width, model.norm)
        self.fpn = FeaturePyramidNetwork(self.backbone.out_channels, model.channels)
        self.head = DenseHead(model.channels, num_classes, model.head_depth, len(STRIDES))
        self.focus_head = FocusHead(2 * model.channels, model.channels)

    def raw(self, batch: Tensor) -> RawOutput:
        """Dense predictions of a batch uint8 [N, 3, H, W] before any selection."""
        levels = self.fpn(self.backbone(self.normalised(batch)))
        logits, boxes, points = [], [], []
        for number, stride in enumerate(STRIDES):
            level = levels[str(stride)]
            level_logits, distances = self.head(level, number)
            level_points = _points(level.shape[-2], level.shape[-1], stride, batch.device)
            logits.append(level_logits.float())
            boxes.append(_to_boxes(level_points, distances.float() * stride))
            points.append(level_points)
        focus = self.focus_head(focus_input(levels["8"], levels["16"])).float()
        return RawOutput(torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(points), focus)

    def losses(self, batch: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Loss parts of a training batch; see `Detector.losses`."""
        out = self.raw(batch)
        losses = detection_losses(out.class_logits, out.boxes, out.points, targets)
        losses["focus"] = focus_loss(out.focus, targets.focus)
        return losses

    @torch.inference_mode()
    def forward(
        self, batch: Tensor, sizes: Tensor, selection: Selection = DEFAULT
    ) -> tuple[list[Output], Tensor]:
        """Detections of each chip and FocusPixel probabilities; see `Detector.forward`."""
        out = self.raw(batch)
        scores = out.class_logits.sigmoid()
        outputs = []
        for score, box, size in zip(scores, out.boxes, sizes, strict=True):
            own = own_points(out.points, size)
            outputs.append(select_detections(score[own], box[own, None], size, selection))
        return outputs, out.focus.sigmoid()

    @torch.inference_mode()
    def proposals(self, batch: Tensor, sizes: Tensor) -> list[Output]:
        """The likeliest boxes by their best class score; see `Detector.proposals`."""
        out = self.raw(batch)
        scores = out.class_logits.amax(-1).sigmoid()
        outputs = []
        for score, box, size in zip(scores, out.boxes, sizes, strict=True):
            own = own_points(out.points, size)
            outputs.append(select_proposals(score[own], box[own], size))
        return outputs


def _points(rows: int, columns: int, stride: int, device: torch.device) -> Tensor:
    """Centres of a level's cells [rows*columns, 2] as (x, y) input px, row-major."""
    y = (torch.arange(rows, device=device) + 0.5) * stride
    x = (torch.arange(columns, device=device) + 0.5) * stride
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], -1).view(-1, 2)


def _to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Points [A, 2] and distances [N, A, 4] (left, top, right, bottom px) -> xyxy [N, A, 4]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


class Tower(nn.Module):
    """3x3 convolutions shared by all levels, with batch norms of their own for each level.

    Batch norm, not group norm: a group norm's statistics cover the canvas, so that padding and
    crop size change the scores of the same object.
    """

    def __init__(self, channels: int, depth: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(depth)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(depth)) for _ in range(levels)
        )
        self.folded = nn.ModuleList()

    def fold(self) -> None:
        """Replace the shared convolutions and the norms by one plain convolution per level."""
        self.folded = nn.ModuleList(
            nn.ModuleList(
                fuse_conv_bn_eval(conv, norm)  # type: ignore[type-var,arg-type]
                for conv, norm in zip(self.convs, norms.children(), strict=True)
            )
            for norms in self.norms
        )
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Map [N, C, h, w] of ``level`` -> map of the same shape."""
        if len(self.folded):
            for conv in self.folded[level].children():
                x = F.relu(conv(x))
            return x
        for conv, norm in zip(self.convs, self.norms[level].children(), strict=True):
            x = F.relu(norm(conv(x)))
        return x


class DenseHead(nn.Module):
    """Anchor-point head (FCOS, Tian et al. 2019): one class and one box per cell."""

    def __init__(self, channels: int, num_classes: int, depth: int, levels: int) -> None:
        super().__init__()
        self.class_tower = Tower(channels, depth, levels)
        self.box_tower = Tower(channels, depth, levels)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_distances = nn.Conv2d(channels, 4, 3, padding=1)
        for conv in (self.class_logits, self.box_distances):
            nn.init.normal_(conv.weight, std=0.01)
        # Prior of 1% objects keeps the first steps from drowning in negatives (RetinaNet §4.1).
        nn.init.constant_(self.class_logits.bias, -math.log(99.0))  # type: ignore[arg-type]
        nn.init.constant_(self.box_distances.bias, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Map [N, C, h, w] of ``level`` -> class logits [N, h*w, classes], distances [N, h*w, 4].

        Distances are left, top, right, bottom from the cell's centre in cells, >= 0.
        """
        classes, boxes = self.class_tower(x, level), self.box_tower(x, level)
        # bf16 keeps 8 bits: too coarse for box edges, so the last convolutions run in fp32.
        with torch.autocast(x.device.type, enabled=False):
            logits = self.class_logits(classes.float())
            distances = F.softplus(self.box_distances(boxes.float()))
        return logits.flatten(2).transpose(1, 2), distances.flatten(2).transpose(1, 2)


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

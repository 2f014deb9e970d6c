"""The light one-stage detector with a FocusPixel head, for CPUs and small GPUs.

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FeaturePyramidNetwork

from af_pipeline.models.backbones import STRIDES, build_backbone
from af_pipeline.models.detector import (
    INPUT_MULTIPLE,
    MAX_DETECTIONS,
    Detector,
    Output,
    Targets,
    own_points,
    select_detections,
    select_proposals,
)
from af_pipeline.models.focus_head import FocusHead, focus_input, focus_loss
from af_pipeline.models.task_aligned import detection_losses


@dataclass(frozen=True)
class RawOutput:
    """class_logits [N, A, C]; boxes [N, A, 4] chip px; points [A, 2] chip px; focus [N, h, w]."""

    class_logits: Tensor
    boxes: Tensor
    points: Tensor
    focus: Tensor


class AutoFocusDetector(Detector):
    """Any backbone, FPN at strides 8, 16, 32, shared dense head, FocusPixel head."""

    loss_names = ("class", "box", "focus")

    def __init__(
        self,
        num_classes: int,
        backbone: str = "mobilenet_v2",
        width: float = 1.0,
        channels: int = 96,
        head_depth: int = 2,
        norm: str = "bn",
    ) -> None:
        super().__init__(num_classes)
        self.backbone = build_backbone(backbone, width, norm)
        self.fpn = FeaturePyramidNetwork(self.backbone.out_channels, channels)
        self.head = DenseHead(channels, num_classes, head_depth, len(STRIDES))
        self.focus_head = FocusHead(2 * channels, channels)

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
        self,
        batch: Tensor,
        sizes: Tensor,
        min_score: float = 0.01,
        nms_iou: float = 0.6,
        max_detections: int = MAX_DETECTIONS,
    ) -> tuple[list[Output], Tensor]:
        """Detections of each chip and FocusPixel probabilities; see `Detector.forward`."""
        out = self.raw(batch)
        scores = out.class_logits.sigmoid()
        outputs = []
        for score, box, size in zip(scores, out.boxes, sizes, strict=True):
            own = own_points(out.points, size)
            outputs.append(
                select_detections(
                    score[own], box[own, None], size, min_score, nms_iou, most=max_detections
                )
            )
        return outputs, out.focus.sigmoid()

    @torch.inference_mode()
    def proposals(self, batch: Tensor, sizes: Tensor, count: int = 300) -> list[Output]:
        """The likeliest boxes by their best class score; see `Detector.proposals`."""
        out = self.raw(batch)
        scores = out.class_logits.amax(-1).sigmoid()
        outputs = []
        for score, box, size in zip(scores, out.boxes, sizes, strict=True):
            own = own_points(out.points, size)
            outputs.append(select_proposals(score[own], box[own], size, count))
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


__all__ = ["INPUT_MULTIPLE", "AutoFocusDetector", "Detector", "Output", "RawOutput"]


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

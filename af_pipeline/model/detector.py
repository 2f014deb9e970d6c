"""The light one-stage detector with a FocusPixel head, for CPUs and small GPUs.

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork

from af_pipeline.model.backbones import STRIDES, build_backbone
from af_pipeline.model.base import INPUT_MULTIPLE, Detector
from af_pipeline.model.heads import DenseHead, FocusHead, focus_input
from af_pipeline.model.losses import Targets, detection_losses, focus_loss
from af_pipeline.model.selection import (
    MAX_DETECTIONS,
    Output,
    own_points,
    select_detections,
    select_proposals,
)


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

"""The light one-stage detector with a FocusPixel head, for CPUs and small GPUs.

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, batched_nms

from af_pipeline.model.backbones import STRIDES, build_backbone
from af_pipeline.model.heads import DenseHead, FocusHead
from af_pipeline.model.losses import Targets, detection_losses, focus_loss

INPUT_MULTIPLE = 32  # network input sides must be multiples of the coarsest stride
PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255, torchvision's ImageNet statistics
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class RawOutput:
    """class_logits [N, A, C]; boxes [N, A, 4] chip px; points [A, 2] chip px; focus [N, h, w]."""

    class_logits: Tensor
    boxes: Tensor
    points: Tensor
    focus: Tensor


@dataclass(frozen=True)
class Output:
    """Detections of one chip: boxes [D, 4], scores [D] descending, labels [D] int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class AutoFocusDetector(nn.Module):
    """MobileNet-class backbone, FPN at strides 8, 16, 32, shared dense head, FocusPixel head.

    ``forward(batch uint8 [N, 3, H, W], sizes int [N, 2])`` returns one `Output` per chip and
    FocusPixel probabilities [N, H/16, W/16]. H and W must be multiples of 32; ``sizes`` are the
    (height, width) of the chips inside the padded batch, detections never leave them.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "mobilenet_v2",
        width: float = 1.0,
        channels: int = 96,
        head_depth: int = 2,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, width)
        self.fpn = FeaturePyramidNetwork(self.backbone.out_channels, channels)
        self.head = DenseHead(channels, num_classes, head_depth, len(STRIDES))
        self.focus_head = FocusHead(channels, channels)
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def raw(self, batch: Tensor) -> RawOutput:
        """Dense predictions of a batch uint8 [N, 3, H, W] before any selection."""
        height, width = batch.shape[-2:]
        if height % INPUT_MULTIPLE or width % INPUT_MULTIPLE:
            raise ValueError(
                f"batch is {height}x{width}; pad both sides to multiples of {INPUT_MULTIPLE}"
            )
        images = (batch.float() - self.mean) / self.std
        levels = self.fpn(self.backbone(images.contiguous(memory_format=torch.channels_last)))
        logits, boxes, points = [], [], []
        for number, stride in enumerate(STRIDES):
            level = levels[str(stride)]
            level_logits, distances = self.head(level, number)
            level_points = _points(level.shape[-2], level.shape[-1], stride, batch.device)
            logits.append(level_logits.float())
            boxes.append(_to_boxes(level_points, distances.float() * stride))
            points.append(level_points)
        focus = self.focus_head(levels["8"], levels["16"]).float()
        return RawOutput(torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(points), focus)

    def losses(self, batch: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named losses of a training batch uint8 [N, 3, H, W]."""
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
        max_detections: int = 300,
    ) -> tuple[list[Output], Tensor]:
        """Detections of each chip and FocusPixel probabilities; see the class."""
        out = self.raw(batch)
        scores = out.class_logits.sigmoid()
        outputs = [
            _select(scores[i], out.boxes[i], out.points, sizes[i], min_score, nms_iou)
            for i in range(len(batch))
        ]
        cut = [_head_of(output, max_detections) for output in outputs]
        return cut, out.focus.sigmoid()


def _points(rows: int, columns: int, stride: int, device: torch.device) -> Tensor:
    """Centres of a level's cells [rows*columns, 2] as (x, y) input px, row-major."""
    y = (torch.arange(rows, device=device) + 0.5) * stride
    x = (torch.arange(columns, device=device) + 0.5) * stride
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], -1).view(-1, 2)


def _to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Points [A, 2] and distances [N, A, 4] (left, top, right, bottom px) -> xyxy [N, A, 4]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def _select(
    scores: Tensor, boxes: Tensor, points: Tensor, size: Tensor, min_score: float, nms_iou: float
) -> Output:
    """Threshold, clip to the chip's own size and suppress duplicates of one chip."""
    height, width = int(size[0]), int(size[1])
    own = (points[:, 0] < width) & (points[:, 1] < height)
    keep = (scores >= min_score) & own[:, None]
    point, label = keep.nonzero(as_tuple=True)
    score = scores[point, label]
    if len(score) > 3000:
        score, order = score.topk(3000)
        point, label = point[order], label[order]
    box = boxes[point]
    limit = box.new_tensor([width, height, width, height])
    box = torch.minimum(box.clamp(min=0), limit)
    solid = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
    box, score, label = box[solid], score[solid], label[solid]
    chosen = batched_nms(box, score, label, nms_iou)
    return Output(box[chosen], score[chosen], label[chosen])


def _head_of(output: Output, count: int) -> Output:
    return Output(output.boxes[:count], output.scores[:count], output.labels[:count])


__all__ = ["INPUT_MULTIPLE", "AutoFocusDetector", "Output"]

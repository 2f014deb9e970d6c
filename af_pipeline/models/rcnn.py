"""The two-stage detector of SNIPER with a FocusPixel head, of torchvision's parts.

Faster R-CNN (Ren et al. 2015) whose two stages learn only objects in the valid range of a chip
(SNIP), over SNIPER's dilated feature map or a feature pyramid. Coordinates are network-input px
of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from af_pipeline.models.backbones import build_backbone
from af_pipeline.models.detector import MAX_DETECTIONS, Detector, Output, Targets, select_detections
from af_pipeline.models.focus_head import FocusHead, focus_loss
from af_pipeline.models.necks import NeckMaps, build_neck
from af_pipeline.models.roi import RoiHeads, RoiTargets, roi_losses, sample_proposals
from af_pipeline.models.rpn import RegionProposals, RpnOutput, rpn_losses

ANCHOR_SIZES = (32.0, 64.0, 112.0, 160.0, 208.0, 256.0, 384.0)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
PROPOSALS = 300  # a chip, for the second stage


class FasterRCNN(Detector):
    """Backbone, neck, RPN, RoI heads, FocusPixel head.

    ``anchor_sizes``: sides of the anchors, px; ``anchor_ratios``: height / width; ``pre_nms``:
    proposals of a chip that enter the NMS. ``channels`` scales all heads: 256 is SNIPER's.
    """

    loss_names = ("rpn_class", "rpn_box", "class", "box", "focus")

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        width: float = 1.0,
        channels: int = 256,
        neck: str = "fpn",
        norm: str = "bn",
        anchor_sizes: Sequence[float] = ANCHOR_SIZES,
        anchor_ratios: Sequence[float] = ANCHOR_RATIOS,
        pre_nms: int = 2000,
    ) -> None:
        super().__init__(num_classes)
        self.backbone = build_backbone(backbone, width, norm, neck == "dilated")
        self.neck = build_neck(neck, self.backbone.out_channels, channels)
        strides = self.neck.strides
        self.rpn = RegionProposals(
            self.neck.rpn_channels, self.neck.rpn_hidden, strides, anchor_sizes, anchor_ratios
        )
        hidden = 512 if backbone == "mobilenet_v2" else 1024
        names = tuple(str(stride) for stride in strides)
        self.roi_heads = RoiHeads(self.neck.roi_channels, names, hidden, num_classes)
        self.focus_head = FocusHead(self.neck.focus_channels, channels)
        self.pre_nms = pre_nms

    def features(self, batch: Tensor) -> NeckMaps:
        """Maps for the heads of a batch uint8 [N, 3, H, W]."""
        return self.neck(self.backbone(self.normalised(batch)))

    def losses(self, batch: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Loss parts of a training batch; see `Detector.losses`."""
        maps = self.features(batch)
        rpn = self.rpn(maps.rpn, batch)
        sampled = self.training_proposals(rpn, targets, _canvas(batch))
        boxes = [chip.boxes for chip in sampled]
        logits, deltas = self.roi_heads(maps.roi, boxes, _canvas(batch))
        focus = self.focus_head(maps.focus).float()
        return {
            **rpn_losses(rpn, targets, self.rpn.coder),
            **roi_losses(logits, deltas, sampled, self.roi_heads.coder),
            "focus": focus_loss(focus, targets.focus),
        }

    def training_proposals(
        self, rpn: RpnOutput, targets: Targets, canvas: tuple[int, int]
    ) -> list[RoiTargets]:
        """What the second stage learns of each chip of ``canvas`` (height, width) px.

        Proposals outside the chip's valid range do not exist, as in SNIPER.
        """
        sizes = torch.tensor([canvas] * len(targets.boxes))
        found = self.rpn.propose(rpn, sizes, PROPOSALS, targets.ranges, self.pre_nms)
        t = targets
        chips = zip(found, t.boxes, t.labels, t.valid, t.ignored, t.crowd, strict=True)
        return [sample_proposals(output.boxes, *boxes) for output, *boxes in chips]

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
        maps = self.features(batch)
        rpn = self.rpn(maps.rpn, batch)
        boxes = [p.boxes for p in self.rpn.propose(rpn, sizes, PROPOSALS, None, self.pre_nms)]
        logits, deltas = self.roi_heads(maps.roi, boxes, _canvas(batch))
        counts = [len(box) for box in boxes]
        outputs = []
        chips = zip(boxes, logits.split(counts), deltas.split(counts), sizes, strict=True)
        for box, logit, delta, size in chips:
            scores, moved = self.roi_heads.detections(logit, delta, box)
            outputs.append(
                select_detections(scores, moved, size, min_score, nms_iou, most=max_detections)
            )
        return outputs, self.focus_head(maps.focus).float().sigmoid()

    @torch.inference_mode()
    def proposals(self, batch: Tensor, sizes: Tensor, count: int = 300) -> list[Output]:
        """The RPN's proposals by their objectness; see `Detector.proposals`."""
        rpn = self.rpn(self.features(batch).rpn, batch)
        return self.rpn.propose(rpn, sizes, count, None, self.pre_nms)


def _canvas(batch: Tensor) -> tuple[int, int]:
    return int(batch.shape[-2]), int(batch.shape[-1])

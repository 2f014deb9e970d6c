"""What the RPN learns from a chip, and its losses (SNIP, Singh and Davis 2018 §5; SNIPER §3.4).

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import (
    BalancedPositiveNegativeSampler,
    BoxCoder,
    Matcher,
)
from torchvision.ops import box_iou

from af_pipeline.model.losses import CROWD_SHARE, IGNORE, Targets, share_inside
from af_pipeline.model.rpn import RpnOutput

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4
IGNORED_IOU = 0.3  # above it with an ignored box an anchor gives no loss
SAMPLES, POSITIVE_SHARE = 256, 0.5  # anchors a chip that give a loss
BETA = 1 / 9  # px-free; where the smooth L1 loss turns linear, as in torchvision


def label_anchors(
    anchors: Tensor, boxes: Tensor, valid: Tensor, ignored: Tensor, crowd: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels [A] in {-1, 0, 1} and the box [A, 4] to regress to, of anchors [A, 4].

    Only ``valid`` [M] of the boxes [M, 4] make positives: IoU of 0.5 or the best anchor of a
    box; below 0.4 an anchor is negative. Last, anchors whose IoU with any ``ignored`` [M] box is
    above 0.3 give no loss, be they positive or negative; nor do negative ones half inside a
    ``crowd`` [M] box.
    """
    labels = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    matched = torch.zeros_like(anchors)
    wanted, unwanted = boxes[valid], boxes[ignored]
    if len(wanted):
        iou = box_iou(wanted, anchors)
        index = Matcher(FOREGROUND_IOU, BACKGROUND_IOU, allow_low_quality_matches=True)(iou)
        labels[index == Matcher.BETWEEN_THRESHOLDS] = IGNORE
        # The best IoU of a box that no anchor meets is 0, which every anchor has.
        labels[(index >= 0) & (iou.amax(0) > 0)] = 1
        matched = wanted[index.clamp(min=0)]
    labels[(labels == 0) & (share_inside(anchors, boxes[crowd]) >= CROWD_SHARE)] = IGNORE
    if len(unwanted):
        labels[(box_iou(unwanted, anchors) > IGNORED_IOU).any(0)] = IGNORE
    return labels, matched


def rpn_losses(out: RpnOutput, targets: Targets, coder: BoxCoder) -> dict[str, Tensor]:
    """Losses ``rpn_class`` and ``rpn_box`` over 256 sampled anchors a chip, up to half positive."""
    with torch.no_grad():
        pairs = [
            label_anchors(out.anchors, boxes, valid, ignored, crowd)
            for boxes, valid, ignored, crowd in zip(
                targets.boxes, targets.valid, targets.ignored, targets.crowd, strict=True
            )
        ]
        labels = [label for label, _ in pairs]
        sampler = BalancedPositiveNegativeSampler(SAMPLES, POSITIVE_SHARE)
        positive, negative = (torch.stack(masks).bool() for masks in sampler(labels))
        wanted = torch.cat(
            [
                coder.encode_single(matched[chosen], out.anchors[chosen])
                for (_, matched), chosen in zip(pairs, positive, strict=True)
            ]
        )
    sampled = positive | negative
    count = sampled.sum().clamp(min=1)
    class_loss = F.binary_cross_entropy_with_logits(
        out.objectness[sampled], positive[sampled].float(), reduction="sum"
    )
    box_loss = F.smooth_l1_loss(out.deltas[positive], wanted, reduction="sum", beta=BETA)
    return {"rpn_class": class_loss / count, "rpn_box": box_loss / count}

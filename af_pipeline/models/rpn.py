"""The region proposal network: anchors, objectness, boxes (Ren et al. 2015 §3.1).

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import (
    BalancedPositiveNegativeSampler,
    BoxCoder,
    Matcher,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import permute_and_flatten
from torchvision.ops import Conv2dNormActivation, box_iou

from af_pipeline.models.detector import (
    CROWD_SHARE,
    IGNORE,
    Output,
    Targets,
    own_points,
    select_proposals,
    share_inside,
)

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4
IGNORED_IOU = 0.3  # above it with an ignored box an anchor gives no loss
SAMPLES, POSITIVE_SHARE = 256, 0.5  # anchors a chip that give a loss
BETA = 1 / 9  # px-free; where the smooth L1 loss turns linear, as in torchvision

SIZE_PER_STRIDE = 8  # side of the anchor at home on a level, as in Lin et al. 2017 §4.1


def share_sizes(sizes: Sequence[float], strides: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Anchor sides, px, of each level: a side goes to the stride whose 8-fold is nearest in ratio.

    A level that gets none takes a copy of the side nearest to it, so that each has at least one.
    """

    def distance(size: float, stride: int) -> float:
        return abs(math.log(size / (SIZE_PER_STRIDE * stride)))

    homes = {size: min(strides, key=lambda s: distance(size, s)) for size in sizes}
    shares = []
    for stride in strides:
        own = tuple(size for size in sizes if homes[size] == stride)
        nearest = min(sizes, key=lambda size: distance(size, stride))
        shares.append(own or (nearest,))
    return tuple(shares)


@dataclass(frozen=True)
class RpnOutput:
    """objectness [N, A] logits; deltas [N, A, 4] to be decoded; anchors [A, 4] chip px."""

    objectness: Tensor
    deltas: Tensor
    anchors: Tensor


class RpnHead(nn.Module):
    """torchvision's RPN head, but each level may have a number of anchors of its own.

    The 3x3 convolution is shared by all levels.
    """

    def __init__(self, channels: int, hidden: int, anchors: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Conv2dNormActivation(channels, hidden, kernel_size=3, norm_layer=None)
        )
        self.cls_logits = nn.ModuleList(nn.Conv2d(hidden, a, 1) for a in anchors)
        self.bbox_pred = nn.ModuleList(nn.Conv2d(hidden, 4 * a, 1) for a in anchors)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps [N, C, h, w] by level -> objectness [N, A] and deltas [N, A, 4] of all levels."""
        objectness, deltas = [], []
        for x, classify, regress in zip(maps, self.cls_logits, self.bbox_pred, strict=True):
            x = self.conv(x)
            logits, moves = classify(x), regress(x)
            n, a, h, w = logits.shape
            objectness.append(permute_and_flatten(logits, n, a, 1, h, w).squeeze(-1))
            deltas.append(permute_and_flatten(moves, n, a, 4, h, w))
        return torch.cat(objectness, 1), torch.cat(deltas, 1)


class RegionProposals(nn.Module):
    """RPN over one or several levels, in fp32.

    Anchors sit on the cells' upper left corners as torchvision's do, which is what the centre
    of a receptive field is after strided 3x3 convolutions, and what RoIAlign reads.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        strides: Sequence[int],
        sizes: Sequence[float],
        ratios: Sequence[float],
    ) -> None:
        super().__init__()
        shares = share_sizes(sizes, strides)
        self.anchors = AnchorGenerator(shares, (tuple(ratios),) * len(shares))
        self.head = RpnHead(channels, hidden, self.anchors.num_anchors_per_location())
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(self, maps: Sequence[Tensor], batch: Tensor) -> RpnOutput:
        """Maps [N, C, h, w] by level of a batch [N, 3, H, W], which only lends its shape."""
        with torch.autocast(batch.device.type, enabled=False):
            objectness, deltas = self.head([x.float() for x in maps])
        canvas = (int(batch.shape[-2]), int(batch.shape[-1]))
        (anchors,) = self.anchors(ImageList(batch, [canvas]), [x.float() for x in maps])
        return RpnOutput(objectness, deltas, anchors)

    @torch.no_grad()
    def propose(
        self,
        out: RpnOutput,
        sizes: Tensor,
        count: int,
        ranges: Tensor | None = None,
        pre_nms: int = 2000,
    ) -> list[Output]:
        """Proposals of each chip with their objectness; see `select_proposals`.

        Anchors whose centre lies outside the chip's own ``sizes`` [N, 2] propose nothing.
        ``ranges`` [N, 2], if given, are the sqrt(area) that each chip answers for, chip px.
        """
        centres = (out.anchors[:, :2] + out.anchors[:, 2:]) / 2
        limits = [(0.0, math.inf)] * len(sizes) if ranges is None else ranges.tolist()
        outputs = []
        for i, size in enumerate(sizes):
            own = own_points(centres, size)
            boxes = self.coder.decode_single(out.deltas[i, own], out.anchors[own])
            scores = F.sigmoid(out.objectness[i, own])
            low, high = limits[i]
            outputs.append(select_proposals(scores, boxes, size, count, (low, high), pre_nms))
        return outputs


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

"""The two-stage detector of SNIPER with a FocusPixel head, on torchvision's R-CNN.

Faster R-CNN (Ren et al. 2015) whose two stages learn only objects in the valid range of a chip
(SNIP), over SNIPER's dilated feature map or a feature pyramid. Coordinates are network-input px
of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, permute_and_flatten
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign, box_iou

from af_pipeline.core.focus import IGNORE
from af_pipeline.models.backbones import DilatedNeck, NeckMaps, PyramidNeck, build_backbone
from af_pipeline.models.detector import (
    DEFAULT,
    PRE_NMS,
    PROPOSAL_IOU,
    PROPOSALS,
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

CROWD = -2  # label of a box around a group; IGNORE, -1, that of any other that is not learned
CROWD_SHARE = 0.5  # so much of a box inside a crowd makes it one of the crowd

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4  # of anchors
IGNORED_IOU = 0.3  # above it with an ignored box an anchor gives no loss
ANCHOR_SAMPLES, ANCHOR_POSITIVES = 256, 0.5  # anchors a chip that give a loss
SIZE_PER_STRIDE = 8  # side of the anchor at home on a level, as in Lin et al. 2017 §4.1

POOLED = 7  # cells a side of a pooled proposal
MATCH_IOU = 0.5  # overlap at which a proposal is an object
# Proposals a chip that give a loss. SNIPER trains on all of its 300; so does this, unless more
# than 128 are positive.
SAMPLES, POSITIVES = 512, 0.25

Truth = dict[str, Tensor]


class FasterRCNN(Detector):
    """Backbone, neck, RPN, RoI heads, FocusPixel head."""

    loss_names = ("rpn_class", "rpn_box", "class", "box", "focus")

    def __init__(self, num_classes: int, model: ModelConfig) -> None:
        super().__init__(num_classes)
        dilated = model.neck == "dilated"
        self.backbone = build_backbone(model.backbone, model.width, model.norm, dilated)
        neck = DilatedNeck if dilated else PyramidNeck
        self.neck = neck(self.backbone.out_channels, model.channels)
        self.rpn = RegionProposals(self.neck, model.anchor_sizes, model.anchor_ratios)
        hidden = 512 if model.backbone == "mobilenet_v2" else 1024
        self.roi_heads = RoiHeads(self.neck, hidden, num_classes)
        self.focus_head = FocusHead(self.neck.focus_channels, model.channels)

    def features(self, batch: Tensor) -> NeckMaps:
        """Maps for the heads of a batch uint8 [N, 3, H, W]."""
        return self.neck(self.backbone(self.normalised(batch)))

    def losses(self, batch: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Loss parts of a training batch; see `Detector.losses`.

        Proposals outside a chip's valid range do not exist for the second stage, as in SNIPER.
        """
        truth, canvas = ground_truth(targets), _canvas(batch)
        maps = self.features(batch)
        rpn = self.rpn(maps.rpn, batch)
        sizes = torch.tensor([canvas] * len(batch))
        proposals = [found.boxes for found in self.rpn.propose(rpn, sizes, targets.ranges)]
        second_stage = self.roi_heads.losses(maps.roi, proposals, canvas, truth)
        return {
            **self.rpn.losses(rpn, truth),
            **second_stage,
            "focus": focus_loss(self.focus_head(maps.focus).float(), targets.focus),
        }

    @torch.inference_mode()
    def forward(
        self, batch: Tensor, sizes: Tensor, selection: Selection = DEFAULT
    ) -> tuple[list[Output], Tensor]:
        """Detections of each chip and FocusPixel probabilities; see `Detector.forward`."""
        maps = self.features(batch)
        rpn = self.rpn(maps.rpn, batch)
        proposals = [found.boxes for found in self.rpn.propose(rpn, sizes)]
        scores, boxes = self.roi_heads.detections(maps.roi, proposals, _canvas(batch))
        counts = [len(box) for box in proposals]
        chips = zip(scores.split(counts), boxes.split(counts), sizes, strict=True)
        outputs = [select_detections(score, box, size, selection) for score, box, size in chips]
        return outputs, self.focus_head(maps.focus).float().sigmoid()

    @torch.inference_mode()
    def proposals(self, batch: Tensor, sizes: Tensor) -> list[Output]:
        """The RPN's proposals by their objectness; see `Detector.proposals`."""
        return self.rpn.propose(self.rpn(self.features(batch).rpn, batch), sizes)


def _canvas(batch: Tensor) -> tuple[int, int]:
    return int(batch.shape[-2]), int(batch.shape[-1])


def ground_truth(targets: Targets) -> list[Truth]:
    """Each chip's ``boxes`` [K, 4] and ``labels`` [K] without padding, as torchvision's heads ask.

    A label is the class + 1 of a valid box, else IGNORE or CROWD: torchvision samples nothing
    whose label is negative. Valid boxes come first, for the case that one is there twice.
    """
    unlearned = torch.where(targets.crowd, CROWD, IGNORE)
    labels = torch.where(targets.valid, targets.labels + 1, unlearned)
    truth = []
    for box, label, valid, ignored in zip(
        targets.boxes, labels, targets.valid, targets.ignored, strict=True
    ):
        order = torch.cat([valid.nonzero(), (ignored & ~valid).nonzero()]).squeeze(1)
        truth.append({"boxes": box[order], "labels": label[order]})
    return truth


def share_inside(boxes: Tensor, crowd: Tensor) -> Tensor:
    """Largest share [A] of each box [A, 4] that lies inside one of ``crowd`` [K, 4]."""
    if not len(crowd):
        return boxes.new_zeros(len(boxes))
    low = torch.maximum(boxes[:, None, :2], crowd[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], crowd[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1).clamp(min=1e-6)
    return (inside / area[:, None]).amax(1)


def leave_out_crowds(labels: Tensor, boxes: Tensor, truth: Truth) -> None:
    """Set those of ``labels`` [A] to IGNORE that are background but half inside a crowd."""
    crowd = truth["boxes"][truth["labels"] == CROWD]
    labels[(labels == 0) & (share_inside(boxes, crowd) >= CROWD_SHARE)] = IGNORE


# ---- first stage


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


class RegionProposals(RegionProposalNetwork):
    """torchvision's RPN under SNIP, over one or several levels, in fp32.

    Anchors sit on the cells' upper left corners as torchvision's do, which is what the centre
    of a receptive field is after strided 3x3 convolutions, and what RoIAlign reads.
    """

    def __init__(
        self, neck: PyramidNeck | DilatedNeck, sizes: Sequence[float], ratios: Sequence[float]
    ) -> None:
        shares = share_sizes(sizes, neck.strides)
        anchors = AnchorGenerator(shares, (tuple(ratios),) * len(shares))
        counts = anchors.num_anchors_per_location()
        super().__init__(
            anchors,
            RpnHead(neck.rpn_channels, neck.rpn_hidden, counts),
            FOREGROUND_IOU,
            BACKGROUND_IOU,
            ANCHOR_SAMPLES,
            ANCHOR_POSITIVES,
            dict.fromkeys(("training", "testing"), PRE_NMS),
            dict.fromkeys(("training", "testing"), PROPOSALS),
            PROPOSAL_IOU,
        )

    def forward(self, maps: Sequence[Tensor], batch: Tensor) -> RpnOutput:
        """Maps [N, C, h, w] by level of a batch [N, 3, H, W], which only lends its shape."""
        exact = [x.float() for x in maps]
        with torch.autocast(batch.device.type, enabled=False):
            objectness, deltas = self.head(exact)
        (anchors,) = self.anchor_generator(ImageList(batch, [_canvas(batch)]), exact)
        return RpnOutput(objectness, deltas, anchors)

    @torch.no_grad()
    def propose(self, out: RpnOutput, sizes: Tensor, ranges: Tensor | None = None) -> list[Output]:
        """Proposals of each chip with their objectness; see `select_proposals`.

        Anchors whose centre lies outside the chip's own ``sizes`` [N, 2] propose nothing.
        ``ranges`` [N, 2], if given, are the sqrt(area) that each chip answers for, chip px.
        """
        centres = (out.anchors[:, :2] + out.anchors[:, 2:]) / 2
        limits = [(0.0, math.inf)] * len(sizes) if ranges is None else ranges.tolist()
        outputs = []
        for i, (size, (low, high)) in enumerate(zip(sizes, limits, strict=True)):
            own = own_points(centres, size)
            boxes = self.box_coder.decode_single(out.deltas[i, own], out.anchors[own])
            scores = out.objectness[i, own].sigmoid()
            outputs.append(select_proposals(scores, boxes, size, (low, high)))
        return outputs

    def losses(self, out: RpnOutput, truth: list[Truth]) -> dict[str, Tensor]:
        """Losses ``rpn_class`` and ``rpn_box`` of sampled anchors, 0 where all are ignored."""
        anchors = [out.anchors] * len(truth)
        labels, matched = self.assign_targets_to_anchors(anchors, truth)
        if all(bool((label < 0).all()) for label in labels):
            return {"rpn_class": 0 * out.objectness.sum(), "rpn_box": 0 * out.deltas.sum()}
        wanted = self.box_coder.encode(matched, anchors)
        deltas = out.deltas.flatten(0, 1)
        class_loss, box_loss = self.compute_loss(out.objectness, deltas, labels, wanted)
        return {"rpn_class": class_loss, "rpn_box": box_loss}

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[Truth]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels [A] in {-1, 0, 1} and the box [A, 4] to regress to, of each chip's anchors.

        Only valid boxes make positives: IoU of 0.5 or the best anchor of a box; below 0.4 an
        anchor is negative. Last, anchors whose IoU with any ignored box is above 0.3 give no
        loss, be they positive or negative; nor do negative ones half inside a crowd.
        """
        wanted = []
        for own, truth in zip(anchors, targets, strict=True):
            boxes = truth["boxes"][truth["labels"] > 0]
            # The best IoU of a box that no anchor meets is 0, which every anchor has.
            wanted.append({"boxes": boxes[box_iou(boxes, own).amax(1) > 0]})
        labels, matched = super().assign_targets_to_anchors(anchors, wanted)
        for label, own, truth in zip(labels, anchors, targets, strict=True):
            leave_out_crowds(label, own, truth)
            unwanted = truth["boxes"][truth["labels"] < 0]
            label[(box_iou(unwanted, own) > IGNORED_IOU).any(0)] = IGNORE
        return labels, matched


# ---- second stage


class RoiHeads(RoIHeads):
    """torchvision's RoI heads under SNIP: RoIAlign 7x7, two layers, one box per class, in fp32.

    Label 0 is background.
    """

    def __init__(self, neck: PyramidNeck | DilatedNeck, hidden: int, num_classes: int) -> None:
        levels = [str(stride) for stride in neck.strides]
        super().__init__(
            MultiScaleRoIAlign(levels, POOLED, sampling_ratio=2),
            TwoMLPHead(neck.roi_channels * POOLED * POOLED, hidden),
            FastRCNNPredictor(hidden, num_classes + 1),
            MATCH_IOU,
            MATCH_IOU,
            SAMPLES,
            POSITIVES,
            None,
            DEFAULT.min_score,
            DEFAULT.nms_iou,
            DEFAULT.most,
        )

    def forward(
        self, maps: OrderedDict[str, Tensor], boxes: list[Tensor], canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Boxes [P, 4] of each chip -> logits [sum P, C + 1], deltas [sum P, 4 (C + 1)].

        ``canvas`` is the (height, width) of the padded batch, of which ``maps`` are.
        """
        exact = OrderedDict((name, x.float()) for name, x in maps.items())
        hidden = self.box_head(self.box_roi_pool(exact, boxes, [canvas]))
        with torch.autocast(hidden.device.type, enabled=False):
            return self.box_predictor(hidden.float())

    def detections(
        self, maps: OrderedDict[str, Tensor], proposals: list[Tensor], canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Scores [sum P, C] and boxes [sum P, C, 4] of each chip's proposals [P, 4]."""
        logits, deltas = self(maps, proposals, canvas)
        boxes = self.box_coder.decode_single(deltas, torch.cat(proposals))
        return logits.softmax(-1)[:, 1:], boxes.view(*logits.shape, 4)[:, 1:]

    def losses(
        self,
        maps: OrderedDict[str, Tensor],
        proposals: list[Tensor],
        canvas: tuple[int, int],
        truth: list[Truth],
    ) -> dict[str, Tensor]:
        """Losses ``class`` and ``box`` of sampled proposals, 0 where there is none."""
        boxes, _, labels, wanted = self.select_training_samples(proposals, truth)
        logits, deltas = self(maps, boxes, canvas)
        if not len(logits):
            return {"class": logits.sum(), "box": deltas.sum()}
        class_loss, box_loss = fastrcnn_loss(logits, deltas, labels, wanted)
        return {"class": class_loss, "box": box_loss}

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Index of the box [P] to regress to, and labels [P], of each chip's proposals [P, 4].

        IoU of 0.5 with a valid box gives class + 1, with an ignored one no loss (SNIPER's code
        lets these teach their class; here nobody learns from a crowd or a wrong size), and so
        does being half inside a crowd. Any other proposal is background, 0.
        """
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, own, boxes, given in zip(labels, proposals, gt_boxes, gt_labels, strict=True):
            leave_out_crowds(label, own, {"boxes": boxes, "labels": given})
        return matched, labels

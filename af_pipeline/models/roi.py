"""The second stage: pooled proposals to classes and boxes, and what it learns from a chip.

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, box_iou

from af_pipeline.models.detector import CROWD_SHARE, IGNORE, share_inside

POOLED = 7  # cells a side of a pooled proposal
MATCH_IOU = 0.5  # overlap at which a proposal is an object
SAMPLES, POSITIVE_SHARE = 512, 0.25  # proposals a chip that give a loss
BETA = 1 / 9  # where the smooth L1 loss turns linear, as in torchvision


@dataclass(frozen=True)
class RoiTargets:
    """Training proposals of one chip: boxes [P, 4]; labels [P], 0: background, else class + 1;
    matched [P, 4]: the box to regress to, where there is one.
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor


class RoiHeads(nn.Module):
    """RoIAlign 7x7, two fully connected layers, one classifier and one box per class.

    Submodules bear torchvision's names; label 0 of the logits is background.
    """

    def __init__(
        self, channels: int, levels: tuple[str, ...], hidden: int, num_classes: int
    ) -> None:
        super().__init__()
        self.pool = MultiScaleRoIAlign(list(levels), POOLED, sampling_ratio=2)
        self.box_head = TwoMLPHead(channels * POOLED * POOLED, hidden)
        self.box_predictor = FastRCNNPredictor(hidden, num_classes + 1)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def forward(
        self, maps: OrderedDict[str, Tensor], boxes: list[Tensor], canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Boxes [P, 4] of each chip -> logits [sum P, C + 1], deltas [sum P, C + 1, 4] in fp32.

        ``canvas`` is the (height, width) of the padded batch, of which ``maps`` are.
        """
        exact = OrderedDict((name, x.float()) for name, x in maps.items())
        hidden = self.box_head(self.pool(exact, boxes, [canvas]))
        with torch.autocast(hidden.device.type, enabled=False):
            logits, deltas = self.box_predictor(hidden.float())
        return logits, deltas.view(*logits.shape, 4)

    def detections(self, logits: Tensor, deltas: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [P, C] and boxes [P, C, 4] of the proposals [P, 4] of one chip."""
        decoded = self.coder.decode_single(deltas.flatten(1), boxes).view(deltas.shape)
        return logits.softmax(-1)[:, 1:], decoded[:, 1:]


def label_proposals(
    proposals: Tensor,
    boxes: Tensor,
    labels: Tensor,
    valid: Tensor,
    ignored: Tensor,
    crowd: Tensor,
) -> tuple[Tensor, Tensor]:
    """Labels [P] and boxes [P, 4] to regress to, of proposals [P, 4], by their best box.

    IoU of 0.5 with a ``valid`` box gives class + 1, with an ``ignored`` one -1: no loss (SNIPER's
    code lets these teach their class; here nobody learns from a crowd or a wrong size), and so
    does being half inside a ``crowd`` box. Any other proposal is background, 0.
    """
    order = torch.cat([valid.nonzero(), ignored.nonzero()]).squeeze(1)
    if not len(order) or not len(proposals):
        background = torch.zeros(len(proposals), dtype=torch.int64, device=proposals.device)
        return background, torch.zeros_like(proposals)
    iou, best = box_iou(boxes[order], proposals).max(0)
    index = order[best]
    found = torch.where(valid[index], labels[index] + 1, IGNORE)
    lost = torch.where(share_inside(proposals, boxes[crowd]) >= CROWD_SHARE, IGNORE, 0)
    return torch.where(iou >= MATCH_IOU, found, lost), boxes[index]


@torch.no_grad()
def sample_proposals(
    proposals: Tensor,
    boxes: Tensor,
    labels: Tensor,
    valid: Tensor,
    ignored: Tensor,
    crowd: Tensor,
) -> RoiTargets:
    """Training proposals of one chip: ``proposals`` [P, 4] and the valid of its boxes [M, 4].

    torchvision's sampler takes 512 with up to a quarter positive. SNIPER trains on all of its
    300; so does this, unless more than 128 are positive.
    """
    proposals = torch.cat([proposals, boxes[valid]])
    found, matched = label_proposals(proposals, boxes, labels, valid, ignored, crowd)
    sampler = BalancedPositiveNegativeSampler(SAMPLES, POSITIVE_SHARE)
    (positive,), (negative,) = sampler([found])
    chosen = (positive | negative).bool()
    return RoiTargets(proposals[chosen], found[chosen], matched[chosen])


def roi_losses(
    logits: Tensor, deltas: Tensor, targets: list[RoiTargets], coder: BoxCoder
) -> dict[str, Tensor]:
    """Losses ``class`` and ``box``: logits [R, C + 1], deltas [R, C + 1, 4] of all chips' targets.

    Cross-entropy and smooth L1 of the true class's box, both mean over the R proposals; 0 where
    there is none.
    """
    labels = torch.cat([t.labels for t in targets])
    matched = torch.cat([t.matched for t in targets])
    boxes = torch.cat([t.boxes for t in targets])
    count = max(1, len(labels))
    class_loss = F.cross_entropy(logits, labels, reduction="sum") / count
    positive = labels > 0
    wanted = coder.encode_single(matched[positive], boxes[positive])
    moved = deltas[positive, labels[positive]]
    box_loss = F.smooth_l1_loss(moved, wanted, reduction="sum", beta=BETA) / count
    return {"class": class_loss, "box": box_loss}

"""Heads: dense class and box prediction shared by all levels, and the FocusPixel head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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


class FocusHead(nn.Module):
    """FocusPixel head (AutoFocus §3.1): 3x3 conv, 1x1 conv, one logit per stride-16 cell."""

    def __init__(self, in_channels: int, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.hidden = nn.Conv2d(hidden, hidden, 1)
        self.logit = nn.Conv2d(hidden, 1, 1)
        nn.init.normal_(self.logit.weight, std=0.01)
        nn.init.constant_(self.logit.bias, -math.log(9.0))  # type: ignore[arg-type]

    def forward(self, stride16: Tensor) -> Tensor:
        """Map [N, C, H/16, W/16] -> focus logits [N, H/16, W/16]."""
        x = F.relu(self.hidden(F.relu(self.mix(stride16))))
        return self.logit(x).squeeze(1)


def focus_input(stride8: Tensor, stride16: Tensor) -> Tensor:
    """Levels [N, C, H/8, W/8] and [N, C, H/16, W/16] side by side at stride 16: [N, 2C, ...].

    The finer level, max-pooled, is there since the objects that a FocusPixel must notice are
    the ones too small for the stride-16 level.
    """
    return torch.cat([F.max_pool2d(stride8, 2), stride16], dim=1)

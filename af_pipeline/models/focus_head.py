"""The FocusPixel head and its loss (AutoFocus §3.1)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from af_pipeline.core.focus import IGNORE


class FocusHead(nn.Module):
    """FocusPixel head: 3x3 conv, 1x1 conv, one logit per stride-16 cell."""

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


def focus_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of FocusPixels [N, h, w], mean over cells not ignored."""
    care = labels != IGNORE
    loss = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), reduction="none")
    return (loss * care).sum() / care.sum().clamp(min=1)

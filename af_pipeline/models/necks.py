"""Necks: from the maps of a backbone to what the two-stage detector's heads read."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from af_pipeline.models.backbones import STRIDES
from af_pipeline.models.focus_head import focus_input


@dataclass(frozen=True)
class NeckMaps:
    """rpn: maps [N, C, H/s, W/s] by the neck's strides s; roi: the same by name, to pool from;
    focus: [N, C, H/16, W/16] for the FocusPixel head.
    """

    rpn: list[Tensor]
    roi: OrderedDict[str, Tensor]
    focus: Tensor


class PyramidNeck(nn.Module):
    """Feature pyramid at strides 8, 16, 32 (Lin et al. 2017), all heads ``channels`` wide."""

    strides = STRIDES

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(in_channels, channels)
        self.rpn_channels = self.rpn_hidden = self.roi_channels = channels
        self.focus_channels = 2 * channels

    def forward(self, maps: OrderedDict[str, Tensor]) -> NeckMaps:
        """Backbone maps "8", "16", "32" -> maps for the heads."""
        levels = self.fpn(maps)
        focus = focus_input(levels["8"], levels["16"])
        return NeckMaps(list(levels.values()), levels, focus)


class DilatedNeck(nn.Module):
    """The last two stages side by side at stride 16 (SNIPER; 3072 channels of a ResNet).

    The second stage reads a 1x1 reduction to ``channels``, the RPN has twice as many: 256 and
    512 are SNIPER's.
    """

    strides = (16,)

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.rpn_channels = self.focus_channels = sum(in_channels)
        self.rpn_hidden, self.roi_channels = 2 * channels, channels
        self.reduce = Conv2dNormActivation(
            sum(in_channels), channels, kernel_size=1, norm_layer=None, inplace=False
        )

    def forward(self, maps: OrderedDict[str, Tensor]) -> NeckMaps:
        """Backbone maps "16", "16b" -> maps for the heads."""
        both = torch.cat(list(maps.values()), 1)
        return NeckMaps([both], OrderedDict([("16", self.reduce(both))]), both)


def build_neck(name: str, in_channels: list[int], channels: int) -> PyramidNeck | DilatedNeck:
    """Neck by name, ``fpn`` or ``dilated``, over a backbone's ``out_channels``."""
    if name == "fpn":
        return PyramidNeck(in_channels, channels)
    if name == "dilated":
        return DilatedNeck(in_channels, channels)
    raise ValueError(f"unknown neck {name!r}; known: fpn, dilated")

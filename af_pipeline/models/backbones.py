"""Backbones and necks: torchvision's feature extractors, and what the heads read of them.

Every backbone returns an ordered dict whose keys are strides in input px and states the
channels of those maps, in order, in ``out_channels``. Plain ones give ``"8"``, ``"16"``,
``"32"``. Dilated ones keep the resolution in their last stage and give ``"16"`` and ``"16b"``,
the last two stages both at stride 16 (SNIPER §5; Chen et al. 2017).
"""

from __future__ import annotations

import pkgutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet50, resnet101
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, FrozenBatchNorm2d

# Name -> what builds it of a width multiplier, the name of a norm, and whether it is dilated.
BACKBONES = {
    "mobilenet_v2": "af_pipeline.models.backbones:MobileNetV2Features",
    "resnet50": "af_pipeline.models.backbones:resnet50_features",
    "resnet101": "af_pipeline.models.backbones:resnet101_features",
}

GROUPS = 32  # Wu and He 2018, table 3

STRIDES = (8, 16, 32)


class Backbone(nn.Module):
    """A feature extractor: ``name`` in `BACKBONES`, ``out_channels`` of its maps in order.

    Called with images [N, 3, H, W] normalised it gives maps [N, C, H/stride, W/stride] by stride.
    """

    name: str
    out_channels: list[int]


class MobileNetV2Features(Backbone):
    """MobileNetV2 up to its last stride-32 block (Sandler et al. 2018, table 2).

    The 320- and 1280-channel ends serve classification and are left out: half of the
    parameters for no gain on objects of 30 to 100 px.
    """

    # The last block of each stride in torchvision's `features` sequence.
    LAST_BLOCK: ClassVar = {"8": 6, "16": 13, "32": 16}
    name = "mobilenet_v2"

    def __init__(self, width: float, norm: str = "bn", dilated: bool = False) -> None:
        super().__init__()
        made = mobilenet_v2(weights=None, width_mult=width, norm_layer=norm_layer(norm))
        self.blocks = nn.ModuleList(list(made.features)[: self.LAST_BLOCK["32"] + 1])
        self.stops = {index: stride for stride, index in self.LAST_BLOCK.items()}
        if dilated:
            self._dilate()
            self.stops = {self.LAST_BLOCK["16"]: "16", self.LAST_BLOCK["32"]: "16b"}
        self.out_channels = [cast(int, self.blocks[index].out_channels) for index in self.stops]

    def _dilate(self) -> None:
        """Stride 1 in the last stage; the later 3x3 convolutions look twice as wide instead."""
        first = self.LAST_BLOCK["16"] + 1
        _depthwise(self.blocks[first]).stride = (1, 1)
        for block in list(self.blocks)[first + 1 :]:
            conv = _depthwise(block)
            conv.dilation, conv.padding = (2, 2), (2, 2)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """See `Backbone`."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        x = images
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stops:
                maps[self.stops[index]] = x
        return maps


def _depthwise(block: nn.Module) -> nn.Conv2d:
    return cast(nn.Conv2d, block.conv[1][0])  # type: ignore[index,union-attr]


class ResNetFeatures(Backbone):
    """ResNet-50 or -101 without its classifier (He et al. 2016, table 1).

    With ``frozen_bn`` the stem and the first stage are not trained, as in SNIPER.
    """

    def __init__(self, name: str, width: float, norm: str = "bn", dilated: bool = False) -> None:
        super().__init__()
        if width != 1.0:
            raise ValueError(f"width multiplies mobilenet_v2 only, not {name}; found {width}")
        made = {"resnet50": resnet50, "resnet101": resnet101}[name](
            weights=None,
            norm_layer=norm_layer(norm),
            replace_stride_with_dilation=[False, False, dilated],
        )
        self.conv1, self.bn1 = made.conv1, made.bn1
        self.relu, self.maxpool = made.relu, made.maxpool
        self.layer1, self.layer2 = made.layer1, made.layer2
        self.layer3, self.layer4 = made.layer3, made.layer4
        self.name, self.dilated = name, dilated
        self.out_channels = [1024, 2048] if dilated else [512, 1024, 2048]
        if norm == "frozen_bn":
            for module in (self.conv1, self.bn1, self.layer1):
                module.requires_grad_(False)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """See `Backbone`."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        if self.dilated:
            return OrderedDict([("16", c4), ("16b", c5)])
        return OrderedDict([("8", c3), ("16", c4), ("32", c5)])


resnet50_features = partial(ResNetFeatures, "resnet50")
resnet101_features = partial(ResNetFeatures, "resnet101")


def build_backbone(name: str, width: float, norm: str = "bn", dilated: bool = False) -> Backbone:
    """Backbone of a name in `BACKBONES`, with random weights."""
    return pkgutil.resolve_name(BACKBONES[name])(width, norm, dilated)


def norm_layer(name: str) -> Callable[[int], nn.Module]:
    """Builder of a norm from its channels: ``bn``, ``frozen_bn`` or ``gn``.

    ``frozen_bn`` has constant statistics and factors, and wants pretrained weights. ``gn`` needs
    no large batch, but its statistics cover the canvas, so that padding changes scores a little.
    """
    return {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d, "gn": group_norm}[name]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of up to 32 groups that divide ``channels``, of two channels or more each.

    One channel a group would leave nothing of a map of one cell.
    """
    fitting = (g for g in range(min(GROUPS, channels // 2), 0, -1) if channels % g == 0)
    return nn.GroupNorm(next(fitting, 1), channels)


def focus_input(stride8: Tensor, stride16: Tensor) -> Tensor:
    """Levels [N, C, H/8, W/8] and [N, C, H/16, W/16] side by side at stride 16: [N, 2C, ...].

    The finer level, max-pooled, is there since the objects that a FocusPixel must notice are
    the ones too small for the stride-16 level.
    """
    return torch.cat([F.max_pool2d(stride8, 2), stride16], dim=1)


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

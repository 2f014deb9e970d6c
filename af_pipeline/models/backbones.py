"""Backbones: torchvision feature extractors that return one map per stride.

Every backbone returns an ordered dict whose keys are strides in input px and states the
channels of those maps, in order, in ``out_channels``. Plain ones give ``"8"``, ``"16"``,
``"32"``. Dilated ones keep the resolution in their last stage and give ``"16"`` and ``"16b"``,
the last two stages both at stride 16 (SNIPER §5; Chen et al. 2017).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar, cast

from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet50, resnet101
from torchvision.ops import FrozenBatchNorm2d

GROUPS = 32  # Wu and He 2018, table 3

STRIDES = (8, 16, 32)


class MobileNetV2Features(nn.Module):
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
        self.out_channels = [_block_channels(self.blocks[index]) for index in self.stops]

    def _dilate(self) -> None:
        """Stride 1 in the last stage; the later 3x3 convolutions look twice as wide instead."""
        first = self.LAST_BLOCK["16"] + 1
        _depthwise(self.blocks[first]).stride = (1, 1)
        for block in list(self.blocks)[first + 1 :]:
            conv = _depthwise(block)
            conv.dilation, conv.padding = (2, 2), (2, 2)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images [N, 3, H, W] normalised -> maps [N, C, H/stride, W/stride] by stride."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        x = images
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stops:
                maps[self.stops[index]] = x
        return maps


def _block_channels(block: nn.Module) -> int:
    return int(block.out_channels)  # type: ignore[arg-type]


def _depthwise(block: nn.Module) -> nn.Conv2d:
    return cast(nn.Conv2d, block.conv[1][0])  # type: ignore[index,union-attr]


class ResNetFeatures(nn.Module):
    """ResNet-50 or -101 without its classifier (He et al. 2016, table 1).

    With ``frozen_bn`` the stem and the first stage are not trained, as in SNIPER.
    """

    def __init__(self, name: str, norm: str = "bn", dilated: bool = False) -> None:
        super().__init__()
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
            freeze(self.conv1, self.bn1, self.layer1)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images [N, 3, H, W] normalised -> maps [N, C, H/stride, W/stride] by stride."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        if self.dilated:
            return OrderedDict([("16", c4), ("16b", c5)])
        return OrderedDict([("8", c3), ("16", c4), ("32", c5)])


Backbone = MobileNetV2Features | ResNetFeatures


def build_backbone(name: str, width: float, norm: str = "bn", dilated: bool = False) -> Backbone:
    """Backbone by name; ``width`` scales the channels of mobilenet_v2, others have one width.

    Raises ValueError for an unknown name or norm, or a width that the backbone has not.
    """
    if name == "mobilenet_v2":
        return MobileNetV2Features(width, norm, dilated)
    if name not in ("resnet50", "resnet101"):
        raise ValueError(f"unknown backbone {name!r}; known: mobilenet_v2, resnet50, resnet101")
    if width != 1.0:
        raise ValueError(f"width multiplies mobilenet_v2 only, not {name}; found {width}")
    return ResNetFeatures(name, norm, dilated)


def norm_layer(name: str) -> Callable[[int], nn.Module]:
    """Builder of a norm from its channels: ``bn``, ``frozen_bn`` or ``gn``.

    ``frozen_bn`` has constant statistics and factors, and wants pretrained weights. ``gn`` needs
    no large batch, but its statistics cover the canvas, so that padding changes scores a little.
    """
    layers = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d, "gn": group_norm}
    if name not in layers:
        raise ValueError(f"unknown norm {name!r}; known: {', '.join(layers)}")
    return layers[name]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of up to 32 groups that divide ``channels``, of two channels or more each.

    One channel a group would leave nothing of a map of one cell.
    """
    fitting = (g for g in range(min(GROUPS, channels // 2), 0, -1) if channels % g == 0)
    return nn.GroupNorm(next(fitting, 1), channels)


def freeze(*modules: nn.Module) -> None:
    """Take modules out of training: their parameters get no gradient."""
    for module in modules:
        module.requires_grad_(False)

"""Backbones: torchvision feature extractors that return one map per stride.

Every backbone returns an ordered dict ``{"8": map, "16": map, "32": map}`` whose keys are
strides in input px, and states the channels of those maps in ``out_channels``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

STRIDES = (8, 16, 32)


class MobileNetV2Features(nn.Module):
    """MobileNetV2 up to its last stride-32 block (Sandler et al. 2018, table 2).

    The 320- and 1280-channel ends serve classification and are left out: half of the
    parameters for no gain on objects of 30 to 100 px.
    """

    # The last block of each stride in torchvision's `features` sequence.
    LAST_BLOCK: ClassVar = {"8": 6, "16": 13, "32": 16}

    def __init__(self, width: float) -> None:
        super().__init__()
        features = mobilenet_v2(weights=None, width_mult=width).features
        self.blocks = nn.ModuleList(list(features)[: self.LAST_BLOCK["32"] + 1])
        self.out_channels = [_block_channels(features[i]) for i in self.LAST_BLOCK.values()]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images [N, 3, H, W] normalised -> maps [N, C, H/stride, W/stride] by stride."""
        stops = {index: stride for stride, index in self.LAST_BLOCK.items()}
        maps: OrderedDict[str, Tensor] = OrderedDict()
        x = images
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in stops:
                maps[stops[index]] = x
        return maps


def _block_channels(block: nn.Module) -> int:
    return int(block.out_channels)  # type: ignore[arg-type]


def build_backbone(name: str, width: float) -> MobileNetV2Features:
    """Backbone by name; ``width`` scales its channels."""
    builders = {"mobilenet_v2": MobileNetV2Features}
    if name not in builders:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(builders)}")
    return builders[name](width)


def load_backbone_weights(backbone: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Copy a torchvision classifier's ``features.N.*`` weights; returns the names not used.

    Raises ValueError when a weight of the backbone is missing or has another shape.
    """
    wanted = backbone.state_dict()
    found = {f"blocks.{k.removeprefix('features.')}": k for k in state if k.startswith("features.")}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"the weights lack {len(missing)} entries of the backbone, first {missing[0]!r}: "
            "expected torchvision's state dict of the same architecture"
        )
    for name, tensor in wanted.items():
        source = state[found[name]]
        if source.shape != tensor.shape:
            raise ValueError(
                f"weight {found[name]!r} has shape {tuple(source.shape)}, the backbone wants "
                f"{tuple(tensor.shape)}: use weights of the same width"
            )
    with torch.no_grad():
        backbone.load_state_dict({name: state[found[name]] for name in wanted})
    used = {found[name] for name in wanted}
    return [name for name in state if name not in used]

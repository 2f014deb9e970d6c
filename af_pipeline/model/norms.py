"""Norms of the backbones by name, and freezing."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

GROUPS = 32  # Wu and He 2018, table 3


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

"""Folding batch norms into convolutions: the same function with fewer passes over memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from af_pipeline.models.dense import Tower
from af_pipeline.models.detector import Detector

AnyDetector = TypeVar("AnyDetector", bound=Detector)


def folded(detector: AnyDetector) -> AnyDetector:
    """A copy in eval mode whose batch norms are part of the convolutions before them.

    Frozen batch norms too; group norms stay, they depend on the input. For inference only: its
    state dict no longer fits the checkpoint's.
    """
    copied = copy.deepcopy(detector).eval()
    for module in list(copied.modules()):
        if isinstance(module, nn.Sequential):
            names = [name for name, _ in module.named_children()]
            _fold(module, pairwise(names))
        elif isinstance(module, Tower):
            module.fold()
        else:
            _fold(module, _residual_pairs(module))
    return copied


def _residual_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names conv1, bn1 and so on, as in torchvision's residual blocks and stems."""
    names = [name for name, _ in module.named_children() if re.fullmatch(r"conv\d+", name)]
    return [(name, name.replace("conv", "bn")) for name in names]


def _fold(module: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    children = dict(module.named_children())
    for first, second in pairs:
        conv, norm = children[first], children.get(second)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            setattr(module, first, fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var]
            setattr(module, second, nn.Identity())

"""State dicts of torchvision's models from a file or by name; never unpickles code."""

from __future__ import annotations

import pickle
import re
import sys
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import WeightsEnum, get_weight

SUFFIXES = (".safetensors", ".pth", ".pt")

# torchvision's enums that have weights for a backbone.
ENUMS = {
    "mobilenet_v2": ("MobileNet_V2_Weights",),
    "resnet50": ("ResNet50_Weights", "FasterRCNN_ResNet50_FPN_Weights"),
    "resnet101": ("ResNet101_Weights",),
}


class PretrainedError(ValueError):
    """The weights cannot be used; the message names them and says what to do."""


def read_weights(weights: str, backbone: str) -> dict[str, Tensor]:
    """State dict of a file (.safetensors, .pth, .pt) or of torchvision's weights by name.

    A name is a member, ``IMAGENET1K_V2``, of the enums of ``backbone``, or a full one,
    ``ResNet50_Weights.IMAGENET1K_V2``; torchvision downloads it once. Names are as in today's
    torchvision. Raises PretrainedError.
    """
    path = Path(weights)
    if path.suffix in SUFFIXES or path.is_file():
        state = _read_file(path)
    else:
        state = _download(_member(weights, backbone))
    return {_today(name): value for name, value in state.items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise PretrainedError(f"weights {path} do not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PretrainedError(f"{path} holds no weights that can be read: {reason}") from error
    for key in ("model", "state_dict"):  # as training scripts save them
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise PretrainedError(f"{path} holds no state dict: save model.state_dict() into it")
    return content


def _member(weights: str, backbone: str) -> WeightsEnum:
    """The member of torchvision's enums that ``weights`` names."""
    names = [weights] if "." in weights else [f"{enum}.{weights}" for enum in ENUMS[backbone]]
    for name in names:
        try:
            return get_weight(name)
        except (AttributeError, KeyError, ValueError):
            continue
    raise PretrainedError(
        f"weights {weights!r} are neither a file ({', '.join(SUFFIXES)}) nor torchvision's for "
        f"{backbone}, which are the members of {', '.join(ENUMS[backbone])}"
    )


def _download(member: WeightsEnum) -> dict[str, Tensor]:
    try:
        return dict(
            member.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
            )
        )
    except (OSError, HTTPException, RuntimeError) as error:
        raise PretrainedError(
            f"cannot download torchvision's {member!r} ({error}): fetch {member.url} where there "
            "is a network, and give the path of the file as model.weights"
        ) from error


def _today(name: str) -> str:
    """Names of torchvision 0.13 and before, as in the published COCO_V1, in today's form."""
    name = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    return re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)

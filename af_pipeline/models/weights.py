"""State dicts of torchvision's models from a file or by name; never unpickles code."""

from __future__ import annotations

import pickle
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_weight

from af_pipeline.models.backbones import Backbone, MobileNetV2Features
from af_pipeline.models.checkpoint import load_detector
from af_pipeline.models.detector import Detector
from af_pipeline.models.info import info_path

COUNTER = "num_batches_tracked"  # of batch norms; frozen ones have none, nobody misses it

# What follows the body in torchvision's detectors, each read by the next: (pattern of our
# names, the part that feeds it). A part is taken whole or not at all.
PARTS = {
    "fpn": (r"(neck\.)?fpn\.", "body"),
    "rpn": (r"rpn\.head\.", "fpn"),
    "box head": (r"roi_heads\.box_head\.", "fpn"),
    "box predictor": (r"roi_heads\.box_predictor\.", "box head"),
}

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


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did: ``used`` and ``left_out`` are names in the weights,
    ``initialised`` names of the detector that kept their random start.
    """

    weights: str
    used: tuple[str, ...]
    left_out: tuple[str, ...]
    initialised: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.weights}: {len(self.used)} entries used; left out: {_heads(self.left_out)}; "
            f"of the detector still random: {_heads(self.initialised)}"
        )


def load_pretrained(detector: Detector, weights: str) -> LoadReport:
    """Start ``detector`` from torchvision weights: a file or a name, see `read_weights`.

    A classifier's state dict fills the backbone. A torchvision detector's fills it too, and of
    the FPN (levels matched by stride), the RPN, the box head and the box predictor those whose
    every shape fits; a predictor fits when the number of classes agrees. Weights of batch norms
    and of frozen ones serve each other.

    Raises PretrainedError, and leaves the detector as it was, when the weights are of an unknown
    kind or their body is not the detector's.
    """
    state = read_weights(weights, detector.backbone.name)
    prefix = _body_prefix(state, weights)
    own = detector.state_dict()
    chosen = _body_names(detector.backbone, own, state, prefix, weights)
    if prefix == "backbone.body.":
        chosen |= _part_names(own, state)
    with torch.no_grad():
        detector.load_state_dict(own | {name: state[source] for name, source in chosen.items()})
    used = set(chosen.values())
    return LoadReport(
        weights,
        tuple(name for name in state if name in used and not name.endswith(COUNTER)),
        tuple(name for name in state if name not in used and not name.endswith(COUNTER)),
        tuple(name for name in own if name not in chosen and not name.endswith(COUNTER)),
    )


def _body_prefix(state: dict[str, Tensor], weights: str) -> str:
    """What precedes the body's names, which tells the kind of the state dict."""
    if any(name.startswith("backbone.body.") for name in state):
        return "backbone.body."
    if "features.0.0.weight" in state:
        return "features."
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return ""
    raise PretrainedError(
        f"weights {weights} are neither a torchvision classifier (conv1., layer1. or features.) "
        f"nor a torchvision detector (backbone.body.); their first names are "
        f"{', '.join(list(state)[:3]) or 'none'}"
    )


def _body_names(
    backbone: Backbone,
    own: dict[str, Tensor],
    state: dict[str, Tensor],
    prefix: str,
    weights: str,
) -> dict[str, str]:
    """Our names of the body -> theirs. Raises PretrainedError unless all is there and fits."""
    inner = "blocks." if isinstance(backbone, MobileNetV2Features) else ""
    found = {
        f"backbone.{inner}{name.removeprefix(prefix)}": name
        for name in state
        if name.startswith(prefix)
    }
    wanted = [name for name in own if name.startswith("backbone.") and not name.endswith(COUNTER)]
    _check_norms(backbone, found, weights)
    missing = [name for name in wanted if name not in found]
    surplus = [name for ours, name in found.items() if ours not in own and _is_body(ours)]
    for names, what in ((missing, "lack"), (surplus, "have in surplus")):
        if names:
            raise PretrainedError(
                f"weights {weights} {what} {len(names)} entries of the body, first {names[0]!r}: "
                f"expected those of {backbone.name}"
            )
    for name in wanted:
        theirs, ours = tuple(state[found[name]].shape), tuple(own[name].shape)
        if theirs != ours:
            raise PretrainedError(
                f"weight {found[name]!r} of {weights} has shape {theirs}, the backbone wants "
                f"{ours}: use weights of the same architecture and width"
            )
    return {name: found[name] for name in own if name in found and name.startswith("backbone.")}


def _is_body(name: str) -> bool:
    """Whether a backbone of ours could have this name: not the classifying end, not a counter."""
    if name.endswith(COUNTER):
        return False
    end = MobileNetV2Features.LAST_BLOCK["32"]
    block = re.match(r"backbone\.blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1)) <= end
    return re.match(r"backbone\.(conv1|bn1|layer\d)\.", name) is not None


def _check_norms(backbone: Backbone, found: Iterable[str], weights: str) -> None:
    """Factors of batch norms would go unnoticed into group norms, whose names are the same."""
    group = any(isinstance(module, nn.GroupNorm) for module in backbone.modules())
    if group and any(name.endswith("running_mean") for name in found):
        raise PretrainedError(
            f"weights {weights} were trained with batch norms: use norm=bn or norm=frozen_bn"
        )


def _part_names(own: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, str]:
    """Our names -> theirs of the parts after the body that fit, and whose feeding part does."""
    chosen: dict[str, str] = {}
    taken = {"body"}
    for part, (pattern, feeder) in PARTS.items():
        names = {
            name: _their_name(name, state)
            for name in own
            if re.match(pattern, name) and not name.endswith(COUNTER)
        }
        fits = all(n in state and state[n].shape == own[o].shape for o, n in names.items())
        if names and fits and feeder in taken and not _extras(part, names.values(), state):
            taken.add(part)
            chosen |= names
    return chosen


def _their_name(name: str, state: dict[str, Tensor]) -> str:
    """Name in a torchvision detector of our entry ``name`` after the body.

    Their pyramid has finer levels than ours, both end at stride 32; their RPN has one output
    for all levels, ours one for each.
    """
    level = re.match(r"(?:neck\.)?fpn\.(inner|layer)_blocks\.(\d+)\.(.*)", name)
    if level:
        numbers = [re.match(r"backbone\.fpn\.inner_blocks\.(\d+)\.", key) for key in state]
        levels = 1 + max((int(found.group(1)) for found in numbers if found), default=-1)
        index = int(level.group(2)) + levels - 3
        return f"backbone.fpn.{level.group(1)}_blocks.{index}.{level.group(3)}"
    return re.sub(r"^(rpn\.head\.(?:cls_logits|bbox_pred))\.\d+\.", r"\1.", name)


def _extras(part: str, names: Iterable[str], state: dict[str, Tensor]) -> list[str]:
    """Their entries of a part that ours lacks, such as norms or a second convolution."""
    used = set(names)
    around = {"rpn.head."} if part == "rpn" else {".".join(n.split(".")[:-2]) + "." for n in used}
    return [n for n in state if n not in used and n.startswith(tuple(around))]


def _heads(names: Iterable[str]) -> str:
    """Names counted by their first two words: "rpn.head (6), fc (2)"."""
    counts = Counter(".".join(name.split(".")[:-1][:2]) for name in names)
    return ", ".join(f"{head} ({count})" for head, count in counts.items()) or "nothing"


def start_from(detector: Detector, weights: str) -> LoadReport:
    """Start ``detector`` from a checkpoint of this project or, else, as `load_pretrained` does.

    Of a checkpoint (.safetensors with its json beside it) every entry of the same name and shape
    is used: all of them for the same detector, all but the last layers for other classes. Raises
    PretrainedError where the backbone is another one, CheckpointError for a broken checkpoint.
    """
    if Path(weights).suffix != ".safetensors" or not info_path(weights).is_file():
        return load_pretrained(detector, weights)
    theirs = load_detector(weights)[0].state_dict()
    own = detector.state_dict()
    used = {name for name, value in own.items() if _shape(theirs.get(name)) == value.shape}
    strange = [name for name in own if name.startswith("backbone.") and name not in used]
    if strange:
        raise PretrainedError(
            f"checkpoint {weights} has another backbone ({strange[0]!r} does not fit): set "
            "model.backbone, width and norm as in its json, or leave model.weights out"
        )
    with torch.no_grad():
        detector.load_state_dict(own | {name: theirs[name] for name in used})
    left_out = tuple(name for name in theirs if name not in used)
    return LoadReport(
        weights, tuple(sorted(used)), left_out, tuple(name for name in own if name not in used)
    )


def _shape(value: torch.Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape

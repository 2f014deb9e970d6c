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

from af_pipeline.models.backbones import Backbone
from af_pipeline.models.checkpoint import load_detector
from af_pipeline.models.detector import Detector
from af_pipeline.models.info import info_path

COUNTER = "num_batches_tracked"  # of batch norms; frozen ones have none, nobody misses it

# A backbone's part of torchvision's names: (what ours have before them, the pattern of theirs
# without the classifying end).
BODIES = {
    "mobilenet_v2": ("blocks.", r"(\d|1[0-6])\."),
    "resnet50": ("", r"(conv1|bn1|layer\d)\."),
    "resnet101": ("", r"(conv1|bn1|layer\d)\."),
}

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
    """What was taken of ``weights``: ``used`` and ``left_out`` are names in them, ``initialised``
    names of the detector that kept their random start.
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
    same = {n: n for n, value in own.items() if n in theirs and theirs[n].shape == value.shape}
    strange = [name for name in own if name.startswith("backbone.") and name not in same]
    if strange:
        raise PretrainedError(
            f"checkpoint {weights} has another backbone ({strange[0]!r} does not fit): set "
            "model.backbone, width and norm as in its json, or leave model.weights out"
        )
    return _take(detector, theirs, same, weights)


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
    body = _body_prefix(state, weights)
    own = detector.state_dict()
    names = {name: _their_name(name, state, body, detector.backbone.name) for name in own}
    wanted = {ours: theirs for ours, theirs in names.items() if ours.startswith("backbone.")}
    _check_body(detector.backbone, wanted, state, body, weights)
    chosen = {ours: theirs for ours, theirs in wanted.items() if theirs in state}
    taken = {"body"} if body == "backbone.body." else set()
    for part, (pattern, feeder) in PARTS.items():
        wanted = {ours: theirs for ours, theirs in names.items() if re.match(pattern, ours)}
        fits = all(n in state and state[n].shape == own[o].shape for o, n in wanted.items())
        if wanted and fits and feeder in taken and not _extras(part, wanted.values(), state):
            taken.add(part)
            chosen |= wanted
    return _take(detector, state, chosen, weights)


def _take(
    detector: Detector, state: dict[str, Tensor], chosen: dict[str, str], weights: str
) -> LoadReport:
    """Load the entries ``chosen``: our names -> theirs in ``state``."""
    detector.load_state_dict({o: state[n] for o, n in chosen.items()}, strict=False)
    used = set(chosen.values())
    return LoadReport(
        weights,
        tuple(name for name in state if name in used and not name.endswith(COUNTER)),
        tuple(name for name in state if name not in used and not name.endswith(COUNTER)),
        tuple(n for n in detector.state_dict() if n not in chosen and not n.endswith(COUNTER)),
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


def _their_name(name: str, state: dict[str, Tensor], body: str, backbone: str) -> str:
    """Name of our entry ``name`` in ``state``, whose body's names begin with ``body``.

    Their pyramid has finer levels than ours, both end at stride 32; their RPN has one output
    for all levels, ours one for each.
    """
    if name.startswith("backbone."):
        return body + name.removeprefix("backbone.").removeprefix(BODIES[backbone][0])
    level = re.match(r"(?:neck\.)?fpn\.(inner|layer)_blocks\.(\d+)\.(.*)", name)
    if level:
        levels = len({n.split(".")[3] for n in state if n.startswith("backbone.fpn.inner_blocks.")})
        index = int(level.group(2)) + levels - 3
        return f"backbone.fpn.{level.group(1)}_blocks.{index}.{level.group(3)}"
    return re.sub(r"^(rpn\.head\.(?:cls_logits|bbox_pred))\.\d+\.", r"\1.", name)


def _check_body(
    backbone: Backbone, wanted: dict[str, str], state: dict[str, Tensor], body: str, weights: str
) -> None:
    """Raise PretrainedError unless all ``wanted`` of the body, our names -> theirs, is there."""
    theirs = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    # Factors of batch norms would go unnoticed into group norms, whose names are the same.
    group = any(isinstance(module, nn.GroupNorm) for module in backbone.modules())
    if group and any(n.startswith(body) and n.endswith("running_mean") for n in theirs):
        raise PretrainedError(
            f"weights {weights} were trained with batch norms: use norm=bn or norm=frozen_bn"
        )
    pattern = re.compile(re.escape(body) + BODIES[backbone.name][1])
    used = set(wanted.values())
    missing = [n for n in wanted.values() if n not in theirs and not n.endswith(COUNTER)]
    surplus = [name for name in theirs if pattern.match(name) and name not in used]
    for names, what in ((missing, "lack"), (surplus, "have in surplus")):
        if names:
            raise PretrainedError(
                f"weights {weights} {what} {len(names)} entries of the body, first {names[0]!r}: "
                f"expected those of {backbone.name}"
            )
    own = backbone.state_dict(prefix="backbone.")
    for ours, name in wanted.items():
        if name in theirs and theirs[name].shape != own[ours].shape:
            raise PretrainedError(
                f"weight {name!r} of {weights} has shape {tuple(theirs[name].shape)}, the backbone "
                f"wants {tuple(own[ours].shape)}: use weights of the same architecture and width"
            )


def _extras(part: str, names: Iterable[str], state: dict[str, Tensor]) -> list[str]:
    """Their entries of a part that ours lacks, such as norms or a second convolution."""
    used = set(names)
    around = {"rpn.head."} if part == "rpn" else {".".join(n.split(".")[:-2]) + "." for n in used}
    return [n for n in state if n not in used and n.startswith(tuple(around))]


def _heads(names: Iterable[str]) -> str:
    """Names counted by their first two words: "rpn.head (6), fc (2)"."""
    counts = Counter(".".join(name.split(".")[:-1][:2]) for name in names)
    return ", ".join(f"{head} ({count})" for head, count in counts.items()) or "nothing"

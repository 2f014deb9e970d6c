"""Starting a detector from torchvision's weights: what of them fits goes where it belongs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from af_pipeline.model.backbones import Backbone, MobileNetV2Features
from af_pipeline.model.base import Detector
from af_pipeline.model.weights import PretrainedError, read_weights

COUNTER = "num_batches_tracked"  # of batch norms; frozen ones have none, nobody misses it

# What follows the body in torchvision's detectors, each read by the next: (pattern of our
# names, the part that feeds it). A part is taken whole or not at all.
PARTS = {
    "fpn": (r"(neck\.)?fpn\.", "body"),
    "rpn": (r"rpn\.head\.", "fpn"),
    "box head": (r"roi_heads\.box_head\.", "fpn"),
    "box predictor": (r"roi_heads\.box_predictor\.", "box head"),
}


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

"""Checkpoints: weights in safetensors, everything else in a json beside them; never pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from af_pipeline.model.base import Detector
from af_pipeline.model.detector import AutoFocusDetector
from af_pipeline.model.faster_rcnn import FasterRCNN

SCHEMA_VERSION = 1
MODEL_KEYS = ("backbone", "width", "channels", "head_depth")  # what every json has, old ones too


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class CheckpointInfo:
    """The json beside the weights.

    ``model``: what `build_detector` takes; ``class_names``: by label index; ``training``: the
    resolved training config, data and step it came from.
    """

    model: dict[str, Any]
    class_names: tuple[str, ...]
    training: dict[str, Any]
    schema_version: int = SCHEMA_VERSION


def info_path(weights: str | Path) -> Path:
    """The json beside a ``.safetensors`` file."""
    return Path(weights).with_suffix(".json")


def build_detector(model: dict[str, Any], num_classes: int) -> Detector:
    """Detector from a checkpoint's or a config's model section.

    ``kind`` is ``dense`` (also where it is missing) or ``faster_rcnn``; optional keys that are
    missing take the detector's defaults, keys of others are not its business. Raises ValueError
    for what cannot be built.
    """
    kind = model.get("kind", "dense")
    if kind == "dense":
        if model.get("neck", "fpn") != "fpn":
            raise ValueError(f"kind=dense takes neck=fpn, found neck={model['neck']}")
        return AutoFocusDetector(num_classes, **_arguments(model, ("head_depth",), ("norm",)))
    if kind == "faster_rcnn":
        optional = ("neck", "norm", "anchor_sizes", "anchor_ratios")
        return FasterRCNN(num_classes, **_arguments(model, (), optional))
    raise ValueError(f"unknown kind {kind!r}; known: dense, faster_rcnn")


def _arguments(
    model: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, Any]:
    names = ("backbone", "width", "channels", *required, *(k for k in optional if k in model))
    return {name: model[name] for name in names}


def save_checkpoint(weights: str | Path, state: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Write ``weights`` (.safetensors) and its json, each put in place when complete."""
    path = Path(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, str(partial))
    text = {
        "schema_version": info.schema_version,
        "class_names": list(info.class_names),
        "model": info.model,
        "training": info.training,
    }
    partial_info = path.with_suffix(".json.partial")
    partial_info.write_text(json.dumps(text, indent=2) + "\n")
    partial_info.replace(info_path(path))
    partial.replace(path)


def load_info(weights: str | Path) -> CheckpointInfo:
    """Read the json beside ``weights``. Raises CheckpointError when it is missing or unfit."""
    path = info_path(weights)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {weights} has no {path.name} beside it") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no object but {type(content).__name__}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}: "
            "train again or use the matching release"
        )
    model = content.get("model")
    missing = [] if isinstance(content.get("class_names"), list) else ["a list class_names"]
    if isinstance(model, dict):
        missing += [f"model.{key}" for key in MODEL_KEYS if key not in model]
    else:
        missing.append("an object model")
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    names = tuple(content["class_names"])
    return CheckpointInfo(content["model"], names, content.get("training", {}), version)


def load_detector(weights: str | Path) -> tuple[Detector, CheckpointInfo]:
    """Detector in eval mode with its weights, on the CPU. Raises CheckpointError."""
    if not Path(weights).is_file():
        raise CheckpointError(
            f"checkpoint {weights} does not exist: set checkpoint= to a .safetensors file, or "
            "train one with jobs/train.py"
        )
    info = load_info(weights)
    try:
        state = load_file(str(weights))
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is not a safetensors file: {error}") from error
    try:
        detector = build_detector(info.model, len(info.class_names))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{info_path(weights)} has an unfit model: {error}") from error
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{weights} does not fit its json's model: {error}") from error
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return detector.eval(), info


def checkpoint_hash(weights: str | Path) -> str:
    """First 16 hex digits of the SHA-256 of the weights and their json."""
    digest = hashlib.sha256()
    for path in (Path(weights), info_path(weights)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

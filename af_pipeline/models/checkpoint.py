"""Checkpoints: weights in safetensors, everything else in a json beside them; never pickle."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from af_pipeline.models.detector import Detector
from af_pipeline.models.info import CheckpointError, CheckpointInfo, info_path, load_info
from af_pipeline.settings.train import ModelConfig

# Kind of detector -> what builds it of a number of classes and a `ModelConfig`.
DETECTORS = {
    "dense": "af_pipeline.models.dense:DenseDetector",
    "faster_rcnn": "af_pipeline.models.rcnn:FasterRCNN",
}
_DTYPES = {torch.float32: "F32", torch.int64: "I64"}  # of all detectors' tensors


def build_detector(model: Mapping[str, Any], num_classes: int) -> Detector:
    """Detector with random weights from a checkpoint's or a config's model section.

    Keys that are missing take the defaults of `ModelConfig`; keys that it does not know are
    none of the detector's business. Raises ValueError for what cannot be built.
    """
    known = {key: value for key, value in model.items() if key in ModelConfig.model_fields}
    config = ModelConfig(**known)
    return pkgutil.resolve_name(DETECTORS[config.kind])(num_classes, config)


def save_checkpoint(weights: str | Path, state: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Write ``weights`` (.safetensors) and its json, each put in place when complete."""
    path = Path(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, str(partial))
    partial_info = path.with_suffix(".json.partial")
    partial_info.write_text(json.dumps(asdict(info), indent=2) + "\n")
    partial_info.replace(info_path(path))
    partial.replace(path)


def load_detector(weights: str | Path) -> tuple[Detector, CheckpointInfo]:
    """Detector in eval mode with its weights, on the CPU. Raises CheckpointError.

    Names, shapes and types of all tensors are compared before memory is taken for any.
    """
    info = load_info(weights)
    try:
        with torch.device("meta"):
            wanted = build_detector(info.model, len(info.class_names)).state_dict()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{info_path(weights)} has an unfit model: {error}") from error
    try:
        _check_tensors(weights, wanted)
        state = load_file(str(weights))
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is not a safetensors file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {weights}: {error.strerror or error}") from error
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{weights} holds numbers that are not finite in {name}: its training diverged or "
                "the file is damaged; use an earlier checkpoint"
            )
    detector = build_detector(info.model, len(info.class_names))
    detector.load_state_dict(state)
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return detector.eval(), info


def _check_tensors(weights: str | Path, wanted: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless the file's header has the tensors ``wanted`` and no other."""
    with safe_open(str(weights), "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    own = {name: (_DTYPES[value.dtype], list(value.shape)) for name, value in wanted.items()}
    strange = sorted(name for name in own | found if own.get(name) != found.get(name))
    if strange:
        first = strange[0]
        there, asked = found.get(first, "not there"), own.get(first, "none")
        raise CheckpointError(
            f"{weights} does not fit its json's model in {len(strange)} tensors, first {first:.99} "
            f"({there}, the model has {asked}): put back the json saved with it, or train again"
        )

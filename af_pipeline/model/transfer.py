"""Starting a detector from weights of any origin: a checkpoint of ours, or torchvision's."""

from __future__ import annotations

from pathlib import Path

import torch

from af_pipeline.model.base import Detector
from af_pipeline.model.checkpoint import info_path, load_detector
from af_pipeline.model.pretrained import LoadReport, load_pretrained
from af_pipeline.model.weights import PretrainedError


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

"""Detectors of torchvision.models.detection by the name of their function and a state dict."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from af_pipeline.models.adapters.decoders import one_hot
from af_pipeline.models.foreign import Found, TorchForeign, files_hash
from af_pipeline.models.info import CheckpointError
from af_pipeline.settings.detector import ForeignConfig


class _Ready(nn.Module):
    """Takes the place of a model's transform: images come in the size that they are looked at."""

    mean: Tensor
    std: Tensor

    def __init__(self, transform: GeneralizedRCNNTransform) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(transform.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(transform.image_std).view(1, 3, 1, 1))

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        batch = (torch.stack(images) - self.mean) / self.std
        sizes = [(int(batch.shape[2]), int(batch.shape[3]))] * len(images)
        return ImageList(batch, sizes), targets

    def postprocess(self, result: list[dict[str, Tensor]], *_: Any) -> list[dict[str, Tensor]]:
        return result


class TorchvisionDetector(TorchForeign):
    """A torchvision detector as a `ForeignDetector`; label 0 is the background, as they train.

    ``detector.class_names`` name the other labels, from 1 on. Raises CheckpointError.
    """

    parallel = True

    def __init__(self, config: ForeignConfig) -> None:
        self.identity = files_hash(config.path)
        self.class_names, self.suppresses = config.class_names, True
        if not config.class_names:
            raise CheckpointError(
                f"{config.path} does not name its classes: set detector.class_names"
            )
        self.model = _built(config, len(config.class_names) + 1)
        _load(self.model, config)
        # The boxes that an SSD starts from are shares of its input: it has only one size.
        fixed = getattr(self.model.transform, "fixed_size", None)
        self.shape: tuple[int, int] | None = (fixed[1], fixed[0]) if fixed else None
        self.model.transform = _Ready(self.model.transform)
        self.model.eval()

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.uint8]) -> list[Found]:
        """As of `ForeignDetector`."""
        return [
            one_hot(
                one["boxes"].float().cpu().numpy(),
                one["scores"].float().cpu().numpy(),
                one["labels"].cpu().numpy() - 1,
            )
            for one in self.model(list(self.images(batch)))
        ]


def _built(config: ForeignConfig, num_classes: int) -> Any:
    """The model with random weights: none are fetched."""
    build = getattr(torchvision.models.detection, config.constructor, None)
    if not callable(build) or config.constructor.startswith("_"):
        raise CheckpointError(
            f"torchvision.models.detection has no {config.constructor!r}: detector.constructor "
            "names one of its functions, such as fasterrcnn_resnet50_fpn"
        )
    if "num_classes" in config.arguments:
        raise CheckpointError(
            "detector.arguments: num_classes follows from detector.class_names, leave it out"
        )
    given = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
    try:
        model = build(**(given | config.arguments))
    except Exception as error:
        text = " ".join(str(error).split())
        raise CheckpointError(
            f"torchvision's {config.constructor} cannot be built with detector.arguments "
            f"{config.arguments}: {text}"
        ) from error
    # Some of them take any keyword and use those they know.
    takes = set(inspect.signature(build).parameters)
    for kind in type(model).__mro__:
        takes |= set(inspect.signature(kind).parameters)
    unknown = sorted(set(config.arguments) - takes)
    if unknown:
        raise CheckpointError(
            f"torchvision's {config.constructor} takes no {', '.join(unknown)}: "
            "detector.arguments are those of its documentation"
        )
    return model


def _load(model: nn.Module, config: ForeignConfig) -> None:
    try:
        if Path(config.path).suffix == ".safetensors":
            state: Any = load_file(config.path)
        else:
            state = torch.load(config.path, map_location="cpu", weights_only=True)
    except Exception as error:  # of torch's, pickle's and safetensors' many kinds
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{config.path} is no state dict in a .pth or .safetensors file: {text}"
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):  # as training scripts nest them
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{config.path} does not fit {config.constructor} with {len(config.class_names)} "
            f"classes and the background: {text}"
        ) from error

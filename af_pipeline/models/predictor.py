"""The torch detector as the cascade's predictor: pad to a common shape, forward, back to numpy."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from af_pipeline.core.cascade import Prediction
from af_pipeline.core.focus import STRIDE
from af_pipeline.core.lanes import Lane
from af_pipeline.models.dense import Tower
from af_pipeline.models.detector import DEFAULT, INPUT_MULTIPLE, Detector, Output, Selection
from af_pipeline.settings.index import IndexConfig
from af_pipeline.sniper.sample import PAD_VALUE

Switch = bool | Literal["auto"]
Network = TypeVar("Network", bound=nn.Module)


def pad_batch(
    crops: Sequence[NDArray[np.uint8]],
    shape: tuple[int, int] | None,
    multiple: int = INPUT_MULTIPLE,
    gray: int = PAD_VALUE,
) -> NDArray[np.uint8]:
    """Crops [h, w, 3] -> one batch [N, H, W, 3] padded by ``gray``; H, W multiples of ``multiple``.

    ``shape`` (height, width) fixes the canvas; None takes the largest crop rounded up.
    """
    height, width = shape or (max(c.shape[0] for c in crops), max(c.shape[1] for c in crops))
    height = -(-height // multiple) * multiple
    width = -(-width // multiple) * multiple
    batch = np.full((len(crops), height, width, 3), gray, np.uint8)
    for canvas, crop in zip(batch, crops, strict=True):
        canvas[: crop.shape[0], : crop.shape[1]] = crop
    return batch


@dataclass(frozen=True, kw_only=True)
class PredictorOptions:
    """How a `TorchPredictor` answers.

    ``pad_to_lane``: one shape for all forwards of a lane; ``proposals``: answer with the
    detector's class-agnostic proposals, label 0, for negative chips: ``selection`` then plays no
    part and the focus maps are zeros.
    """

    bf16: Switch = "auto"
    pad_to_lane: bool = False
    selection: Selection = DEFAULT
    proposals: bool = False


class TorchPredictor:
    """A `Predictor` of the cascade that holds one detector on one device.

    ``class_names`` by label. On a CPU the cascade makes ``threads`` forwards at once, each on one
    core: two small chips side by side take less time than one after the other on two cores. With
    ``threads`` 1 a forward has the threads that torch is set to.
    """

    def __init__(
        self,
        detector: Detector,
        device: torch.device,
        *,
        options: PredictorOptions | None = None,
        class_names: Sequence[str] = (),
        threads: int = 1,
    ) -> None:
        self.options, self.class_names = options or PredictorOptions(), tuple(class_names)
        self.detector = folded(detector).to(device)
        self.device, self.bf16 = device, use_bf16(self.options.bf16, device)
        if self.bf16:
            _halve(self.detector.backbone)
        self.spread = spread(threads) if threads > 1 and device.type == "cpu" else map

    @torch.inference_mode()
    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Lane) -> list[Prediction]:
        """Crops uint8 [h, w, 3] RGB that fit ``lane`` -> predictions in network px."""
        batch = pad_batch(crops, (lane.height, lane.width) if self.options.pad_to_lane else None)
        tensor = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2)
        sizes = torch.tensor([crop.shape[:2] for crop in crops])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            outputs, focus = self._answers(tensor, sizes)
        maps = focus.float().cpu().numpy()
        canvas = batch.shape[1] * batch.shape[2]
        return [
            Prediction(
                output.boxes.float().cpu().numpy(),
                output.scores.float().cpu().numpy(),
                output.labels.to(torch.int32).cpu().numpy(),
                maps[i],
                canvas - crop.shape[0] * crop.shape[1],
                output.dropped,
            )
            for i, (output, crop) in enumerate(zip(outputs, crops, strict=True))
        ]

    def _answers(self, batch: Tensor, sizes: Tensor) -> tuple[list[Output], Tensor]:
        if not self.options.proposals:
            return self.detector(batch, sizes, self.options.selection)
        count, _, height, width = batch.shape
        focus = torch.zeros(count, height // STRIDE, width // STRIDE)
        return self.detector.proposals(batch, sizes), focus


def _halve(network: nn.Module) -> None:
    """Keep the weights of convolutions as bfloat16: autocast makes them so at each forward."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)


def spread(threads: int) -> Callable[..., Iterator[Any]]:
    """`map` over a pool of threads, in each of which torch takes one core."""
    return ThreadPoolExecutor(threads, "forward", initializer=_take_one_core).map


def _take_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # fixes it for this thread, whatever others set later


def predictor_options(config: IndexConfig) -> PredictorOptions:
    """What an index config says of its `TorchPredictor`, detector and device apart."""
    # Stacking only lowers scores: what is below its bound is never written.
    least = max(config.detector_score, config.stack.min_score)
    return PredictorOptions(
        bf16=config.bf16,
        pad_to_lane=config.lanes.pad,
        selection=Selection(least, config.detector_nms, config.detector_max),
        proposals=config.finds == "proposals",
    )


class DeviceError(ValueError):
    """The asked-for device is not there."""


def pick_device(name: str) -> torch.device:
    """ "auto" takes a GPU where there is one; "cuda" without one raises DeviceError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device=cuda, but torch sees no GPU here: use device=auto or cpu")
    return torch.device(name)


def use_bf16(switch: Switch, device: torch.device) -> bool:
    """Whether to compute in bfloat16; "auto": where ``device`` has instructions for it.

    Without them a CPU emulates each product: 16 times as slow as float32 where measured
    (AVX2, docs/LOG.md).
    """
    if switch != "auto":
        return switch
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


# ---- folding


def folded(network: Network) -> Network:
    """A copy in eval mode whose batch norms are part of the convolutions before them.

    It does the same with fewer passes over memory. Frozen batch norms too; group norms stay, they
    depend on the input. For inference only: its state dict no longer fits the checkpoint's.
    """
    copied = copy.deepcopy(network).eval()
    for module in list(copied.modules()):
        if isinstance(module, Tower):
            module.fold()
            continue
        children = dict(module.named_children())
        pairs = [  # conv1, bn1 and so on: torchvision's residual blocks and stems
            (name, name.replace("conv", "bn"))
            for name in children
            if re.fullmatch(r"conv\d+", name)
        ]
        for first, second in pairwise(children) if isinstance(module, nn.Sequential) else pairs:
            conv, norm = children[first], children.get(second)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var]
                setattr(module, second, nn.Identity())
    return copied

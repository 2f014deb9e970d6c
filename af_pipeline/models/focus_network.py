"""A small network that says where to look closely, for any detector.

AutoFocus (ICCV 2019) predicts FocusPixels by a head on its detector's own features. This one has
its own: so any detector can have it, and it can be asked before the detector is.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from af_pipeline.core.cascade import Prediction, Predictor
from af_pipeline.core.focus import STRIDE
from af_pipeline.core.lanes import Lane
from af_pipeline.data.storage import replacing
from af_pipeline.models.info import CheckpointError, info_path
from af_pipeline.models.predictor import folded, pad_batch, use_bf16

SCHEMA_VERSION = 1
FOCUS, PRESENT = 0, 1  # channels: objects for a finer scale; objects to be found at this one
BLOCKS = 3
WIDTH = 112


@dataclass(frozen=True)
class FocusInfo:
    """The json beside the weights.

    ``present``: probability below which nothing is there to be found; ``detector``: hash of the
    weights it was distilled from; ``training``: how.
    """

    present: float
    detector: str
    training: dict[str, Any]
    kind: str = "focus_network"
    schema_version: int = SCHEMA_VERSION


class _Separable(nn.Sequential):
    """Depthwise 5x5, then 1x1 out and back."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 3 * width, 1, bias=False),
            nn.BatchNorm2d(3 * width),
            nn.ReLU(),
            nn.Conv2d(3 * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _down(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, stride + 1, stride, stride // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class FocusNetwork(nn.Module):
    """Uint8 RGB to two maps of stride 16; about 0.3 million parameters.

    Its input is padded by gray to multiples of 16 inside, ``info`` tells what it was made of.
    """

    def __init__(self, info: FocusInfo, identity: str = "") -> None:
        super().__init__()
        self.info, self.identity = info, identity
        self.layers = nn.Sequential(
            *_down(3, 24, 4),
            *_down(24, 48, 2),
            *_down(48, WIDTH, 2),
            *(_Separable(WIDTH) for _ in range(BLOCKS)),
        )
        self.logits = nn.Conv2d(WIDTH, 2, 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.constant_(self.logits.bias, -2.2)  # type: ignore[arg-type]

    def forward(self, batch: Tensor) -> Tensor:
        """Batch uint8 [N, 3, H, W], H and W multiples of 16 -> logits [N, 2, H/16, W/16]."""
        values = (batch.float() - 128) / 64
        found: Tensor = self.logits(
            self.layers(values.contiguous(memory_format=torch.channels_last))
        )
        return found


class FocusedPredictor:
    """A `Predictor` whose focus maps come from a `FocusNetwork`.

    ``first``: the detector does not look at crops in which the network sees nothing to be found;
    ``predict``: the detector's own predictor.
    """

    def __init__(
        self, predict: Predictor, network: FocusNetwork, device: torch.device, first: bool = False
    ) -> None:
        self.predict, self.device, self.first = predict, device, first
        self.network, self.info = folded(network).to(device), network.info
        self.class_names = predict.class_names
        self.spread = getattr(predict, "spread", map)

    def always(self) -> FocusedPredictor:
        """The same, with a detector that looks at every crop."""
        changed = copy.copy(self)
        changed.first = False
        return changed

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Lane) -> list[Prediction]:
        """Crops uint8 [h, w, 3] RGB that fit ``lane`` -> predictions in network px."""
        maps = focus_maps(self.network, crops, self.device)
        wanted = list(range(len(crops)))
        if self.first:
            wanted = [i for i in wanted if self._seen(maps[i], crops[i])]
        answers = self.predict([crops[i] for i in wanted], lane) if wanted else []
        found = dict(zip(wanted, answers, strict=True))
        return [replace(found.get(i, _NOTHING), focus=maps[i][FOCUS]) for i in range(len(crops))]

    def _seen(self, maps: NDArray[np.float32], crop: NDArray[np.uint8]) -> bool:
        rows, columns = (-(-side // STRIDE) for side in crop.shape[:2])
        return bool((maps[PRESENT, :rows, :columns] >= self.info.present).any())


_NOTHING = Prediction(
    np.zeros((0, 4), np.float32),
    np.zeros(0, np.float32),
    np.zeros(0, np.int32),
    np.zeros((0, 0), np.float32),
    looked=False,
)


@torch.inference_mode()
def focus_maps(
    network: nn.Module, crops: Sequence[NDArray[np.uint8]], device: torch.device
) -> NDArray[np.float32]:
    """What ``network``, on ``device``, sees in crops uint8 [h, w, 3] of about one size.

    Probabilities float32 [N, 2, h/16, w/16], of the crops padded to one shape.
    """
    batch = torch.from_numpy(pad_batch(crops, None)).to(device).permute(0, 3, 1, 2)
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto", device)):
        logits = network(batch)
    maps: NDArray[np.float32] = logits.float().sigmoid().cpu().numpy()
    return maps


def save_focus_network(network: FocusNetwork, path: str | Path) -> None:
    """Write ``path`` (.safetensors) and the json beside it."""
    weights = Path(path)
    weights.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    with replacing(weights) as partial:
        save_file(state, str(partial))
        info_path(weights).write_text(json.dumps(asdict(network.info), indent=2) + "\n")


def load_focus_network(path: str | Path) -> FocusNetwork:
    """Read what `save_focus_network` wrote. Raises CheckpointError."""
    try:
        data, text = Path(path).read_bytes(), info_path(path).read_bytes()
        content = json.loads(text)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"focus.network.path={path} cannot be read: {reason}; jobs/distill.py makes one"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{info_path(path)} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != "focus_network":
        raise CheckpointError(f"{path} is no focus network: jobs/distill.py makes one")
    try:
        info = FocusInfo(**content)
        if info.schema_version != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {info.schema_version}, not {SCHEMA_VERSION}")
        network = FocusNetwork(info, hashlib.sha256(data + text).hexdigest()[:16])
        network.load_state_dict(load(data))
    except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is no focus network of this release: {reason}") from error
    return network.eval()

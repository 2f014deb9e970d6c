"""A detector of another maker as the cascade's predictor: canvas, forward, selection, focus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from af_pipeline.core.cascade import Prediction
from af_pipeline.core.lanes import Lane
from af_pipeline.core.weak import weak_focus
from af_pipeline.models.detector import Selection, select_detections
from af_pipeline.models.info import CheckpointError
from af_pipeline.models.predictor import pad_batch
from af_pipeline.settings.detector import ForeignConfig

# Of one image: boxes [A, 4] (x0, y0, x1, y1 network px) and scores [A, C].
Found = tuple[NDArray[np.float32], NDArray[np.float32]]

WEAK_SCORE = 0.01  # least score of a detection that may ask for a closer look


class ForeignDetector(Protocol):
    """What each adapter makes of a detector; it goes through pickle until it is started.

    ``class_names`` by label; ``shape``: (height, width) of the only input it takes, None: any;
    ``suppresses``: its boxes went through its own NMS; ``parallel``: several threads may call it
    at once; ``identity``: hash of its weights.
    """

    class_names: tuple[str, ...]
    shape: tuple[int, int] | None
    suppresses: bool
    parallel: bool
    identity: str

    def start(self, device: str, threads: int) -> None:
        """Make it ready on a device of this process, a forward by ``threads`` cores."""

    def __call__(self, batch: NDArray[np.uint8]) -> Sequence[Found]:
        """What it finds in each image of a batch uint8 [N, H, W, 3] RGB."""


class TorchForeign:
    """What foreign detectors in torch share: ``model`` on a device, images as it takes them."""

    model: Any
    device: str

    def start(self, device: str, threads: int) -> None:
        """As of `ForeignDetector`; a forward takes the threads that torch is set to."""
        self.model.to(device)
        self.device = device

    def images(self, batch: NDArray[np.uint8]) -> torch.Tensor:
        """Float [N, 3, H, W], 0 to 1, on the device."""
        return torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float() / 255


class ForeignPredictor:
    """A `Predictor` of the cascade that holds a started `ForeignDetector`; ``spread`` as there.

    Its focus map is that of its weak detections (`weak_focus`).
    """

    def __init__(
        self,
        detector: ForeignDetector,
        config: ForeignConfig,
        selection: Selection,
        spread: Callable[..., Iterator[Any]] = map,
    ) -> None:
        self.detector, self.config, self.spread = detector, config, spread
        self.class_names = detector.class_names
        iou = 1.0 if detector.suppresses else selection.nms_iou
        self.least = selection.min_score
        self.selection = Selection(min(WEAK_SCORE, self.least), iou, selection.most)

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Lane) -> list[Prediction]:
        """Crops uint8 [h, w, 3] RGB that fit ``lane`` -> predictions in network px."""
        shape = self.detector.shape
        batch = pad_batch(crops, shape, 1 if shape else self.config.multiple, self.config.pad)
        found = self.detector(batch)
        room = batch.shape[1] * batch.shape[2]
        return [
            self._prediction(*one, crop.shape[:2], room)
            for one, crop in zip(found, crops, strict=True)
        ]

    def _prediction(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], size: Any, room: int
    ) -> Prediction:
        height, width = size
        # A box in the padding belongs to no object of the chip.
        own = np.flatnonzero((boxes[:, 0] < width) & (boxes[:, 1] < height))
        output = select_detections(
            torch.from_numpy(np.ascontiguousarray(scores[own])),
            torch.from_numpy(np.ascontiguousarray(boxes[own]))[:, None],
            torch.tensor([height, width]),
            self.selection,
        )
        found, score = output.boxes.numpy(), output.scores.numpy()
        labels = output.labels.numpy().astype(np.int32)
        if labels.max(initial=-1) >= len(self.class_names):
            raise ValueError(
                f"{self.config.path} answers with label {labels.max()}, and only "
                f"{len(self.class_names)} classes are named: set detector.class_names"
            )
        focus = weak_focus(found, score, height, width, self.config.focus_below)
        kept = score >= self.least
        padded = room - height * width
        return Prediction(found[kept], score[kept], labels[kept], focus, padded, output.dropped)


def files_hash(path: str) -> str:
    """First 16 hex digits of the SHA-256 of a file, or of the files of a folder, by name.

    Raises CheckpointError where there is none.
    """
    place = Path(path)
    try:
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        digest = hashlib.sha256()
        for file in files:
            if file.is_file() or not place.is_dir():
                digest.update(str(file.relative_to(place)).encode())
                digest.update(file.read_bytes())
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"detector.path={path} cannot be read: {reason}") from error
    return digest.hexdigest()[:16]


def missing_extra(extra: str, error: ImportError) -> CheckpointError:
    """What to say where a library of an extra is not installed."""
    return CheckpointError(
        f"this detector needs the extra {extra!r}: pip install 'af_pipeline[{extra}]' ({error})"
    )

"""Detectors of Ultralytics' package from a .pt file (the extra ``ultralytics``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from af_pipeline.models.adapters.decoders import yolov8
from af_pipeline.models.foreign import Found, files_hash, missing_extra
from af_pipeline.models.info import CheckpointError
from af_pipeline.settings.detector import ForeignConfig


class UltralyticsDetector:
    """A YOLO of theirs as a `ForeignDetector`; its own letterbox and NMS never run.

    A .pt file is a pickle, which runs code when it is read: ``detector.allow_pickle`` must say
    that its source is trusted; an export to ONNX runs none. Raises CheckpointError.
    """

    suppresses = False
    shape = None
    parallel = True

    def __init__(self, config: ForeignConfig) -> None:
        self.identity, self.path = files_hash(config.path), config.path
        if not config.allow_pickle:
            raise CheckpointError(
                f"{config.path} is a pickle, which can run any code when it is loaded: set "
                "detector.allow_pickle=true if you trust where it is from, or export it to ONNX"
            )
        try:
            from ultralytics import YOLO
        except ImportError as error:
            raise missing_extra("ultralytics", error) from error
        try:
            loaded = YOLO(config.path)
            self.model = loaded.model.float().fuse().eval()
            names = loaded.names
        except Exception as error:  # whatever the pickle does
            text = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{config.path} is no YOLO of Ultralytics: {text}") from error
        self.class_names = config.class_names or tuple(names[key] for key in sorted(names))

    def start(self, device: str, threads: int) -> None:
        """As of `ForeignDetector`; a forward takes the threads that torch is set to."""
        self.model.to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.uint8]) -> list[Found]:
        """As of `ForeignDetector`."""
        images = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float() / 255
        answer: Any = self.model(images)
        values = answer[0] if isinstance(answer, (tuple, list)) else answer
        size = (batch.shape[1], batch.shape[2])
        return [yolov8({"output0": one}, size) for one in values.float().cpu().numpy()]

"""Detectors of Ultralytics' package from a .pt file (the extra ``ultralytics``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from af_pipeline.models.adapters.decoders import listed, yolov8
from af_pipeline.models.foreign import Found, TorchForeign, files_hash, missing_extra
from af_pipeline.models.info import CheckpointError
from af_pipeline.settings.detector import ForeignConfig

_TASKS = ("detect", "segment", "pose")  # whose answers begin with upright boxes and classes


class UltralyticsDetector(TorchForeign):
    """A YOLO of theirs as a `ForeignDetector`; its own letterbox and NMS never run.

    A .pt file is a pickle, which runs code when it is read: ``detector.allow_pickle`` must say
    that its source is trusted; an export to ONNX runs none. Raises CheckpointError.
    """

    shape = None
    parallel = False  # its head keeps the grid of the last input's shape, for all threads

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
            task = loaded.task
            self.model = loaded.model.float().fuse().eval()
            names = loaded.names
        except Exception as error:  # whatever the pickle does
            text = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{config.path} is no YOLO of Ultralytics: {text}") from error
        if task not in _TASKS:
            raise CheckpointError(
                f"{config.path} is for the task {task!r}: a model for {', '.join(_TASKS)} is needed"
            )
        if type(self.model).__name__.startswith("RTDETR"):  # its boxes are shares of the input
            raise CheckpointError(
                f"{config.path} is an RT-DETR of Ultralytics, which is not supported: take one of "
                "Hugging Face's, or its authors' ONNX export"
            )
        self.columns = 4 + len(names)
        self.class_names = config.class_names or tuple(names[key] for key in sorted(names))
        if len(self.class_names) != len(names):
            raise CheckpointError(
                f"{config.path} finds {len(names)} classes, and {len(self.class_names)} are named: "
                "leave detector.class_names out, the file has them"
            )
        self.suppresses = self._lists()

    def _lists(self) -> bool:
        """Whether it answers with boxes that are already selected, as YOLOv10 may."""
        with torch.inference_mode():
            _, rows, columns = self._answer(torch.zeros(1, 3, 64, 96)).shape
        if rows >= self.columns and columns != 6:
            return False
        if columns == 6:
            return True
        raise CheckpointError(f"{self.path} answers with [{rows}, {columns}], which no YOLO does")

    def _answer(self, images: torch.Tensor) -> torch.Tensor:
        answer: Any = self.model(images)
        while isinstance(answer, (tuple, list)):
            answer = answer[0]
        values: torch.Tensor = answer
        return values

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.uint8]) -> list[Found]:
        """As of `ForeignDetector`."""
        values = self._answer(self.images(batch)).float().cpu().numpy()
        size = (batch.shape[1], batch.shape[2])
        if self.suppresses:
            return [listed({"output0": one}, size) for one in values]
        return [yolov8({"output0": one[: self.columns]}, size) for one in values]

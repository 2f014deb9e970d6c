"""Detectors of Hugging Face's transformers, by folder or name (the extra ``huggingface``)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from af_pipeline.models.adapters.decoders import Decoded, corners_of, sigmoid
from af_pipeline.models.foreign import Found, TorchForeign, files_hash, missing_extra
from af_pipeline.models.info import CheckpointError
from af_pipeline.settings.detector import ForeignConfig


class HuggingFaceDetector(TorchForeign):
    """A model of `AutoModelForObjectDetection`, or with ``detector.prompts`` of
    `AutoModelForZeroShotObjectDetection`, as a `ForeignDetector`.

    The processor's own resize never runs; its mean and std do. Raises CheckpointError.
    """

    suppresses = True
    shape = None
    parallel = True

    def __init__(self, config: ForeignConfig) -> None:
        self.path, self.prompts = config.path, config.prompts
        if config.path.startswith((".", "/", "~")) and not Path(config.path).exists():
            raise CheckpointError(f"detector.path={config.path}: there is no such folder")
        self.identity = files_hash(config.path) if Path(config.path).exists() else config.path
        self.model, self.processor = _read(config)
        self.mean = np.array(self._stated("image_mean", (0.485, 0.456, 0.406)), np.float32) * 255
        self.std = np.array(self._stated("image_std", (0.229, 0.224, 0.225)), np.float32) * 255
        if not self._stated("do_normalize", True):
            self.mean, self.std = np.zeros(3, np.float32), np.full(3, 255, np.float32)
        labels = self.model.config.id2label
        own = tuple(labels[key] for key in sorted(labels))
        self.class_names = config.class_names or config.prompts or own
        self.text: dict[str, Any] = {}
        if config.prompts:
            tokens = self.processor.tokenizer(
                list(config.prompts), padding=True, return_tensors="pt"
            )
            self.text = dict(tokens)
        # Without it a model with learned positions takes inputs of one size only.
        takes = inspect.signature(self.model.forward).parameters
        name = "interpolate_pos_encoding"
        self.options = {name: True} if name in takes else {}
        # DETR and YOLOS answer with one more, "no object", and shares of one in sum.
        self.answers = len(config.prompts) or len(labels)
        if len(self.class_names) != self.answers:
            raise CheckpointError(
                f"{config.path} finds {self.answers} classes, and {len(self.class_names)} are "
                "named: leave detector.class_names out, or name each"
            )
        self._check_run(config)

    def _check_run(self, config: ForeignConfig) -> None:
        """Look at one gray image, so that what is wrong is told before anything starts."""
        side = -(-64 // config.multiple) * config.multiple
        self.start("cpu", 1)
        try:
            self(np.full((1, side, side, 3), config.pad, np.uint8))
        except CheckpointError:
            raise
        except Exception as error:  # of the library's many kinds
            text = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{config.path} does not run on an input of {side}x{side} px: {text}; "
                "is detector.multiple what its sides must be multiples of?"
            ) from error

    def _stated(self, name: str, default: Any) -> Any:
        images = getattr(self.processor, "image_processor", self.processor)
        value = getattr(images, name, None)
        return default if value is None else value

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.uint8]) -> list[Found]:
        """As of `ForeignDetector`."""
        values = ((batch - self.mean) / self.std).transpose(0, 3, 1, 2)
        pixels = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.device)
        given = {
            name: value.repeat(len(batch), 1).to(self.device) for name, value in self.text.items()
        }
        outputs = self.model(pixel_values=pixels, **given, **self.options)
        height, width = batch.shape[1:3]
        return [
            self._decoded(logits.float().cpu().numpy(), boxes.float().cpu().numpy(), height, width)
            for logits, boxes in zip(outputs.logits, outputs.pred_boxes, strict=True)
        ]

    def _decoded(
        self, logits: NDArray[np.float32], boxes: NDArray[np.float32], height: int, width: int
    ) -> Decoded:
        """Logits [Q, C] or, of DETR and YOLOS, [Q, C + 1] with "no object" last."""
        classes = self.answers
        if logits.shape[1] == classes + 1:
            shares = np.exp(logits - logits.max(1, keepdims=True))
            scores = (shares / shares.sum(1, keepdims=True))[:, :classes]
        elif logits.shape[1] == classes:
            scores = sigmoid(logits)
        else:
            raise CheckpointError(
                f"{self.path} answers with {logits.shape[1]} scores a box, not with one for each "
                f"of {classes} {'prompts' if self.prompts else 'classes'}: it is not supported"
            )
        scale = np.array([width, height], np.float32)
        return corners_of(boxes[:, :2] * scale, boxes[:, 2:] * scale), scores


def _read(config: ForeignConfig) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("huggingface", error) from error
    zero_shot = transformers.AutoModelForZeroShotObjectDetection
    kind = zero_shot if config.prompts else transformers.AutoModelForObjectDetection
    reader = transformers.AutoProcessor if config.prompts else transformers.AutoImageProcessor
    try:
        model = kind.from_pretrained(config.path, trust_remote_code=False, use_safetensors=True)
        processor = reader.from_pretrained(config.path, trust_remote_code=False)
    except Exception as error:  # of the library's many kinds
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{config.path} is no detector that transformers can load: {text}"
        ) from error
    return model.float().eval(), processor  # a file of half precision is loaded as such

"""The settings of a detector of another maker, and of a focus network beside any detector."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from af_pipeline.config import Section, Side

Kind = Literal["onnx", "torchvision", "huggingface", "ultralytics", "callable"]
Decoder = Literal[
    "yolox", "yolov5", "yolov8", "detr", "rtdetr", "nanodet", "ssd", "fastestdet", "yunet",
    "boxes", "text_map",
]  # fmt: skip
Triple = tuple[float, float, float]

_SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".pt": "ultralytics"}


class ForeignConfig(Section):
    """A detector of another maker; docs/DETECTORS.md has an example of each kind."""

    path: str = Field(
        min_length=1,
        description="file or folder of the weights, on this machine; callable: MODULE:FUNCTION",
    )
    kind: Kind | None = Field(
        None, description="what reads it; null: by the path (.onnx, .pt, MODULE:FUNCTION, a folder)"
    )
    decoder: Decoder | None = Field(
        None, description="onnx: what its outputs mean; null: by their names and shapes"
    )
    class_names: tuple[str, ...] = Field(
        (), description="by label; empty: those that the file holds"
    )
    colours: Literal["rgb", "bgr"] | None = Field(
        None,
        description="onnx: order of the input's channels; null: as its decoder's family has it",
    )
    mean: Triple | None = Field(
        None,
        description="onnx: subtracted from each channel, 0 to 255, in its order; null: as above",
    )
    std: Triple | None = Field(
        None, description="onnx: what each channel is divided by then; null: as above"
    )
    pad: int = Field(114, ge=0, le=255, description="gray of the input beside a chip")
    multiple: Side = Field(
        32, ge=1, description="sides of the input are multiples of this, network px"
    )
    constructor: str = Field("", description="torchvision: name of the model's function")
    arguments: dict[str, Any] = Field({}, description="torchvision: what it is called with")
    prompts: tuple[str, ...] = Field(
        (), description="huggingface: texts to look for, of models that take them"
    )
    allow_pickle: bool = Field(
        False, description="ultralytics: load a .pt file, which may run any code when it is loaded"
    )
    focus_below: float = Field(
        64,
        gt=0,
        description="without a focus network: a weak detection of a smaller side (square root of "
        "its area, network px) asks for a closer look",
    )

    @model_validator(mode="after")
    def _known(self) -> ForeignConfig:
        if self.reader == "torchvision" and not self.constructor:
            raise ValueError(
                "a torchvision detector needs its constructor: set detector.constructor="
                "fasterrcnn_resnet50_fpn or another of torchvision.models.detection"
            )
        if self.std is not None and 0 in self.std:
            raise ValueError("std holds a 0, by which nothing can be divided")
        return self

    @property
    def reader(self) -> Kind:
        """What reads the weights. Raises ValueError where the path does not say it."""
        if self.kind is not None:
            return self.kind
        if self.constructor:
            return "torchvision"
        for suffix, kind in _SUFFIXES.items():
            if self.path.lower().endswith(suffix):
                return kind
        module, colon, function = self.path.partition(":")
        if colon and function.isidentifier() and module.replace(".", "_").isidentifier():
            return "callable"
        name = self.path.rstrip("/").rpartition("/")[2]
        if "." not in name:
            return "huggingface"
        raise ValueError(
            f"{self.path} does not say what reads it: set detector.kind to onnx, torchvision, "
            "huggingface, ultralytics or callable (of ours: checkpoint=)"
        )


class FocusNetworkConfig(Section):
    """A network of its own that says where to look closely, whatever detector looks."""

    path: str = Field(min_length=1, description=".safetensors file, as jobs/distill.py writes it")
    first: bool = Field(
        False,
        description="ask it before the detector, and do without that where it sees nothing at all",
    )

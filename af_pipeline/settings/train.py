"""The settings of training and of proposal mining, section by section."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from af_pipeline.config import Count, Section, Threads, rule
from af_pipeline.core.focus import FocusRule
from af_pipeline.core.scales import Scale, check_pyramid
from af_pipeline.images.depth import DepthConfig
from af_pipeline.settings.ray import RayConfig
from af_pipeline.sniper.chips import SniperRule

Paths = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]


@rule
class TrainPart:
    """A part of the training data: one annotation file, and the share of chips that it gives."""

    uri: str
    share: float | None = Field(None, gt=0, description="against the other parts'; all or none")


def _parts(given: Any) -> Any:
    """One path, or paths and parts, as parts."""
    given = (given,) if isinstance(given, str) else given
    if not isinstance(given, (list, tuple)):
        return given
    return tuple({"uri": one} if isinstance(one, str) else one for one in given)


class DataConfig(Section):
    """Training and validation data: COCO json, VOC image sets (ROOT/ImageSets/Main/NAME.txt) or
    Parquet of boxes, one or several."""

    train: Annotated[tuple[TrainPart, ...], BeforeValidator(_parts)] = Field(
        (),
        description="annotations to train on: a path, a list of paths, or a list of "
        "{uri: PATH, share: 0.8}, whose chips are mixed by their shares",
    )
    val: Paths = Field((), description="annotations to validate on during training")
    images: str | None = Field(
        None, description="image folder of data.train, if not where annotations say"
    )
    val_images: str | None = Field(None, description="image folder of data.val, likewise")
    depth: DepthConfig = DepthConfig()
    on_broken: Literal["fail", "drop"] = Field(
        "fail",
        description="broken boxes and images: stop and name them, or leave them out and say so",
    )
    exif: Literal["auto", "upright", "stored"] = Field(
        "auto",
        description="pixels that boxes of EXIF-turned images refer to (pycocotools and torchvision "
        "show stored ones); auto: those of the annotated width and height, upright where both are",
    )
    check_images: int = Field(
        2000,
        ge=0,
        description="images looked at before the first step, evenly spread; their pixels too where "
        "that takes seconds; 0: none. All of them: jobs/train.py --check",
    )
    proposals: str | None = Field(
        None, description="detections folder of jobs/mine.py; gives mined negative chips"
    )
    cache_gb: float = Field(
        2.0, gt=0, le=10_000, description="decoded images kept in memory per worker, GB"
    )
    class_power: float = Field(
        0.0,
        ge=0,
        le=1,
        description="chips with rare classes come (most frequent / own)^power "
        "times an epoch, at most 8; 0: once",
    )

    @model_validator(mode="after")
    def _shares(self) -> DataConfig:
        if len({part.share is None for part in self.train}) > 1:
            raise ValueError("train: give every part a share, or none")
        return self


class ModelConfig(Section):
    """The detector. ``dense``: one stage, light; ``faster_rcnn``: two stages, as SNIPER's."""

    kind: Literal["dense", "faster_rcnn"] = "dense"
    backbone: Literal["mobilenet_v2", "resnet50", "resnet101"] = "mobilenet_v2"
    neck: Literal["fpn", "dilated"] = Field(
        "fpn",
        description="fpn: strides 8, 16, 32; dilated: the last two stages side by side at "
        "stride 16 (SNIPER's form; faster_rcnn only)",
    )
    norm: Literal["bn", "frozen_bn", "gn"] = Field(
        "bn", description="norm of the backbone; frozen_bn wants pretrained weights"
    )
    width: float = Field(
        1.0, gt=0, le=8, description="width multiplier of mobilenet_v2; memory goes with its square"
    )
    channels: int = Field(
        96,
        ge=8,
        le=4096,
        multiple_of=8,
        description="of the FPN and heads; memory goes with its square",
    )
    head_depth: int = Field(
        2, ge=0, le=64, description="3x3 convolutions per tower of a dense head"
    )
    anchor_sizes: tuple[float, ...] = Field(
        (32, 64, 112, 160, 208, 256, 384),
        max_length=100,
        description="sides of the anchors of faster_rcnn, network px; shared out over FPN levels",
    )
    anchor_ratios: tuple[float, ...] = Field(
        (0.5, 1.0, 2.0), max_length=100, description="height / width"
    )
    weights: str | None = Field(
        None,
        description="start from a checkpoint of this project, or from torchvision weights: a file "
        "(.safetensors, .pth) of a classifier or detector, or their name (IMAGENET1K_V2, COCO_V1), "
        "which downloads",
    )

    @model_validator(mode="after")
    def _fit(self) -> ModelConfig:
        if self.kind == "dense" and self.neck != "fpn":
            raise ValueError("kind=dense takes neck=fpn; neck=dilated needs kind=faster_rcnn")
        if self.width != 1.0 and self.backbone != "mobilenet_v2":
            raise ValueError(f"width multiplies mobilenet_v2 only, not {self.backbone}")
        if self.norm == "gn" and self.backbone == "mobilenet_v2" and self.width < 0.25:
            raise ValueError("norm=gn needs width of 0.25 or more")
        for name in ("anchor_sizes", "anchor_ratios"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or list(values) != sorted(set(values)):
                raise ValueError(f"{name} must be positive and rise; found {values}")
        return self


@rule
class OptimRule:
    """Optimiser, schedule and the weights of the losses."""

    steps: Count = Field(default=6000, ge=1, description="optimiser steps")
    global_batch: int = Field(
        default=8, ge=1, le=10**6, description="chips per step over all workers"
    )
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    lr: float = Field(default=2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(
        default=0.05, ge=0, description="decay of weights (not norms, biases)"
    )
    warmup_steps: Count = Field(default=300, ge=0)
    schedule: Literal["cosine", "step"] = Field(
        default="cosine",
        description="cosine: half a cosine down to 1%; step: times step_factor",
    )
    step_at: tuple[float, ...] = Field(
        default=(0.76,), description="schedule=step: when, share of steps"
    )
    step_factor: float = Field(default=0.1, gt=0, lt=1)
    clip_norm: float = Field(default=10.0, gt=0, description="gradient norm limit")
    ema_decay: float = Field(
        default=0.999, ge=0, lt=1, description="averaged weights: decay per step"
    )
    class_weight: float = Field(default=1.0, ge=0)
    box_weight: float = Field(default=2.0, ge=0)
    focus_weight: float = Field(default=1.0, ge=0)
    rpn_class_weight: float = Field(default=1.0, ge=0, description="faster_rcnn only")
    rpn_box_weight: float = Field(default=1.0, ge=0, description="faster_rcnn only")
    bf16: bool | Literal["auto"] = Field(
        default="auto",
        description="bfloat16 autocast of the forward pass; auto: where the device has it",
    )

    @model_validator(mode="after")
    def _steps(self) -> OptimRule:
        if list(self.step_at) != sorted(set(self.step_at)) or not all(
            0 < share < 1 for share in self.step_at
        ):
            raise ValueError(f"step_at takes rising shares between 0 and 1; found {self.step_at}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """What each part of the loss counts."""
        names = ("rpn_class", "rpn_box", "class", "box", "focus")
        return {name: getattr(self, f"{name}_weight") for name in names}

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then half a cosine down to 1%, or the steps."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "step":
            passed = sum(step >= share * self.steps for share in self.step_at)
            return float(self.lr * self.step_factor**passed)
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class ValidationConfig(Section):
    """Validation during training, by the cascade of an index config; the best model is kept."""

    every: Count = Field(0, ge=0, description="steps; 0: only the last model is kept")
    index: str = Field("", description="index config whose pyramid, focus and stacking to use")
    images: Count = Field(0, ge=0, description="use so many images of data.val, evenly; 0: all")


class MiningConfig(Section):
    """`jobs/mine.py`: a short training without negative chips, then proposals of every scale."""

    steps: Count = Field(1000, ge=1, description="steps of the short training")
    per_scale: Count = Field(
        300, ge=1, description="proposals kept per image: the best so many times the scales"
    )
    nms_iou: float = Field(0.7, gt=0, le=1, description="overlap that merges proposals")
    ray: RayConfig = RayConfig()


class TrainRunConfig(Section):
    """Where and how a training runs."""

    output: str = Field("runs/train", description="directory of checkpoints and logs, or s3://")
    name: str = Field(
        "mine", pattern=r"^[\w.-]+$", description="the run's name; the same name resumes"
    )
    workers: int = Field(
        1, ge=1, le=10_000, description="DDP processes: gloo on CPUs, nccl on GPUs"
    )
    threads: Threads = Field(0, ge=0, description="torch threads per worker; 0: its share of cores")
    loader_threads: Threads = Field(2, ge=1, description="threads per worker that make chips")
    use_gpu: bool = False
    seed: int = Field(0, ge=0, lt=2**32)
    log_every: Count = Field(20, ge=1, description="steps per printed line; files hold each step")
    checkpoint_every: Count = Field(500, ge=1, description="steps")
    max_failures: int = Field(2, ge=0, le=10_000, description="worker failures Ray Train forgives")


class TrainConfig(Section):
    """`jobs/train.py`."""

    classes: tuple[str, ...] | None = Field(None, description="none: those of data.train")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pyramid: tuple[Scale, ...] = Field(description="scales, coarse to fine")
    focus_labels: FocusRule = FocusRule()
    chips: SniperRule = SniperRule()
    optim: OptimRule = OptimRule()
    validation: ValidationConfig = ValidationConfig()
    mining: MiningConfig = MiningConfig()
    run: TrainRunConfig = TrainRunConfig()

    @model_validator(mode="after")
    def _fit(self) -> TrainConfig:
        check_pyramid(self.pyramid)
        if self.classes is not None:
            if not all(self.classes) or not self.classes:
                raise ValueError("classes must name at least one class, and none by ''")
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            if twice:
                raise ValueError(f"classes must differ; given twice: {', '.join(twice)}")
        if self.validation.every and not (self.data.val and self.validation.index):
            raise ValueError("validation.every needs data.val and validation.index")
        if self.data.val and not self.validation.every:
            raise ValueError(
                "data.val is used with validation.every=STEPS and validation.index=FILE"
            )
        if self.optim.global_batch % self.run.workers:
            raise ValueError(
                f"optim.global_batch must be a multiple of run.workers; found "
                f"{self.optim.global_batch} chips for {self.run.workers} workers"
            )
        return self

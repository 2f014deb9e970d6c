"""Training on Ray Train: one loop a worker, checkpoints that resume, an exported model."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.optim.swa_utils import AveragedModel

from af_pipeline.config import dump_config
from af_pipeline.data.coco import load_coco
from af_pipeline.data.synthetic import CLASS_NAMES
from af_pipeline.data.training import SampleStream, class_weights
from af_pipeline.engine import (
    LossModule,
    OptimRule,
    batches,
    build_average,
    build_optimizer,
    learning_rate,
    move,
    train_step,
)
from af_pipeline.model.checkpoint import (
    CheckpointInfo,
    build_detector,
    load_detector,
    save_checkpoint,
)
from af_pipeline.samples import SampleRule
from af_pipeline.settings import TrainConfig
from af_pipeline.sniper import WindowRule

MODEL_FILE = "model.safetensors"
STATE_FILE = "training.pt"


def class_names_of(config: TrainConfig) -> tuple[str, ...]:
    """Class names of a run: stated, or of the training data, or the synthetic scenes'."""
    if config.classes:
        return config.classes
    if config.data.train:
        return load_coco(config.data.train, config.data.images).class_names
    return CLASS_NAMES


def build_stream(config: TrainConfig) -> SampleStream:
    """The run's stream of chips. Raises ValueError where the data cannot serve it."""
    dataset = load_coco(config.data.train, config.data.images) if config.data.train else None
    names = class_names_of(config)
    share = config.data.synthetic_share if config.data.synthetic_scenes else 0.0
    if share > 0 and names != CLASS_NAMES:
        raise ValueError(
            f"synthetic scenes have the classes {', '.join(CLASS_NAMES)}, the data have "
            f"{', '.join(names)}: set data.synthetic_share=0"
        )
    rule = SampleRule(
        scales=tuple(scale.build() for scale in config.pyramid),
        focus=config.focus_labels.build(),
        window=WindowRule(
            config.chips.size,
            config.chips.jitter,
            config.chips.negative_share,
            config.chips.focus_share,
        ),
        colour=config.chips.colour,
    )
    weights = class_weights(dataset, len(names), config.data.class_power)
    return SampleStream(
        dataset,
        rule,
        weights,
        config.run.seed,
        (config.data.synthetic_scenes, share),
        int(config.data.cache_gb * 1e9),
    )


def optim_rule(config: TrainConfig) -> OptimRule:
    """The optimiser's numbers."""
    o = config.optim
    weights = {"class": o.class_weight, "box": o.box_weight, "focus": o.focus_weight}
    return OptimRule(
        o.steps, o.lr, o.weight_decay, o.warmup_steps, o.clip_norm, o.ema_decay, weights, o.bf16
    )


def train_worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs; ``settings`` is the resolved config as a dict."""
    config = TrainConfig.model_validate(settings)
    context = ray.train.get_context()
    torch.set_num_threads(config.run.threads or os.cpu_count() or 1)
    torch.manual_seed(config.run.seed)
    # Moments of channels without gradient decay into denormals: a step then takes six times as
    # long on a CPU. Set before any parallel work, since threads inherit it.
    torch.set_flush_denormal(True)
    rule, device = optim_rule(config), get_device()
    names = class_names_of(config)
    detector = build_detector(config.model.model_dump(), len(names)).to(device)
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = LossModule(detector)
    average = build_average(detector, rule.ema_decay)
    optimizer = build_optimizer(module, rule)
    start = _resume(detector, average, optimizer)
    model = prepare_model(module)
    rank, world = context.get_world_rank(), context.get_world_size()
    stream = build_stream(config)
    progress = Progress(config, start, rank)
    steps = batches(stream, start, rule.steps, config.optim.global_batch, rank, world)
    for step, (images, targets) in enumerate(steps, start):
        losses = train_step(model, optimizer, images.to(device), move(targets, device), rule, step)
        average.update_parameters(detector)
        metrics = progress.log(step, losses, learning_rate(step, rule))
        last = step + 1 == rule.steps
        if last or (step + 1) % config.run.checkpoint_every == 0:
            _report(config, names, (detector, average, optimizer), step + 1, metrics, rank)


def _resume(
    detector: torch.nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> int:
    """Load the run's last checkpoint, if any; returns the step to go on with."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)
    detector.load_state_dict(state["detector"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _report(
    config: TrainConfig,
    names: tuple[str, ...],
    parts: tuple[torch.nn.Module, AveragedModel, torch.optim.Optimizer],
    step: int,
    metrics: dict[str, float],
    rank: int,
) -> None:
    """Report to Ray Train; rank 0 brings the checkpoint, every worker must call."""
    if rank:
        ray.train.report(metrics)
        return
    detector, average, optimizer = parts
    with tempfile.TemporaryDirectory() as folder:
        info = CheckpointInfo(
            config.model.model_dump(), names, {"step": step, "config": portable(config)}
        )
        save_checkpoint(Path(folder) / MODEL_FILE, average.module.state_dict(), info)
        state = {
            "detector": detector.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        torch.save(state, Path(folder) / STATE_FILE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def portable(config: TrainConfig) -> dict[str, Any]:
    """The resolved config without this machine's folders, to travel with the weights."""
    tree = dump_config(config)
    for key in ("train", "val", "images"):
        if tree["data"][key]:
            tree["data"][key] = Path(tree["data"][key]).name
    tree["run"]["output"] = Path(tree["run"]["output"]).name
    return tree


class Progress:
    """Means of the losses since the last line; rank 0 prints and appends to metrics.jsonl."""

    def __init__(self, config: TrainConfig, start: int, rank: int) -> None:
        self.config, self.rank = config, rank
        self.sums: dict[str, float] = {}
        self.count = 0
        self.start, self.began, self.since = start, time.perf_counter(), time.perf_counter()
        self.last: dict[str, float] = {}
        self.path = run_folder(config) / "metrics.jsonl"

    def log(self, step: int, losses: dict[str, float], lr: float) -> dict[str, float]:
        """Count one step; returns the latest means."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        steps = self.config.optim.steps
        if (step + 1) % self.config.run.log_every and step + 1 != steps:
            return self.last
        now = time.perf_counter()
        rate = self.count * self.config.optim.global_batch / max(1e-9, now - self.since)
        per_step = (now - self.began) / (step + 1 - self.start)
        eta = per_step * (steps - step - 1)
        self.last = {name: value / self.count for name, value in self.sums.items()}
        self.last |= {"step": step + 1, "lr": lr, "chips_per_s": rate, "eta_s": eta}
        self.sums, self.count, self.since = {}, 0, now
        if self.rank == 0:
            self._print(step + 1, steps)
        return self.last

    def _print(self, step: int, steps: int) -> None:
        m = self.last
        parts = "  ".join(f"{k} {m[k]:.3f}" for k in ("total", "class", "box", "focus"))
        eta = time.strftime("%H:%M:%S", time.gmtime(m["eta_s"]))
        rate = f"lr {m['lr']:.2e}  {m['chips_per_s']:.1f} chips/s  ETA {eta}"
        print(f"step {step}/{steps}  loss {parts}  {rate}", flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({k: round(v, 6) for k, v in m.items()}) + "\n")


def run_folder(config: TrainConfig) -> Path:
    """Directory of the run: Ray Train's checkpoints, metrics.jsonl and the exported model."""
    return Path(config.run.output).absolute() / config.run.name


def train(config: TrainConfig) -> Path:
    """Train (or go on training) and export the model; returns the .safetensors path.

    Ray must be initialised. The same ``run.name`` in the same ``run.output`` resumes.
    """
    build_stream(config)  # bad data are told here, before any worker starts
    absolute = config.data.model_copy(
        update={
            key: str(Path(value).absolute())
            for key in ("train", "val", "images")
            if (value := getattr(config.data, key))
        }
    )
    config = config.model_copy(update={"data": absolute})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=dump_config(config),
        scaling_config=ScalingConfig(num_workers=config.run.workers, use_gpu=config.run.use_gpu),
        run_config=RunConfig(
            name=config.run.name,
            storage_path=str(run_folder(config).parent),
            failure_config=FailureConfig(max_failures=config.run.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        return export(config, trainer.fit())
    except TrainingFailedError as error:
        raise TrainError(_reason(error)) from error


class TrainError(RuntimeError):
    """Training ended without a model; the message carries the worker's own error."""


def _reason(error: TrainingFailedError) -> str:
    """The first worker's last error line, which says more than the stack around it."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"training failed: {lines[-1].strip() if lines else repr(cause)}"


def export(config: TrainConfig, result: Result) -> Path:
    """Copy the last checkpoint's model out of Ray Train's folders."""
    if result.checkpoint is None:
        raise TrainError(f"training {config.run.name} left no checkpoint: {result.error}")
    target = run_folder(config) / f"{config.run.name}.safetensors"
    with result.checkpoint.as_directory() as folder:
        detector, info = load_detector(Path(folder) / MODEL_FILE)
    save_checkpoint(target, detector.state_dict(), info)
    return target

"""What each worker of a training does: the same loop for one CPU and for many GPUs."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray.train
import torch
from ray.train.torch import get_device, prepare_model
from torch.optim.swa_utils import AveragedModel

from af_pipeline.config import dump_config
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.models.checkpoint import build_detector, save_checkpoint
from af_pipeline.models.detector import Detector
from af_pipeline.models.info import CheckpointInfo
from af_pipeline.models.predictor import use_bf16
from af_pipeline.models.weights import start_from
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.train import TrainConfig
from af_pipeline.sniper.stream import StreamState
from af_pipeline.training.batches import make_batches, move
from af_pipeline.training.data import build_stream, load_training, load_validation
from af_pipeline.training.disk_space import keep_list, no_space, out_of_space
from af_pipeline.training.log import METRICS_FILE, TrainingLog, run_folder
from af_pipeline.training.step import (
    LossModule,
    OptimRule,
    build_average,
    build_optimizer,
    learning_rate,
    train_step,
)
from af_pipeline.training.validation import find_objects, score

MODEL_FILE = "model.safetensors"  # averaged weights at the checkpoint's step
BEST_FILE = "best.safetensors"  # averaged weights of the best validation so far
STATE_FILE = "training.pt"


def optim_rule(config: TrainConfig, device: torch.device) -> OptimRule:
    """The optimiser's numbers on ``device``."""
    optim = config.optim
    names = ("rpn_class", "rpn_box", "class", "box", "focus")
    return OptimRule(
        steps=optim.steps,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        clip_norm=optim.clip_norm,
        ema_decay=optim.ema_decay,
        weights={name: getattr(optim, f"{name}_weight") for name in names},
        bf16=use_bf16(optim.bf16, device),
        optimizer=optim.optimizer,
        momentum=optim.momentum,
        schedule=optim.schedule,
        step_at=optim.step_at,
        step_factor=optim.step_factor,
    )


@dataclass
class Place:
    """Where a run stands: steps done, chips taken, best validation AP and the model that had it."""

    step: int
    stream: StreamState
    best: float = -1.0
    best_folder: Path | None = None


@dataclass(frozen=True)
class Parts:
    """What training changes."""

    detector: Any
    average: AveragedModel
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Judge:
    """Validation data and the index config that runs on them."""

    dataset: AnnotatedDataset
    index: IndexConfig


def train_worker(settings: dict[str, Any]) -> None:
    """One Ray Train worker; ``settings``: resolved "train" and "index" configs.

    Raises NoSpaceError where a disk is full, and what else goes wrong.
    """
    config = TrainConfig.model_validate(settings["train"])
    try:
        _train(config, settings)
    except Exception as error:
        if not out_of_space(error):
            raise
        last = ray.train.get_checkpoint()
        name = Path(last.path).name if last else ""
        raise no_space([run_folder(config), Path(tempfile.gettempdir())], name) from error


def _train(config: TrainConfig, settings: dict[str, Any]) -> None:
    index = IndexConfig.model_validate(settings["index"]) if settings["index"] else None
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    _prepare_torch(config, context.get_local_world_size())
    device = get_device()
    rule = optim_rule(config, device)
    dataset = load_training(config)
    names = tuple(settings["class_names"])
    stream = build_stream(config, dataset)
    parts = _build(config, names, rule, device)
    scratch = tempfile.TemporaryDirectory()
    place = _resume(config, parts, stream.start(), Path(scratch.name))
    judge = _judge(config, names, index)
    model = prepare_model(LossModule(parts.detector), move_to_device=False)
    log = TrainingLog(config, run_folder(config), place.step, rank)
    batches = make_batches(stream, place.stream, rank, world, config.run.loader_threads)
    while place.step < rule.steps:
        made = next(batches)
        images, targets = made.images.to(device), move(made.targets, device)
        # What a detector samples follows from the step too, so that a resumed run repeats it.
        torch.manual_seed((config.run.seed * 1_000_003 + place.step) * world + rank)
        losses = train_step(model, parts.optimizer, images, targets, rule, place.step)
        losses = mean_over_workers(losses, device, world)
        parts.average.update_parameters(parts.detector)
        metrics = log.step(place.step + 1, losses, learning_rate(place.step, rule))
        place.step, place.stream = place.step + 1, made.state
        last = place.step == rule.steps
        every = config.validation.every
        if judge is not None and (last or place.step % every == 0):
            _validate(config, names, parts, place, judge, log, device, Path(scratch.name))
        if last or place.step % config.run.checkpoint_every == 0:
            _report(config, names, parts, place, metrics, rank)
    batches.close()
    log.close()


def mean_over_workers(
    losses: dict[str, float], device: torch.device, world: int
) -> dict[str, float]:
    """The mean of each number over all workers, for the log."""
    if world == 1:
        return losses
    numbers = torch.tensor(list(losses.values()), device=device)
    torch.distributed.all_reduce(numbers)
    return dict(zip(losses, (numbers / world).tolist(), strict=True))


def _prepare_torch(config: TrainConfig, workers_here: int) -> None:
    torch.set_num_threads(config.run.threads or max(1, (os.cpu_count() or 1) // workers_here))
    torch.manual_seed(config.run.seed)
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train tells each report's every number
    # Moments of channels without gradient decay into denormals: a step then takes six times as
    # long on a CPU. Set before any parallel work, since threads inherit it.
    torch.set_flush_denormal(True)


def _build(
    config: TrainConfig, names: tuple[str, ...], rule: OptimRule, device: torch.device
) -> Parts:
    detector = build_detector(config.model.model_dump(), len(names))
    if config.model.weights:
        start_from(detector, config.model.weights)
    detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Parts(detector, build_average(detector, rule.ema_decay), build_optimizer(detector, rule))


def _resume(config: TrainConfig, parts: Parts, start: StreamState, scratch: Path) -> Place:
    """Load the run's last checkpoint, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Place(0, start)
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)
        history, kept = run_folder(config) / METRICS_FILE, Path(folder) / METRICS_FILE
        if kept.exists() and not history.exists():
            history.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(kept, history)
        best = Path(folder) / BEST_FILE
        if best.exists():
            for path in (best, best.with_suffix(".json")):
                shutil.copy(path, scratch / path.name)
    parts.detector.load_state_dict(state["detector"])
    parts.average.load_state_dict(state["average"])
    parts.optimizer.load_state_dict(state["optimizer"])
    stream = StreamState.from_list(state["stream"])
    held = scratch if (scratch / BEST_FILE).exists() else None
    return Place(int(state["step"]), stream, float(state["best"]), held)


def _judge(config: TrainConfig, names: tuple[str, ...], index: IndexConfig | None) -> Judge | None:
    if index is None or not config.validation.every:
        return None
    return Judge(load_validation(config, names), index)


def _validate(
    config: TrainConfig,
    names: tuple[str, ...],
    parts: Parts,
    place: Place,
    judge: Judge,
    log: TrainingLog,
    device: torch.device,
    scratch: Path,
) -> None:
    """Score the averaged weights; the workers share out the images, rank 0 keeps the best."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if world > 1:  # DDP shares out buffers before a forward, so the averages of ranks differ
        for buffer in parts.average.buffers():
            torch.distributed.broadcast(buffer, 0)
    mine = judge.dataset.images[rank::world]
    detector = cast(Detector, parts.average.module)
    found = find_objects(detector, mine, judge.index, device, config.data)
    if world > 1:
        gathered: list[Any] = [None] * world
        torch.distributed.all_gather_object(gathered, found)
        found = [one for part in gathered for one in part]
    if rank:
        return
    scores = score(found, judge.dataset)
    log.write(place.step, scores)
    better = scores["val_AP"] > place.best
    text = "  ".join(f"{name[4:]} {value:.4f}" for name, value in scores.items())
    log.tell(f"validation at step {place.step}: {text}{'  (best so far)' if better else ''}")
    if better:
        place.best, place.best_folder = scores["val_AP"], scratch
        save_model(config, names, parts, place.step, scratch / BEST_FILE, scores)


def save_model(
    config: TrainConfig,
    names: tuple[str, ...],
    parts: Parts,
    step: int,
    path: Path,
    scores: dict[str, float] | None = None,
) -> None:
    """The averaged weights as a checkpoint for the index job."""
    training = {"step": step, "config": portable(config)} | (scores or {})
    model = config.model.model_dump(mode="json", exclude={"weights"})
    info = CheckpointInfo(model, names, training)
    save_checkpoint(path, parts.average.module.state_dict(), info)


def portable(config: TrainConfig) -> dict[str, Any]:
    """The resolved config without this machine's folders, to travel with the weights."""
    tree = dump_config(config)
    data = tree["data"]
    data["train"] = [part | {"uri": Path(part["uri"]).name} for part in data["train"]]
    data["val"] = [Path(path).name for path in data["val"]]
    for section, key in (("data", "images"), ("data", "proposals"), ("model", "weights")):
        if tree[section][key]:
            tree[section][key] = Path(tree[section][key]).name
    tree["run"]["output"] = Path(tree["run"]["output"]).name
    return tree


def _report(
    config: TrainConfig,
    names: tuple[str, ...],
    parts: Parts,
    place: Place,
    metrics: dict[str, float],
    rank: int,
) -> None:
    """Report to Ray Train; rank 0 brings the checkpoint, every worker must call."""
    name = f"checkpoint_{place.step:08d}"  # so that another try writes over what is half there
    if rank:
        ray.train.report(metrics, checkpoint_dir_name=name)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_model(config, names, parts, place.step, Path(folder) / MODEL_FILE)
        if place.best_folder is not None:
            for suffix in (".safetensors", ".json"):
                best = (place.best_folder / BEST_FILE).with_suffix(suffix)
                shutil.copy(best, Path(folder) / best.name)
        state = {
            "detector": parts.detector.state_dict(),
            "average": parts.average.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "step": place.step,
            "stream": place.stream.to_list(),
            "best": place.best,
        }
        with (Path(folder) / STATE_FILE).open("wb") as file:  # for torch hides why it cannot write
            torch.save(state, file)
        log = run_folder(config) / METRICS_FILE
        if log.exists():
            shutil.copy(log, Path(folder) / METRICS_FILE)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        numbers = metrics | {"step": place.step, "best": place.best}
        keep_list(run_folder(config))
        try:
            ray.train.report(numbers, checkpoint=checkpoint, checkpoint_dir_name=name)
        except OSError:
            shutil.rmtree(run_folder(config) / name, ignore_errors=True)
            raise

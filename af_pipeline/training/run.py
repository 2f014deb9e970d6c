"""What each worker of a training does: the same for one CPU and for many GPUs."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray.train
import torch
from ray.train.torch import get_device, prepare_model

from af_pipeline.config import dump_config
from af_pipeline.models.checkpoint import build_detector, save_checkpoint
from af_pipeline.models.detector import Detector
from af_pipeline.models.info import CheckpointInfo
from af_pipeline.models.predictor import use_bf16
from af_pipeline.models.weights import start_from
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.train import TrainConfig
from af_pipeline.sniper.stream import StreamState
from af_pipeline.training.batches import BatchLoader, move
from af_pipeline.training.data import build_stream, load_training, load_validation
from af_pipeline.training.folder import keep_list, no_space, out_of_space, run_folder
from af_pipeline.training.log import METRICS_FILE, TrainingLog
from af_pipeline.training.step import LossModule, build_average, build_optimizer, train_step
from af_pipeline.training.validation import find_objects, score

MODEL_FILE = "model.safetensors"  # averaged weights at the checkpoint's step
BEST_FILE = "best.safetensors"  # averaged weights of the best validation so far
STATE_FILE = "training.pt"


def train_worker(settings: dict[str, Any]) -> None:
    """One Ray Train worker; ``settings``: resolved "train" and "index" configs.

    Raises NoSpaceError where a disk is full, and what else goes wrong.
    """
    config = TrainConfig.model_validate(settings["train"])
    index = IndexConfig.model_validate(settings["index"]) if settings["index"] else None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            run = TrainingRun(config, index, Path(scratch))
            try:
                run.go()
            finally:
                run.close()
    except Exception as error:
        if not out_of_space(error):
            raise
        last = ray.train.get_checkpoint()
        name = Path(last.path).name if last else ""
        raise no_space([run_folder(config), Path(tempfile.gettempdir())], name) from error


class TrainingRun:
    """A worker's part of a training: what it changes, where it stands, what it tells.

    ``done``: steps so far; ``place``: chips taken; ``best``: AP of the best validation, whose
    model rank 0 holds in ``scratch``. Made within a Ray Train worker, from the last checkpoint if
    there is one.
    """

    def __init__(self, config: TrainConfig, index: IndexConfig | None, scratch: Path) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        prepare_torch(config, context.get_local_world_size())
        self.config, self.folder, self.scratch = config, run_folder(config), scratch
        self.device, self.index = get_device(), index
        self.optim = replace(config.optim, bf16=use_bf16(config.optim.bf16, self.device))
        dataset = load_training(config)
        self.class_names = dataset.class_names
        stream = build_stream(config, dataset)
        self.detector = build_detector(config.model.model_dump(), len(self.class_names))
        if config.model.weights:
            start_from(self.detector, config.model.weights)
        self.detector.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = build_average(self.detector, self.optim.ema_decay)
        self.optimizer = build_optimizer(self.detector, self.optim)
        self.done, self.place, self.best = 0, stream.start(), -1.0
        self._resume()
        self.judged = load_validation(config, self.class_names) if index else None
        self.model = prepare_model(LossModule(self.detector), move_to_device=False)
        self.log = TrainingLog(config, self.folder, self.done, self.rank)
        share = (self.rank, self.world)
        self.batches = BatchLoader(stream, self.place, share, config.run.loader_threads)

    def go(self) -> None:
        """All the steps that are left, with validations and checkpoints when they are due."""
        while self.done < self.optim.steps:
            metrics = self.step()
            last = self.done == self.optim.steps
            if self.judged is not None and (last or self.done % self.config.validation.every == 0):
                self.validate()
            if last or self.done % self.config.run.checkpoint_every == 0:
                self.save(metrics)

    def close(self) -> None:
        """End the threads that make batches, and the log."""
        self.batches.close()
        self.log.close()

    def step(self) -> dict[str, float]:
        """One step on the next batch; returns what the log knows of it."""
        batch = next(self.batches)
        held = batch.images.to(self.device), move(batch.targets, self.device)
        # What a detector samples follows from the step too, so that a resumed run repeats it.
        seed = self.config.run.seed * 1_000_003 + self.done
        torch.manual_seed(seed * self.world + self.rank)
        losses = train_step(self.model, self.optimizer, held, self.optim, self.done)
        self.average.update_parameters(self.detector)
        rate = self.optim.rate(self.done)
        self.done, self.place = self.done + 1, batch.state
        return self.log.step(self.done, self._mean(losses), rate)

    def _mean(self, losses: dict[str, float]) -> dict[str, float]:
        """The mean of each number over all workers, for the log."""
        if self.world == 1:
            return losses
        numbers = torch.tensor(list(losses.values()), device=self.device)
        torch.distributed.all_reduce(numbers)
        return dict(zip(losses, (numbers / self.world).tolist(), strict=True))

    def validate(self) -> None:
        """Score the averaged weights; the workers share out the images, rank 0 keeps the best."""
        assert self.judged is not None
        assert self.index is not None
        if self.world > 1:  # DDP shares out buffers before a forward, so averages of ranks differ
            for buffer in self.average.buffers():
                torch.distributed.broadcast(buffer, 0)
        mine = self.judged.images[self.rank :: self.world]
        detector = cast(Detector, self.average.module)
        found = find_objects(detector, mine, self.index, self.device, self.config.data)
        if self.world > 1:
            gathered: list[Any] = [None] * self.world
            torch.distributed.all_gather_object(gathered, found)
            found = [one for part in gathered for one in part]
        if self.rank:
            return
        scores = score(found, self.judged)
        self.log.write(self.done, scores)
        better = scores["val_AP"] > self.best
        text = "  ".join(f"{name[4:]} {value:.4f}" for name, value in scores.items())
        self.log.tell(f"validation at step {self.done}: {text}{'  (best so far)' * better}")
        if better:
            self.best = scores["val_AP"]
            self._save_model(self.scratch / BEST_FILE, scores)

    def save(self, metrics: dict[str, float]) -> None:
        """Report to Ray Train; rank 0 brings the checkpoint, every worker must call."""
        name = f"checkpoint_{self.done:08d}"  # so that another try writes over what is half there
        if self.rank:
            ray.train.report(metrics, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            self._save_model(folder / MODEL_FILE, {})
            copy_there(both_files(self.scratch / BEST_FILE), folder)
            copy_there([self.folder / METRICS_FILE], folder)
            state = {
                "detector": self.detector.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.done,
                "stream": self.place.to_list(),
                "best": self.best,
            }
            with (folder / STATE_FILE).open("wb") as file:  # for torch hides why it cannot write
                torch.save(state, file)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            numbers = metrics | {"step": self.done, "best": self.best}
            keep_list(self.folder)
            try:
                ray.train.report(numbers, checkpoint=checkpoint, checkpoint_dir_name=name)
            except OSError:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                raise

    def _save_model(self, path: Path, scores: dict[str, float]) -> None:
        """The averaged weights as a checkpoint for the index job."""
        training = {"step": self.done, "config": portable(self.config)} | scores
        model = self.config.model.model_dump(mode="json", exclude={"weights"})
        info = CheckpointInfo(model, self.class_names, training)
        save_checkpoint(path, self.average.module.state_dict(), info)

    def _resume(self) -> None:
        """Load the run's last checkpoint, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as held:
            folder = Path(held)
            state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
            if not (self.folder / METRICS_FILE).exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                copy_there([folder / METRICS_FILE], self.folder)
            copy_there(both_files(folder / BEST_FILE), self.scratch)
        self.detector.load_state_dict(state["detector"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.place = StreamState.from_list(state["stream"])
        self.done, self.best = int(state["step"]), float(state["best"])


def prepare_torch(config: TrainConfig, workers_here: int) -> None:
    """Threads, seed and arithmetic of this process."""
    torch.set_num_threads(config.run.threads or max(1, (os.cpu_count() or 1) // workers_here))
    torch.manual_seed(config.run.seed)
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train tells each report's every number
    # Moments of channels without gradient decay into denormals: a step then takes six times as
    # long on a CPU. Set before any parallel work, since threads inherit it.
    torch.set_flush_denormal(True)


def both_files(weights: Path) -> list[Path]:
    """The two files of a model."""
    return [weights, weights.with_suffix(".json")]


def copy_there(files: list[Path], folder: Path) -> None:
    """Copy those of the files that exist."""
    for file in files:
        if file.exists():
            shutil.copy(file, folder / file.name)


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

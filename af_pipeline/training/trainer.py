"""Training on Ray Train: from the config to an exported model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer

from af_pipeline.config import dump_config, load_config
from af_pipeline.models.checkpoint import build_detector
from af_pipeline.models.weights import start_from
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.train import TrainConfig
from af_pipeline.sniper.stream import ChipStream, Cursor
from af_pipeline.training.data import (
    build_stream,
    chips_per_epoch,
    load_training,
    look_at_data,
)
from af_pipeline.training.folder import (
    claim_folder,
    mend_list,
    no_space,
    out_of_space,
    run_folder,
)
from af_pipeline.training.run import BEST_FILE, MODEL_FILE, both_files, train_worker


class TrainError(RuntimeError):
    """Training ended without a model; the message carries the worker's own error."""


def train(config: TrainConfig) -> Path:
    """Train (or go on training) and export the model; returns the .safetensors path.

    Ray must be initialised. The same ``run.name`` in the same ``run.output`` resumes. Raises
    ValueError for data or settings that cannot be used, before any worker starts, and
    TrainError.
    """
    config = absolute(config)
    settings = _check(config)
    remote = "://" in config.run.output
    storage = config.run.output if remote else str(run_folder(config).parent)
    mend_list(run_folder(config))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=config.run.workers, use_gpu=config.run.use_gpu),
        run_config=RunConfig(
            name=config.run.name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=config.run.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # Reports are in our own lines. (RunConfig is typed as an older one of Ray.)
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
    )
    try:
        return export(config, trainer.fit())
    except TrainingFailedError as error:
        raise TrainError(_reason(error)) from error
    except OSError as error:
        if not out_of_space(error):
            raise
        raise TrainError(str(no_space([run_folder(config)], "the last checkpoint"))) from error


def absolute(config: TrainConfig) -> TrainConfig:
    """The config with whole paths: workers run in folders of their own."""
    data, weights = config.data, config.model.weights
    paths = {
        "train": tuple(replace(part, uri=_whole(part.uri)) for part in data.train),
        "val": tuple(map(_whole, data.val)),
        **{
            key: _whole(path)
            for key in ("images", "val_images", "proposals")
            if (path := getattr(data, key))
        },
    }
    if weights and Path(weights).exists():
        weights = _whole(weights)
    return config.model_copy(
        update={
            "data": data.model_copy(update=paths),
            "model": config.model.model_copy(update={"weights": weights}),
            "run": config.run.model_copy(update={"output": _whole(config.run.output)}),
        }
    )


def _whole(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


def _check(config: TrainConfig) -> dict[str, Any]:
    """Everything that can be wrong is found here; returns what the workers are given."""
    _check_cluster(config)
    dataset = load_training(config)
    index = validation_config(config) if config.validation.every else None
    for line in look_at_data(config, dataset):
        print(line)
    if config.model.norm == "frozen_bn" and not config.model.weights:
        print("warning: model.norm=frozen_bn without model.weights freezes a random stem")
    detector = build_detector(config.model.model_dump(), len(dataset.class_names))
    if config.model.weights:
        print(start_from(detector, config.model.weights))
    _tell_chips(config, build_stream(config, dataset))
    claim_folder(run_folder(config), config, dataset)
    return {"train": dump_config(config), "index": dump_config(index) if index else None}


def validation_config(config: TrainConfig) -> IndexConfig:
    """The index config that judges. Raises ValueError where it would show other pixels."""
    index = load_config(IndexConfig, config.validation.index)
    if index.source.depth != config.data.depth:
        raise ValueError(
            f"data.depth and source.depth of {config.validation.index} differ: the detector would "
            "be judged on other pixels than it learns from; state the same in both"
        )
    return index


def _check_cluster(config: TrainConfig) -> None:
    """Ray Train would wait for missing workers for ever, and silently."""
    kind = "GPU" if config.run.use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < config.run.workers:
        raise ValueError(
            f"run.workers={config.run.workers} needs as many {kind}s, the cluster has {there}: "
            f"lower run.workers{', set run.use_gpu=false' if kind == 'GPU' else ''} or start Ray "
            "on more nodes"
        )


def _tell_chips(config: TrainConfig, stream: ChipStream) -> None:
    for number, share in enumerate(stream.shares):
        counts = chips_per_epoch(stream, number)
        total = sum(counts.values())
        if not total:
            next(stream.walk_slot(number, 0, Cursor()))  # says what is wrong
        chips = config.optim.steps * config.optim.global_batch * share / sum(stream.shares)
        kinds = ", ".join(f"{count:.0f} {kind}" for kind, count in counts.items() if count)
        of = f" of {config.data.train[number].uri}" if len(stream.shares) > 1 else ""
        text = f"about {total:.0f} chips an epoch{of} ({kinds}); {chips / max(1, total):.1f} epochs"
        print(text)


def _reason(error: TrainingFailedError) -> str:
    """The first worker's last error line, which says more than the stack around it."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"training failed: {lines[-1].strip() if lines else repr(cause)}"


def export(config: TrainConfig, result: Result) -> Path:
    """Copy the model out of the last checkpoint: the best validated one, else the last."""
    if result.checkpoint is None:
        raise TrainError(f"training {config.run.name} left no checkpoint: {result.error}")
    target = run_folder(config) / f"{config.run.name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    with result.checkpoint.as_directory() as folder:
        best = Path(folder) / BEST_FILE
        source = best if best.exists() else Path(folder) / MODEL_FILE
        files = list(zip(both_files(source), both_files(target), strict=True))
        for held, path in files:
            shutil.copy(held, f"{path}.partial")
        for _, path in reversed(files):  # both whole: an earlier model stands until then
            Path(f"{path}.partial").replace(path)
    return target

"""Ray Train's loop against a bare PyTorch loop, and two workers against one.

python benchmarks/training.py --config configs/train/aerial_tiny.yaml --set data.train=FILE
    [--steps 60] [--rounds 3] [--workers 1 2] [--output FILE.json]

The ways take turns, ``rounds`` times, each with a fresh model on the same chips of the same seed:
bare: forward, backward, clipping and optimiser on batches that lie in memory; loader: the same
loop, batches made ahead in threads as in training; ray 1 and 2: jobs/train.py's loop with so many
workers. Chips/s are medians over the rounds, the first 20 steps of each left out.
A loader costs more until its images are decoded once; bare loads nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from af_pipeline.config import load_config
from af_pipeline.indexing.session import ray_session
from af_pipeline.models.checkpoint import build_detector
from af_pipeline.models.predictor import use_bf16
from af_pipeline.settings.train import TrainConfig
from af_pipeline.training.batches import BatchLoader, move
from af_pipeline.training.data import build_stream, load_training
from af_pipeline.training.step import LossModule, build_optimizer
from af_pipeline.training.trainer import absolute, train

WARM = 20


def bare_loop(config: TrainConfig, classes: int, batches: list, device: torch.device) -> float:
    """Chips/s of the plainest loop over ``batches`` (an iterable of engine.Batch)."""
    torch.manual_seed(config.run.seed)
    rule = replace(config.optim, bf16=use_bf16(config.optim.bf16, device))
    detector = build_detector(config.model.model_dump(), classes)
    model = LossModule(detector.to(device, memory_format=torch.channels_last))
    optimizer = build_optimizer(model, rule)
    began, steps = time.perf_counter(), 0
    for number, batch in enumerate(batches):
        if number == WARM:
            began, steps = time.perf_counter(), 0
        images, targets = batch.images.to(device), move(batch.targets, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=rule.bf16 is True):
            parts = model(images, targets)
        loss = sum(parts[name] * rule.weights[name] for name in parts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), rule.clip_norm)
        optimizer.step()
        steps += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return steps * config.optim.global_batch / (time.perf_counter() - began)


def ray_loop(config: TrainConfig, workers: int, folder: Path) -> tuple[float, list[float]]:
    """Chips/s of a training by jobs/train.py's own code, and its losses."""
    run = {"workers": workers, "output": str(folder), "name": f"bench{time.time_ns()}"}
    config = config.model_copy(update={"run": config.run.model_copy(update=run)})
    path = train(config)
    lines = (path.parent / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    batch = config.optim.global_batch
    spent = [record["step"] * batch / record["chips_per_s"] for record in records]
    rate = (len(records) - WARM) * batch / (spent[-1] - spent[WARM - 1])
    return rate, [record["total"] for record in records]


def main() -> int:
    """Print chips/s of each way and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/train/aerial_tiny.yaml")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output")
    arguments = parser.parse_args()
    quick = [f"optim.steps={arguments.steps}", "run.checkpoint_every=1000000"]
    config = absolute(load_config(TrainConfig, arguments.config, [*arguments.sets, *quick]))
    torch.set_num_threads(config.run.threads or os.cpu_count() or 1)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if config.run.use_gpu else "cpu")
    dataset = load_training(config)
    classes = len(dataset.class_names)
    stream = build_stream(config, dataset)
    made = list(islice(loader(config, stream, 0, 1), arguments.steps))
    same = same_chips(config, stream, [digest(batch.images) for batch in made[:5]])
    ways = ["bare", "loader", *(f"ray {workers}" for workers in arguments.workers)]
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with ray_session(None, dashboard=True), tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            rates["bare"].append(bare_loop(config, classes, made, device))
            fresh = build_stream(config, dataset)  # its images not decoded yet, as a worker's
            ahead = islice(loader(config, fresh, 0, 1), arguments.steps)
            rates["loader"].append(bare_loop(config, classes, ahead, device))
            for workers in arguments.workers:
                rate, _ = ray_loop(config, workers, Path(folder))
                rates[f"ray {workers}"].append(rate)
    report(rates, same, arguments.output)
    return 0


def loader(config: TrainConfig, stream, rank: int, world: int):
    return BatchLoader(stream, stream.start(), (rank, world), config.run.loader_threads)


def same_chips(config: TrainConfig, stream, wanted_digests: list[int]) -> bool:
    """Whether two workers' halves, put together, are the first batches of one worker."""
    halves = [islice(loader(config, stream, rank, 2), len(wanted_digests)) for rank in range(2)]
    for wanted, (even, odd) in zip(wanted_digests, zip(*halves, strict=True), strict=True):
        images = torch.stack([even.images, odd.images], 1).flatten(0, 1)
        if digest(images) != wanted:
            return False
    return True


def digest(images: torch.Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(images.numpy()))


def report(rates: dict[str, list[float]], same: bool, output: str | None) -> None:
    """Table, and JSON where asked for."""
    middle = {name: float(np.median(values)) for name, values in rates.items()}
    for name, values in rates.items():
        text = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:8} {middle[name]:6.2f} chips/s   ({text})")
    pairs = [("ray 1", "bare"), ("ray 1", "loader"), ("ray 2", "ray 1")]
    ratios = {f"{a} / {b}": middle[a] / middle[b] for a, b in pairs if {a, b} <= middle.keys()}
    for name, value in ratios.items():
        print(f"{name:16} {value:.3f}")
    print(f"two workers train on the same chips as one: {same}")
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        content = {"chips_per_s": rates, "ratios": ratios, "same_chips": same}
        Path(output).write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    sys.exit(main())

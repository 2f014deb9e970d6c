"""Training steps and prediction: arrays and samples in, numbers out. No Ray."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from af_pipeline.data.training import SampleStream
from af_pipeline.model.detector import AutoFocusDetector
from af_pipeline.model.losses import Targets
from af_pipeline.samples import Sample


@dataclass(frozen=True)
class OptimRule:
    """Plain numbers of the optimiser; see `af_pipeline.settings.OptimConfig`."""

    steps: int
    lr: float
    weight_decay: float
    warmup_steps: int
    clip_norm: float
    ema_decay: float
    weights: dict[str, float]
    bf16: bool


class NonFiniteLossError(RuntimeError):
    """A loss or its gradient became nan or infinite; the message names the parts."""


class LossModule(nn.Module):
    """`AutoFocusDetector.losses` as a forward, which is what DDP wraps."""

    def __init__(self, detector: AutoFocusDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named losses of a batch uint8 [N, 3, H, W]."""
        return self.detector.losses(batch, targets)


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Targets]:
    """Stack samples: images uint8 [N, 3, K, K] and targets padded to the most boxes."""
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    most = max(len(s.boxes.boxes) for s in samples)
    n = len(samples)
    boxes = np.zeros((n, most, 4), np.float32)
    labels = np.zeros((n, most), np.int64)
    valid, ignored = np.zeros((2, n, most), bool)
    for i, sample in enumerate(samples):
        count = len(sample.boxes.boxes)
        boxes[i, :count] = sample.boxes.boxes
        labels[i, :count] = sample.boxes.labels
        valid[i, :count] = sample.boxes.valid
        ignored[i, :count] = sample.boxes.ignored
    focus = torch.from_numpy(np.stack([s.focus for s in samples]))
    tensors = [torch.from_numpy(array) for array in (boxes, labels, valid, ignored)]
    return images, Targets(tensors[0], tensors[1], tensors[2], tensors[3], focus)


def move(targets: Targets, device: torch.device) -> Targets:
    """The targets on ``device``."""
    return Targets(**{k: v.to(device, non_blocking=True) for k, v in vars(targets).items()})


def batches(
    stream: SampleStream, start: int, stop: int, global_batch: int, rank: int, world: int
) -> Iterator[tuple[Tensor, Targets]]:
    """Batches of steps ``start`` to ``stop`` for one worker, made ahead in a thread."""
    if global_batch % world:
        raise ValueError(f"global_batch {global_batch} must be a multiple of {world} workers")
    ready: queue.Queue = queue.Queue(maxsize=4)
    stopped = threading.Event()

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
                break
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for step in range(start, stop):
                numbers = range(step * global_batch + rank, (step + 1) * global_batch, world)
                put(collate([stream.sample(number) for number in numbers]))
                if stopped.is_set():
                    return
        except BaseException as error:  # carried over to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=produce, daemon=True, name="sample-stream")
    thread.start()
    try:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


def learning_rate(step: int, rule: OptimRule) -> float:
    """Linear warm-up, then a half cosine down to 1% of the peak."""
    if step < rule.warmup_steps:
        return rule.lr * (step + 1) / rule.warmup_steps
    done = (step - rule.warmup_steps) / max(1, rule.steps - rule.warmup_steps)
    return rule.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def build_optimizer(model: nn.Module, rule: OptimRule) -> torch.optim.Optimizer:
    """AdamW; biases and norm parameters are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": rule.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rule.lr, fused=True)


def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and batch-norm statistics.

    The decay grows to ``decay`` as (1 + n) / (10 + n): the untrained weights are forgotten in a
    short run too.
    """

    def average(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    targets: Targets,
    rule: OptimRule,
    step: int,
) -> dict[str, float]:
    """One optimiser step; returns the unweighted loss parts and the total.

    Raises NonFiniteLossError before the weights are touched.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, rule)
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=rule.bf16):
        parts = model(batch, targets)
    total = torch.stack([parts[name] * rule.weights[name] for name in parts]).sum()
    numbers = {name: float(value.detach()) for name, value in parts.items()}
    if not math.isfinite(float(total.detach())):
        raise NonFiniteLossError(f"loss is not finite at step {step}: {numbers}; lower optim.lr")
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), rule.clip_norm))
    if not math.isfinite(norm):
        raise NonFiniteLossError(
            f"gradient is not finite at step {step}, losses {numbers}; lower optim.lr"
        )
    optimizer.step()
    return {**numbers, "total": float(total.detach())}

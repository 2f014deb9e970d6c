"""Training steps and prediction: arrays and samples in, numbers out. No Ray."""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from af_pipeline.data.training import ChipStream, StreamState
from af_pipeline.model.base import Detector
from af_pipeline.model.losses import Targets
from af_pipeline.samples import Sample


@dataclass(frozen=True)
class OptimRule:
    """Plain numbers of the optimiser; see `af_pipeline.train_settings.OptimConfig`."""

    steps: int
    lr: float
    weight_decay: float = 0.05
    warmup_steps: int = 0
    clip_norm: float = 10.0
    ema_decay: float = 0.999
    weights: Mapping[str, float] = field(default_factory=dict)
    bf16: bool = True
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    step_at: tuple[float, ...] = ()
    step_factor: float = 0.1


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step: images uint8 [N, 3, K, K]; ``state``: after the whole step."""

    images: Tensor
    targets: Targets
    state: StreamState


class NonFiniteLossError(RuntimeError):
    """A loss or its gradient became nan or infinite; the message names the parts."""


class LossModule(nn.Module):
    """A detector's ``losses`` as a forward, which is what DDP wraps."""

    def __init__(self, detector: Detector) -> None:
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
    valid, ignored, crowd = np.zeros((3, n, most), bool)
    for i, sample in enumerate(samples):
        count = len(sample.boxes.boxes)
        boxes[i, :count] = sample.boxes.boxes
        labels[i, :count] = sample.boxes.labels
        valid[i, :count] = sample.boxes.valid
        ignored[i, :count] = sample.boxes.ignored
        crowd[i, :count] = sample.boxes.crowd
    as_tensor = torch.from_numpy
    targets = Targets(
        boxes=as_tensor(boxes),
        labels=as_tensor(labels),
        valid=as_tensor(valid),
        ignored=as_tensor(ignored),
        crowd=as_tensor(crowd),
        focus=as_tensor(np.stack([s.focus for s in samples])),
        ranges=torch.tensor([s.range_px for s in samples], dtype=torch.float32),
    )
    return images, targets


def move(targets: Targets, device: torch.device) -> Targets:
    """The targets on ``device``."""
    return Targets(**{k: v.to(device, non_blocking=True) for k, v in vars(targets).items()})


def make_batches(
    stream: ChipStream,
    state: StreamState,
    rank: int,
    world: int,
    threads: int = 2,
    ahead: int = 4,
) -> Generator[Batch, None, None]:
    """Batches of one worker from ``state`` on, made ahead in threads, without end.

    Worker ``rank`` of ``world`` serves every world-th slot of the stream's global batches.
    """
    if stream.slots % world:
        raise ValueError(f"global_batch {stream.slots} must be a multiple of {world} workers")
    ready: queue.Queue = queue.Queue(maxsize=ahead)
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
            with ThreadPoolExecutor(threads, thread_name_prefix="chips") as pool:
                for item in _pending(stream, state, (rank, world), pool, ahead):
                    if stopped.is_set():
                        pool.shutdown(cancel_futures=True)
                        return
                    put(item)
        except BaseException as error:  # carried over to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=produce, daemon=True, name="chip-stream")
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


def _pending(
    stream: ChipStream,
    state: StreamState,
    place: tuple[int, int],
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[Batch]:
    """Keep the chips of ``ahead`` steps in the making; yield the steps in order."""
    rank, world = place
    walk = stream.walk(state)
    waiting: deque[tuple[list[Future[Sample]], StreamState]] = deque()
    while True:
        while len(waiting) < ahead:
            refs, after = next(walk)
            waiting.append(([pool.submit(stream.sample, ref) for ref in refs[rank::world]], after))
        futures, after = waiting.popleft()
        images, targets = collate([future.result() for future in futures])
        yield Batch(images, targets, after)


def learning_rate(step: int, rule: OptimRule) -> float:
    """Linear warm-up; then a half cosine down to 1% of the peak, or steps of ``step_factor``."""
    if step < rule.warmup_steps:
        return rule.lr * (step + 1) / rule.warmup_steps
    if rule.schedule == "step":
        passed = sum(step >= share * rule.steps for share in rule.step_at)
        return float(rule.lr * rule.step_factor**passed)
    done = (step - rule.warmup_steps) / max(1, rule.steps - rule.warmup_steps)
    return rule.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def build_optimizer(model: nn.Module, rule: OptimRule) -> torch.optim.Optimizer:
    """AdamW or SGD over what is not frozen; biases and norm parameters are not decayed."""
    learned = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": rule.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if rule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rule.lr, momentum=rule.momentum, fused=True)
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
    """One optimiser step; returns the unweighted loss parts, ``total`` and ``grad_norm``.

    A part without a weight in ``rule.weights`` counts once. Raises NonFiniteLossError, naming
    the parts, before the weights are touched.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, rule)
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=rule.bf16):
        parts = model(batch, targets)
    total = torch.stack([parts[name] * rule.weights.get(name, 1.0) for name in parts]).sum()
    values = torch.stack([value.detach().float() for value in (*parts.values(), total)]).tolist()
    numbers = dict(zip((*parts, "total"), values, strict=True))
    if not all(map(math.isfinite, values)):
        raise NonFiniteLossError(f"loss is not finite at step {step}: {numbers}; lower optim.lr")
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), rule.clip_norm))
    if not math.isfinite(norm):
        raise NonFiniteLossError(
            f"gradient is not finite at step {step}, losses {numbers}; lower optim.lr"
        )
    optimizer.step()
    return {**numbers, "grad_norm": norm}

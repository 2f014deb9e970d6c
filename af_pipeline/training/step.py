"""Training steps and prediction: arrays and samples in, numbers out. No Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from af_pipeline.models.detector import Detector, Targets


@dataclass(frozen=True)
class OptimRule:
    """Plain numbers of the optimiser; see `af_pipeline.settings.train.OptimConfig`."""

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

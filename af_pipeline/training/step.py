"""Single training steps: batches in, numbers out. No Ray."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from af_pipeline.models.detector import Detector, Targets
from af_pipeline.settings.train import OptimRule


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
    batch: tuple[Tensor, Targets],
    rule: OptimRule,
    step: int,
) -> dict[str, float]:
    """One optimiser step on images uint8 [N, 3, K, K] and their targets, in bfloat16 where
    ``rule.bf16`` is True; returns the unweighted loss parts, ``total`` and ``grad_norm``.

    A part without a weight counts once. Raises NonFiniteLossError, naming the parts, before the
    weights are touched.
    """
    for group in optimizer.param_groups:
        group["lr"] = rule.rate(step)
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=rule.bf16 is True):
        parts = model(*batch)
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

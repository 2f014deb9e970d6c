"""A focus network out of a detector's own answers: no labels, a few minutes.

The labels are what the detector's pyramid is confident of (`af_pipeline.training.teacher`), the
loss that of the FocusPixel head (AutoFocus, ICCV 2019, §3.1) on crops of the scales that chips are
cut from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from af_pipeline.config import dump_config, dump_without
from af_pipeline.core.focus import STRIDE
from af_pipeline.data.access import SourceError
from af_pipeline.data.manifest import SourceImage, local_version
from af_pipeline.data.secrets import redact_tree
from af_pipeline.data.sources.open import list_images
from af_pipeline.data.storage import replacing
from af_pipeline.models.focus_head import focus_loss
from af_pipeline.models.focus_network import (
    PRESENT,
    FocusInfo,
    FocusNetwork,
    focus_maps,
    load_focus_network,
    save_focus_network,
)
from af_pipeline.models.open import open_detector
from af_pipeline.output.folder import OutputFolder
from af_pipeline.settings.distill import DistillRule
from af_pipeline.settings.guarantee import FREE
from af_pipeline.settings.index import IndexConfig
from af_pipeline.training.crops import Crops, cut_crops, looks
from af_pipeline.training.teacher import FOUND, Taught, confident, found_by, teach

BATCH = 16
RATE = 3e-3
SAVE_EVERY = 100  # steps
STATE = "steps.pt"  # of a training that is not done
CHECKED = 0.1  # share of the images that the network is checked on instead of trained
KEPT = 0.995  # share of the objects there that focus.network.first must not hide
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Distilled:
    """``network``: the file; ``held``: images that played no part, to choose thresholds on."""

    network: Path
    held: list[SourceImage]


def distill(config: IndexConfig, rule: DistillRule, console: Console | None = None) -> Distilled:
    """Teach a focus network what ``config``'s detector finds; Ray must be initialised.

    Writes focus.safetensors and teacher/ into ``rule.output``; the same call goes on where it was
    stopped. Raises ValueError where there is nothing to learn, and what `index` raises.
    """
    console = console or Console(highlight=False)
    if len(config.pyramid) < 2:
        raise ValueError("a focus network needs a pyramid of two scales or more")
    images, held = _split(config, rule)
    detector = open_detector(config.model_copy(update={"focus": _unfocused(config)})).identity
    folder = OutputFolder.at(str(rule.output), work="distillation", setting="--output")
    folder.claim(
        {
            "config": dump_without(config, FREE),
            "detector": detector,
            "images": [one.image_id for one in images],
            "steps": rule.steps,
            "seed": rule.seed,
        }
    )
    path = rule.output / "focus.safetensors"
    if not path.exists():
        taught = teach(config, images, str(rule.output / "teacher"), console)
        network = train_network(config, taught, rule, detector, console.print)
        save_focus_network(network, path)
        (rule.output / STATE).unlink(missing_ok=True)
    load_focus_network(path)
    return Distilled(path, held)


def _unfocused(config: IndexConfig) -> object:
    return config.focus.model_copy(update={"network": None})


def _split(config: IndexConfig, rule: DistillRule) -> tuple[list[SourceImage], list[SourceImage]]:
    """Images to learn from, and others."""
    source = config.source
    columns = source.id_column, source.uri_column
    found = list(list_images(source.uri, source.images, source.storage, *columns))
    if len(found) < 3:
        raise SourceError(f"{len(found)} images are too few to learn from: give 20 or more")
    order = np.random.default_rng(rule.seed).permutation(len(found))
    images = [replace(found[i], version=local_version(found[i].uri)) for i in order]
    learn = min(rule.sample, max(2, round(len(images) * rule.sample / (rule.sample + rule.held))))
    more = rule.held + (rule.calibration if rule.alpha is not None else 0)
    return images[:learn], images[learn : learn + more]


def train_network(
    config: IndexConfig, images: Sequence[Taught], rule: DistillRule, detector: str, tell: Tell
) -> FocusNetwork:
    """Train on ``images``; a tenth of them only sets what `FocusNetworkConfig.first` goes by.

    Raises ValueError where the detector is confident of nothing.
    """
    count = confident(images)
    tell(f"teacher     {count} confident detections in {len(images)} images")
    if not count:
        raise ValueError(
            "the detector's pyramid is confident of nothing in these images (score 0.5 or more): "
            "there is nothing to learn; is it the right detector, and pyramid, for them?"
        )
    checked = images[: max(1, round(CHECKED * len(images)))]
    crops = cut_crops(images[len(checked) :], config.pyramid, config.source, rule.seed)
    tell(f"crops       {len(crops.pixels)} of {len(config.pyramid)} scales")
    training = {
        "images": len(images),
        "objects": count,
        "steps": rule.steps,
        "seed": rule.seed,
        "pyramid": dump_config(config)["pyramid"],
        "detector": redact_tree(dump_config(config)["detector"]),
    }
    torch.manual_seed(rule.seed)
    network = FocusNetwork(FocusInfo(0.0, detector, training)).to(memory_format=torch.channels_last)
    torch.set_flush_denormal(True)  # moments that decay would make a step take seconds
    try:
        _train(network, crops, rule, tell)
    finally:
        torch.set_flush_denormal(False)  # the p-values of a guarantee may be that small
    network.eval()
    network.info = replace(network.info, present=_present(network, config, checked))
    return network


def _train(network: FocusNetwork, crops: Crops, rule: DistillRule, tell: Tell) -> None:
    """All steps, or those that are left; the state is kept beside the result."""
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, rule.steps, pct_start=0.1)
    path, begin = rule.output / STATE, 0
    parts: dict[str, Any] = {"network": network, "optimiser": optimiser, "schedule": schedule}
    if path.exists():
        state = torch.load(path, weights_only=True)
        begin = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    network.train()
    began, mean = time.perf_counter(), 0.0
    for step in range(begin, rule.steps):
        pixels, labels = crops.batch(BATCH, np.random.default_rng([rule.seed, step]))
        logits = network(pixels)
        pairs = zip(logits.unbind(1), labels.long().unbind(1), strict=True)
        loss = torch.stack([focus_loss(*pair) for pair in pairs]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        mean += float(loss.detach()) / SAVE_EVERY
        if (step + 1) % SAVE_EVERY == 0:
            left = (time.perf_counter() - began) / (step + 1 - begin) * (rule.steps - step - 1)
            tell(f"step        {step + 1}/{rule.steps}  loss {mean:.4f}  {left:.0f} s left")
            mean = 0.0
            with replacing(path) as partial:
                torch.save(
                    {"step": step + 1, **{n: p.state_dict() for n, p in parts.items()}}, partial
                )


def _present(network: FocusNetwork, config: IndexConfig, images: Sequence[Taught]) -> float:
    """Half the probability that all but few of the objects of each scale reach somewhere."""
    best: list[float] = []
    for image in images:
        for number, pixels in looks(image, config.pyramid, config.source):
            size = pixels.shape[:2]
            maps = focus_maps(network, [pixels], torch.device("cpu"))[0, PRESENT]
            raw = image.raw
            here = raw.select((raw.scores >= FOUND) & (raw.scales == number))
            own = image.objects.select(found_by(image.objects, here))
            factors = np.array([size[1] / image.width, size[0] / image.height] * 2) / STRIDE
            for x0, y0, x1, y1 in own.boxes * factors:
                part = maps[max(0, int(y0)) : -int(-y1 // 1), max(0, int(x0)) : -int(-x1 // 1)]
                best.append(float(part.max(initial=0.0)))
    return min(0.5, float(np.quantile(best, 1 - KEPT))) / 2 if best else 0.0

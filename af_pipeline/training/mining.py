"""Proposals for negative chip mining: a short training, then the whole pyramid through the graph.

Source: SNIPER (NeurIPS 2018) §3.2. The chips themselves are laid while training, see
`af_pipeline.sniper.chips`; here only the proposals are made, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from af_pipeline.core.lanes import LaneConfig
from af_pipeline.core.stacking import StackRule
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.data.manifest import SourceImage, local_version
from af_pipeline.indexing.index import index
from af_pipeline.indexing.preflight import check_output
from af_pipeline.output.account import Outcome
from af_pipeline.settings.index import IndexConfig, OutputConfig, SourceConfig
from af_pipeline.settings.train import TrainConfig
from af_pipeline.training.data import build_stream, chips_per_epoch, load_training
from af_pipeline.training.trainer import absolute, train


@dataclass(frozen=True)
class Mined:
    """``proposals``: the folder to give as data.proposals; chips an epoch by kind with them."""

    proposals: Path
    outcome: Outcome
    chips: dict[str, float]


def mine(config: TrainConfig, output: str, checkpoint: str | None = None) -> Mined:
    """Extract proposals of ``config.data.train`` into ``output``; Ray must be initialised.

    ``checkpoint``: the detector that proposes; None trains one for ``config.mining.steps``
    without negative chips. Raises ValueError, TrainError and what `index` raises.
    """
    check_output(OutputConfig(uri=output))  # before the training, which takes long
    config = absolute(config)
    dataset = load_training(config)
    weights = checkpoint or str(train(first_training(config)))
    outcome = index(proposal_config(config, weights, output), images=_listed(dataset))
    found = outcome.root / "detections"
    data = config.data.model_copy(update={"proposals": str(found)})
    stream = build_stream(config.model_copy(update={"data": data}), dataset)
    return Mined(found, outcome, chips_per_epoch(stream))


def first_training(config: TrainConfig) -> TrainConfig:
    """The short training: no proposals yet, and of two stages only the first learns."""
    steps = config.mining.steps
    optim: dict[str, Any] = {"steps": steps}
    optim["warmup_steps"] = min(config.optim.warmup_steps, steps // 10)
    if config.model.kind == "faster_rcnn":
        optim |= {"class_weight": 0.0, "box_weight": 0.0}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"proposals": None}),
            "optim": replace(config.optim, **optim),
            "run": config.run.model_copy(update={"name": f"{config.run.name}-proposals"}),
            "validation": config.validation.model_copy(update={"every": 0}),
        }
    )


def proposal_config(config: TrainConfig, checkpoint: str, output: str) -> IndexConfig:
    """Every scale whole, boxes of anything, no valid ranges: what the detector believes in."""
    mining = config.mining
    return IndexConfig(
        # The address tells this run from others.
        source=SourceConfig(
            uri=",".join(part.uri for part in config.data.train), depth=config.data.depth
        ),
        output=OutputConfig(uri=output, chips=False),
        mode="pyramid",
        checkpoint=checkpoint,
        finds="proposals",
        pyramid=config.pyramid,
        detector_score=0.0,
        detector_nms=mining.nms_iou,
        stack=StackRule(
            method="hard",
            iou=mining.nms_iou,
            min_score=0.0,
            class_agnostic=True,
            valid_ranges=False,
            max_detections=mining.per_scale * len(config.pyramid),
        ),
        lanes=LaneConfig(),
        ray=mining.ray,
        max_error_rate=1.0,  # what data.on_broken says of broken images is the training's concern
    )


def _listed(dataset: AnnotatedDataset) -> Iterator[SourceImage]:
    images = dataset.images
    return (SourceImage(i.image_id, i.uri, local_version(i.uri)) for i in images)

"""From a training config to its data: annotations, class names, the stream of chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from af_pipeline.data.annotations import AnnotatedDataset, AnnotatedImage
from af_pipeline.data.load import load_annotations
from af_pipeline.data.proposals import load_proposals
from af_pipeline.data.synthetic import CLASS_NAMES
from af_pipeline.data.training import (
    ChipStream,
    FileImages,
    ImageCache,
    ImageSource,
    SceneImages,
    class_repeats,
)
from af_pipeline.samples import SampleRule
from af_pipeline.sniper import CoverRule
from af_pipeline.train_settings import TrainConfig


def load_training(config: TrainConfig) -> AnnotatedDataset | None:
    """The training annotations; None where a run trains on drawn scenes alone."""
    data = config.data
    if not data.train:
        return None
    return load_annotations(data.train, data.images, config.classes, data.on_broken)


def load_validation(config: TrainConfig, names: tuple[str, ...]) -> AnnotatedDataset:
    """The validation annotations, evenly thinned out to ``validation.images``."""
    data = config.data
    found = load_annotations(data.val, data.val_images, names, data.on_broken)
    return replace(found, images=evenly(found.images, config.validation.images))


def evenly(images: Sequence[AnnotatedImage], count: int) -> tuple[AnnotatedImage, ...]:
    """``count`` of the images at even distances; all of them for 0 or where there are fewer."""
    if not 0 < count < len(images):
        return tuple(images)
    return tuple(images[i * len(images) // count] for i in range(count))


def class_names_of(config: TrainConfig, dataset: AnnotatedDataset | None) -> tuple[str, ...]:
    """Class names of a run: those of the data, or stated, or the drawn scenes'."""
    if dataset is not None:
        return dataset.class_names
    return config.classes or CLASS_NAMES


def cover_rule(config: TrainConfig) -> CoverRule:
    """Where chips are laid."""
    chips, labels = config.chips, config.focus_labels
    return CoverRule(
        size=chips.size,
        stride=chips.stride,
        jitter=chips.jitter,
        negatives=chips.negatives,
        min_proposals=chips.min_proposals,
        focus_chips=chips.focus_chips,
        focus_sides=(labels.ignore_below, labels.focus_below),
        bounds=chips.bounds,
    )


def build_stream(config: TrainConfig, dataset: AnnotatedDataset | None) -> ChipStream:
    """The run's stream of chips. Raises ValueError where the data cannot serve it."""
    data, seed = config.data, config.run.seed
    cache = ImageCache(int(data.cache_gb * 1e9))
    share = data.synthetic_share if data.synthetic_scenes else 0.0
    if dataset is None and data.proposals:
        raise ValueError("data.proposals belong to data.train, which is not given")
    if dataset is not None and share == 1:
        raise ValueError("data.synthetic_share=1 leaves data.train unused: drop one of them")
    sources: list[ImageSource] = []
    shares: list[float] = []
    if dataset is not None:
        proposals = load_proposals(data.proposals) if data.proposals else None
        if proposals is not None and not proposals.keys() & {i.image_id for i in dataset.images}:
            raise ValueError(
                f"data.proposals={data.proposals} has no image of data.train: extract them with "
                "jobs/mine.py from the same data"
            )
        sources.append(FileImages(dataset, cache, proposals, depth=data.depth))
        shares.append(1 - share)
    if share > 0:
        names = class_names_of(config, dataset)
        if names != CLASS_NAMES:
            raise ValueError(
                f"drawn scenes have the classes {', '.join(CLASS_NAMES)}, the data have "
                f"{', '.join(names)}: set data.synthetic_scenes=0"
            )
        sources.append(SceneImages(data.synthetic_scenes, seed, cache))
        shares.append(share)
    repeats = class_repeats(dataset, data.class_power) if dataset and data.class_power else None
    rule = SampleRule(
        scales=tuple(scale.build() for scale in config.pyramid),
        focus=config.focus_labels.build(),
        flips=config.chips.flips,
        colour=config.chips.colour,
    )
    return ChipStream(tuple(sources), tuple(shares), cover_rule(config), rule, seed, repeats)


def chips_per_epoch(stream: ChipStream, source: int = 0, most: int = 300) -> dict[str, float]:
    """Chips an epoch by kind, told from at most ``most`` images of a source."""
    images = len(stream.sources[source])
    looked = np.unique(np.linspace(0, images - 1, min(images, most)).astype(int))
    counts: dict[str, float] = {"positive": 0, "focus": 0, "negative": 0}
    for number in looked:
        for ref in stream.image_refs(source, int(number), 0):
            counts[ref.window.kind] += images / len(looked)
    return counts

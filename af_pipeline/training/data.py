"""From a training config to its data: annotations, class names, the stream of chips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from af_pipeline.data.annotations.dataset import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotationError,
    fail,
    first_of,
)
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.scenes.images import SceneImages
from af_pipeline.scenes.synthetic import CLASS_NAMES
from af_pipeline.settings.train import DataConfig, TrainConfig
from af_pipeline.sniper.chips import CoverRule
from af_pipeline.sniper.images import CHUNK, FileImages, ImageCache, ImageSource
from af_pipeline.sniper.open_images import check_images
from af_pipeline.sniper.proposals import load_proposals
from af_pipeline.sniper.sample import SampleRule
from af_pipeline.sniper.stream import ChipStream, class_repeats

DECODED_PX = 1_000_000_000  # a check decodes so many: 3 to 9 s of one core
SCENE_BYTES = 3 * 1024 * 1024  # of a drawn scene, decoded


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
    return found.with_images(evenly(found.images, config.validation.images))


def look_at_data(
    config: TrainConfig, dataset: AnnotatedDataset | None, every: bool = False
) -> list[str]:
    """`check_data` for the training and the validation images; what to tell of them.

    Raises AnnotationError, with what is wrong with both, and ValueError.
    """
    told: list[str] = []
    wrong: list[str] = []
    sets: dict[str, AnnotatedDataset] = {}
    if dataset is not None:
        told += [f"left out: {line}" for line in first_of(dataset.dropped)]
        sets["images of data.train"] = dataset
    if config.validation.every:
        judged = load_validation(config, class_names_of(config, dataset))
        if not any(len(image.boxes) for image in judged.images):
            raise ValueError("data.val has no boxes to be found")
        sets["images of data.val (folder: data.val_images)"] = judged
    for name, images in sets.items():
        try:
            told += check_data(images, config.data, name, every)
        except AnnotationError as error:
            wrong.append(str(error))
    if wrong:
        raise AnnotationError("\n".join(wrong))
    if dataset is not None:
        told += check_cache(config, dataset)
    return told


def check_cache(config: TrainConfig, dataset: AnnotatedDataset) -> list[str]:
    """A warning where a worker's cache holds fewer images than its slots are at."""
    size = mean_bytes(dataset)
    room = config.data.cache_gb * 1e9 / size
    slots = config.optim.global_batch // config.run.workers
    if room >= slots:
        return []
    return [
        f"warning: data.cache_gb={config.data.cache_gb:g} holds {room:.0f} decoded images, but a "
        f"worker is at {slots} at a time: they will be decoded many times an epoch; set it to "
        f"{2 * slots * size / 1e9:.1f} or take more workers"
    ]


def check_data(
    dataset: AnnotatedDataset, data: DataConfig, name: str, every: bool = False
) -> list[str]:
    """Look at the images of ``dataset`` before anything is trained; returns what to tell of them.

    Args:
        dataset: its images, or ``data.check_images`` of them, are read; their pixels are decoded
            too where they are no more than `DECODED_PX`.
        data: says what broken images are to be.
        name: what messages call the images.
        every: look at all, decode all and name all that is wrong.

    Raises:
        AnnotationError: images are broken and ``data.on_broken`` is "fail", or all are.
    """
    images = evenly(dataset.images, data.check_images) if not every else dataset.images
    if not images or not (every or data.check_images):
        return []
    decode = every or sum(image.width * image.height for image in images) <= DECODED_PX
    found = check_images(images, data.exif, decode, data.depth)
    shown = found.looked_at if every else 10
    if len(found.broken) == found.looked_at:
        fail(f"{name}, none of which can be used", found.broken, shown)
    if data.on_broken == "fail":
        fail(f"{name} (data.on_broken=drop leaves such out)", found.broken, shown)
    how = "decoded" if decode else "looked at the headers of"
    told = [f"left out: {line}" for line in first_of(found.broken, shown)]
    told += [
        f"{name}: {how} {found.looked_at} of {len(dataset.images)} images, "
        f"{len(found.broken)} of them left out"
    ]
    if found.turned:
        told.append(
            f"{name}: {found.turned} images are turned by EXIF and their boxes refer to the stored "
            "pixels (data.exif): boxes are turned too"
        )
    if found.unsure:
        told.append(
            f"warning: {name}: {found.unsure} images are turned by EXIF, which their size does not "
            "tell: boxes are taken as of the upright pixels, else set data.exif=stored"
        )
    return told


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
    data, seed, slots = config.data, config.run.seed, config.optim.global_batch
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
        chunk = max(CHUNK, 4 * slots)
        sources.append(
            FileImages(dataset, cache, proposals, chunk, frame=data.exif, depth=data.depth)
        )
        shares.append(1 - share)
    if share > 0:
        names = class_names_of(config, dataset)
        if names != CLASS_NAMES:
            raise ValueError(
                f"drawn scenes have the classes {', '.join(CLASS_NAMES)}, the data have "
                f"{', '.join(names)}: set data.synthetic_scenes=0"
            )
        sources.append(SceneImages(data.synthetic_scenes, seed, cache, max(8, 2 * slots)))
        shares.append(share)
    repeats = class_repeats(dataset, data.class_power) if dataset and data.class_power else None
    rule = SampleRule(
        scales=config.pyramid,
        focus=config.focus_labels,
        flips=config.chips.flips,
        colour=config.chips.colour,
    )
    return ChipStream(
        tuple(sources),
        tuple(shares),
        cover_rule(config),
        rule,
        seed,
        slots=slots,
        mix=images_mixed(dataset, cache.capacity, slots),
        repeats=repeats,
        drop_broken=data.on_broken == "drop",
    )


def images_mixed(dataset: AnnotatedDataset | None, capacity: int, slots: int) -> int:
    """How many images a slot may go through together: what half the cache holds, at most 16.

    The same for any number of workers, of which one alone serves all slots.
    """
    return int(np.clip(capacity / (2 * slots * mean_bytes(dataset)), 1, 16))


def mean_bytes(dataset: AnnotatedDataset | None) -> float:
    """Of a decoded image; of a drawn scene where there are no others."""
    sizes = [3 * image.width * image.height for image in dataset.images] if dataset else []
    return float(np.mean(sizes)) if sizes else SCENE_BYTES


def chips_per_epoch(stream: ChipStream, source: int = 0, most: int = 300) -> dict[str, float]:
    """Chips an epoch by kind, told from at most ``most`` images of a source."""
    images = len(stream.sources[source])
    looked = np.unique(np.linspace(0, images - 1, min(images, most)).astype(int))
    counts: dict[str, float] = {"positive": 0, "focus": 0, "negative": 0}
    for number in looked:
        for ref in stream.image_refs(source, int(number), 0):
            counts[ref.window.kind] += images / len(looked)
    return counts

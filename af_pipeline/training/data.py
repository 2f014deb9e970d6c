"""From a training config to its data: annotations, class names, the stream of chips."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from af_pipeline.data.annotations.dataset import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotationError,
    fail,
    first_of,
)
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.settings.suggest.text import suggest_for
from af_pipeline.settings.train import DataConfig, TrainConfig
from af_pipeline.sniper.chips import ChipMaking
from af_pipeline.sniper.images import (
    CHUNK,
    FileImages,
    ImageCache,
    check_images,
    load_proposals,
)
from af_pipeline.sniper.stream import ChipStream, class_repeats

DECODED_PX = 1_000_000_000  # a check decodes so many: 3 to 9 s of one core


def load_training(config: TrainConfig) -> AnnotatedDataset:
    """The training annotations of all parts. Raises ValueError where none are named."""
    data = config.data
    if not data.train:
        raise ValueError("no training images: name their annotations by --set data.train=FILE")
    paths = [part.uri for part in data.train]
    return load_annotations(paths, data.images, config.classes, data.on_broken)


def load_validation(config: TrainConfig, names: tuple[str, ...]) -> AnnotatedDataset:
    """The validation annotations, evenly thinned out to ``validation.images``."""
    data = config.data
    found = load_annotations(data.val, data.val_images, names, data.on_broken)
    return found.with_images(evenly(found.images, config.validation.images))


def describe(config: TrainConfig, suggest: bool) -> str:
    """What to set for the training data, or, with all images decoded, what is wrong with them.

    Raises ValueError where the data cannot be used; an AnnotationError names all that is wrong.
    """
    dataset = load_training(config)
    if suggest:
        return suggest_for(dataset, config.chips.size)
    return "\n".join(look_at_data(config, dataset, every=True))


def look_at_data(config: TrainConfig, dataset: AnnotatedDataset, every: bool = False) -> list[str]:
    """`check_data` for the training and the validation images; what to tell of them.

    Raises AnnotationError, with what is wrong with both, and ValueError.
    """
    told = [f"left out: {line}" for line in first_of(dataset.dropped)]
    wrong: list[str] = []
    sets = {"images of data.train": dataset}
    if config.validation.every:
        judged = load_validation(config, dataset.class_names)
        if not len(judged.boxes):
            raise ValueError("data.val has no boxes to be found")
        sets["images of data.val (folder: data.val_images)"] = judged
    for name, images in sets.items():
        try:
            told += check_data(images, config.data, name, every)
        except AnnotationError as error:
            wrong.append(str(error))
    if wrong:
        raise AnnotationError("\n".join(wrong))
    return told + check_cache(config, dataset)


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
        f"{name}: {how} {found.looked_at} of {len(dataset.image_ids)} images, "
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


def build_stream(config: TrainConfig, dataset: AnnotatedDataset) -> ChipStream:
    """The run's stream of chips. Raises ValueError where the data cannot serve it."""
    data, slots = config.data, config.optim.global_batch
    cache = ImageCache(int(data.cache_gb * 1e9))
    proposals = load_proposals(data.proposals) if data.proposals else None
    if proposals is not None and not proposals.keys() & set(dataset.image_ids):
        raise ValueError(
            f"data.proposals={data.proposals} has no image of data.train: extract them with "
            "jobs/mine.py from the same data"
        )
    sources = [
        FileImages(part, cache, proposals, max(CHUNK, 4 * slots), frame=data.exif, depth=data.depth)
        for part in split_parts(config, dataset)
    ]
    repeats = class_repeats(dataset, data.class_power) if data.class_power else None
    return ChipStream(
        sources,
        [part.share or 1.0 for part in data.train[: len(sources)]],
        ChipMaking(config.pyramid, config.chips, config.focus_labels),
        config.run.seed,
        slots=slots,
        mix=images_mixed(dataset, cache.capacity, slots),
        repeats=repeats,
        drop_broken=data.on_broken == "drop",
    )


def split_parts(config: TrainConfig, dataset: AnnotatedDataset) -> list[AnnotatedDataset]:
    """The parts that have a share; all as one where none has."""
    if len(config.data.train) < 2 or config.data.train[0].share is None:
        return [dataset]
    ends = list(accumulate(dataset.counts))
    return [
        dataset.with_images(dataset.images[end - count : end])
        for count, end in zip(dataset.counts, ends, strict=True)
    ]


def images_mixed(dataset: AnnotatedDataset, capacity: int, slots: int) -> int:
    """How many images a slot may go through together: what half the cache holds, at most 16.

    The same for any number of workers, of which one alone serves all slots.
    """
    return int(np.clip(capacity / (2 * slots * mean_bytes(dataset)), 1, 16))


def mean_bytes(dataset: AnnotatedDataset) -> float:
    """Of a decoded image."""
    return 3 * float(dataset.sizes.prod(axis=1).mean()) if len(dataset.sizes) else 1.0


def chips_per_epoch(stream: ChipStream, source: int = 0, most: int = 300) -> dict[str, float]:
    """Chips an epoch by kind, told from at most ``most`` images of a source."""
    images = len(stream.sources[source])
    looked = np.unique(np.linspace(0, images - 1, min(images, most)).astype(int))
    counts: dict[str, float] = {"positive": 0, "focus": 0, "negative": 0}
    for number in looked:
        for ref in stream.image_refs(source, int(number), 0):
            counts[ref.window.kind] += images / len(looked)
    return counts

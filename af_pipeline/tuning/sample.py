"""Which images a tuning looks at, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage, OnBroken
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.data.secrets import redact
from af_pipeline.data.sources.open import list_images
from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import DecodeError, decode_image
from af_pipeline.settings.index import IndexConfig


@dataclass(frozen=True)
class SampleImage:
    """One image; ``truth``: its ground truth, None without any."""

    image_id: str
    uri: str
    truth: AnnotatedImage | None = None


@dataclass(frozen=True)
class TuneSample:
    """``tune`` to search on, ``calibration`` to certify on; disjoint, in a random order.

    ``dataset``: ground truth of all of them, or None; ``source``: where they came from.
    """

    tune: tuple[SampleImage, ...]
    calibration: tuple[SampleImage, ...]
    dataset: AnnotatedDataset | None
    source: str

    def truth(self) -> AnnotatedDataset | None:
        """Ground truth of the images to search on."""
        if self.dataset is None:
            return None
        own = {image.image_id for image in self.tune}
        kept = [image for image in self.dataset.images if image.image_id in own]
        return self.dataset.with_images(kept)


def draw_sample(
    config: IndexConfig,
    ground_truth: str | None,
    count: int,
    calibration: int,
    seed: int,
    *,
    on_broken: OnBroken = "fail",
) -> TuneSample:
    """``count`` random images to search on and ``calibration`` others to certify on.

    Out of ``ground_truth`` (COCO json, VOC image set, Parquet), else of ``config.source``. Fewer
    where there are not as many: the calibration then keeps its share. Raises SourceError,
    AnnotationError or ValueError.
    """
    dataset = None
    if ground_truth is not None:
        dataset = load_annotations([ground_truth], config.source.images, on_broken=on_broken)
        images = [SampleImage(one.image_id, one.uri, one) for one in dataset.images]
    else:
        images = _listed(config)
    chosen = np.random.default_rng(seed).permutation(len(images))[: count + calibration]
    if len(chosen) < count + calibration:
        calibration = round(len(chosen) * calibration / (count + calibration))
    held = [images[i] for i in chosen]
    source = redact(ground_truth or config.source.uri)
    return TuneSample(tuple(held[calibration:]), tuple(held[:calibration]), dataset, source)


def _listed(config: IndexConfig) -> list[SampleImage]:
    source = config.source
    if not source.uri:
        raise SourceError("no images: give --ground-truth FILE or --set source.uri=SOURCE")
    storage = source.storage
    found = list_images(source.uri, source.images, storage, source.id_column, source.uri_column)
    return [SampleImage(one.image_id, one.uri) for one in found]


def read_sample(image: SampleImage, config: IndexConfig) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] RGB; ValueError names the image."""
    source = config.source
    try:
        data = read_bytes(image.uri, source.storage)
        return decode_image(data, source.max_pixels, source.depth)
    except (SourceError, DecodeError) as error:
        raise ValueError(f"{image.image_id}: {error}") from error


def readable(
    images: Sequence[SampleImage], config: IndexConfig
) -> tuple[list[SampleImage], list[str]]:
    """The images that can be read, and why the others cannot."""
    good, bad = [], []
    for image in images:
        try:
            read_sample(image, config)
        except ValueError as error:
            bad.append(str(error))
        else:
            good.append(image)
    return good, bad

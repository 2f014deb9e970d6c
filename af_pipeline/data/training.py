"""The stream of training chips: which image the n-th chip of a run comes from.

Chip n of a run is a function of (seed, n) alone, so any number of workers that share out the
slots of a global batch train on the same chips, and a resumed run goes on with the next ones.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from af_pipeline.codec import decode_image
from af_pipeline.data.coco import AnnotatedDataset, AnnotatedImage
from af_pipeline.data.sources import read_bytes
from af_pipeline.data.synthetic import render_scene
from af_pipeline.samples import LabelledImage, Sample, SampleRule, draw_sample


@dataclass
class ImageCache:
    """Decoded images by key, least recently used out first beyond ``capacity`` bytes."""

    capacity: int
    held: OrderedDict[str, LabelledImage] = field(default_factory=OrderedDict)
    size: int = 0

    def get(self, key: str) -> LabelledImage | None:
        """The image of ``key``, now the most recent, or None."""
        if key in self.held:
            self.held.move_to_end(key)
        return self.held.get(key)

    def put(self, key: str, image: LabelledImage) -> None:
        """Keep ``image``, dropping the oldest until it fits."""
        if key in self.held:
            return
        self.held[key] = image
        self.size += image.image.nbytes
        while self.size > self.capacity and len(self.held) > 1:
            _, dropped = self.held.popitem(last=False)
            self.size -= dropped.image.nbytes


class SampleStream:
    """Chips by number. ``dataset`` may be None when ``synthetic_share`` is 1."""

    def __init__(
        self,
        dataset: AnnotatedDataset | None,
        rule: SampleRule,
        class_weights: NDArray[np.float64],
        seed: int,
        synthetic: tuple[int, float] = (0, 0.0),
        cache_bytes: int = 2 * 10**9,
    ) -> None:
        self.images: tuple[AnnotatedImage, ...] = dataset.images if dataset else ()
        self.rule = rule
        self.class_weights = class_weights
        self.seed = seed
        self.scenes, self.synthetic_share = synthetic
        if not self.images and not (self.scenes and self.synthetic_share >= 1):
            raise ValueError("no training images: set data.train, or data.synthetic_share=1")
        self.cache = ImageCache(cache_bytes)

    def sample(self, number: int) -> Sample:
        """The ``number``-th chip of the run."""
        rng = np.random.default_rng([self.seed, number])
        if self.scenes and rng.random() < self.synthetic_share:
            return draw_sample(rng, self._scene(rng), self.class_weights, self.rule)
        epoch, position = divmod(number, len(self.images))
        order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.images))
        image = self.images[int(order[position])]
        rng = np.random.default_rng([self.seed, epoch, zlib.crc32(image.image_id.encode())])
        return draw_sample(rng, self._load(image), self.class_weights, self.rule)

    def _scene(self, rng: np.random.Generator) -> LabelledImage:
        number = int(rng.integers(self.scenes))
        key = f"scene:{number}"
        held = self.cache.get(key)
        if held is None:
            scene = render_scene(self.seed * 100_003 + number)
            crowd = np.zeros(len(scene.boxes), bool)
            held = LabelledImage(scene.image, scene.boxes, scene.labels, crowd)
            self.cache.put(key, held)
        return held

    def _load(self, image: AnnotatedImage) -> LabelledImage:
        held = self.cache.get(image.image_id)
        if held is None:
            pixels = decode_image(read_bytes(image.uri))
            if pixels.shape[:2] != (image.height, image.width):
                raise ValueError(
                    f"{image.uri} is {pixels.shape[1]}x{pixels.shape[0]} px, its annotation says "
                    f"{image.width}x{image.height}: boxes would not fit; correct the annotation"
                )
            held = LabelledImage(pixels, image.boxes, image.labels, image.crowd)
            self.cache.put(image.image_id, held)
        return held


def class_weights(dataset: AnnotatedDataset | None, classes: int, power: float) -> NDArray:
    """Drawing weight [classes] of a box by its class: frequency^-power, mean 1 over boxes."""
    if dataset is None:
        return np.ones(classes)
    labels = np.concatenate([image.labels for image in dataset.images])
    count = np.bincount(labels, minlength=classes).astype(np.float64)
    return (np.maximum(count, 1) / max(1.0, count.mean())) ** -power

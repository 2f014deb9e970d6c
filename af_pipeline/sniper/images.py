"""Where training images come from: files with annotations; decoded ones are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.images.depth import BY_TYPE, DepthConfig
from af_pipeline.sniper.chips import ImageBoxes
from af_pipeline.sniper.open_images import BrokenImageError, Frame, open_image
from af_pipeline.sniper.sample import LabelledImage

CHUNK = 1024  # images dealt at a time: few enough that laying their chips stops no step for long


@dataclass
class ImageCache:
    """Decoded images by key, least recently used out first beyond ``capacity`` bytes."""

    capacity: int
    held: OrderedDict[str, LabelledImage] = field(default_factory=OrderedDict)
    size: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    making: dict[str, threading.Lock] = field(default_factory=dict)

    def get(self, key: str) -> LabelledImage | None:
        """The image of ``key``, now the most recent, or None."""
        with self.lock:
            if key in self.held:
                self.held.move_to_end(key)
            return self.held.get(key)

    def put(self, key: str, image: LabelledImage) -> None:
        """Keep ``image``, dropping the oldest until it fits."""
        with self.lock:
            if key in self.held:
                return
            self.held[key] = image
            self.size += image.image.nbytes
            while self.size > self.capacity and len(self.held) > 1:
                _, dropped = self.held.popitem(last=False)
                self.size -= dropped.image.nbytes

    def fetch(self, key: str, make: Callable[[], LabelledImage]) -> LabelledImage:
        """The image of ``key``; made, and kept, where it is not held. Threads that ask for the
        same image at the same time wait for the first of them."""
        with self.lock:
            making = self.making.setdefault(key, threading.Lock())
        try:
            with making:
                held = self.get(key)
                if held is None:
                    held = make()
                    self.put(key, held)
                return held
        finally:
            with self.lock:
                self.making.pop(key, None)


class ImageSource(Protocol):
    """Labelled images by number; ``chunk``: how many are dealt to the slots at a time."""

    chunk: int

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """Name of the image, unique and stable."""

    def boxes(self, number: int) -> tuple[ImageBoxes, NDArray[np.int32]]:
        """Boxes and labels, without decoding where that can be."""

    def load(self, number: int) -> LabelledImage:
        """The decoded image."""


class FileImages:
    """The images of a data set, with the proposals of a first detector where there are some."""

    def __init__(
        self,
        dataset: AnnotatedDataset,
        cache: ImageCache,
        proposals: Mapping[str, NDArray[np.float32]] | None = None,
        chunk: int = CHUNK,
        *,
        frame: Frame = "auto",
        depth: DepthConfig = BY_TYPE,
    ) -> None:
        self.images, self.depth = dataset.images, depth
        self.cache, self.proposals, self.chunk, self.frame = cache, proposals, chunk, frame
        self.broken: dict[str, str] = {}  # what is wrong with each that could not be used

    def __len__(self) -> int:
        return len(self.images)

    def key(self, number: int) -> str:
        """image_id."""
        return self.images[number].image_id

    def boxes(self, number: int) -> tuple[ImageBoxes, NDArray[np.int32]]:
        """Boxes and labels from the annotations."""
        image = self.images[number]
        proposals = None
        if self.proposals is not None:
            proposals = self.proposals.get(image.image_id, np.zeros((0, 4), np.float32))
        size = (image.height, image.width)
        return ImageBoxes(size, image.boxes, image.crowd, proposals), image.labels

    def load(self, number: int) -> LabelledImage:
        """Decode, or take from the cache. Raises BrokenImageError, each time for the same image."""
        image = self.images[number]
        if image.image_id in self.broken:
            raise BrokenImageError(self.broken[image.image_id])
        try:
            return self.cache.fetch(image.image_id, lambda: self._open(image))
        except BrokenImageError as error:
            self.broken[image.image_id] = str(error)
            raise

    def _open(self, image: AnnotatedImage) -> LabelledImage:
        pixels, image, turn = open_image(image, self.frame, self.depth)
        return LabelledImage(pixels, image.boxes, image.labels, image.crowd, turn)

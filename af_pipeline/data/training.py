"""The stream of training chips: every chip of every image once an epoch, in a seeded order.

The chips of an image follow from (seed, epoch, image id), their order from (seed, epoch), so any
number of workers that share out the slots of a global batch train on the same chips. A `Cursor`
says where a run stands; a resumed run goes on with the very next chip.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from af_pipeline.codec import DecodeError, decode_image
from af_pipeline.data.annotations import AnnotatedDataset, AnnotatedImage
from af_pipeline.data.storage import read_bytes
from af_pipeline.data.synthetic import render_scene
from af_pipeline.depth import BY_TYPE, DepthConfig
from af_pipeline.samples import LabelledImage, Sample, SampleRule, make_sample
from af_pipeline.sniper import ChipWindow, CoverRule, ImageBoxes, boxes_in_window, image_chips

MAX_REPEAT = 8.0  # a chip comes at most so often an epoch for its rare classes


@dataclass
class ImageCache:
    """Decoded images by key, least recently used out first beyond ``capacity`` bytes."""

    capacity: int
    held: OrderedDict[str, LabelledImage] = field(default_factory=OrderedDict)
    size: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

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
        """The image of ``key``; made, and kept, where it is not held."""
        held = self.get(key)
        if held is None:
            held = make()
            self.put(key, held)
        return held


class ImageSource(Protocol):
    """Labelled images by number; ``chunk``: how many are looked through for chips at a time."""

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
        chunk: int = 0,
        depth: DepthConfig = BY_TYPE,
    ) -> None:
        self.images, self.depth = dataset.images, depth
        self.cache, self.proposals = cache, proposals
        # Chips are shuffled within a chunk: as many images as the cache holds, else each chip
        # would decode its image anew.
        size = sum(3 * i.width * i.height for i in self.images) / max(1, len(self.images))
        self.chunk = chunk or int(np.clip(cache.capacity / max(1.0, size), 8, 512))

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
        """Decode, or take from the cache. Raises ValueError where file and annotation differ."""
        image = self.images[number]
        return self.cache.fetch(image.image_id, lambda: _decoded(image, self.depth))


def read_image(uri: str, depth: DepthConfig = BY_TYPE) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] RGB; a DecodeError names the file."""
    try:
        return decode_image(read_bytes(uri), depth=depth)
    except DecodeError as error:
        raise DecodeError(f"{uri}: {error}") from error


def _decoded(image: AnnotatedImage, depth: DepthConfig) -> LabelledImage:
    pixels = read_image(image.uri, depth)
    if pixels.shape[:2] != (image.height, image.width):
        raise ValueError(
            f"{image.uri} is {pixels.shape[1]}x{pixels.shape[0]} px, its annotation says "
            f"{image.width}x{image.height}: boxes would not fit; correct the annotation"
        )
    return LabelledImage(pixels, image.boxes, image.labels, image.crowd)


class SceneImages:
    """Drawn scenes; rendered when first asked for."""

    def __init__(self, count: int, seed: int, cache: ImageCache, chunk: int = 8) -> None:
        self.count, self.seed, self.cache, self.chunk = count, seed, cache, chunk

    def __len__(self) -> int:
        return self.count

    def key(self, number: int) -> str:
        """scene:N."""
        return f"scene:{number}"

    def boxes(self, number: int) -> tuple[ImageBoxes, NDArray[np.int32]]:
        """Boxes and labels of the rendered scene."""
        scene = self.load(number)
        return ImageBoxes(scene.image.shape[:2], scene.boxes, scene.crowd), scene.labels

    def load(self, number: int) -> LabelledImage:
        """Render, or take from the cache."""
        return self.cache.fetch(self.key(number), lambda: self._render(number))

    def _render(self, number: int) -> LabelledImage:
        scene = render_scene(self.seed * 100_003 + number)
        crowd = np.zeros(len(scene.boxes), bool)
        return LabelledImage(scene.image, scene.boxes, scene.labels, crowd)


@dataclass(frozen=True)
class Cursor:
    """The next chip of one source: epoch, chunk of its images, place in the chunk's chips."""

    epoch: int = 0
    chunk: int = 0
    offset: int = 0


@dataclass(frozen=True)
class ChipRef:
    """A chip to be made: source, image number, epoch, number among the image's chips."""

    source: int
    image: int
    epoch: int
    number: int
    window: ChipWindow


@dataclass(frozen=True)
class StreamState:
    """Where a run stands: chips taken, and one cursor a source."""

    taken: int
    cursors: tuple[Cursor, ...]

    def to_list(self) -> list[list[int]]:
        """Plain numbers, for a checkpoint."""
        return [[self.taken], *(list(astuple(cursor)) for cursor in self.cursors)]

    @classmethod
    def from_list(cls, numbers: list[list[int]]) -> StreamState:
        """The inverse of `to_list`."""
        return cls(numbers[0][0], tuple(Cursor(*one) for one in numbers[1:]))


class ChipStream:
    """Chips of several sources mixed by ``shares``, without end.

    ``repeats`` [C]: how often a chip with an object of a class comes an epoch, fractions by
    chance (repeat-factor sampling, Gupta et al., LVIS, 2019); None: once.
    """

    def __init__(
        self,
        sources: tuple[ImageSource, ...],
        shares: tuple[float, ...],
        cover: CoverRule,
        rule: SampleRule,
        seed: int,
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        if not sources:
            raise ValueError("no training images: set data.train, or data.synthetic_share=1")
        self.sources, self.shares, self.cover, self.rule = sources, shares, cover, rule
        self.seed, self.repeats = seed, repeats

    def start(self) -> StreamState:
        """Before the first chip."""
        return StreamState(0, tuple(Cursor() for _ in self.sources))

    def walk(self, state: StreamState) -> Iterator[tuple[ChipRef, StreamState]]:
        """Chips from ``state`` on, each with the state after it."""
        cursors = list(state.cursors)
        walks = [self.walk_source(i, cursor) for i, cursor in enumerate(cursors)]
        edges = np.cumsum(self.shares) / sum(self.shares)
        for taken in range(state.taken, np.iinfo(np.int64).max):
            draw = np.random.default_rng([self.seed, taken, 11]).random()
            index = int(np.searchsorted(edges, draw, side="right"))
            ref, cursors[index] = next(walks[index])
            yield ref, StreamState(taken + 1, tuple(cursors))

    def walk_source(self, index: int, cursor: Cursor) -> Iterator[tuple[ChipRef, Cursor]]:
        """Chips of one source from ``cursor`` on. Raises ValueError where it has none at all."""
        source = self.sources[index]
        chunks = -(-len(source) // source.chunk)
        empty, epoch, chunk, offset = 0, cursor.epoch, cursor.chunk, cursor.offset
        while empty < 2 * chunks:  # an epoch may begin where the one before ended
            refs = self.chunk_chips(index, epoch, chunk)
            empty = 0 if refs else empty + 1
            following = (epoch, chunk + 1) if chunk + 1 < chunks else (epoch + 1, 0)
            for place in range(offset, len(refs)):
                last = place + 1 == len(refs)
                yield refs[place], Cursor(*following) if last else Cursor(epoch, chunk, place + 1)
            (epoch, chunk), offset = following, 0
        raise ValueError(
            "no box of the training data fits a chip at any scale and no image is without boxes: "
            "see the sizes with --suggest, then change pyramid or chips.size"
        )

    def chunk_chips(self, index: int, epoch: int, chunk: int) -> list[ChipRef]:
        """All chips of one chunk of a source's images, in the epoch's order."""
        source = self.sources[index]
        order = np.random.default_rng([self.seed, epoch, index, 1]).permutation(len(source))
        refs: list[ChipRef] = []
        for number in order[chunk * source.chunk : (chunk + 1) * source.chunk]:
            refs += self.image_refs(index, int(number), epoch)
        shuffle = np.random.default_rng([self.seed, epoch, index, chunk, 2])
        return [refs[i] for i in shuffle.permutation(len(refs))]

    def image_refs(self, index: int, number: int, epoch: int) -> list[ChipRef]:
        """The chips of one image in ``epoch``."""
        source = self.sources[index]
        image, labels = source.boxes(number)
        rng = self._rng(index, number, epoch)
        windows = []
        for window in image_chips(rng, image, self.rule.scales, self.cover):
            windows += [window] * self._repeat(rng, window, image, labels)
        return [ChipRef(index, number, epoch, i, window) for i, window in enumerate(windows)]

    def sample(self, ref: ChipRef) -> Sample:
        """Make a chip: decode, cut, augment, targets. Safe to call from several threads."""
        rng = self._rng(ref.source, ref.image, ref.epoch, ref.number + 1)
        return make_sample(rng, self.sources[ref.source].load(ref.image), ref.window, self.rule)

    def _rng(self, index: int, number: int, epoch: int, chip: int = 0) -> np.random.Generator:
        name = zlib.crc32(self.sources[index].key(number).encode())
        return np.random.default_rng([self.seed, epoch, name, chip])

    def _repeat(
        self,
        rng: np.random.Generator,
        window: ChipWindow,
        image: ImageBoxes,
        labels: NDArray[np.int32],
    ) -> int:
        if self.repeats is None or window.kind != "positive":
            return 1
        scale = self.rule.scales[window.scale]
        range_px = scale.valid_range_px(scale.factor_for(*image.size))
        inside = boxes_in_window(window, image.boxes, labels, image.crowd, range_px)
        most = self.repeats[inside.labels[inside.valid]].max(initial=1.0)
        return int(most + rng.random())


def class_repeats(dataset: AnnotatedDataset, power: float) -> NDArray[np.float64]:
    """How often a class's chips come [C]: (most frequent / own frequency)^power, at most 8."""
    labels = np.concatenate([np.zeros(0, np.int32), *(image.labels for image in dataset.images)])
    count = np.bincount(labels, minlength=len(dataset.class_names)).astype(np.float64)
    repeats = (max(1.0, count.max(initial=0.0)) / np.maximum(count, 1.0)) ** power
    return np.minimum(repeats, MAX_REPEAT)

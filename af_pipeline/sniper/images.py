"""Images to train on: boxes and proposals by number, pixels that fit them, decoded ones kept.

Pixels are upright everywhere in this project (EXIF orientation applied). Boxes may have been drawn
on the stored pixels instead, as pycocotools and torchvision show them: which of the two the width
and height of an annotation tell, and boxes of stored pixels are turned upright.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import DecodeError, decode_image, image_size
from af_pipeline.images.depth import BY_TYPE, DepthConfig
from af_pipeline.images.guards import SIDEWAYS, orientation
from af_pipeline.sniper.chips import ImageBoxes
from af_pipeline.sniper.sample import LabelledImage

CHUNK = 1024  # images dealt at a time: few enough that laying their chips stops no step for long
CORNERS = ("x0", "y0", "x1", "y1")
Frame = Literal["auto", "upright", "stored"]
_WITH_EXIF = ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"RIFF", "WebP"))
_DECODED_AT_ONCE = 400_000_000  # px, so that a check takes 1.2 GB at most


class BrokenImageError(ValueError):
    """An annotated image cannot be used; the message names the file and what is wrong."""


class ImageCache:
    """Decoded images by key, least recently used out first beyond ``capacity`` bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size, self.lock = capacity, 0, threading.Lock()
        self.held: OrderedDict[str, Future[LabelledImage]] = OrderedDict()

    def fetch(self, key: str, make: Callable[[], LabelledImage]) -> LabelledImage:
        """The image of ``key``; made, and kept, where it is not held. Threads that ask for the
        same image at the same time wait for the first of them, and share its error."""
        with self.lock:
            found = self.held.get(key)
            if found is not None:
                self.held.move_to_end(key)
            else:
                making = self.held[key] = Future()
        if found is not None:
            return found.result()
        try:
            made = make()
        except BaseException as error:
            with self.lock:
                del self.held[key]
            making.set_exception(error)
            raise
        with self.lock:
            making.set_result(made)
            self.size += made.image.nbytes
            for old in list(self.held) if self.size > self.capacity else ():
                if old != key and self.held[old].done():
                    self.size -= self.held.pop(old).result().image.nbytes
                if self.size <= self.capacity:
                    break
        return made


class FileImages:
    """The images of a data set, with the proposals of a first detector where there are some.

    ``chunk``: how many are dealt to the slots of a stream at a time.
    """

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
        self.names, self.images, self.depth = dataset.image_ids, dataset.images, depth
        self.cache, self.proposals, self.chunk, self.frame = cache, proposals, chunk, frame
        self.broken: dict[str, str] = {}  # what is wrong with each that could not be used

    def __len__(self) -> int:
        return len(self.names)

    def key(self, number: int) -> str:
        """Name of the image, unique and stable: its image_id."""
        return self.names[number]

    def boxes(self, number: int) -> tuple[ImageBoxes, NDArray[np.int32]]:
        """Boxes and labels, without decoding."""
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


def load_proposals(uri: str) -> dict[str, NDArray[np.float32]]:
    """Boxes float32 [P, 4] (original px, half-open) by image_id.

    ``uri``: the ``detections`` folder of a run of jobs/mine.py, or any Parquet with the columns
    image_id, x0, y0, x1, y1. Raises ValueError naming it where it cannot be read as such.
    """
    try:
        table = ds.dataset(uri, format="parquet").to_table(columns=["image_id", *CORNERS])
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"data.proposals={uri} cannot be read ({' '.join(str(error).split())}): "
            "give the detections folder that jobs/mine.py names"
        ) from error
    ids = table["image_id"].combine_chunks().dictionary_encode()
    codes, names = ids.indices.to_numpy(), ids.dictionary.to_pylist()
    order = np.argsort(codes, kind="stable")
    boxes = np.stack([table[name].to_numpy()[order] for name in CORNERS], 1).astype(np.float32)
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    return dict(zip(names, np.split(boxes, ends[:-1]), strict=True)) if names else {}


def read_image(uri: str, depth: DepthConfig = BY_TYPE) -> NDArray[np.uint8]:
    """Upright pixels [H, W, 3] RGB. Raises BrokenImageError."""
    with _naming(uri):
        return decode_image(read_bytes(uri), depth=depth)


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Turn what reading and decoding a file raise into a BrokenImageError that names it."""
    try:
        yield
    except SourceError as error:
        raise BrokenImageError(str(error)) from error
    except DecodeError as error:
        raise BrokenImageError(f"{uri}: {error}") from error


def open_image(
    image: AnnotatedImage, frame: Frame = "auto", depth: DepthConfig = BY_TYPE
) -> tuple[NDArray[np.uint8], AnnotatedImage, int]:
    """Upright pixels [H, W, 3], the annotation for them, and how it was turned.

    Args:
        image: as annotated.
        frame: the pixels that boxes refer to; ``auto``: those whose width and height the
            annotation states, upright where both do.
        depth: how values of more than 8 bits become 8 bits.

    Returns:
        The last is the EXIF orientation that the boxes were turned by, 1 where they were not.

    Raises:
        BrokenImageError: the file cannot be read or decoded, or is of another size.
    """
    with _naming(image.uri):
        data = read_bytes(image.uri)
        pixels = decode_image(data, depth=depth)
    turn = _turn(image, data, pixels.shape[:2], frame)
    return pixels, upright(image, turn), turn


def upright(image: AnnotatedImage, turn: int) -> AnnotatedImage:
    """The annotation of stored pixels with EXIF orientation ``turn``, for the upright ones."""
    if turn == 1:
        return image
    boxes = turn_boxes(image.boxes, (image.height, image.width), turn)
    if turn in SIDEWAYS:
        return replace(image, boxes=boxes, width=image.height, height=image.width)
    return replace(image, boxes=boxes)


def turn_boxes(boxes: NDArray, size: tuple[int, int], turn: int) -> NDArray:
    """Boxes [N, 4] of stored pixels (height, width) as they lie in the upright picture."""
    height, width = size
    x0, y0, x1, y1 = boxes.T
    if turn in SIDEWAYS:
        x0, y0, x1, y1, height, width = y0, x0, y1, x1, width, height
    if turn in (2, 3, 6, 7):
        x0, x1 = width - x1, width - x0
    if turn in (3, 4, 7, 8):
        y0, y1 = height - y1, height - y0
    return np.stack([x0, y0, x1, y1], axis=1)


@dataclass(frozen=True)
class Checked:
    """What a look at annotated images found.

    Attributes:
        looked_at: number of images.
        broken: one line an image that cannot be used, with its file.
        turned: images whose boxes are turned upright. unsure: images with an EXIF orientation
            whose size does not tell which pixels their boxes refer to.
    """

    looked_at: int
    broken: tuple[str, ...]
    turned: int
    unsure: int


def check_images(
    images: Sequence[AnnotatedImage],
    frame: Frame,
    decode: bool,
    depth: DepthConfig = BY_TYPE,
) -> Checked:
    """Look at every image: its header, with ``decode`` its pixels too; several at a time."""
    largest = max((image.width * image.height for image in images), default=1)
    threads = int(np.clip(_DECODED_AT_ONCE // largest, 1, min(16, 2 * (os.cpu_count() or 1))))
    with ThreadPoolExecutor(threads) as pool:
        look = partial(_look, frame=frame, depth=depth if decode else None)
        found = list(pool.map(look, images))
    return Checked(
        looked_at=len(found),
        broken=tuple(text for text, *_ in found if text),
        turned=sum(turned for _, turned, _ in found),
        unsure=sum(unsure for *_, unsure in found),
    )


def _look(image: AnnotatedImage, frame: Frame, depth: DepthConfig | None) -> tuple[str, bool, bool]:
    """(what is wrong or "", whether boxes are turned, whether that is unsure)."""
    try:
        with _naming(image.uri):
            data = read_bytes(image.uri)
            size = image_size(data)
            turn = _turn(image, data, size, frame)
            if depth is not None:  # now that it is known to be as large as is said
                decode_image(data, depth=depth)
    except BrokenImageError as error:
        return str(error), False, False
    stored = size[::-1] if _exif(data) in SIDEWAYS else size
    return "", turn != 1, frame == "auto" and _exif(data) != 1 and stored == size


def _exif(data: bytes) -> int:
    """The EXIF orientation that decoding undoes; that of TIFF files is not looked for."""
    return orientation(data, next((k for magic, k in _WITH_EXIF if data.startswith(magic)), ""))


def _turn(image: AnnotatedImage, data: bytes, size: tuple[int, ...], frame: Frame) -> int:
    """How boxes must be turned; ``size``: (height, width) of the upright pixels."""
    turn = _exif(data)
    stored = size[::-1] if turn in SIDEWAYS else size
    annotated = image.height, image.width
    if annotated == size and frame != "stored":
        return 1
    if annotated == stored and frame != "upright":
        return turn
    asked = {"auto": "", "upright": " upright", "stored": " as stored"}[frame]
    found = stored if frame == "stored" else size
    raise BrokenImageError(
        f"{image.uri} is {found[1]}x{found[0]} px{asked}, its annotation says "
        f"{image.width}x{image.height}: boxes would not fit; correct the annotation"
    )

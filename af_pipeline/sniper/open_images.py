"""Annotated images with their pixels: each fits its annotation, or is named with what is wrong.

Pixels are upright everywhere in this project (EXIF orientation applied). Boxes may have been drawn
on the stored pixels instead, as pycocotools and torchvision show them: which of the two the width
and height of an annotation tell, and boxes of stored pixels are turned upright.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import AnnotatedImage
from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import DecodeError, decode_image, image_size
from af_pipeline.images.depth import BY_TYPE, DepthConfig
from af_pipeline.images.guards import SIDEWAYS, orientation

Found = TypeVar("Found")
Frame = Literal["auto", "upright", "stored"]
_WITH_EXIF = ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"RIFF", "WebP"))
_DECODED_AT_ONCE = 400_000_000  # px, so that a check takes 1.2 GB at most


class BrokenImageError(ValueError):
    """An annotated image cannot be used; the message names the file and what is wrong."""


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


def read_image(uri: str, depth: DepthConfig = BY_TYPE) -> NDArray[np.uint8]:
    """Upright pixels [H, W, 3] RGB; a DecodeError or SourceError names the file."""
    return _named(uri, partial(decode_image, depth=depth), read_bytes(uri))


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
    try:
        data = read_bytes(image.uri)
        pixels = _named(image.uri, partial(decode_image, depth=depth), data)
    except (SourceError, DecodeError) as error:
        raise BrokenImageError(str(error)) from error
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


def check_images(
    images: Sequence[AnnotatedImage],
    frame: Frame,
    decode: bool,
    depth: DepthConfig = BY_TYPE,
) -> Checked:
    """Look at every image: its header, with ``decode`` its pixels too; several at a time."""
    largest = max((image.width * image.height for image in images), default=1)
    size_of = partial(_decoded_size, depth=depth) if decode else image_size
    threads = int(np.clip(_DECODED_AT_ONCE // largest, 1, min(16, 2 * (os.cpu_count() or 1))))
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(partial(_look, frame=frame, size_of=size_of), images))
    return Checked(
        looked_at=len(found),
        broken=tuple(text for text, *_ in found if text),
        turned=sum(turned for _, turned, _ in found),
        unsure=sum(unsure for *_, unsure in found),
    )


def _look(
    image: AnnotatedImage, frame: Frame, size_of: Callable[[bytes], tuple[int, int]]
) -> tuple[str, bool, bool]:
    """(what is wrong or "", whether boxes are turned, whether that is unsure)."""
    try:
        data = read_bytes(image.uri)
        size = _named(image.uri, image_size, data)
        turn = _turn(image, data, size, frame)
        if size_of is not image_size:  # now that it is known to be as large as is said
            _named(image.uri, size_of, data)
    except (SourceError, DecodeError, BrokenImageError) as error:
        return str(error), False, False
    stored = size[::-1] if _exif(data) in SIDEWAYS else size
    return "", turn != 1, frame == "auto" and _exif(data) != 1 and stored == size


def _named(uri: str, look: Callable[[bytes], Found], data: bytes) -> Found:
    """What ``look`` makes of a file's bytes; its DecodeError names the file."""
    try:
        return look(data)
    except DecodeError as error:
        raise DecodeError(f"{uri}: {error}") from error


def _decoded_size(data: bytes, depth: DepthConfig) -> tuple[int, int]:
    height, width = decode_image(data, depth=depth).shape[:2]
    return height, width


def _exif(data: bytes) -> int:
    """The EXIF orientation that decoding undoes; that of TIFF files is not looked for."""
    kinds = (kind for magic, kind in _WITH_EXIF if data.startswith(magic))
    return orientation(data, next(kinds, ""))


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

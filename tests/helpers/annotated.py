"""Annotated images for tests: EXIF-turned pictures, and images of one grey each."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage

BOX = (16, 40, 40, 52)  # in stored pixels, 96 wide and 64 high
SIZE = (96, 64)
SIDE = 80


def data_of(images: Iterable[AnnotatedImage], *names: str) -> AnnotatedDataset:
    """A data set with these classes."""
    return AnnotatedDataset.of(tuple(images), names, tuple(range(1, len(names) + 1)))


def picture(folder: Path, turn: int = 1, size: tuple[int, int] = SIZE, name: str = "a") -> Path:
    """A dark JPEG whose stored pixels are bright in BOX alone; EXIF says how to turn them."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    path = folder / f"{name}.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return path


def annotated(path: Path, size: tuple[int, int] = SIZE, box: Any = BOX) -> AnnotatedImage:
    """The annotation of a picture: one box of class 0."""
    boxes, one = np.array([box], np.float32), np.zeros(1, np.int32)
    return AnnotatedImage(path.name, str(path), *size, boxes, one, one.astype(bool))


def grey_images(folder: Path, count: int = 7, declared: int = SIDE) -> AnnotatedDataset:
    """Images that are each of one grey, so that a chip tells which one it comes from.

    Every image has two boxes, apart from number 3, which has none.
    """
    images = []
    for k in range(count):
        path = folder / f"{k}.png"
        Image.fromarray(np.full((SIDE, SIDE, 3), (10 * k + 5) % 256, np.uint8)).save(path)
        left = 8 * (k % 7)
        boxes = np.array([[left, 5, left + 20, 30], [48, 48, 68, 70]], np.float32)
        labels, crowd = np.array([k % 3, 2], np.int32), np.array([False, k == 0])
        some = slice(0 if k == 3 else 2)
        args = (declared, SIDE, boxes[some], labels[some], crowd[some])
        images.append(AnnotatedImage(path.name, str(path), *args))
    return data_of(images, "a", "b", "c")

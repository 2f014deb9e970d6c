"""Crops of images at their scales with labels: what a focus network is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from af_pipeline.core.focus import FOCUS, IGNORE, STRIDE
from af_pipeline.core.resize import resize
from af_pipeline.core.scales import Scale, scaled_size
from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import decode_image
from af_pipeline.settings.index import SourceConfig
from af_pipeline.sniper.sample import PAD_VALUE
from af_pipeline.training.teacher import Taught, labels_of

SIDE = 256  # px of a crop
MOST = 3000  # crops in all, 600 MB


@dataclass(frozen=True)
class Crops:
    """``pixels`` uint8 [N, SIDE, SIDE, 3] RGB, ``labels`` int8 [N, 2, SIDE/16, SIDE/16]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int8]

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A random batch uint8 [size, 3, SIDE, SIDE] and its labels, turned, mirrored and of other
        brightness."""
        chosen = rng.integers(0, len(self.pixels), size)
        pixels, labels = [], []
        for i in chosen:
            one, cells = self.pixels[i].transpose(2, 0, 1), self.labels[i]
            turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
            one, cells = np.rot90(one, turns, (1, 2)), np.rot90(cells, turns, (1, 2))
            if mirrored:
                one, cells = one[..., ::-1], cells[..., ::-1]
            gain, shift = rng.uniform(0.8, 1.25), rng.uniform(-20, 20)
            pixels.append(np.clip(one * gain + shift, 0, 255).astype(np.uint8))
            labels.append(cells)
        return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels))


def cut_crops(
    images: Sequence[Taught], scales: Sequence[Scale], source: SourceConfig, seed: int
) -> Crops:
    """Crops of all ``images`` at all ``scales``, half of them around objects that are to be found.

    Every image is read once. Raises SourceError or DecodeError.
    """
    rng = np.random.default_rng(seed)
    most = max(2, MOST // max(1, len(images) * len(scales)))
    found = [cut for one in images for cut in _cuts(one, scales, source, most, rng)]
    return Crops(np.stack([pixels for pixels, _ in found]), np.stack([cells for _, cells in found]))


def _cuts(
    image: Taught,
    scales: Sequence[Scale],
    source: SourceConfig,
    most: int,
    rng: np.random.Generator,
) -> Iterable[tuple[NDArray[np.uint8], NDArray[np.int8]]]:
    for number, seen in looks(image, scales, source):
        size = seen.shape[:2]
        cells = labels_of(image, number, size, number == len(scales) - 1)
        count = min(most, max(2, -(-2 * size[0] * size[1] // SIDE**2)))
        for y, x in _places(cells, count, rng):
            yield _cut(seen, cells, y, x)


def looks(
    image: Taught, scales: Sequence[Scale], source: SourceConfig
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The number of each scale and the whole image at it. Raises SourceError or DecodeError."""
    data = read_bytes(image.uri, source.storage)
    pixels = decode_image(data, source.max_pixels, source.depth)
    height, width, _ = pixels.shape
    for number, scale in enumerate(scales):
        size = scaled_size(height, width, scale.factor_for(height, width))
        yield number, resize(pixels, *size)


def _places(cells: NDArray[np.int8], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Corners (row, column) of crops, cells: every other one around a labelled cell."""
    side, (rows, columns) = SIDE // STRIDE, cells.shape[1:]
    wanted = np.argwhere((cells == FOCUS).any(0))
    places = []
    for number in range(count):
        y, x = int(rng.integers(rows)), int(rng.integers(columns))
        if number % 2 and len(wanted):
            y, x = wanted[rng.integers(len(wanted))]
        y, x = (at - int(rng.integers(side)) for at in (y, x))
        places.append((max(0, min(y, rows - side)), max(0, min(x, columns - side))))
    return places


def _cut(
    seen: NDArray[np.uint8], cells: NDArray[np.int8], y: int, x: int
) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """The crop at a cell; beyond the image gray, without a label."""
    side = SIDE // STRIDE
    pixels = np.full((SIDE, SIDE, 3), PAD_VALUE, np.uint8)
    labels = np.full((2, side, side), IGNORE, np.int8)
    part = seen[y * STRIDE : y * STRIDE + SIDE, x * STRIDE : x * STRIDE + SIDE]
    own = cells[:, y : y + side, x : x + side]
    pixels[: part.shape[0], : part.shape[1]] = part
    labels[:, : own.shape[1], : own.shape[2]] = own
    return pixels, labels

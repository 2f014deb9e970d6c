"""All that the cascade knows of an image: its size, and its pixels at any size asked for.

An array in memory is one kind; a window of a raster too large for memory, which is read as it is
asked for, may be another. Coordinates are px of the pixels themselves, x right, y down, half-open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from af_pipeline.core.resize import RGB, Rect, check_rgb, resize, resize_part


class Pixels(Protocol):
    """RGB pixels of an image or of a part of it."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, native px."""

    def read(self, height: int, width: int, rect: Rect | None = None) -> RGB:
        """All of it resized to ``height`` x ``width``, or only ``rect`` (px of the result) of that.

        On the sampling grid of `af_pipeline.core.resize.resize`. May be called from threads.
        """

    def part(self, box: Rect, keep: bool = True) -> Pixels:
        """What lies in ``box`` (native px); ``keep``: this one stays in use, so share its memory.

        Without ``keep`` the part must not hold all of it in memory.
        """


@dataclass(frozen=True)
class ArrayPixels:
    """Pixels in memory: ``array`` uint8 [H, W, 3]."""

    array: RGB

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, native px."""
        return self.array.shape[0], self.array.shape[1]

    def read(self, height: int, width: int, rect: Rect | None = None) -> RGB:
        """As `Pixels.read`; at the native size without a copy."""
        if rect is None:
            return resize(self.array, height, width)
        if (height, width) != self.size:
            return resize_part(self.array, height, width, rect)
        x0, y0, x1, y1 = rect
        return self.array[y0:y1, x0:x1]

    def part(self, box: Rect, keep: bool = True) -> ArrayPixels:
        """As `Pixels.part`."""
        x0, y0, x1, y1 = box
        crop = self.array[y0:y1, x0:x1]
        return ArrayPixels(crop if keep or crop.size == self.array.size else crop.copy())


def as_pixels(image: RGB | Pixels) -> Pixels:
    """An array [H, W, 3] RGB as `Pixels`; what is such already stays. Raises ValueError."""
    if isinstance(image, np.ndarray):
        check_rgb(image)
        return ArrayPixels(image)
    return image

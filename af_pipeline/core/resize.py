"""A part of a resized image without making the rest: what a tile of a huge chip is cut from."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]

Rect = tuple[int, int, int, int]  # x0, y0, x1, y1

LARGEST_UNIT = 256  # px of the result after which its grid meets that of the image again


def resize_part(image: NDArray[np.uint8], height: int, width: int, rect: Rect) -> NDArray[np.uint8]:
    """``rect`` (px of the result) of `resize` of ``image`` to height x width.

    The same to within one grey level, on the sampling grid of the whole: pixel centres lie at
    (x + 0.5) / factor - 0.5; axes that shrink are averaged by area, those that grow interpolated.
    cv2 cannot start a resize between two pixels, and its warps round positions to 1/32 px: it
    does the work where the two grids meet often enough, as they do at a factor of 2.
    """
    x0, y0, x1, y1 = rect
    across, down = _aligned(image.shape[1], width, x0, x1), _aligned(image.shape[0], height, y0, y1)
    if across is None or down is None:
        return _by_taps(image, height, width, rect)
    (left, right), (top, low) = across, down
    native = [left * image.shape[1] // width, right * image.shape[1] // width]
    native += [top * image.shape[0] // height, low * image.shape[0] // height]
    part = resize(image[native[2] : native[3], native[0] : native[1]], low - top, right - left)
    return part[y0 - top : y1 - top, x0 - left : x1 - left]


def _aligned(native: int, size: int, start: int, end: int) -> tuple[int, int] | None:
    """A stretch of the resized axis around start..end whose ends lie between two native px.

    It holds all native px that start..end are made of.
    """
    unit = size // math.gcd(native, size)
    if unit > LARGEST_UNIT:
        return None
    margin = 2 * -(-size // native)
    low = max(0, start - margin) // unit * unit
    return low, -(-min(size, end + margin) // unit) * unit


def _by_taps(image: NDArray[np.uint8], height: int, width: int, rect: Rect) -> NDArray[np.uint8]:
    x0, y0, x1, y1 = rect
    rows, row_weights = _taps(image.shape[0], height, y0, y1)
    columns, column_weights = _taps(image.shape[1], width, x0, x1)
    top, left = int(rows.min()), int(columns.min())
    native = image[top : int(rows.max()) + 1, left : int(columns.max()) + 1]
    part = _weighted(native, rows - top, row_weights, 0)
    part = _weighted(part, columns - left, column_weights, 1)
    part += 0.5
    return part.astype(np.uint8)


def _taps(
    native: int, size: int, start: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What pixels start..end of an axis are made of: native indices and weights [taps, end-start].

    Double precision: a position of 20,000 px in floats is off by a thousandth of a pixel.
    """
    step = native / size
    places = np.arange(start, end)
    if native <= size:
        centre = (places + 0.5) * step - 0.5
        low = np.floor(centre).astype(np.int64)
        share = centre - low
        taps, weights = np.stack([low, low + 1]), np.stack([1 - share, share])
    else:
        first, last = places * step, (places + 1) * step
        taps = np.floor(first).astype(np.int64) + np.arange(int(np.ceil(step)) + 1)[:, None]
        weights = np.clip(np.minimum(taps + 1, last) - np.maximum(taps, first), 0, None) / step
    return np.clip(taps, 0, native - 1), weights.astype(np.float32)


def _weighted(
    part: NDArray[np.uint8] | NDArray[np.float32],
    taps: NDArray[np.int64],
    weights: NDArray[np.float32],
    axis: int,
) -> NDArray[np.float32]:
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total = np.take(part, taps[0], axis) * weights[0].reshape(shape)
    for places, weight in zip(taps[1:], weights[1:], strict=True):
        total += np.take(part, places, axis) * weight.reshape(shape)
    return total


def resize(image: RGB, height: int, width: int) -> RGB:
    """Resize [H, W, 3] uint8 to [height, width, 3]; the same size returns the input itself.

    Axes that shrink are averaged by area (no aliasing), axes that grow are interpolated linearly.

    Raises:
        ValueError: height or width below 1, or not an RGB uint8 image.
    """
    check_rgb(image)
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize to {height}x{width} pixels, both must be at least 1")
    # Two steps, each empty in most cases: cv2's INTER_AREA averages only where both axes shrink.
    small = _resize_step(
        image, min(height, image.shape[0]), min(width, image.shape[1]), cv2.INTER_AREA
    )
    return _resize_step(small, height, width, cv2.INTER_LINEAR)


def check_rgb(image: RGB) -> None:
    """Raise ValueError for what is no picture of bytes [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"expected a non-empty RGB uint8 image [H, W, 3], got {image.dtype} {image.shape}"
        )


def _resize_step(image: RGB, height: int, width: int, interpolation: int) -> RGB:
    if image.shape[:2] == (height, width):
        return image
    image = np.ascontiguousarray(image)
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)

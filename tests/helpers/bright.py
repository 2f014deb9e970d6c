"""A detector of another maker: finds bright rectangles that are large enough for it to see."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.helpers.planted import save

LEAST = 10  # px of a side


def load(device: str) -> Callable[[np.ndarray], list[tuple[Any, Any, Any]]]:
    assert device in ("cpu", "cuda")

    def detect(batch: np.ndarray) -> list[tuple[Any, Any, Any]]:
        return [find(one) for one in batch]

    detect.class_names = ("patch",)
    return detect


def blind(device: str) -> Callable[[np.ndarray], list[tuple[Any, Any, Any]]]:
    """One that finds nothing."""

    def detect(batch: np.ndarray) -> list[tuple[Any, Any, Any]]:
        return [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))] * len(batch)

    detect.class_names = ("patch",)
    return detect


def find(image: np.ndarray) -> tuple[Any, Any, Any]:
    bright = (image.min(2) > 180).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(bright)
    stats = stats[1:][(stats[1:, 2:4] >= LEAST).all(1)]
    x0, y0, width, height = stats[:, :4].T
    boxes = np.stack([x0, y0, x0 + width, y0 + height], 1).astype(np.float32)
    return boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes), int)


def scene(rng: np.random.Generator, height: int = 384, width: int = 512) -> np.ndarray:
    """Noise, with some small bright patches in one corner of it and a large one now and then."""
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    left, top = rng.integers(0, width - 130), rng.integers(0, height - 130)
    for _ in range(int(rng.integers(2, 5))):
        x, y = left + rng.integers(0, 100), top + rng.integers(0, 100)
        side = rng.integers(14, 24)
        image[y : y + side, x : x + side] = 240
    return image


def write_scenes(folder: Path, count: int, seed: int) -> Path:
    """A folder of so many scenes, 00.png and so on."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        save(folder / f"{number:02}.png", scene(rng))
    return folder

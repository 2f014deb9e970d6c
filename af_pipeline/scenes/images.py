"""Drawn scenes as a source of training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from af_pipeline.scenes.synthetic import render_scene
from af_pipeline.sniper.chips import ImageBoxes
from af_pipeline.sniper.images import ImageCache
from af_pipeline.sniper.sample import LabelledImage


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

"""A detector with its cascade, ready to look at images in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from af_pipeline.config import ConfigError, config_from, load_config
from af_pipeline.core.cascade import Predictor, run_block
from af_pipeline.core.resize import RGB, check_rgb
from af_pipeline.core.schema import ImageRow
from af_pipeline.data.secrets import redact
from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import decode_image
from af_pipeline.inference.result import Result
from af_pipeline.models.info import load_info
from af_pipeline.models.open import open_detector
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan, fit_lanes

Source = str | Path | RGB


class Model:
    """What `af_pipeline.load` returns: ``config``, ``class_names`` and `detect`."""

    def __init__(self, config: IndexConfig, predict: Predictor) -> None:
        self.config, self.plan, self.predict = config, build_plan(config), predict
        self.class_names = predict.class_names

    @classmethod
    def load(cls, source: str | Path, mode: str | None = None, **settings: Any) -> Model:
        """As `af_pipeline.load`."""
        config = _config_of(str(source), {"mode": mode, **settings} if mode else settings)
        opened = open_detector(config)
        return cls(fit_lanes(config, opened.shape), opened.predictor())

    @overload
    def detect(self, images: Source) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def detect(self, images: Sequence[Source]) -> list[Result]: ...

    def detect(self, images: Source | Sequence[Source]) -> Result | list[Result]:
        """Find objects in an image, or in each of a list.

        Args:
            images: a path or URI, or RGB uint8 [H, W, 3]; or a list of such.

        Raises:
            ValueError: an image cannot be read; the message names it and the reason.
        """
        if isinstance(images, (str, Path, np.ndarray)):
            return self._look([images])[0]
        found: list[Result] = []
        block = self.config.ray.rows_per_block  # looked at together, as by an actor of the job
        for start in range(0, len(images), block):
            found += self._look(images[start : start + block])
        return found

    def _look(self, images: Sequence[Source]) -> list[Result]:
        rows = [
            ImageRow("", "") if isinstance(one, np.ndarray) else ImageRow(Path(one).name, str(one))
            for one in images
        ]
        pixels = [self._read(one) for one in images]
        run_block(rows, pixels, self.plan, self.predict)
        return [
            Result(image, row, self.class_names) for image, row in zip(pixels, rows, strict=True)
        ]

    def _read(self, image: Source) -> RGB:
        if isinstance(image, np.ndarray):
            check_rgb(image)
            return image
        source = self.config.source
        data = read_bytes(str(image), source.storage)
        try:
            return decode_image(data, source.max_pixels, source.depth)
        except ValueError as error:
            raise ValueError(f"{redact(str(image))}: {error}") from error


def _config_of(source: str, settings: dict[str, Any]) -> IndexConfig:
    """An index config from a file of one, or from what a checkpoint was trained with."""
    changes = [
        f"{key.replace('__', '.')}={json.dumps(value, default=str)}"
        for key, value in settings.items()
    ]
    if source.endswith((".yaml", ".yml")):
        return load_config(IndexConfig, source, changes)
    if not source.endswith(".safetensors"):
        raise ConfigError(f"{source} is neither an index config (.yaml) nor a .safetensors file")
    trained = load_info(source).training.get("config", {})
    if "pyramid" not in trained:
        raise ConfigError(f"{source} does not say its pyramid: load an index config that names it")
    pyramid = trained["pyramid"]
    tree = {"checkpoint": source, "pyramid": pyramid, "focus": {"steps": [{}] * (len(pyramid) - 1)}}
    return config_from(IndexConfig, tree, changes, source)

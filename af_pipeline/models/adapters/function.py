"""Any detector as a Python function: MODULE:FUNCTION.

    def load(device: str):                       # called once in each process
        model = ...
        def detect(batch):                       # uint8 [N, H, W, 3] RGB, all of one size
            return [(boxes, scores, labels)]     # of each: [n, 4] x0, y0, x1, y1 px; [n]; [n]
        detect.class_names = ("car", "truck")    # by label, from 0 on
        return detect

It is called by one thread at a time.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.models.adapters.decoders import one_hot
from af_pipeline.models.foreign import Found
from af_pipeline.models.info import CheckpointError
from af_pipeline.settings.detector import ForeignConfig


class FunctionDetector:
    """A function as a `ForeignDetector`. Raises CheckpointError where it cannot be had."""

    parallel = False

    def __init__(self, config: ForeignConfig) -> None:
        self.path, self.shape, self.suppresses = config.path, None, True
        load = self._function()
        self.identity = _source_hash(load, config.path)
        detect = self._called(load, "cpu")
        own = getattr(detect, "class_names", ())
        names = config.class_names or ((own,) if isinstance(own, str) else own)
        if not names:
            raise CheckpointError(
                f"{config.path} returns a function without class_names: give it some, or set "
                "detector.class_names"
            )
        self.class_names = tuple(map(str, names))
        self.detect: Any = None

    def _function(self) -> Any:
        module, _, name = self.path.partition(":")
        here = str(Path.cwd())
        if here not in sys.path:  # where people keep the script that they mean
            sys.path.append(here)
        try:
            return getattr(import_module(module), name)
        except Exception as error:  # whatever the module does when it is imported
            raise CheckpointError(
                f"detector.path={self.path} cannot be imported: {error!r}; it is "
                "MODULE:FUNCTION of a module in the current folder or an installed package"
            ) from error

    def _called(self, load: Any, device: str) -> Any:
        try:
            detect = load(device)
        except Exception as error:
            raise CheckpointError(f"{self.path}({device!r}) failed: {error!r}") from error
        if not callable(detect):
            raise CheckpointError(f"{self.path}({device!r}) returns no function")
        return detect

    def start(self, device: str, threads: int) -> None:
        """As of `ForeignDetector`."""
        self.detect = self._called(self._function(), device)

    def __call__(self, batch: NDArray[np.uint8]) -> list[Found]:
        """As of `ForeignDetector`."""
        answers = self.detect(batch)
        if not isinstance(answers, (list, tuple)) or len(answers) != len(batch):
            raise ValueError(
                f"{self.path} gave {_said(answers)} to {len(batch)} images: expected a list of "
                "(boxes, scores, labels), one for each image"
            )
        return [self._checked(one) for one in answers]

    def _checked(self, one: Any) -> Found:
        try:
            boxes, scores, labels = map(np.asarray, one)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path} gave {_said(one)} for an image: expected arrays boxes, scores and "
                f"labels ({error})"
            ) from error
        count = scores.size
        if scores.ndim != 1 or boxes.size != 4 * count or labels.shape != (count,):
            raise ValueError(
                f"{self.path} gave boxes {boxes.shape}, scores {scores.shape} and labels "
                f"{labels.shape}: expected [n, 4], [n] and [n]"
            )
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
            raise ValueError(
                f"{self.path} gave labels {labels.min()} to {labels.max()}, and there are "
                f"{len(self.class_names)} class_names"
            )
        return one_hot(boxes.reshape(-1, 4), scores, labels)


def _said(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, (list, tuple)) else ""
    return f"a {type(value).__name__}{size}"


def _source_hash(function: Any, path: str) -> str:
    """First 16 hex digits of the SHA-256 of the module's text, or of its name without one."""
    try:
        text = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        text = ""
    return hashlib.sha256(f"{path} {text}".encode()).hexdigest()[:16]

"""AutoFocus object detection: look coarsely at the whole image, closely where objects may be.

    import af_pipeline
    model = af_pipeline.load("configs/index/aerial.yaml")
    result = model.detect("photo.jpg")

`jobs/` has the same on Ray, for any number of images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from af_pipeline.inference.model import Model

__version__ = "0.1.0"


def load(source: str | Path, mode: str | None = None, **settings: Any) -> Model:
    """Load a detector with its settings, to look at images in this process, without Ray.

    Args:
        source: an index config (.yaml), or a checkpoint (.safetensors), which then looks with the
            pyramid it was trained with.
        mode: "autofocus", "pyramid", "tiles" or "whole"; None: as the config says.
        settings: any other of the index config by its name, a section by a dictionary or with
            two underscores: ``device="cpu"``, ``stack__min_score=0.3``.

    Raises:
        ValueError: a config, checkpoint or device that cannot be used; the message says why.
    """
    from af_pipeline.inference.model import Model

    return Model.load(source, mode, **settings)

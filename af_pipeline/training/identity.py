"""Which training a run folder holds, as `OutputFolder.claim` compares it."""

from __future__ import annotations

import hashlib
from typing import Any

from af_pipeline.config import dump_config
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.settings.train import TrainConfig

# Free to differ when a run goes on: where and how it runs, how long, how it is judged.
FREE = (
    ("run",),
    ("mining",),
    ("validation",),
    ("optim", "steps"),
    ("data", "val"),
    ("data", "check_images"),
    ("data", "on_broken"),  # what was left out of the annotations is in their digest
)
FREE_PATHS = (("data", "train"), ("data", "images"), ("data", "val_images"))  # the digest says it


def identity(
    config: TrainConfig, names: tuple[str, ...], dataset: AnnotatedDataset | None
) -> dict[str, Any]:
    """What decides which chips a run sees and what it makes of them."""
    tree = dump_config(config)
    for *sections, key in FREE + FREE_PATHS:
        node = tree
        for section in sections:
            node = node[section]
        node.pop(key)
    data = digest(dataset) if dataset is not None else None
    return {"config": tree, "seed": config.run.seed, "class_names": list(names), "data": data}


def digest(dataset: AnnotatedDataset) -> str:
    """First 16 hex digits of the SHA-256 of image ids, boxes and labels."""
    found = hashlib.sha256()
    for image in dataset.images:
        found.update(image.image_id.encode())
        for array in (image.boxes, image.labels, image.crowd):
            found.update(array.tobytes())
    return found.hexdigest()[:16]

"""Which training a run folder holds: the same name with other settings is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from af_pipeline.config import dump_config, tree_differences
from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.data.storage import json_object
from af_pipeline.settings.train import TrainConfig

PLAN_FILE = "plan.json"

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


def claim_folder(
    folder: Path, config: TrainConfig, names: tuple[str, ...], dataset: AnnotatedDataset
) -> None:
    """Write what ``folder`` is trained with, or compare with what is there.

    Raises ValueError where the folder holds another training or other files.
    """
    wanted = identity(config, names, dataset)
    plan = folder / PLAN_FILE
    if not plan.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} is not empty and holds no training: choose another run.name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        partial = plan.with_suffix(".partial")
        partial.write_text(json.dumps(wanted, indent=2) + "\n")
        partial.replace(plan)
        return
    try:
        there = json_object(plan.read_bytes(), str(plan))
    except SourceError as error:
        raise ValueError(
            f"{error}: put back a copy of it to go on with its training, or choose another run.name"
        ) from error
    changes = tree_differences(there, wanted)
    if changes:
        raise ValueError(
            f"{folder} holds a training with other settings ({'; '.join(changes[:5])}): use the "
            "same to go on with it, another run.name for a new one, or remove the folder"
        )


def identity(
    config: TrainConfig, names: tuple[str, ...], dataset: AnnotatedDataset
) -> dict[str, Any]:
    """What decides which chips a run sees and what it makes of them."""
    tree = dump_config(config)
    for *sections, key in FREE + FREE_PATHS:
        node = tree
        for section in sections:
            node = node[section]
        node.pop(key)
    return {
        "config": tree,
        "seed": config.run.seed,
        "class_names": list(names),
        "data": digest(dataset),
        "shares": [part.share for part in config.data.train if part.share is not None],
    }


def digest(dataset: AnnotatedDataset) -> str:
    """First 16 hex digits of the SHA-256 of image ids, boxes and labels."""
    found = hashlib.sha256()
    for image in dataset.images:
        found.update(image.image_id.encode())
        for array in (image.boxes, image.labels, image.crowd):
            found.update(array.tobytes())
    return found.hexdigest()[:16]

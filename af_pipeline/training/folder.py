"""The local folder of a training run: whose it is, its list of checkpoints, a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as LIST_FILE

from af_pipeline.config import dump_without
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.data.storage import replacing
from af_pipeline.output.folder import OutputFolder
from af_pipeline.settings.train import TrainConfig

KEPT_FILE = "checkpoints.kept.json"  # Ray Train's list of checkpoints as it was before the last one

# Free to differ when a run goes on: where and how it runs, how long, how it is judged.
FREE = ("run", "mining", "validation", "optim.steps", "data.val", "data.check_images")
# Likewise what the digest of the data says.
FREE_DATA = ("data.train", "data.images", "data.val_images", "data.on_broken")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left", "os error 28", "Disk quota exceeded", "File too large")


class NoSpaceError(RuntimeError):
    """A disk has no room for what a training writes; the message says where and how to go on."""


def run_folder(config: TrainConfig) -> Path:
    """Local folder of a run: metrics, TensorBoard, the exported model; beside the checkpoints
    unless those go to remote storage."""
    remote = "://" in config.run.output
    return Path("runs" if remote else config.run.output).absolute() / config.run.name


def claim_folder(folder: Path, config: TrainConfig, dataset: AnnotatedDataset) -> None:
    """Write what ``folder`` is trained with, or compare with what is there.

    Raises ValueError where the folder holds another training or other files.
    """
    place = OutputFolder.at(str(folder), work="training", setting="run.name")
    place.claim(identity(config, dataset))


def identity(config: TrainConfig, dataset: AnnotatedDataset) -> dict[str, Any]:
    """What decides which chips a run sees and what it makes of them."""
    digest = hashlib.sha256()
    for image in dataset.images:
        digest.update(image.image_id.encode())
        for array in (image.boxes, image.labels, image.crowd):
            digest.update(array.tobytes())
    return {
        "config": dump_without(config, FREE + FREE_DATA),
        "seed": config.run.seed,
        "class_names": list(dataset.class_names),
        "data": digest.hexdigest()[:16],
        "shares": [part.share for part in config.data.train if part.share is not None],
    }


def out_of_space(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is of a full disk, a quota or a size limit."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or any(text in str(error) for text in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def no_space(folders: Sequence[Path], checkpoint: str) -> NoSpaceError:
    """The error to raise; ``folders``: what is written to; ``checkpoint``: the last one, if any."""
    there = [next(one for one in (folder, *folder.parents) if one.exists()) for folder in folders]
    free = ", ".join(f"{shutil.disk_usage(f).free / 1e6:.1f} MB free in {f}" for f in there)
    whole = f"{checkpoint} is whole" if checkpoint else "there is no checkpoint yet"
    return NoSpaceError(
        f"no space left on a disk ({free}); {whole}: make room and run the same command again, "
        f"it goes on from {'there' if checkpoint else 'the first step'}"
    )


def keep_list(folder: Path) -> None:
    """Copy Ray Train's list of a run's checkpoints, which it writes over in place."""
    current = folder / LIST_FILE
    if current.exists() and _is_whole(current):
        with replacing(folder / KEPT_FILE) as partial:
            shutil.copy(current, partial)


def mend_list(folder: Path) -> None:
    """Put the copy in place of a list that was cut short: its checkpoints are all there still."""
    current, kept = folder / LIST_FILE, folder / KEPT_FILE
    if not current.exists() or _is_whole(current):
        return
    if kept.exists():
        shutil.copy(kept, current)
    else:  # cut at the first checkpoint of a run
        current.unlink()


def _is_whole(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except ValueError:
        return False

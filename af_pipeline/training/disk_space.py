"""A full disk while a training writes: said in one line, and what was whole before stays so."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as LIST_FILE

KEPT_FILE = "checkpoints.kept.json"  # Ray Train's list of checkpoints as it was before the last one
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left", "os error 28", "Disk quota exceeded", "File too large")


class NoSpaceError(RuntimeError):
    """A disk has no room for what a training writes; the message says where and how to go on."""


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
        partial = folder / f"{KEPT_FILE}.partial"
        shutil.copy(current, partial)
        partial.replace(folder / KEPT_FILE)


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

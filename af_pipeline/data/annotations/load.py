"""Annotated data of any format, one or several files of it, as one data set."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from importlib import import_module
from itertools import accumulate
from pathlib import Path

import fsspec.core
import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.annotations.dataset import (
    AnnotatedDataset,
    AnnotationError,
    OnBroken,
    Problems,
    check,
    fail,
)
from af_pipeline.data.annotations.voc import is_image_set, voc_root

# The readers: (path, image folder or None, problems) -> Columns.
FORMATS = {
    "coco": "af_pipeline.data.annotations.coco:read",
    "voc": "af_pipeline.data.annotations.voc:read",
    "parquet": "af_pipeline.data.annotations.parquet:read",
    "yolo": "af_pipeline.data.annotations.yolo:read",
}
POSSIBLE = (
    "a COCO .json, a VOC image set (ROOT/ImageSets/Main/NAME.txt), a .parquet file or a folder of "
    "such files, or a YOLO data .yaml"
)


def format_of(path: str) -> str | None:
    """The key in `FORMATS` of what is at ``path``; None: nothing that is known."""
    bare = path.lower().partition("#")[0]
    if is_image_set(path):
        return "voc"
    for name, suffixes in (
        ("coco", (".json",)), ("yolo", (".yaml", ".yml")), ("parquet", (".parquet", ".pq")),
    ):  # fmt: skip
        if bare.endswith(suffixes):
            return name
    return "parquet" if _is_folder(path) else None


def load_annotations(
    paths: Sequence[str],
    images: str | None = None,
    classes: tuple[str, ...] | None = None,
    on_broken: OnBroken = "fail",
    *,
    scoring: bool = False,
) -> AnnotatedDataset:
    """Read and check annotations, merged where there are several.

    The modules of `FORMATS` say how each is read. Classes are the same where their names are.
    Where an image_id occurs in two files, all image_ids get the name of their file's folder (for
    VOC of ROOT) in front: ``VOC2007/000001.jpg``.

    Args:
        paths: at least one local path or fsspec URL.
        images: image folder, the same for all paths.
        classes: class names by label; otherwise as the first file orders them (those without an
            order: as the alphabet does), then what each further file adds.
        on_broken: ``drop`` leaves broken boxes out and names them in the data set's ``dropped``;
            broken images and files fail all the same.
        scoring: boxes are to be scored against: see `Problems`.

    Returns:
        Images in the order of the paths. Category ids are those of the file for one COCO file
        that holds all of the classes, else counted from 1.

    Raises:
        AnnotationError: a path is of no such kind, a file is wrong, a class is not in
            ``classes``, or two files hold the same image. Each file is checked as a whole; the
            message holds the first ten problems and their number.
    """
    if not paths:
        raise AnnotationError("no annotations given: name at least one file")
    parts = []
    for path in paths:
        known = format_of(path)
        if known is None:
            raise AnnotationError(f"{path} is no annotation file: give {POSSIBLE}")
        problems = Problems(path, on_broken, scoring)
        module, _, name = FORMATS[known].partition(":")
        columns = getattr(import_module(module), name)(path, images, problems)
        parts.append(check(columns, problems, classes))
    names = classes or tuple(dict.fromkeys(name for part in parts for name in part.class_names))
    if len(parts) == 1 and names == parts[0].class_names:
        return parts[0]
    return _merge(paths, parts, names)


def _merge(
    paths: Sequence[str], parts: Sequence[AnnotatedDataset], names: tuple[str, ...]
) -> AnnotatedDataset:
    category_ids = {name: number for number, name in enumerate(names, start=1)}
    if len(parts) == 1 and set(names) <= set(parts[0].class_names):
        category_ids = dict(zip(parts[0].class_names, parts[0].category_ids, strict=True))
    image_ids = [part.image_ids for part in parts]
    if _twice(paths, image_ids):
        pairs = zip(paths, image_ids, strict=True)
        image_ids = [tuple(f"{_folder(path)}/{name}" for name in own) for path, own in pairs]
        fail(f"{len(paths)} files together", _twice(paths, image_ids))
    starts = accumulate((len(own) for own in image_ids), initial=0)

    def joined(name: str) -> NDArray:
        return np.concatenate([getattr(part, name) for part in parts])

    places = [np.array([names.index(n) for n in p.class_names], np.int32) for p in parts]
    return AnnotatedDataset(
        image_ids=tuple(name for own in image_ids for name in own),
        uris=tuple(uri for part in parts for uri in part.uris),
        sizes=joined("sizes"),
        numbers=tuple(range(1, sum(map(len, image_ids)) + 1)),
        image=np.concatenate([p.image + first for p, first in zip(parts, starts, strict=False)]),
        boxes=joined("boxes"),
        sides=joined("sides"),
        area=joined("area"),
        labels=np.concatenate([own[p.labels] for own, p in zip(places, parts, strict=True)]),
        crowd=joined("crowd"),
        class_names=names,
        category_ids=tuple(category_ids[name] for name in names),
        dropped=tuple(entry for part in parts for entry in part.dropped),
        counts=tuple(len(part.images) for part in parts),
    )


def _twice(paths: Sequence[str], image_ids: Sequence[Sequence[str]]) -> list[str]:
    """One line for each image_id that two of the files hold."""
    owner: dict[str, str] = {}
    found: list[str] = []
    for path, own in zip(paths, image_ids, strict=True):
        found += [f"image {i!r} is in {owner[i]} and in {path}" for i in own if i in owner]
        owner |= dict.fromkeys(own, path)
    return found


def _is_folder(path: str) -> bool:
    try:
        system, place = fsspec.core.url_to_fs(path)
        return bool(system.isdir(place))
    except Exception:  # what cannot be asked for is none; each storage driver has its own kinds
        return False


def _folder(path: str) -> str:
    """Name of the folder a data set lies in: of ROOT for VOC."""
    if is_image_set(path):
        place = voc_root(path)
    else:
        place = path if _is_folder(path) else posixpath.dirname(path)
    place = place if "://" in place else str(Path(place).expanduser().absolute())
    return posixpath.basename(place.rstrip("/"))

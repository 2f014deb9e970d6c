"""Annotated data of any kind, one or several files of it, as one data set."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import fsspec.core
import numpy as np

from af_pipeline.data.annotations.coco import load_coco
from af_pipeline.data.annotations.dataset import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotationError,
    OnBroken,
    check_classes,
    fail,
)
from af_pipeline.data.annotations.parquet import SUFFIXES, load_table
from af_pipeline.data.annotations.voc import is_image_set, load_voc, voc_root


def load_annotations(
    paths: Sequence[str],
    images: str | None = None,
    classes: tuple[str, ...] | None = None,
    on_broken: OnBroken = "fail",
) -> AnnotatedDataset:
    """Read and check annotations, merged where there are several.

    A path (local or fsspec URL) is a COCO ``.json``, a VOC image set
    (``ROOT/ImageSets/Main/NAME.txt``), a ``.parquet`` file or a folder of such files; see
    `load_coco`, `load_voc` and `load_table`. Classes are the same where their names are. Where an
    image_id occurs in two files, all image_ids get the name of their file's folder (for VOC of
    ROOT) in front: ``VOC2007/000001.jpg``.

    Args:
        paths: at least one.
        images: image folder, the same for all paths.
        classes: class names by label; otherwise as the first file orders them, then what each
            further file adds.
        on_broken: ``drop`` leaves broken boxes out and names them in the data set's ``dropped``.

    Returns:
        Images in the order of the paths. Category ids are those of the file for one COCO file
        that holds all of the classes, else counted from 1.

    Raises:
        AnnotationError: a path is of no such kind, a file is wrong, a class is not in
            ``classes``, or two files hold the same image.
    """
    if not paths:
        raise AnnotationError("no annotations given: name at least one file")
    parts = [_load(path, images, classes, on_broken) for path in paths]
    names = classes or tuple(dict.fromkeys(name for part in parts for name in part.class_names))
    if len(parts) == 1 and names == parts[0].class_names:
        return parts[0]
    ids = {name: number for number, name in enumerate(names, start=1)}
    if len(parts) == 1 and set(names) <= set(parts[0].class_names):
        ids = dict(zip(parts[0].class_names, parts[0].category_ids, strict=True))
    return AnnotatedDataset(
        images=tuple(_merge(paths, [_relabel(part, names) for part in parts])),
        class_names=names,
        category_ids=tuple(ids[name] for name in names),
        dropped=tuple(entry for part in parts for entry in part.dropped),
        counts=tuple(len(part.images) for part in parts),
    )


def to_coco(dataset: AnnotatedDataset) -> dict[str, Any]:
    """The data set as the content of a COCO json, as ``evaluate_detections`` takes it.

    ``file_name`` is the image_id, ``bbox`` is [x, y, width, height] in px (half-open, so width is
    x1 - x0), ``area`` is that of the box. Images and annotations are counted from 1.
    """
    images = [
        {"id": number, "file_name": image.image_id, "width": image.width, "height": image.height}
        for number, image in enumerate(dataset.images, start=1)
    ]
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    boxes = (entry for n, image in enumerate(dataset.images, 1) for entry in _boxes(image, n))
    annotations = [
        {"id": number, **entry, "category_id": dataset.category_ids[entry["category_id"]]}
        for number, entry in enumerate(boxes, start=1)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


def _boxes(image: AnnotatedImage, number: int) -> Iterator[dict[str, Any]]:
    corners = image.boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    rows = np.concatenate([corners[:, :2], sides], axis=1).tolist()
    for box, label, crowd in zip(rows, image.labels.tolist(), image.crowd.tolist(), strict=True):
        yield {
            "image_id": number,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(crowd),
        }


def _load(
    path: str, images: str | None, classes: tuple[str, ...] | None, on_broken: OnBroken
) -> AnnotatedDataset:
    if path.lower().endswith(".json"):
        dataset = load_coco(path, images, on_broken)
        if classes is not None:
            check_classes(path, dataset.class_names, classes)
        return dataset
    if is_image_set(path):
        return load_voc(path, images, classes, on_broken)
    if path.lower().endswith(SUFFIXES) or _is_folder(path):
        return load_table(path, images, classes, on_broken)
    raise AnnotationError(
        f"{path} is no annotation file: give a COCO .json, a VOC image set "
        "(ROOT/ImageSets/Main/NAME.txt), a .parquet file or a folder of such files"
    )


def _relabel(part: AnnotatedDataset, names: tuple[str, ...]) -> tuple[AnnotatedImage, ...]:
    """The images of a part with labels that index ``names``."""
    if names[: len(part.class_names)] == part.class_names:
        return part.images
    places = np.array([names.index(name) for name in part.class_names], np.int32)
    return tuple(replace(image, labels=places[image.labels]) for image in part.images)


def _merge(
    paths: Sequence[str], parts: Sequence[tuple[AnnotatedImage, ...]]
) -> Iterator[AnnotatedImage]:
    ids = [[image.image_id for image in part] for part in parts]
    if _twice(paths, ids):
        ids = [
            [f"{_folder(path)}/{image_id}" for image_id in part]
            for path, part in zip(paths, ids, strict=True)
        ]
        fail(f"{len(paths)} files together", _twice(paths, ids))
    for part, own in zip(parts, ids, strict=True):
        for image, image_id in zip(part, own, strict=True):
            yield replace(image, image_id=image_id)


def _twice(paths: Sequence[str], ids: Sequence[Sequence[str]]) -> list[str]:
    """One line for each image_id that two of the files hold."""
    owner: dict[str, str] = {}
    found: list[str] = []
    for path, part in zip(paths, ids, strict=True):
        found += [f"image {i!r} is in {owner[i]} and in {path}" for i in part if i in owner]
        owner |= dict.fromkeys(part, path)
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

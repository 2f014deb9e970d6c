"""Annotations in YOLO's layout, as Ultralytics' tools write it: a data file and two folders.

DATA.yaml           path (the root; else the file's own folder), train, val and other splits, each
                    a folder of images or a list of them; names, a list or number: name
ROOT/images/...     the images of a split
ROOT/labels/...     for images/a/b.jpg a/b.txt; a line an object, in shares of width and height:
                    "class cx cy width height", or a polygon "class x y x y x y ...", whose box is
                    taken. An image without such a file has no objects.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import yaml

from af_pipeline.data.access import MissingSourceError, SourceError
from af_pipeline.data.annotations.dataset import (
    READ_AT_ONCE,
    AnnotationError,
    Columns,
    EntryError,
    Problems,
    read_sizes,
)
from af_pipeline.data.sources.folder import list_directory
from af_pipeline.data.storage import join, parent, read_bytes

_BEYOND = 0.01  # share of the image; rounding and clicks past the edge


def read(path: str, images: str | None, problems: Problems) -> Columns:
    """Read the split ``DATA.yaml#val``; without ``#`` the file's only one.

    image_id is the path below the split's folder. ``images``: where the images are instead; the
    labels stay beside the data file's own ``images``.
    """
    file, _, split = path.partition("#")
    data = _document(file)
    names, folders = _names(data, file), _folders(data, file, split)
    texts: dict[str, str | None] = {}  # what each label file holds, by its path
    image_ids, uris, files = [], [], []
    try:
        for folder in folders:
            for image in list_directory(images or folder):
                image_ids.append(image.image_id)
                uris.append(image.uri)
                files.append(join(_labels(folder), posixpath.splitext(image.image_id)[0] + ".txt"))
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            texts = dict(zip(files, pool.map(_text, files), strict=True))
    except (SourceError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: {error}") from error
    for name in sorted({name for name in image_ids if image_ids.count(name) > 1})[:10]:
        problems.found.append(f"image {name!r} is in several folders: give one folder a split")
    if all(text is None for text in texts.values()):
        problems.found.append(f"no image has a label file: looked for {files[0]}")
    rows: list[tuple[int, int, list[float], str]] = []  # image, class, box in shares, line
    for place, name in enumerate(files):
        rows += _lines(texts[name] or "", place, name, list(names), problems)
    columns = Columns(
        image_ids=image_ids,
        uris=uris,
        sizes=np.zeros((len(image_ids), 2), np.int64),
        image=np.array([row[0] for row in rows], np.int64),
        label=np.array([row[1] for row in rows], np.int64),
        boxes=np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
        names=list(names.values()),
        entry=lambda row: rows[row][3],
        given=lambda row: f"box ({', '.join(f'{value:g}' for value in rows[row][2])})",
        title=lambda place: uris[place],
        crowd=np.zeros(len(rows), np.bool_),
        category_ids=tuple(range(1, len(names) + 1)),
    )
    problems.check()
    read_sizes(columns, problems)
    columns.boxes *= np.tile(columns.sizes[columns.image], 2)
    return columns


def _document(file: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(read_bytes(file))
    except SourceError as error:
        raise AnnotationError(str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AnnotationError(
            f"{file} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(data, dict):
        raise AnnotationError(f"{file} is no YOLO data file: it holds no names and folders")
    return data


def _names(data: dict[str, Any], file: str) -> dict[int, str]:
    """Class name by its number, ascending."""
    names = data.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if (
        not names
        or not isinstance(names, dict)
        or not all(type(key) is int and isinstance(name, str) for key, name in names.items())
    ):
        raise AnnotationError(
            f"{file} has the names {names!r:.60}, expected a list of names or number: name"
        )
    return dict(sorted(names.items()))


def _folders(data: dict[str, Any], file: str, split: str) -> list[str]:
    splits = [key for key in ("train", "val", "test") if data.get(key)]
    if not split and len(splits) != 1:
        held = " and ".join(splits) or "no train, val or test"
        raise AnnotationError(f"{file} holds {held}: say which split, as {file}#val")
    chosen = data.get(split or splits[0])
    folders = chosen if isinstance(chosen, list) else [chosen]
    if not folders or not all(isinstance(one, str) and one for one in folders):
        raise AnnotationError(f"{file} has no folder of images for the split {split!r}")
    root = join(parent(file), str(data.get("path") or "."))
    places = [join(root, str(folder)) for folder in folders]
    return [one if "://" in one else posixpath.normpath(one) for one in places]


def _labels(folder: str) -> str:
    """The last ``images`` of a path become ``labels``; without one labels lie beside the images."""
    head, found, tail = f"{folder}/".rpartition("/images/")
    return f"{head}/labels/{tail}" if found else folder


def _text(path: str) -> str | None:
    try:
        return read_bytes(path).decode()
    except MissingSourceError:
        return None


def _lines(
    text: str, place: int, file: str, numbers: list[int], problems: Problems
) -> Iterator[tuple[int, int, list[float], str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        title = f"{file} line {number}"
        try:
            yield place, *_object(line, numbers), title
        except EntryError as problem:
            problems.boxes.append(f"{title} {problem}")


def _object(line: str, numbers: list[int]) -> tuple[int, list[float]]:
    """Index of the class, and the corners of the box in shares of the image."""
    first, *rest = line.split()
    try:
        label, values = int(first), np.array(rest, np.float64)
    except ValueError:
        raise EntryError(f"holds {line.strip()!r:.50}, expected a class and numbers") from None
    if label not in numbers:
        raise EntryError(f"has the class {label}, which names does not have")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise EntryError(
            f"has {len(values)} numbers, expected cx cy width height or a polygon's x y x y x y ..."
        )
    if not ((values >= -_BEYOND) & (values <= 1 + _BEYOND)).all():
        raise EntryError(f"holds {line.strip()!r:.50}, expected shares of the image, 0 to 1")
    if len(values) == 4:
        centre, half = values[:2], values[2:] / 2
        return numbers.index(label), [*(centre - half).tolist(), *(centre + half).tolist()]
    points = values.reshape(-1, 2)
    return numbers.index(label), [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]

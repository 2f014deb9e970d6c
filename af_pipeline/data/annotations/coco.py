"""Annotations from COCO files: boxes only, masks are ignored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import (
    MAX_SIDE,
    AnnotationError,
    Columns,
    EntryError,
    Problems,
    locate_images,
)
from af_pipeline.data.secrets import holds_secret, redact
from af_pipeline.data.storage import read_json

_SECTIONS = ("categories", "images", "annotations")


def read(path: str, images: str | None, problems: Problems) -> Columns:
    """Read a ``.json`` file; ``images``: image folder, else looked for as `list_coco` does.

    image_id is file_name; classes come by ascending category id. For scoring, images need no size
    and need not be anywhere, and boxes may be empty and reach out of their image.
    """
    try:
        document = read_json(path)
    except SourceError as error:
        raise AnnotationError(str(error)) from error
    return columns_of(document, problems, images)


def columns_of(
    document: Mapping[str, Any], problems: Problems, images: str | None = None
) -> Columns:
    """The content of a COCO file, whose name is ``problems.file``."""
    if problems.scoring:  # image_info_test-dev2017.json has none
        document = {"annotations": [], **document}
    sections = {name: _section(document, name, problems) for name in _SECTIONS}
    problems.check()
    categories = _categories(sections["categories"], problems)
    listed = _images(sections["images"], problems)
    names = [name for name, _ in listed.values()]
    places = {key: place for place, key in enumerate(listed)}
    labels = {category: label for label, category in enumerate(categories)}
    entries: list[int] = []
    rows: list[tuple[Any, ...]] = []
    for index, entry in enumerate(sections["annotations"]):
        try:
            rows.append(_row(entry, places, labels, problems.scoring))
            entries.append(index)
        except EntryError as problem:
            problems.boxes.append(f"{_name('annotation', index, entry)} {problem}")
    stated = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):  # what is not finite is refused later
        corners = np.concatenate([stated[:, :2], stated[:, :2] + stated[:, 2:]], axis=1)

    def given(row: int) -> str:
        return f"bbox {sections['annotations'][entries[row]]['bbox']!s:.60}"

    def entry_name(row: int) -> str:
        return _name("annotation", entries[row], sections["annotations"][entries[row]])

    return Columns(
        image_ids=names,
        uris=names if problems.scoring else list(locate_images(names, problems.file, images)),
        sizes=np.array([size for _, size in listed.values()], np.int64).reshape(-1, 2),
        image=np.array([row[0] for row in rows], np.int64),
        label=np.array([row[1] for row in rows], np.int64),
        boxes=corners,
        names=list(categories.values()),
        entry=entry_name,
        given=given,
        title=lambda place: f"image {list(listed)[place]!r}",
        crowd=np.array([row[3] for row in rows], np.bool_),
        category_ids=tuple(categories),
        numbers=tuple(listed),
        sides=stated[:, 2:],
        area=np.array([row[4] for row in rows], np.float64),
        as_stated=problems.scoring,
    )


def _section(document: Mapping[str, Any], name: str, problems: Problems) -> list[Any]:
    entries = document.get(name)
    if isinstance(entries, list):
        return entries
    problems.found.append(f"no list '{name}' (found the keys: {', '.join(document) or 'none'})")
    return []


def _get(entry: object, key: str, *kinds: type) -> Any:
    """A value of an entry, of one of some kinds if any are given."""
    if not isinstance(entry, dict):
        raise EntryError(f"is not an object but {entry!r:.50}")
    if key not in entry:
        raise EntryError(f"has no '{key}'")
    value = entry[key]
    if kinds and (isinstance(value, bool) or not isinstance(value, kinds) or value == ""):
        expected = {int: "an integer", str: "a non-empty string"}
        wanted = " or ".join(expected[kind] for kind in kinds)
        raise EntryError(f"{key} is {value!r:.50}, expected {wanted}")
    return value


def _name(section: str, index: int, entry: object) -> str:
    """What a message calls an entry: by its id where it has one."""
    known = isinstance(entry, dict) and "id" in entry
    return f"{section} {entry['id']!r}" if known else f"{section} at position {index}"  # type: ignore[index]


def _categories(entries: list[Any], problems: Problems) -> dict[int, str]:
    """Name by category id, in ascending order of the ids."""
    found: dict[int, str] = {}
    for index, entry in enumerate(entries):
        try:
            category, name = _get(entry, "id", int), _get(entry, "name", str)
            if category in found:
                raise EntryError("id is used twice")
            if problems.scoring and name in found.values():
                raise EntryError(f"name {name!r} is used twice")
            found[category] = name
        except EntryError as problem:
            problems.found.append(f"{_name('category', index, entry)} {problem}")
    return dict(sorted(found.items()))


def _images(entries: list[Any], problems: Problems) -> dict[int | str, tuple[str, list[int]]]:
    """File name and (width, height) by image id."""
    found: dict[int | str, tuple[str, list[int]]] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        try:
            key, name = _get(entry, "id", int, str), _get(entry, "file_name", str)
            size = [0, 0] if problems.scoring else _size(entry)
            if holds_secret(name):
                raise EntryError("has a file_name with a user or a secret: leave it out")
            if key in found:
                raise EntryError("id is used twice")
            if name in names:
                raise EntryError(f"file_name {redact(name)!r} is used twice")
            found[key] = name, size
            names.add(name)
        except EntryError as problem:
            problems.found.append(f"{_name('image', index, entry)} {problem}")
    return found


def _size(entry: object) -> list[int]:
    size = [_get(entry, side, int) for side in ("width", "height")]
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise EntryError(f"has the size {'x'.join(map(str, size)):.50}")
    return size


def _row(
    entry: object, places: dict[Any, int], labels: dict[int, int], scoring: bool
) -> tuple[Any, ...]:
    """Image, label, [x, y, width, height], crowd and area of an annotation."""
    image, category = _get(entry, "image_id", int, str), _get(entry, "category_id", int)
    if image not in places:
        raise EntryError(f"belongs to the unknown image_id {image!r}")
    if category not in labels:
        raise EntryError(f"has the unknown category_id {category}")
    bbox, area = _get(entry, "bbox"), math.nan
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise EntryError(f"has the bbox {bbox!r:.60}, expected 4 numbers [x, y, width, height]")
    assert isinstance(entry, dict)  # _get saw to it
    if scoring and entry.get("area") is not None:
        area = _number(entry["area"]) if _is_number(entry["area"]) else math.nan
        if not math.isfinite(area):
            raise EntryError(f"has the area {entry['area']!r:.60}, expected a number")
    crowd = bool(entry.get("iscrowd", 0))
    return places[image], labels[category], list(map(_number, bbox)), crowd, area


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON knows integers of any length
        return math.inf

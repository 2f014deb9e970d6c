"""Annotated images from COCO files, checked as a whole before anything is trained on them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotationError,
    Box,
    Corners,
    EntryError,
    Findings,
    OnBroken,
    assemble,
    check_size,
    clip_corners,
    locate_images,
)
from af_pipeline.data.secrets import holds_secret, redact
from af_pipeline.data.storage import read_json

_SECTIONS = ("categories", "images", "annotations")


@dataclass(frozen=True)
class _Image:
    name: str
    width: int
    height: int


_Key = int | str  # an image's id


def load_coco(
    path: str | Path, images: str | None = None, on_broken: OnBroken = "fail"
) -> AnnotatedDataset:
    """Read and check a COCO detection file (boxes only; masks are ignored).

    Args:
        path: local path or fsspec URL of the ``.json`` file.
        images: image folder; otherwise looked for as in
            :func:`af_pipeline.data.sources.annotated.list_coco`.
        on_broken: ``drop`` leaves broken annotations out and names them in the data set's
            ``dropped``; broken images and categories fail all the same.

    Returns:
        Images in the file's order, image_id is file_name; classes by ascending category id.

    Raises:
        AnnotationError: the file cannot be read, or any entry is wrong: a missing key, an unknown
            or doubled id, a box that is not finite, has no area or lies outside its image. All
            entries are checked; the message holds the first ten problems and their number.
    """
    file = str(path)
    try:
        document = read_json(file)
    except SourceError as error:
        raise AnnotationError(str(error)) from error
    found = Findings(file, on_broken)
    sections = {name: _section(document, name, found.problems) for name in _SECTIONS}
    found.check()
    categories = _categories(sections["categories"], found.problems)
    listed = _images(sections["images"], found.problems)
    labels = {category: label for label, category in enumerate(sorted(categories))}
    boxes = _boxes(sections["annotations"], listed, labels, found.boxes)
    found.check()
    uris = locate_images((image.name for image in listed.values()), file, images)
    return AnnotatedDataset(
        images=tuple(_assemble(listed, boxes, uris)),
        class_names=tuple(categories[category] for category in labels),
        category_ids=tuple(labels),
        dropped=found.left_out(),
    )


def _section(document: dict[str, Any], name: str, problems: list[str]) -> list[Any]:
    entries = document.get(name)
    if isinstance(entries, list):
        return entries
    problems.append(f"no list '{name}' (found the keys: {', '.join(document) or 'none'})")
    return []


def _get(entry: object, key: str) -> Any:
    if not isinstance(entry, dict):
        raise EntryError(f"is not an object but {entry!r:.50}")
    if key not in entry:
        raise EntryError(f"has no '{key}'")
    return entry[key]


def _integer(entry: object, key: str) -> int:
    value = _get(entry, key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise EntryError(f"{key} is {value!r:.50}, expected an integer")
    return value


def _image_key(entry: object, key: str) -> _Key:
    value = _get(entry, key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise EntryError(f"{key} is {value!r:.50}, expected an integer or a string")
    return value


def _text(entry: object, key: str) -> str:
    value = _get(entry, key)
    if not isinstance(value, str) or not value:
        raise EntryError(f"{key} is {value!r:.50}, expected a non-empty string")
    return value


def _name(section: str, index: int, entry: object) -> str:
    """What a message calls an entry: by its id where it has one."""
    known = isinstance(entry, dict) and "id" in entry
    return f"{section} {entry['id']!r}" if known else f"{section} at position {index}"  # type: ignore[index]


def _categories(entries: list[Any], problems: list[str]) -> dict[int, str]:
    """Name by category id, in ascending order of the ids."""
    found: dict[int, str] = {}
    for index, entry in enumerate(entries):
        try:
            category, name = _integer(entry, "id"), _text(entry, "name")
            if category in found:
                raise EntryError("id is used twice")
            found[category] = name
        except EntryError as problem:
            problems.append(f"{_name('category', index, entry)} {problem}")
    return dict(sorted(found.items()))


def _images(entries: list[Any], problems: list[str]) -> dict[_Key, _Image]:
    found: dict[_Key, _Image] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        try:
            key, image = _image_key(entry, "id"), _image(entry)
            if key in found:
                raise EntryError("id is used twice")
            if image.name in names:
                raise EntryError(f"file_name {redact(image.name)!r} is used twice")
            found[key] = image
            names.add(image.name)
        except EntryError as problem:
            problems.append(f"{_name('image', index, entry)} {problem}")
    return found


def _image(entry: object) -> _Image:
    image = _Image(_text(entry, "file_name"), _integer(entry, "width"), _integer(entry, "height"))
    check_size(image.width, image.height)
    if holds_secret(image.name):
        raise EntryError("has a file_name with a user or a secret: leave it out")
    return image


def _boxes(
    entries: list[Any],
    images: dict[_Key, _Image],
    labels: dict[int, int],
    problems: list[str],
) -> dict[_Key, list[Box]]:
    """The boxes of each image."""
    found: dict[_Key, list[Box]] = {image_id: [] for image_id in images}
    for index, entry in enumerate(entries):
        try:
            image_id, box = _box(entry, images, labels)
            found[image_id].append(box)
        except EntryError as problem:
            problems.append(f"{_name('annotation', index, entry)} {problem}")
    return found


def _box(entry: object, images: dict[_Key, _Image], labels: dict[int, int]) -> tuple[_Key, Box]:
    image_id = _image_key(entry, "image_id")
    category = _integer(entry, "category_id")
    crowd = entry.get("iscrowd", 0) if isinstance(entry, dict) else 0
    if image_id not in images:
        raise EntryError(f"belongs to the unknown image_id {image_id!r}")
    if category not in labels:
        raise EntryError(f"has the unknown category_id {category}")
    corners = _corners(_get(entry, "bbox"), images[image_id])
    return image_id, Box(corners, labels[category], bool(crowd))


def _corners(bbox: object, image: _Image) -> Corners:
    """(x, y, width, height) to (x0, y0, x1, y1) clipped to the image."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise EntryError(f"has the bbox {bbox!r:.60}, expected 4 numbers [x, y, width, height]")
    given = f"bbox {f'{bbox}':.60}"
    try:
        x, y, width, height = (float(value) for value in bbox)
    except OverflowError:  # JSON knows integers of any length
        x, y, width, height = math.inf, 0.0, 1.0, 1.0  # refused as not finite
    if width <= 0 or height <= 0:
        raise EntryError(f"has the {given}, whose width or height is not positive")
    return clip_corners((x, y, x + width, y + height), image.width, image.height, given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _assemble(
    images: dict[_Key, _Image], boxes: dict[_Key, list[Box]], uris: Iterator[str]
) -> Iterator[AnnotatedImage]:
    for (image_id, image), uri in zip(images.items(), uris, strict=True):
        yield assemble(image.name, uri, (image.width, image.height), boxes[image_id])

"""Annotated images from COCO files, checked as a whole before anything is trained on them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.sources import SourceError, locate_images, read_json

_SHOWN = 10
_MAX_SIDE = 1 << 24  # beyond it float32 has no single pixels


class AnnotationError(ValueError):
    """A COCO file is wrong; names the file and the annotations, the first ten problems of all."""


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image and its N boxes.

    Attributes:
        image_id: file_name of the COCO file.
        uri: where the image's bytes are (not looked at here).
        width: px, as the COCO file says.
        height: px, as the COCO file says.
        boxes: float32 [N, 4], (x1, y1, x2, y2) in px of the original image, half-open, clipped
            to it; every box has an area.
        labels: int32 [N], index into the data set's class_names.
        crowd: bool [N], boxes around groups that count neither as hit nor as miss.
    """

    image_id: str
    uri: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AnnotatedDataset:
    """Images in the file's order; classes by ascending category id.

    Attributes:
        images: all images, also those without boxes.
        class_names: name of each label.
        category_ids: the COCO file's id of each label.
    """

    images: tuple[AnnotatedImage, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class _Image:
    name: str
    width: int
    height: int


@dataclass(frozen=True)
class _Box:
    image_id: int | str
    corners: tuple[float, float, float, float]
    label: int
    crowd: bool


class _EntryError(ValueError):
    """One thing wrong with one entry."""


def load_coco(path: str | Path, images: str | None = None) -> AnnotatedDataset:
    """Read and check a COCO detection file (boxes only; masks are ignored).

    Args:
        path: local path or fsspec URL of the ``.json`` file.
        images: image folder; otherwise looked for as in
            :func:`af_pipeline.data.sources.list_coco`.

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
    problems: list[str] = []
    sections = {name: _section(document, name, problems) for name in _SECTIONS}
    _fail(file, problems)
    categories = _categories(sections["categories"], problems)
    listed = _images(sections["images"], problems)
    labels = {category: label for label, category in enumerate(sorted(categories))}
    boxes = _boxes(sections["annotations"], listed, labels, problems)
    _fail(file, problems)
    uris = locate_images((image.name for image in listed.values()), file, images)
    return AnnotatedDataset(
        images=tuple(_assemble(listed, boxes, uris)),
        class_names=tuple(categories[category] for category in labels),
        category_ids=tuple(labels),
    )


_SECTIONS = ("categories", "images", "annotations")


def _fail(file: str, problems: list[str]) -> None:
    if not problems:
        return
    shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    noun = "problem" if len(problems) == 1 else "problems"
    raise AnnotationError(f"{file}: {len(problems)} {noun}:{shown}{more}")


def _section(document: dict[str, Any], name: str, problems: list[str]) -> list[Any]:
    entries = document.get(name)
    if isinstance(entries, list):
        return entries
    problems.append(f"no list '{name}' (found the keys: {', '.join(document) or 'none'})")
    return []


def _get(entry: object, key: str) -> Any:
    if not isinstance(entry, dict):
        raise _EntryError(f"is not an object but {entry!r:.50}")
    if key not in entry:
        raise _EntryError(f"has no '{key}'")
    return entry[key]


def _integer(entry: object, key: str) -> int:
    value = _get(entry, key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _EntryError(f"{key} is {value!r:.50}, expected an integer")
    return value


def _image_key(entry: object, key: str) -> int | str:
    value = _get(entry, key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _EntryError(f"{key} is {value!r:.50}, expected an integer or a string")
    return value


def _text(entry: object, key: str) -> str:
    value = _get(entry, key)
    if not isinstance(value, str) or not value:
        raise _EntryError(f"{key} is {value!r:.50}, expected a non-empty string")
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
                raise _EntryError("id is used twice")
            found[category] = name
        except _EntryError as problem:
            problems.append(f"{_name('category', index, entry)} {problem}")
    return dict(sorted(found.items()))


def _images(entries: list[Any], problems: list[str]) -> dict[int | str, _Image]:
    found: dict[int | str, _Image] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        try:
            key, image = _image_key(entry, "id"), _image(entry)
            if key in found:
                raise _EntryError("id is used twice")
            if image.name in names:
                raise _EntryError(f"file_name {image.name!r} is used twice")
            found[key] = image
            names.add(image.name)
        except _EntryError as problem:
            problems.append(f"{_name('image', index, entry)} {problem}")
    return found


def _image(entry: object) -> _Image:
    image = _Image(_text(entry, "file_name"), _integer(entry, "width"), _integer(entry, "height"))
    if not (1 <= image.width <= _MAX_SIDE and 1 <= image.height <= _MAX_SIDE):
        raise _EntryError(f"has the size {f'{image.width}x{image.height}':.50}")
    return image


def _boxes(
    entries: list[Any],
    images: dict[int | str, _Image],
    labels: dict[int, int],
    problems: list[str],
) -> list[_Box]:
    found: list[_Box] = []
    for index, entry in enumerate(entries):
        try:
            found.append(_box(entry, images, labels))
        except _EntryError as problem:
            problems.append(f"{_name('annotation', index, entry)} {problem}")
    return found


def _box(entry: object, images: dict[int | str, _Image], labels: dict[int, int]) -> _Box:
    image_id = _image_key(entry, "image_id")
    category = _integer(entry, "category_id")
    crowd = entry.get("iscrowd", 0) if isinstance(entry, dict) else 0
    if image_id not in images:
        raise _EntryError(f"belongs to the unknown image_id {image_id!r}")
    if category not in labels:
        raise _EntryError(f"has the unknown category_id {category}")
    corners = _corners(_get(entry, "bbox"), images[image_id])
    return _Box(image_id, corners, labels[category], bool(crowd))


def _corners(bbox: object, image: _Image) -> tuple[float, float, float, float]:
    """(x, y, width, height) to (x1, y1, x2, y2) clipped to the image."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise _EntryError(f"has the bbox {bbox!r:.60}, expected 4 numbers [x, y, width, height]")
    try:
        x, y, width, height = (float(value) for value in bbox)
    except OverflowError:  # JSON knows integers of any length
        x, y, width, height = math.inf, 0.0, 0.0, 0.0
    if not all(map(math.isfinite, (x, y, width, height))):
        raise _EntryError(f"has the bbox {f'{bbox}':.60}, which is not finite")
    if width <= 0 or height <= 0:
        raise _EntryError(f"has the bbox {bbox}, whose width or height is not positive")
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, float(image.width)), min(y + height, float(image.height))
    # In the precision it will be kept in: a sliver may vanish there.
    if np.float32(x1) >= np.float32(x2) or np.float32(y1) >= np.float32(y2):
        raise _EntryError(
            f"has the bbox {bbox}, which has no area inside its image "
            f"({image.width}x{image.height})"
        )
    return x1, y1, x2, y2


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _assemble(
    images: dict[int | str, _Image], boxes: list[_Box], uris: Iterator[str]
) -> Iterator[AnnotatedImage]:
    by_image: dict[int | str, list[_Box]] = {image_id: [] for image_id in images}
    for box in boxes:
        by_image[box.image_id].append(box)
    for (image_id, image), uri in zip(images.items(), uris, strict=True):
        own = by_image[image_id]
        yield AnnotatedImage(
            image_id=image.name,
            uri=uri,
            width=image.width,
            height=image.height,
            boxes=np.array([box.corners for box in own], np.float32).reshape(-1, 4),
            labels=np.array([box.label for box in own], np.int32),
            crowd=np.array([box.crowd for box in own], np.bool_),
        )

"""Annotated images as Parquet, one row a box; the checks run on columns, not on rows."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import (
    MAX_SIDE,
    AnnotatedDataset,
    AnnotatedImage,
    AnnotationError,
    Findings,
    OnBroken,
    locate_images,
    order_classes,
)
from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import DecodeError, image_size

SUFFIXES: tuple[str, ...] = (".parquet", ".pq")
_CORNERS = ("x0", "y0", "x1", "y1")
_REQUIRED = ("image", "label", *_CORNERS)
_SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("label", pa.string()),
        *((name, pa.float64()) for name in _CORNERS),
        ("crowd", pa.bool_()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("uri", pa.string()),
    ]
)


@dataclass(frozen=True)
class _Rows:
    """All files' rows in one table of _SCHEMA, and where each file's rows start."""

    table: pa.Table
    folder: str  # that the files lie in, absolute or a URL
    files: tuple[str, ...]
    starts: NDArray[np.int64]

    def name(self, row: int) -> str:
        """What a message calls a row."""
        file = int(np.searchsorted(self.starts, row, "right")) - 1
        return f"{self.files[file]} row {row - int(self.starts[file])}"


def load_table(
    path: str | Path,
    images: str | None = None,
    classes: tuple[str, ...] | None = None,
    on_broken: OnBroken = "fail",
) -> AnnotatedDataset:
    """Read and check annotations from Parquet, one row a box.

    Columns: ``image`` and ``label`` (text), ``x0, y0, x1, y1`` (px of the original image,
    half-open; clipped to it); optional ``crowd`` (bool), ``width`` and ``height`` (px; where they
    are missing or null the header of the image is read), ``uri`` (where the image is). A row whose
    label and corners are null states an image, maybe one without objects. Other columns are not
    looked at.

    Args:
        path: local path or fsspec URL of a Parquet file, or of a folder with such files.
        images: folder that ``image`` is relative to; otherwise ``uri`` says where the image is,
            and where that is null ``image`` does: an absolute path or URI, or relative to the
            folder of the Parquet files.
        classes: class names by label; otherwise those found in the alphabet's order.
        on_broken: ``drop`` leaves broken boxes out and names them in the data set's ``dropped``;
            rows without an image or with a wrong size fail all the same.

    Returns:
        Images in the order of their first rows; image_id is ``image`` as it stands.

    Raises:
        AnnotationError: a file cannot be read, a column is missing or of another type, a box is
            half null, not finite, inside out or without area in its image, a size is impossible
            or contradicts another row, or a class is not in ``classes``. All rows are checked;
            the message holds the first ten problems and their number, rows counted from 0.
    """
    file = str(path)
    found = Findings(file, on_broken)
    rows = _read(file)
    table = rows.table
    if table.num_rows == 0:
        raise AnnotationError(f"{file} has no rows: it states no image")
    _note(rows, pc.equal(pc.fill_null(table["image"], ""), ""), "has no image", found.problems)
    found.check()
    image, names = _encode(table["image"])
    uris = _uris(rows, image, names, images)
    sizes = _sizes(rows, image, uris, found)
    found.check()
    label, stated = _encode(table["label"])
    good = _good_boxes(rows, sizes[image], found)
    found.check()
    used = [stated[number] for number in np.unique(label[good])]
    class_names = order_classes(file, used, classes)
    index = {name: number for number, name in enumerate(class_names)}
    places = np.array([index.get(name, -1) for name in stated], np.int32)
    return AnnotatedDataset(
        images=tuple(_assemble(rows, good, (image, places, label), names, uris, sizes)),
        class_names=class_names,
        category_ids=tuple(range(1, len(class_names) + 1)),
        dropped=found.left_out(),
    )


def write_table(dataset: AnnotatedDataset, path: str | Path) -> None:
    """Write a data set as the Parquet file that :func:`load_table` reads back.

    ``image`` is the image_id; ``uri`` says where the image is, so the file may lie anywhere. Not
    kept: the order of the classes (give ``classes`` when reading), classes without a box, and
    category ids. Parent folders of a local path are made.

    Raises:
        OSError: the file cannot be written.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for image in dataset.images:
        count = max(1, len(image.boxes))
        empty = len(image.boxes) == 0
        shared = {"image": image.image_id, "width": image.width, "height": image.height}
        for name, value in {**shared, "uri": image.uri}.items():
            columns[name] += [value] * count
        labels = [dataset.class_names[label] for label in image.labels.tolist()]
        columns["label"] += [None] if empty else labels
        columns["crowd"] += [None] if empty else image.crowd.tolist()
        for name, values in zip(_CORNERS, image.boxes.T.tolist(), strict=True):
            columns[name] += [None] if empty else values
    system, place = fsspec.core.url_to_fs(str(path))
    system.makedirs(posixpath.dirname(place), exist_ok=True)
    with system.open(place, "wb") as target:
        pq.write_table(pa.table(columns, schema=_SCHEMA), target)


# Reading


def _read(file: str) -> _Rows:
    try:
        system, root = fsspec.core.url_to_fs(file)
        folder = system.isdir(root)
        paths = sorted(system.ls(root, detail=False)) if folder else [root]
        paths = [path for path in paths if not folder or path.lower().endswith(SUFFIXES)]
        tables = [_read_file(system, path, file) for path in paths]
    except AnnotationError:
        raise
    except FileNotFoundError as error:
        raise AnnotationError(f"there is nothing at {file}: check the path") from error
    except Exception as error:  # storage drivers and Arrow have many kinds
        raise AnnotationError(f"cannot read {file}: {error}") from error
    if not tables:
        raise AnnotationError(f"{file} holds no file that ends in {' or '.join(SUFFIXES)}")
    ends = np.cumsum([table.num_rows for table in tables])
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    files = tuple(posixpath.basename(path) for path in paths)
    return _Rows(pa.concat_tables(tables), _folder(file, folder), files, starts)


def _folder(file: str, is_folder: bool) -> str:
    if "://" in file:
        return file if is_folder else posixpath.dirname(file)
    place = Path(file).expanduser().absolute()
    return str(place if is_folder else place.parent)


def _read_file(system: Any, path: str, file: str) -> pa.Table:
    source = ds.dataset(path, filesystem=system, format="parquet")
    missing = [name for name in _REQUIRED if name not in source.schema.names]
    if missing:
        raise AnnotationError(
            f"{file}: {posixpath.basename(path)} lacks the columns {', '.join(missing)} "
            f"(it has {', '.join(source.schema.names)})"
        )
    fields = [field for field in _SCHEMA if field.name in source.schema.names]
    table = source.to_table(columns=[field.name for field in fields])
    columns = {field.name: _cast(table[field.name], field, path, file) for field in fields}
    for field in _SCHEMA:
        columns.setdefault(field.name, pa.nulls(table.num_rows, field.type))
    return pa.table(columns, schema=_SCHEMA)


def _cast(column: pa.ChunkedArray, field: pa.Field, path: str, file: str) -> pa.ChunkedArray:
    given = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    number = pa.types.is_integer(given) or pa.types.is_floating(given)
    text = pa.types.is_string(given) or pa.types.is_large_string(given)
    accepted = {
        pa.string(): text,
        pa.float64(): number,
        pa.int64(): number,
        pa.bool_(): pa.types.is_boolean(given) or pa.types.is_integer(given),
    }
    try:
        if accepted[field.type] or pa.types.is_null(given):
            return column.cast(field.type)
    except pa.ArrowInvalid as error:
        given = f"{given} ({error})"
    raise AnnotationError(
        f"{file}: {posixpath.basename(path)}: the column {field.name} is {given}, "
        f"expected {field.type}"
    )


def _encode(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Index of each row's text among the different texts, -1 for null, and these texts."""
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    places = pc.fill_null(encoded.indices.cast(pa.int64()), -1)
    return places.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()


def _first_rows(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row of each of the keys 0..n-1."""
    return np.unique(keys, return_index=True)[1]


# Checks


def _note(rows: _Rows, wrong: Any, problem: str, problems: list[str]) -> None:
    for row in np.flatnonzero(np.asarray(wrong)).tolist():
        problems.append(f"{rows.name(row)} {problem}")


def _uris(rows: _Rows, image: NDArray[np.int64], names: list[str], images: str | None) -> list[str]:
    """Where each image is."""
    located = list(locate_images(names, rows.folder, images or rows.folder))
    if images:
        return located
    stated = rows.table["uri"].take(pa.array(_first_rows(image))).to_pylist()
    return [uri or place for uri, place in zip(stated, located, strict=True)]


def _sizes(
    rows: _Rows, image: NDArray[np.int64], uris: list[str], found: Findings
) -> NDArray[np.int64]:
    """(width, height) [images, 2] in px as stated, else from the image's header."""
    stated = np.stack(
        [pc.fill_null(rows.table[side], 0).to_numpy() for side in ("width", "height")], axis=1
    )
    null = pc.or_(pc.is_null(rows.table["width"]), pc.is_null(rows.table["height"])).to_numpy()
    wrong = ~null & ((stated < 1) | (stated > MAX_SIDE)).any(axis=1)
    sizes = np.zeros((len(uris), 2), np.int64)
    known = np.flatnonzero(~null)[::-1]  # backwards, so that an image's first row is kept
    sizes[image[known]] = stated[known]
    for row in np.flatnonzero(wrong | (~null & (stated != sizes[image]).any(axis=1))).tolist():
        earlier = f", an earlier row of its image {_size_text(sizes[image[row]])}"
        problem = f"has the size {_size_text(stated[row])}{'' if wrong[row] else earlier}"
        found.problems.append(f"{rows.name(row)} {problem}")
    first = _first_rows(image)
    for number in np.setdiff1d(image, image[known]).tolist():
        try:
            sizes[number] = image_size(read_bytes(uris[number]))[::-1]
        except (SourceError, DecodeError) as error:
            name = rows.name(int(first[number]))
            found.problems.append(f"{name} states no size, and its image has none: {error}")
    return sizes


def _size_text(size: NDArray[np.int64]) -> str:
    return f"{size[0]}x{size[1]}"


def _good_boxes(rows: _Rows, size: NDArray[np.int64], found: Findings) -> NDArray[np.bool_]:
    """Which rows are boxes without a fault; ``size`` is (width, height) [rows, 2]."""
    null = np.stack([pc.is_null(rows.table[name]).to_numpy() for name in _REQUIRED[1:]], axis=1)
    boxes = _corners(rows)
    clipped = _clip(boxes, size)
    faults = {
        "has a label or corners that are null, but not all of them": null.any(axis=1),
        "has an empty label": pc.fill_null(pc.equal(rows.table["label"], ""), False).to_numpy(),
        "has the box {box}, which is not finite": ~np.isfinite(boxes).all(axis=1),
        "has the box {box}, whose width or height is not positive": ~_has_area(boxes),
        "has the box {box}, which has no area inside its image ({size})": ~_has_area(clipped),
    }
    stated = ~np.asarray(null.all(axis=1))
    wrong = np.stack(list(faults.values()), axis=1) & stated[:, None]  # [rows, faults]
    for row in np.flatnonzero(wrong.any(axis=1)).tolist():
        box = f"({', '.join(f'{value:g}' for value in boxes[row])})"
        problem = list(faults)[int(wrong[row].argmax())]  # the first one says most
        label = rows.table["label"][row].as_py()
        title = f"{rows.name(row)} {label!r:.50}" if label else rows.name(row)
        problem = problem.format(box=box, size=_size_text(size[row]))
        found.boxes.append(f"{title} {problem}")
    return stated & ~wrong.any(axis=1)


def _has_area(boxes: NDArray) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1), np.bool_)


def _corners(rows: _Rows) -> NDArray[np.float64]:
    """Corners [rows, 4] as they stand; null is not a number."""
    return np.stack(
        [pc.fill_null(rows.table[name], np.nan).to_numpy() for name in _CORNERS], axis=1
    )


def _clip(boxes: NDArray[np.float64], size: NDArray[np.int64]) -> NDArray[np.float32]:
    """Boxes [N, 4] cut to images of (width, height) [N, 2], in the precision they are kept in."""
    return np.clip(boxes, 0, np.tile(size, 2)).astype(np.float32)


def _assemble(
    rows: _Rows,
    good: NDArray[np.bool_],
    keys: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]],
    names: list[str],
    uris: list[str],
    sizes: NDArray[np.int64],
) -> Iterator[AnnotatedImage]:
    image, places, label = keys
    order = np.flatnonzero(good)
    order = order[np.argsort(image[order], kind="stable")]
    boxes = _clip(_corners(rows)[order], sizes[image[order]])
    labels = places[label[order]]
    crowd = pc.fill_null(rows.table["crowd"], False).to_numpy()[order]
    bounds = np.searchsorted(image[order], np.arange(len(names) + 1))
    for number, (name, uri) in enumerate(zip(names, uris, strict=True)):
        own = slice(int(bounds[number]), int(bounds[number + 1]))
        width, height = map(int, sizes[number])
        yield AnnotatedImage(name, uri, width, height, boxes[own], labels[own], crowd[own])

"""Annotations from Parquet, one row a box.

Columns: ``image`` and ``label`` (text), ``x0, y0, x1, y1`` (px of the original image, half-open);
optional ``crowd`` (bool), ``width`` and ``height`` (px; where they are missing or null the header
of the image is read), ``uri`` (where the image is). A row whose label and corners are null states
an image, maybe one without objects. Other columns are not looked at.
"""

from __future__ import annotations

import posixpath
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

from af_pipeline.data.annotations.dataset import (
    MAX_SIDE,
    AnnotatedDataset,
    AnnotationError,
    Columns,
    Problems,
    locate_images,
)

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


def read(path: str, images: str | None, problems: Problems) -> Columns:
    """Read a Parquet file, or a folder of such files.

    image_id is ``image`` as it stands; images come in the order of their first rows. ``images``:
    folder that ``image`` is relative to; otherwise ``uri`` says where the image is, and where that
    is null ``image`` does: an absolute path or URI, or relative to the folder of the files.
    """
    rows = _read(path)
    table = rows.table
    if table.num_rows == 0:
        raise AnnotationError(f"{path} has no rows: it states no image")
    for row in np.flatnonzero(pc.equal(pc.fill_null(table["image"], ""), "")).tolist():
        problems.found.append(f"{rows.name(row)} has no image")
    problems.check()
    image, image_ids = _encode(table["image"])
    first = np.unique(image, return_index=True)[1]
    sizes = _sizes(rows, image, len(image_ids), problems)
    null = np.stack([pc.is_null(table[name]).to_numpy() for name in _REQUIRED[1:]], axis=1)
    stated = np.flatnonzero(~null.all(axis=1))
    label, names = _encode(table["label"])
    half = np.asarray(null.any(axis=1))
    corners = [pc.fill_null(table[name], np.nan).to_numpy() for name in _CORNERS]
    boxes = np.stack(corners, axis=1)[stated]
    empty = pc.fill_null(pc.equal(table["label"], ""), False).to_numpy()

    def entry(row: int) -> str:
        text = table["label"][int(stated[row])].as_py()
        return rows.name(int(stated[row])) + (f" {text!r:.50}" if text else "")

    return Columns(
        image_ids=image_ids,
        uris=_uris(rows, first, image_ids, images),
        sizes=sizes,
        image=image[stated],
        label=label[stated],
        boxes=boxes,
        names=names,
        entry=entry,
        given=lambda row: f"box ({', '.join(f'{value:g}' for value in boxes[row])})",
        title=lambda place: rows.name(int(first[place])),
        crowd=pc.fill_null(table["crowd"], False).to_numpy()[stated],
        faults={
            "has a label or corners that are null, but not all of them": half[stated],
            "has an empty label": empty[stated],
        },
    )


def write_table(dataset: AnnotatedDataset, path: str | Path) -> None:
    """Write a data set as the Parquet file that `read` reads back.

    ``image`` is the image_id; ``uri`` says where the image is, so the file may lie anywhere. Not
    kept: the order of the classes (give ``classes`` when reading), classes without a box, and
    category ids. Parent folders of a local path are made.

    Raises:
        OSError: the file cannot be written.
    """
    count = np.diff(dataset.bounds)
    rows = np.repeat(np.arange(len(count)), np.maximum(1, count))  # an image without boxes: one
    boxless = np.repeat(count == 0, np.maximum(1, count))
    place = np.full(len(rows), -1)
    place[~boxless] = np.arange(len(dataset.labels))
    taken = pa.array(place, mask=boxless)
    images = {"image": dataset.image_ids, "uri": dataset.uris}
    columns = {name: pa.array(texts, pa.string()).take(rows) for name, texts in images.items()}
    columns |= {n: pa.array(dataset.sizes[rows, i]) for i, n in enumerate(("width", "height"))}
    names = pa.array(dataset.class_names, pa.string())
    columns["label"] = names.take(pa.array(dataset.labels)).take(taken)
    columns["crowd"] = pa.array(dataset.crowd).take(taken)
    boxes = dataset.boxes.astype(np.float64)
    columns |= {name: pa.array(boxes[:, i]).take(taken) for i, name in enumerate(_CORNERS)}
    system, file = fsspec.core.url_to_fs(str(path))
    system.makedirs(posixpath.dirname(file), exist_ok=True)
    with system.open(file, "wb") as target:
        table = pa.table([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)
        pq.write_table(table, target)


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


def _uris(rows: _Rows, first: NDArray[np.int64], names: list[str], images: str | None) -> list[str]:
    """Where each image is; ``first``: the first row of each."""
    located = list(locate_images(names, rows.folder, images or rows.folder))
    if images:
        return located
    stated = rows.table["uri"].take(pa.array(first)).to_pylist()
    return [uri or place for uri, place in zip(stated, located, strict=True)]


def _sizes(
    rows: _Rows, image: NDArray[np.int64], count: int, problems: Problems
) -> NDArray[np.int64]:
    """(width, height) [images, 2] in px as stated; 0 where they are not."""
    columns = [rows.table[side] for side in ("width", "height")]
    stated = np.stack([pc.fill_null(column, 0).to_numpy() for column in columns], axis=1)
    null = pc.or_(*map(pc.is_null, columns)).to_numpy()
    wrong = ~null & ((stated < 1) | (stated > MAX_SIDE)).any(axis=1)
    sizes = np.zeros((count, 2), np.int64)
    known = np.flatnonzero(~null)[::-1]  # backwards, so that an image's first row is kept
    sizes[image[known]] = stated[known]
    for row in np.flatnonzero(wrong | (~null & (stated != sizes[image]).any(axis=1))).tolist():
        own, first = ("x".join(map(str, size)) for size in (stated[row], sizes[image[row]]))
        earlier = "" if wrong[row] else f", an earlier row of its image {first}"
        problems.found.append(f"{rows.name(row)} has the size {own}{earlier}")
    return sizes

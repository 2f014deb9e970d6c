"""The list of images of a run: tables of `MANIFEST`, streamed into one Parquet file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from af_pipeline.core.schema import MANIFEST
from af_pipeline.data.access import SourceError
from af_pipeline.data.secrets import redact, text_id, text_uri

GROUP_ROWS = 10_000
LONGEST = 8192  # bytes of an id or URI: a path has 4,096 at most, a signed URL some 2,500
_CHECK_MEMORY = "512MB"  # beyond that duckdb uses the disk
_CHECK_THREADS = 2  # each takes its share of the memory


@dataclass(frozen=True)
class SourceImage:
    """One image to be read: its name within the collection and where its bytes are.

    ``version`` changes with the bytes: their size and ETag or time of change; "": unknown.
    """

    image_id: str
    uri: str
    version: str = ""


def local_version(uri: str) -> str:
    """Size and time of the last change, ns, of a local file; "" for any other: that would cost a
    request an image."""
    try:
        # Path keeps each name: interned.
        stat = None if "://" in uri else os.stat(uri)  # noqa: PTH116
    except (OSError, ValueError):  # reading it will say why
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}" if stat else ""


Listed = Iterator[SourceImage] | Iterator[pa.Table]
"""What a source gives: its images, or tables of them with the columns of `MANIFEST` and others."""


def image_tables(found: Iterable[Any], rows: int = GROUP_ROWS) -> Iterator[pa.Table]:
    """What is listed as tables; images as those of ``MANIFEST`` with ``rows`` rows, 1 at least.

    Names that are not valid UTF-8 are written as `text_id` and `text_uri` do.
    """
    group: list[SourceImage] = []
    for one in found:
        if isinstance(one, pa.Table):
            yield one
            continue
        group.append(one)
        if len(group) >= rows:
            yield _table(group)
            group = []
    if group:
        yield _table(group)


def images_of(found: Iterable[Any]) -> Iterator[SourceImage]:
    """What is listed image by image."""
    for one in found:
        if isinstance(one, pa.Table):
            yield from (SourceImage(**row) for row in one.select(MANIFEST.names).to_pylist())
        else:
            yield one


def write_manifest(images: Iterable[SourceImage], path: Path, rows: int = GROUP_ROWS) -> int:
    """`write_tables` for a listing of images."""
    return write_tables(image_tables(images, rows), path, rows)


def write_tables(tables: Iterable[pa.Table], path: Path, rows: int = GROUP_ROWS) -> int:
    """Write tables of one schema to a local Parquet file, one of them in memory at a time.

    They have the columns of `MANIFEST` and any others. The file appears under its name only when
    complete and checked; parent folders are made. ``rows``: of a row group at most. Returns the
    number of images.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    source = iter(tables)
    first = next(source, MANIFEST.empty_table())
    try:
        with pq.ParquetWriter(partial, first.schema) as writer:
            count = 0
            for table in chain([first], source):
                _check_lengths(table, count)
                writer.write_table(table, rows)
                count += table.num_rows
        check_unique(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def check_unique(path: Path) -> None:
    """Raise SourceError where an id of a local Parquet file occurs twice; in bounded memory."""
    limits: dict[str, Any] = {"memory_limit": _CHECK_MEMORY, "threads": _CHECK_THREADS}
    with duckdb.connect(config={**limits, "temp_directory": f"{path}.spill"}) as base:
        twins = base.execute(
            "SELECT image_id, count(*) OVER () FROM read_parquet($1) "
            "GROUP BY 1 HAVING count(*) > 1 LIMIT 1",
            [str(path)],
        ).fetchone()
        if twins is None:
            return
        rows = base.execute(
            "SELECT file_row_number FROM read_parquet($1, file_row_number=true) "
            "WHERE image_id = $2 ORDER BY 1 LIMIT 2",
            [str(path), twins[0]],
        ).fetchall()
    first, second = (row for (row,) in rows)
    raise SourceError(
        f"{twins[1]} image ids occur more than once, as {redact(twins[0])!r} in rows {first} and "
        f"{second} of the list, counted from 0: make the ids unique"
    )


def _table(group: list[SourceImage]) -> pa.Table:
    columns = {
        "image_id": [text_id(image.image_id) for image in group],
        "uri": [text_uri(image.uri) for image in group],
        "version": [image.version for image in group],
    }
    return pa.table(columns, schema=MANIFEST)


def _check_lengths(table: pa.Table, start: int) -> None:
    """Raise SourceError for what no storage takes; start: number of the first row."""
    for name in ("image_id", "uri"):
        lengths = pc.binary_length(table[name])
        row = pc.index(pc.greater(lengths, LONGEST), True).as_py()
        if row >= 0:
            raise SourceError(
                f"row {start + row} of the list, counted from 0, has a {name} of "
                f"{lengths[row]} bytes, more than {LONGEST}: leave it out"
            )

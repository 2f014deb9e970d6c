"""The flat tables of a run, derived from its rows/: detections/, images/, chips/ and the totals.

Parts of rows/ are read whole, checked, and taken apart some thousand rows at a time: that keeps
memory bounded wherever the run is, and no table is made of damaged rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from af_pipeline.core.schema import CHIPS, COUNTERS, DETECTIONS, IMAGES, MANIFEST
from af_pipeline.data.secrets import redact
from af_pipeline.data.storage import PARTIAL, is_local
from af_pipeline.output.folder import OutputFolder

IMAGES_PER_PART = 200_000  # images whose rows go into one file of each table
MEMORY = "2GB"  # of DuckDB
FIRST_ERRORS = 10

# The fields of `Totals` that are sums of columns of images/.
SUMS = {
    "detections": "num_detections",
    "chips": "num_chips",
    "chips_refused": "num_refused",
    "pixels_processed": "pixels_processed",
    "pixels_padded": "pixels_padded",
    "pixels_pyramid": "pixels_pyramid",
    "bytes": "bytes",
    "decode_ms": "decode_ms",
    "forward_ms": "forward_ms",
}


@dataclass
class Totals:
    """Sums over all images of a run; pixels are network px; a budget refuses chips; ``counters``
    are those of the ledger, by name."""

    images: int = 0
    errors: int = 0
    detections: int = 0
    chips: int = 0
    chips_refused: int = 0
    pixels_processed: int = 0
    pixels_padded: int = 0
    pixels_pyramid: int = 0
    bytes: int = 0
    decode_ms: float = 0.0
    forward_ms: float = 0.0
    pixels_per_scale: list[int] = field(default_factory=list)
    chips_per_scale: list[int] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    first_errors: list[str] = field(default_factory=list)

    def add(self, images: pa.Table) -> None:
        """Count the rows of a table of `IMAGES`."""
        self.images += images.num_rows
        for name, column in SUMS.items():
            setattr(self, name, getattr(self, name) + (pc.sum(images[column]).as_py() or 0))
        for name in COUNTERS:
            self.counters[name] += pc.sum(images[name]).as_py() or 0
        for name in ("pixels_per_scale", "chips_per_scale"):
            lists = [getattr(self, name), *images[name].to_pylist()]
            setattr(self, name, [sum(column) for column in zip_longest(*lists, fillvalue=0)])
        failed = images.filter(pc.field("status") == "error")
        self.errors += failed.num_rows
        for row in failed.slice(0, FIRST_ERRORS - len(self.first_errors)).to_pylist():
            self.first_errors.append(f"{redact(row['image_id'])}: {row['error']}")


def detections_table(rows: pa.Table, class_names: Sequence[str]) -> pa.Table:
    """One row of `DETECTIONS` a detection of a table of `STORED_ROW`."""
    ids, found = _exploded(rows, "detections")
    names = pa.array(class_names, pa.string()).take(found.field("label"))
    values = [found.field(name) for name in ("score", "x0", "y0", "x1", "y1", "scale")]
    return pa.Table.from_arrays([ids, found.field("label"), names, *values], schema=DETECTIONS)


def chips_table(rows: pa.Table) -> pa.Table:
    """One row of `CHIPS` a FocusChip of a table of `STORED_ROW`; the coarse look at the whole image
    is no FocusChip."""
    ids, chips = _exploded(rows, "chips")
    found = pa.Table.from_arrays([ids, *chips.flatten()], schema=CHIPS)
    return found.filter(pc.field("scale") > 0)


def _exploded(rows: pa.Table, name: str) -> tuple[pa.Array, pa.StructArray]:
    """The structs of a column of lists, one after the other, with the ids of their images."""
    lists = rows[name].combine_chunks()
    return rows["image_id"].combine_chunks().take(pc.list_parent_indices(lists)), lists.flatten()


def images_table(rows: pa.Table, run_id: str) -> pa.Table:
    """One row of `IMAGES` an image of a table of `STORED_ROW`."""
    ledger = rows["ledger"].combine_chunks()
    columns = {name: rows[name] for name in rows.column_names if name in IMAGES.names}
    columns |= {f.name: ledger.field(f.name) for f in ledger.type if f.name in IMAGES.names}
    columns |= {
        "status": pc.if_else(pc.equal(rows["error"], ""), "ok", "error"),
        "num_detections": pc.list_value_length(rows["detections"]),
        "num_chips": _list_sums(ledger.field("chips"), skip=1),
        "num_refused": _list_sums(ledger.field("refused")),
        "pixels_processed": _list_sums(ledger.field("pixels")),
        "pixels_padded": _list_sums(ledger.field("padded")),
        "run_id": pa.repeat(run_id, rows.num_rows),
        "pixels_per_scale": ledger.field("pixels"),
        "chips_per_scale": ledger.field("chips"),
    }
    return pa.table({name: columns[name] for name in IMAGES.names}).cast(IMAGES)


def _list_sums(lists: pa.Array, skip: int = 0) -> NDArray[np.int64]:
    """The sum of each list without its first ``skip`` values, int64 [N]."""
    lengths = pc.list_value_length(lists).to_numpy()
    sums = np.concatenate([[0], np.cumsum(lists.flatten().to_numpy(), dtype=np.int64)])
    ends = np.cumsum(lengths)
    found: NDArray[np.int64] = sums[ends] - sums[np.minimum(ends - lengths + skip, ends)]
    return found


class TableWriter:
    """Writes one table of the run in parts; all others are removed when these are in place.

    A part appears under its name only when complete: on a file system by renaming, on an object
    store because an upload does. Until run.json is there, parts of two publications may be.
    """

    def __init__(self, folder: OutputFolder, name: str, schema: pa.Schema, stamp: str) -> None:
        self.folder, self.name, self.schema, self.stamp = folder, name, schema, stamp
        self.written: list[str] = []
        self.writer: pq.ParquetWriter | None = None
        folder.make_directory(name)

    def write(self, table: pa.Table) -> None:
        """Add rows to the part at hand."""
        if self.writer is None:
            self.path = self.folder.path(
                self.name, f"part-{self.stamp}-{len(self.written):05d}.parquet"
            )
            self.target = f"{self.path}{PARTIAL}" if is_local(self.folder.system) else self.path
            self.writer = pq.ParquetWriter(
                self.target,
                self.schema,
                filesystem=self.folder.arrow,
                write_page_checksum=True,
            )
        self.writer.write_table(table)

    def end_part(self) -> None:
        """Put the part at hand in place."""
        if self.writer is None:
            return
        self.writer.close()
        self.writer = None
        self.folder.check_owner()
        if self.target != self.path:
            Path(self.target).replace(self.path)
        self.written.append(self.path)

    def close(self) -> None:
        """End the last part, an empty one if there was none; remove those of other times."""
        if not self.written and self.writer is None:
            self.write(self.schema.empty_table())
        self.end_part()
        for path in set(self.folder.parts(self.name)) - set(self.written):
            self.folder.system.rm_file(path)


def publish(
    folder: OutputFolder,
    parts: Sequence[str],
    class_names: Sequence[str],
    chips: bool,
    manifest: Path,
) -> Totals:
    """Derive detections/, images/ and chips/ from these parts of rows/; the run's totals.

    Columns of ``manifest`` beyond image_id and uri are carried into images/.
    """
    totals = Totals()
    stamp = f"{time.time_ns():x}"
    extra = [f for f in pq.read_schema(manifest) if f.name not in MANIFEST.names]
    images = folder
    with ExitStack() as stack:
        detections = TableWriter(folder, "detections", DETECTIONS, stamp)
        found = TableWriter(folder, "chips", CHIPS, stamp) if chips else None
        if extra:
            # Joined with the manifest at the end, in one go.
            images = OutputFolder.at(str(manifest.parent / "published"))
            Path(images.root).mkdir()
            stack.callback(images.remove, "images")
        plain = TableWriter(images, "images", IMAGES, stamp)
        writers = [writer for writer in (detections, found, plain) if writer is not None]
        since = 0
        for rows in folder.read_rows(parts):
            detections.write(detections_table(rows, class_names))
            looked_at = images_table(rows, folder.run_id)
            plain.write(looked_at)
            totals.add(looked_at)
            if found is not None:
                found.write(chips_table(rows))
            since += rows.num_rows
            if since >= IMAGES_PER_PART:
                since = 0
                for writer in writers:
                    writer.end_part()
        for writer in writers:
            writer.close()
        if extra:
            _join_manifest(folder, images, manifest, extra, stamp)
    if not chips:
        folder.remove("chips")
    return totals


def _join_manifest(
    folder: OutputFolder, plain: OutputFolder, manifest: Path, extra: Sequence[pa.Field], stamp: str
) -> None:
    """Write images/ with the manifest's further columns; null for images it no longer lists."""
    schema = pa.schema([*IMAGES, *(f.with_nullable(True) for f in extra)])
    writer = TableWriter(folder, "images", schema, stamp)
    names = ", ".join('m."{}"'.format(f.name.replace('"', '""')) for f in extra)
    with connect(manifest.parent) as connection:
        for path in plain.parts("images"):
            reader = connection.sql(
                f"SELECT i.* EXCLUDE (file_row_number), {names} FROM {scan(Path(path))} i "
                f"LEFT JOIN {scan(manifest)} m USING (image_id) ORDER BY i.file_row_number"
            ).to_arrow_reader(50_000)
            for batch in reader:
                if batch.num_rows:
                    writer.write(pa.Table.from_batches([batch]).cast(schema))
            writer.end_part()
    writer.close()


def connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB with bounded memory, spilling to ``scratch``."""
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    connection.execute("SET temp_directory = ?", [str(scratch / "duckdb")])
    return connection


def scan(path: Path) -> str:
    """SQL for a Parquet file with its row numbers as file_row_number."""
    return f"read_parquet({quoted(path)}, file_row_number = true)"


def quoted(path: Path) -> str:
    """A path as a string of SQL."""
    return "'{}'".format(str(path).replace("'", "''"))

"""What is left to do: the manifest without what rows/ already has.

Ten million ids fit no Python set comfortably, so they are compared by DuckDB, which goes to disk
where memory is short.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from af_pipeline.dist.sink import RunFolder
from af_pipeline.schema import MANIFEST

PART_ROWS = 20_000  # images in one part of the list: what one read task of the graph yields
MEMORY = "2GB"
IDS = pa.schema([("image_id", pa.string()), ("part", pa.string())])


@dataclass(frozen=True)
class Todo:
    """Images to do: the parts of their list in the run's folder."""

    parts: list[str]
    images: int


def connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB with bounded memory, spilling to ``scratch``."""
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    connection.execute("SET temp_directory = ?", [str(scratch / "duckdb")])
    return connection


def scan(path: Path) -> str:
    """SQL for a Parquet file with its row numbers as file_row_number."""
    quoted = str(path).replace("'", "''")
    return f"read_parquet('{quoted}', file_row_number = true)"


def settle(folder: RunFolder, scratch: Path, redo_errors: bool = False) -> Path:
    """List the ids of rows/ in ``scratch``; every image stands there once afterwards.

    A worker that outlived its killed driver may write an image that the next start does too: the
    first part by name keeps it. With ``redo_errors`` failed rows are taken out, to be done again.
    Returns the list, a Parquet file.
    """
    path = scratch / "done.parquet"
    with pq.ParquetWriter(path, IDS) as writer:
        for part, table in folder.finished():
            if redo_errors and any(table["failed"].to_pylist()):
                good = [not failed for failed in table["failed"].to_pylist()]
                folder.keep_rows(part, pa.array(good))
                table = table.filter(pa.array(good))
            names = pa.array([part] * table.num_rows, pa.string())
            writer.write_table(pa.Table.from_arrays([_ids(table), names], schema=IDS))
    with connect(scratch) as connection:
        _drop_copies(folder, path, connection)
    return path


def _ids(table: pa.Table) -> pa.Array:
    return table["image_id"].combine_chunks()


def _drop_copies(folder: RunFolder, done: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Take second rows of an image out of rows/."""
    ids = scan(done)
    copies = connection.execute(
        "SELECT part, list(n) FROM (SELECT part, file_row_number AS n, row_number() OVER "
        f"(PARTITION BY image_id ORDER BY part, file_row_number) AS copy FROM {ids}) "
        "WHERE copy > 1 GROUP BY part"
    ).fetchall()
    if not copies:
        return
    starts = dict(
        connection.execute(f"SELECT part, min(file_row_number) FROM {ids} GROUP BY part").fetchall()
    )
    for part, rows in copies:
        count = folder.row_count(part)
        double = {row - starts[part] for row in rows}
        folder.keep_rows(part, pa.array([row not in double for row in range(count)]))


def write_todo(folder: RunFolder, manifest: Path, done: Path, scratch: Path) -> Todo:
    """Write the images of ``manifest`` that are not in ``done`` to the run's folder, in order."""
    parts: list[str] = []
    images = 0
    for table in left_to_do(manifest, done, scratch):
        # Names that no other start uses: its graph may still be reading its own.
        name = f"todo/{time.time_ns():x}-{len(parts):05d}.parquet"
        folder.write_table(name, table)
        parts.append(folder.path(name))
        images += table.num_rows
    return Todo(parts, images)


def parts_of(folder: RunFolder, done: Path) -> list[str]:
    """The parts of rows/ that a list of `settle` was made from, by name.

    Those that held nothing but second rows are gone.
    """
    settled = set(pq.read_table(done, columns=["part"])["part"].unique().to_pylist())
    return [part for part in folder.parts("rows") if part in settled]


def left_to_do(manifest: Path, done: Path, scratch: Path) -> Iterator[pa.Table]:
    """Tables of `MANIFEST` of what is in ``manifest`` and not in ``done``, in order."""
    with connect(scratch) as connection:
        reader = connection.sql(
            f"SELECT image_id, uri FROM {scan(manifest)} "
            f"ANTI JOIN {scan(done)} AS done USING (image_id) ORDER BY file_row_number"
        ).to_arrow_reader(PART_ROWS)
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch]).cast(MANIFEST)

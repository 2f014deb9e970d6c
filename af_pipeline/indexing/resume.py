"""What is left to do: the manifest without what rows/ already has.

Ten million ids fit no Python set comfortably, so they are compared by DuckDB, which goes to disk
where memory is short.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from af_pipeline.core.schema import MANIFEST
from af_pipeline.output.folder import OutputFolder
from af_pipeline.output.tables import connect, quoted, scan

PART_ROWS = 20_000  # images in one part of the list: what one read task of the graph yields
LISTED = pa.schema(
    [
        ("image_id", pa.string()),
        ("version", pa.string()),
        ("failed", pa.bool_()),
        ("part", pa.int32()),  # index of its part
        ("number", pa.int32()),  # of the row in it
    ]
)


@dataclass(frozen=True)
class Finished:
    """What rows/ holds once it is settled.

    ``ids``: a Parquet file, the rows of which name each image once where not ``taken``;
    ``parts``: the parts where they are; ``damaged``: how many parts were put aside; ``changed``:
    how many rows were taken out because their images' bytes are others now.
    """

    ids: Path
    parts: list[str]
    damaged: int
    changed: int


@dataclass(frozen=True)
class Pending:
    """Images to do: the parts of their list in the run's folder."""

    parts: list[str]
    images: int


def finished_ids(
    folder: OutputFolder, manifest: Path, redo_errors: bool = False, redo_changed: bool = False
) -> Finished:
    """List what rows/ holds, beside ``manifest``; every image stands in rows/ once afterwards.

    Damaged parts are put aside. A worker that outlived its killed driver may write an image that
    the next start does too: the first part by name keeps it. To be done again, failed rows are
    taken out with ``redo_errors``, and with ``redo_changed`` those of images that have another
    version in ``manifest``; one that is not known is no other.
    """
    listed, ids = (manifest.with_name(name) for name in ("rows.parquet", "done.parquet"))
    parts, damaged = _list_rows(folder, listed)
    again = "changed OR failed" if redo_errors else "changed"
    joined, changed = "", "false"
    if redo_changed:
        joined = f"LEFT JOIN {scan(manifest)} m USING (image_id)"
        changed = "coalesce(m.version <> d.version AND '' NOT IN (m.version, d.version), false)"
    with connect(manifest.parent) as connection:
        connection.execute(
            f"COPY (WITH judged AS (SELECT d.*, {changed} AS changed "
            f"FROM {scan(listed)} d {joined}) "
            f"SELECT image_id, part, number, changed, {again} OR row_number() OVER "
            f"(PARTITION BY image_id ORDER BY {again}, part, number) > 1 AS taken FROM judged) "
            f"TO {quoted(ids)} (FORMAT parquet)"
        )
        taken = connection.execute(
            "SELECT part, list(number), count(*) FILTER (changed) "
            f"FROM {scan(ids)} WHERE taken GROUP BY part"
        )
        left: dict[int, str | None] = dict(enumerate(parts))
        count = 0
        while row := taken.fetchone():
            part, numbers, others = row
            left[part] = folder.without_rows(parts[part], set(numbers))
            count += others
    kept = [part for part in left.values() if part]
    for part in set(parts) - set(kept):  # at the end: what is written again may be another part
        folder.system.rm_file(part)
    return Finished(ids, kept, damaged, count)


def _list_rows(folder: OutputFolder, path: Path) -> tuple[list[str], int]:
    """Write a table of `LISTED`: the whole parts of rows/, and how many others were put aside."""
    parts: list[str] = []
    damaged = 0
    with pq.ParquetWriter(path, LISTED) as writer:
        for part, table in folder.finished():
            if table is None:
                folder.put_aside(part)
                damaged += 1
                continue
            place = pa.array([len(parts)] * table.num_rows), pa.array(range(table.num_rows))
            columns = [*table.columns, *place]
            writer.write_table(pa.table(columns, names=LISTED.names).cast(LISTED))
            parts.append(part)
    return parts, damaged


def write_pending(folder: OutputFolder, manifest: Path, done: Finished) -> Pending:
    """Write the images of ``manifest`` that are not in ``done`` to the run's folder, in order."""
    parts: list[str] = []
    images = 0
    folder.make_directory("todo")
    for table in pending(manifest, done):
        # Names that no other start uses: its graph may still be reading its own.
        name = f"todo/{time.time_ns():x}-{len(parts):05d}.parquet"
        folder.write_table(name, table)
        parts.append(folder.path(name))
        images += table.num_rows
    return Pending(parts, images)


def pending(manifest: Path, done: Finished) -> Iterator[pa.Table]:
    """Tables of `MANIFEST` of what is in ``manifest`` and not in ``done``, in order."""
    with connect(manifest.parent) as connection:
        reader = connection.sql(
            f"SELECT {', '.join(MANIFEST.names)} FROM {scan(manifest)} ANTI JOIN "
            f"(SELECT image_id FROM {scan(done.ids)} WHERE NOT taken) USING (image_id) "
            "ORDER BY file_row_number"
        ).to_arrow_reader(PART_ROWS)
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch]).cast(MANIFEST)

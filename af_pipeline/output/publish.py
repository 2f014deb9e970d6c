"""The flat tables of a run, derived from its rows/: detections/, images/, chips/ and the totals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from af_pipeline.core.schema import CHIPS, COUNTERS, DETECTIONS, IMAGES, MANIFEST, ImageRow
from af_pipeline.data.secrets import redact
from af_pipeline.data.storage import is_local
from af_pipeline.output.folder import PARTIAL, RunFolder
from af_pipeline.output.sql import connect, scan
from af_pipeline.output.tables import chips_table, detections_table, images_table

IMAGES_PER_PART = 200_000  # images whose rows go into one file of each table


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


class TableWriter:
    """Writes one table of the run in parts; all others are removed when these are in place.

    A part appears under its name only when complete: on a file system by renaming, on an object
    store because an upload does. Until run.json is there, parts of two publications may be.
    """

    def __init__(self, folder: RunFolder, name: str, schema: pa.Schema, stamp: str) -> None:
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
    folder: RunFolder,
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
    extra = _extra_fields(manifest)
    images = folder
    with ExitStack() as stack:
        detections = TableWriter(folder, "detections", DETECTIONS, stamp)
        found = TableWriter(folder, "chips", CHIPS, stamp) if chips else None
        if extra:
            # Joined with the manifest at the end, in one go.
            images = RunFolder.at(str(manifest.parent / "published"))
            Path(images.root).mkdir()
            stack.callback(images.remove, "images")
        plain = TableWriter(images, "images", IMAGES, stamp)
        writers = [writer for writer in (detections, found, plain) if writer is not None]
        since = 0
        for rows in folder.read_rows(parts):
            _add_totals(totals, rows)
            detections.write(detections_table(rows, class_names))
            plain.write(images_table(rows, folder.run_id))
            if found is not None:
                found.write(chips_table(rows))
            since += len(rows)
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


def _extra_fields(manifest: Path) -> list[pa.Field]:
    return [f for f in pq.read_schema(manifest) if f.name not in MANIFEST.names]


def _join_manifest(
    folder: RunFolder, plain: RunFolder, manifest: Path, extra: Sequence[pa.Field], stamp: str
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


def _add_totals(totals: Totals, rows: Sequence[ImageRow]) -> None:
    for row in rows:
        ledger = row.ledger
        totals.images += 1
        if row.error:
            totals.errors += 1
            if len(totals.first_errors) < 10:
                totals.first_errors.append(f"{redact(row.image_id)}: {row.error}")
        totals.detections += len(row.detections)
        totals.chips += sum(ledger.chips[1:])
        totals.chips_refused += sum(ledger.refused)
        totals.pixels_processed += sum(ledger.pixels)
        totals.pixels_padded += sum(ledger.padded)
        totals.pixels_pyramid += ledger.pixels_pyramid
        totals.bytes += row.bytes
        totals.decode_ms += ledger.decode_ms
        totals.forward_ms += ledger.forward_ms
        totals.pixels_per_scale = _sum_lists(totals.pixels_per_scale, ledger.pixels)
        for name in COUNTERS:
            totals.counters[name] += getattr(ledger, name)
        totals.chips_per_scale = _sum_lists(totals.chips_per_scale, ledger.chips)


def _sum_lists(a: list[int], b: list[int]) -> list[int]:
    longest = max(len(a), len(b))
    return [(a[i] if i < len(a) else 0) + (b[i] if i < len(b) else 0) for i in range(longest)]

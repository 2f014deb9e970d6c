"""The output directory of an index run: what is done, the flat tables, run.json.

rows/ is the truth: one row an image, written by the graph. The flat tables are derived from it
by `publish`, aside first and then put in place, and may be derived again at any time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from af_pipeline.config import tree_differences
from af_pipeline.schema import CHIPS, DETECTIONS, IMAGES, ImageRow, rows_to_table, table_to_rows
from af_pipeline.tables import chips_table, detections_table, images_table

ROWS_PER_BATCH = 2_000  # images held in memory while publishing
PLAN_FILE = "plan.json"  # what the run was started with; there from the start
RUN_FILE = "run.json"  # totals; written last


class OutputError(ValueError):
    """The output directory cannot be used; the message says how to go on."""


@dataclass
class Totals:
    """Sums over all images of a run; pixels are network px."""

    images: int = 0
    errors: int = 0
    detections: int = 0
    chips: int = 0
    pixels_processed: int = 0
    pixels_padded: int = 0
    pixels_pyramid: int = 0
    bytes: int = 0
    decode_ms: float = 0.0
    forward_ms: float = 0.0
    pixels_per_scale: list[int] = field(default_factory=list)
    chips_per_scale: list[int] = field(default_factory=list)
    first_errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run on a local (or mounted) file system."""

    root: Path

    @property
    def rows(self) -> Path:
        """Directory of the rows as they left the graph."""
        return self.root / "rows"

    def open(self, identity: dict[str, Any]) -> bool:
        """Start, or go on with, a run of this ``identity``; True if it was there already.

        Raises OutputError when the folder holds another run or other files.
        """
        if not (self.root / PLAN_FILE).exists():
            if self.root.exists() and any(self.root.iterdir()):
                raise OutputError(
                    f"{self.root} is not empty and holds no run: choose an empty output.uri"
                )
            self.rows.mkdir(parents=True)
            write_json(self.root / PLAN_FILE, identity)
            return False
        known = json.loads((self.root / PLAN_FILE).read_text())
        changes = tree_differences(known, identity)
        if changes:
            raise OutputError(
                f"{self.root} holds a run with another configuration ({'; '.join(changes[:5])}): "
                "use the same settings to resume it, another output.uri for a new run, or remove "
                "the folder"
            )
        (self.root / RUN_FILE).unlink(missing_ok=True)
        return True

    def done_ids(self) -> set[str]:
        """Ids of the images in rows/; a part that a kill left unreadable is removed."""
        done: set[str] = set()
        for path in sorted(self.rows.glob("*.parquet")):
            try:
                done.update(pq.read_table(path, columns=["image_id"])["image_id"].to_pylist())
            except (pa.ArrowInvalid, OSError):
                path.unlink()
        return done

    def append_rows(self, rows: Sequence[ImageRow], name: str) -> None:
        """Add a part to rows/, complete or not at all."""
        partial = self.root / f"{name}.partial"
        pq.write_table(rows_to_table(rows, stored=True), partial)
        partial.replace(self.rows / f"{name}.parquet")

    def read_rows(self) -> Iterator[list[ImageRow]]:
        """All rows, some thousand at a time, parts in the order of their names."""
        for path in sorted(self.rows.glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_BATCH):
                yield table_to_rows(pa.Table.from_batches([batch]))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that the file is whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def publish(folder: RunFolder, class_names: Sequence[str], run_id: str, chips: bool) -> Totals:
    """Derive detections/, images/ and chips/ from rows/; returns the run's totals."""
    totals = Totals()
    schemas = {"detections": DETECTIONS, "images": IMAGES} | ({"chips": CHIPS} if chips else {})
    with suppress(FileNotFoundError):
        shutil.rmtree(folder.root / "publish.partial")
    writers = {}
    for name, schema in schemas.items():
        (folder.root / "publish.partial" / name).mkdir(parents=True)
        path = folder.root / "publish.partial" / name / "part-00000.parquet"
        writers[name] = pq.ParquetWriter(path, schema)
    for rows in folder.read_rows():
        _add_totals(totals, rows)
        writers["detections"].write_table(detections_table(rows, class_names))
        writers["images"].write_table(images_table(rows, run_id))
        if chips:
            writers["chips"].write_table(chips_table(rows))
    for writer in writers.values():
        writer.close()
    for name in ("detections", "images", "chips"):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder.root / name)
    for name in schemas:
        (folder.root / "publish.partial" / name).replace(folder.root / name)
    (folder.root / "publish.partial").rmdir()
    return totals


def _add_totals(totals: Totals, rows: Sequence[ImageRow]) -> None:
    for row in rows:
        ledger = row.ledger
        totals.images += 1
        if row.error:
            totals.errors += 1
            if len(totals.first_errors) < 10:
                totals.first_errors.append(f"{row.image_id}: {row.error}")
        totals.detections += len(row.detections)
        totals.chips += sum(ledger.chips[1:])
        totals.pixels_processed += sum(ledger.pixels)
        totals.pixels_padded += sum(ledger.padded)
        totals.pixels_pyramid += ledger.pixels_pyramid
        totals.bytes += row.bytes
        totals.decode_ms += ledger.decode_ms
        totals.forward_ms += ledger.forward_ms
        totals.pixels_per_scale = _sum_lists(totals.pixels_per_scale, ledger.pixels)
        totals.chips_per_scale = _sum_lists(totals.chips_per_scale, ledger.chips)


def _sum_lists(a: list[int], b: list[int]) -> list[int]:
    longest = max(len(a), len(b))
    return [(a[i] if i < len(a) else 0) + (b[i] if i < len(b) else 0) for i in range(longest)]

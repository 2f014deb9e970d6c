"""The output folder of a job, local or remote: whose it is, its files, and what is in them.

rows/ of an index run is the truth: one row an image, written by the graph. The flat tables are
derived from it (`af_pipeline.output.tables`) and may be derived again at any time. A part of rows/
is named after the digest of its bytes, so that no damage to it goes unseen: checksums of Parquet's
pages leave out its headers and its footer, and rows were lost or changed in silence there.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from af_pipeline.config import tree_differences
from af_pipeline.core.schema import STORED_ROW
from af_pipeline.data.access import LOCAL, SourceError, Storage
from af_pipeline.data.storage import PARTIAL, filesystem, is_local
from af_pipeline.output.place import (
    GO_ON,
    UNWRITABLE,
    OutputError,
    OutputLostError,
    Place,
    parquet_bytes,
    unwritable,
)

ROWS_PER_BATCH = 2_000  # images held in memory while publishing
PLAN_FILE = "plan.json"  # what the run was started with; there from the start
RUN_FILE = "run.json"  # totals; written last
OWNER_FILE = "owner.json"  # the start that goes on at the moment
DAMAGED = "damaged"  # parts of rows/ that were put aside
FOLDERS = ("rows", "todo", "detections", "images", "chips", DAMAGED)
READERS = 8  # parts read at a time, each whole in memory


def digest(data: bytes) -> str:
    """First 32 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


@dataclass(frozen=True)
class OutputFolder(Place):
    """A folder and the work whose it is.

    ``run_id`` is how the names of its parts of rows/ begin. ``start`` is the token of the start
    that opened it, "" where nothing is written for a run: a worker that outlives its driver, or a
    second driver, is stopped by it. ``work``, ``setting``: what is kept there and what names the
    folder, for messages.
    """

    run_id: str = ""
    start: str = ""
    work: str = "run"
    setting: str = "output.uri"

    @classmethod
    def at(cls, uri: str, storage: Storage = LOCAL, **more: str) -> OutputFolder:
        """The folder at ``uri``, which need not exist, with ``more`` of the fields.

        Raises SourceError or OutputError for a place that cannot be one.
        """
        system, root = filesystem(uri, storage)
        if is_local(system):
            return cls(root, system, root.rstrip("/"), **more)
        if any(sign in uri for sign in "*?["):  # removing would take them for patterns
            raise OutputError(f"{uri} holds one of * ? [: choose another output.uri")
        return cls(uri.rstrip("/"), system, root.rstrip("/"), **more)

    @classmethod
    def of_run(cls, uri: str | Path) -> OutputFolder:
        """The folder of an index run, to read its tables; FileNotFoundError unless it is there."""
        folder = cls.at(str(uri))
        if not folder.system.isdir(folder.root):
            raise FileNotFoundError(
                f"{uri} is not a directory: give the output of a jobs/index.py run"
            )
        return replace(folder, uri=str(uri))

    def is_empty(self) -> bool:
        """Whether nothing is there but what `open` writes first, or not even the directory."""
        self.system.invalidate_cache()
        try:
            listed = self.system.ls(self.root, detail=False)
        except FileNotFoundError:
            return True
        # What "create folder" in a console of S3 leaves is a file of the folder's own name.
        left = {str(path).rstrip("/") for path in listed} - {self.root}
        first = (OWNER_FILE, f"{OWNER_FILE}{PARTIAL}", f"{PLAN_FILE}{PARTIAL}")
        return left <= set(map(self.path, first))

    def plan(self) -> dict[str, Any]:
        """What the run in this folder was started with; empty: there is none."""
        if not self.exists(PLAN_FILE):
            return {}
        try:
            return self.read_json(PLAN_FILE)
        except SourceError as error:
            raise OutputError(
                f"{error}: put back a copy of it to go on with its {self.work}, or choose another "
                f"{self.setting}"
            ) from error

    # Whose it is

    def check(self, identity: dict[str, Any], on_conflict: str = "refuse") -> bool:
        """Whether work of this ``identity`` was begun here.

        Raises OutputError if other work or other files are here and are to stay.
        """
        plan = self.plan()
        if not plan or plan.get("job") != identity.get("job"):
            if plan or not self.is_empty():
                raise OutputError(
                    f"{self.uri} is not empty and holds no {self.work}: choose another "
                    f"{self.setting}"
                )
            return False
        changes = tree_differences(plan, identity)
        if changes and on_conflict == "refuse":
            overwrite = (
                ", or --set output.on_conflict=overwrite to remove it and begin anew"
                if self.work == "run"
                else ""
            )
            if plan.get("schema") != identity.get("schema"):
                raise OutputError(
                    f"{self.uri} holds a {self.work} of another version of this program: resume "
                    f"it with that, or choose another {self.setting}{overwrite}"
                )
            raise OutputError(
                f"{self.uri} holds a {self.work} with other settings ({'; '.join(changes[:5])}): "
                f"use the same to go on with it, or choose another {self.setting}{overwrite}"
            )
        return not changes

    def claim(self, identity: dict[str, Any]) -> None:
        """Keep the folder for work of this ``identity``, which one process does; errors as of
        `check`."""
        if not self.check(identity):
            if is_local(self.system):
                Path(self.root).mkdir(parents=True, exist_ok=True)
            self.write_json(PLAN_FILE, identity)

    def open(self, identity: dict[str, Any], on_conflict: str = "refuse") -> OutputFolder:
        """Start, or go on with, a run of this ``identity``; errors as of `check`.

        An earlier start that still runs stops at its next `check_owner`, its workers at the next
        part they write.
        """
        self.check(identity, on_conflict)
        started = replace(self, start=secrets.token_hex(8))
        if is_local(self.system):
            Path(self.root).mkdir(parents=True, exist_ok=True)
        self.write_json(OWNER_FILE, {"start": started.start})
        if plan := self.plan():
            # First what says that all is there. The plan stays until another takes its place:
            # without one the folder is not known as a run's.
            names = [RUN_FILE, "todo"]
            if tree_differences(plan, identity):
                names += [*FOLDERS, "manifest.parquet"]
            for name in names:
                self.remove(name)
            self._remove_partial()
        self.write_json(PLAN_FILE, identity)
        self.make_directory("rows")
        return started

    def check_owner(self) -> None:
        """Raise OutputLostError if another start has taken the folder, or it was removed."""
        if not self.start:
            return
        try:
            owner = self.read_json(OWNER_FILE)
        except FileNotFoundError:
            owner = {}
        except SourceError as error:
            raise OutputLostError(f"{error}: {GO_ON}") from error
        if not owner and not self.exists(PLAN_FILE):
            raise OutputLostError(
                f"{self.uri} was removed or emptied while the run went on; {GO_ON}"
            )
        if owner.get("start") != self.start:  # or it is done and has left
            raise OutputLostError(
                f"another start of this job has taken {self.uri}: let it finish; stop the "
                "one before starting another"
            )

    def release(self) -> None:
        """Leave the folder."""
        self.check_owner()
        self.remove(OWNER_FILE)

    def _remove_partial(self) -> None:
        """Remove parts that a kill left half-written; single files are written anew anyway."""
        if is_local(self.system):
            for folder in map(self.path, FOLDERS):
                for path in Path(folder).glob(f"*{PARTIAL}"):
                    path.unlink()

    # Its rows

    def write_part(self, table: pa.Table) -> str:
        """Add a part to rows/, complete or not at all; returns its path.

        The same rows again are the same part. Raises OutputLostError where no further part can be
        written either.
        """
        self.check_owner()
        data = parquet_bytes(table)
        name = f"rows/{self.run_id}_{digest(data)}.parquet"
        try:
            self.write_bytes(name, data)
        except OSError as error:
            if error.errno in UNWRITABLE:
                raise OutputLostError(unwritable(self.uri, error)) from error
            raise
        return self.path(name)

    def read_part(self, path: str) -> pq.ParquetFile | None:
        """A part of rows/; None: its bytes are not those that were written, or no `STORED_ROW`."""
        data = self.system.cat_file(path)
        if not path.endswith(f"_{digest(data)}.parquet"):
            return None
        file = pq.ParquetFile(pa.BufferReader(data))
        return file if file.schema_arrow.equals(STORED_ROW) else None

    def finished(self) -> Iterator[tuple[str, pa.Table | None]]:
        """Each part of rows/ with its columns image_id, version and failed (bool); None: damaged.

        Parts of another run, written late, are removed.
        """
        paths = self.parts("rows")
        own = [path for path in paths if path.startswith(self.path("rows", self.run_id))]
        for path in sorted(set(paths) - set(own)):
            self.system.rm_file(path)
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(own), READERS):  # no more in memory than these
                some = own[start : start + READERS]
                yield from zip(some, pool.map(self._ids_of, some), strict=True)

    def _ids_of(self, path: str) -> pa.Table | None:
        file = self.read_part(path)
        if file is None:
            return None
        table = file.read(["image_id", "version", "error"])
        failed = pc.not_equal(table["error"], "")
        return table.select(["image_id", "version"]).append_column("failed", failed)

    @property
    def damaged(self) -> list[str]:
        """Names of the parts of rows/ that were put aside."""
        return [path.rpartition("/")[2] for path in self.parts(DAMAGED)]

    def put_aside(self, path: str) -> None:
        """Move a part of rows/ to where it is not read."""
        self.make_directory(DAMAGED)
        self.system.mv(path, self.path(DAMAGED, path.rpartition("/")[2]))

    def without_rows(self, path: str, rows: Collection[int]) -> str | None:
        """Write a part again without these rows, by number; None: none is left.

        The part itself stays.
        """
        table = self._whole(path).read()
        left = table.filter(pa.array([row not in rows for row in range(table.num_rows)]))
        return self.write_part(left) if left.num_rows else None

    def read_rows(self, parts: Sequence[str]) -> Iterator[pa.Table]:
        """All rows of these parts of rows/, some thousand at a time."""
        for path in parts:
            for batch in self._whole(path).iter_batches(ROWS_PER_BATCH):
                yield pa.Table.from_batches([batch])

    def _whole(self, path: str) -> pq.ParquetFile:
        file = self.read_part(path)
        if file is None:
            raise OutputLostError(f"{path} was damaged while the run went on; {GO_ON}")
        return file

    # The tables of a run

    def run_record(self) -> dict[str, Any] | None:
        """The content of run.json; None while the run is incomplete (it is written last)."""
        return self.read_json(RUN_FILE) if self.exists(RUN_FILE) else None

    def has_table(self, name: str) -> bool:
        """Whether the run wrote this table (it may be empty)."""
        return bool(self.system.isdir(self.path(name)))

    def table(
        self,
        name: str,
        columns: Sequence[str],
        where: pc.Expression | None = None,
        limit: int | None = None,
    ) -> pa.Table:
        """Columns of the rows that pass ``where``, at most ``limit`` (file order).

        A table without part files reads as zero rows with untyped columns. Raises
        FileNotFoundError without the table; ValueError when a column is missing.
        """
        dataset = self._dataset(name)
        if dataset is None:
            return pa.table({column: pa.nulls(0) for column in columns})
        missing = [column for column in columns if column not in dataset.schema.names]
        if missing:
            raise ValueError(
                f"{self.uri}/{name} lacks the columns {', '.join(missing)}: "
                "was it written by jobs/index.py?"
            )
        if limit is not None:
            return dataset.head(limit, columns=list(columns), filter=where)
        return dataset.to_table(columns=list(columns), filter=where)

    def count(self, name: str, where: pc.Expression) -> int:
        """Rows of a table that pass ``where``."""
        dataset = self._dataset(name)
        return 0 if dataset is None else int(dataset.count_rows(filter=where))

    def _dataset(self, name: str) -> ds.Dataset | None:
        if not self.has_table(name):
            raise FileNotFoundError(
                f"{self.uri} has no '{name}' folder: give the output of a jobs/index.py run"
            )
        files = self.parts(name)
        return ds.dataset(files, filesystem=self.system, format="parquet") if files else None

"""The output directory of an index run, local or remote: its files, and what is in them.

rows/ is the truth: one row an image, written by the graph. The flat tables are derived from it
(`af_pipeline.output.publish`) and may be derived again at any time. A part of rows/ is named after
the digest of its bytes, so that no damage to it goes unseen: checksums of Parquet's pages leave
out its headers and its footer, and rows were lost or changed in silence there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from af_pipeline.config import tree_differences
from af_pipeline.core.schema import STORED_ROW, ImageRow, rows_to_table, table_to_rows
from af_pipeline.data.access import LOCAL, SourceError, Storage, reading_error
from af_pipeline.data.storage import filesystem, is_local, json_object

ROWS_PER_BATCH = 2_000  # images held in memory while publishing
PLAN_FILE = "plan.json"  # what the run was started with; there from the start
RUN_FILE = "run.json"  # totals; written last
OWNER_FILE = "owner.json"  # the start that goes on at the moment
DAMAGED = "damaged"  # parts of rows/ that were put aside
FOLDERS = ("rows", "todo", "detections", "images", "chips", DAMAGED)
PARTIAL = ".partial"  # what a file is called while it is written, on a file system
READERS = 8  # parts read at a time, each whole in memory
GO_ON = "run the same command again to go on from here"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # and so it will stay


class OutputError(ValueError):
    """The output directory cannot be used; the message says how to go on."""


class OutputLostError(OSError):
    """The output is another start's, gone or full: a run that goes on writes to it in vain."""


@contextmanager
def reaching(uri: str, kind: type[Exception] = OutputError) -> Iterator[None]:
    """Turn what a storage driver raises into one line; credentials in it are blotted out."""
    try:
        yield
    except SourceError:
        raise  # it names its own place
    except OutputLostError as error:
        raise kind(str(error)) from error
    except duckdb.Error as error:
        detail = " ".join(str(error).split())
        raise kind(f"comparing ids on this machine's disk failed: {detail}") from error
    except (OSError, BotoCoreError, ClientError) as error:
        if getattr(error, "errno", None) in UNWRITABLE:
            raise kind(_unwritable(f"{uri} or {tempfile.gettempdir()}", error)) from error
        raise kind(f"output: {reading_error(uri, error)}; {GO_ON}") from error


def _unwritable(place: str, error: Any) -> str:
    reason = os.strerror(error.errno).lower()
    return f"cannot write to {place}: {reason}; once that is mended, {GO_ON}"


def digest(data: bytes) -> str:
    """First 32 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


@dataclass(frozen=True)
class RunFolder:
    """Files of one run. ``system``: fsspec; ``root``: the directory as it knows it.

    ``run_id`` is how the names of its parts of rows/ begin. ``start`` is the token of the start
    that opened it, "" where nothing is written for a run: a worker that outlives its driver, or a
    second driver, is stopped by it.
    """

    uri: str
    system: Any
    root: str
    run_id: str = ""
    start: str = ""

    @classmethod
    def at(cls, uri: str, storage: Storage = LOCAL, run_id: str = "") -> RunFolder:
        """The folder that ``output.uri`` names; it need not exist.

        Raises SourceError or OutputError for a place that cannot be one.
        """
        system, root = filesystem(uri, storage)
        if is_local(system):
            return cls(root, system, root.rstrip("/"), run_id)
        if any(sign in uri for sign in "*?["):  # removing would take them for patterns
            raise OutputError(f"{uri} holds one of * ? [: choose another output.uri")
        return cls(uri.rstrip("/"), system, root.rstrip("/"), run_id)

    @property
    def arrow(self) -> fs.FileSystem:
        """The same place for pyarrow and Ray."""
        if is_local(self.system):
            return fs.LocalFileSystem()
        return fs.PyFileSystem(fs.FSSpecHandler(self.system))

    def path(self, *names: str) -> str:
        """Where something of this run is."""
        return "/".join((self.root, *names))

    def exists(self, name: str) -> bool:
        """Whether the run has this file."""
        return bool(self.system.exists(self.path(name)))

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

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the run; SourceError where it is damaged."""
        return json_object(self.system.cat_file(self.path(name)), f"{self.uri}/{name}")

    def plan(self) -> dict[str, Any]:
        """What the run in this folder was started with; empty: there is none."""
        if not self.exists(PLAN_FILE):
            return {}
        try:
            return self.read_json(PLAN_FILE)
        except SourceError as error:
            raise OutputError(
                f"{error}: put back a copy of it to resume its run, or choose another output.uri"
            ) from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write JSON so that the file is whole or not there."""
        self.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that it is whole or not there."""
        if is_local(self.system):
            with _replacing(self.path(name)) as partial:
                partial.write_bytes(data)
        else:
            self.system.pipe_file(self.path(name), data)

    def write_file(self, name: str, path: Path) -> None:
        """Copy a local file here so that it is whole or not there."""
        if is_local(self.system):
            with _replacing(self.path(name)) as partial:
                shutil.copyfile(path, partial)
        else:
            self.system.put_file(str(path), self.path(name))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file so that it is whole or not there."""
        self.write_bytes(name, _parquet(table))

    def parts(self, name: str) -> list[str]:
        """Parquet files of one of the run's directories, by name."""
        self.system.invalidate_cache()
        try:
            listed = self.system.ls(self.path(name), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path) for path in listed if str(path).endswith(".parquet"))

    def remove(self, name: str) -> None:
        """Remove a file or directory of the run, if it is there."""
        path = self.path(name)
        if is_local(self.system):
            if Path(path).is_dir():
                shutil.rmtree(path)
            Path(path).unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            self.system.rm(path, recursive=True)

    # What is in it

    def check(self, identity: dict[str, Any], on_conflict: str = "refuse") -> None:
        """Raise OutputError if another run or other files are here and are to stay."""
        plan = self.plan()
        if plan.get("job") != identity["job"]:
            if plan or not self.is_empty():
                raise OutputError(
                    f"{self.uri} is not empty and holds no run: choose an empty output.uri"
                )
            return
        changes = tree_differences(plan, identity)
        if changes and on_conflict == "refuse":
            if plan.get("schema") != identity["schema"]:
                raise OutputError(
                    f"{self.uri} holds a run of another version of this program: resume it with "
                    "that, choose another output.uri, or --set output.on_conflict=overwrite to "
                    "remove it and begin anew"
                )
            raise OutputError(
                f"{self.uri} holds a run with another configuration ({'; '.join(changes[:5])}): "
                "use the same settings to resume it, another output.uri for a new run, or "
                "--set output.on_conflict=overwrite to remove it and begin anew"
            )

    def open(self, identity: dict[str, Any], on_conflict: str = "refuse") -> RunFolder:
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

    def make_directory(self, name: str) -> None:
        """Make a directory of the run; remote storage has none."""
        if is_local(self.system):
            Path(self.path(name)).mkdir(exist_ok=True)

    # Its rows

    def write_part(self, table: pa.Table) -> str:
        """Add a part to rows/, complete or not at all; returns its path.

        The same rows again are the same part. Raises OutputLostError where no further part can be
        written either.
        """
        self.check_owner()
        data = _parquet(table)
        name = f"rows/{self.run_id}_{digest(data)}.parquet"
        try:
            self.write_bytes(name, data)
        except OSError as error:
            if error.errno in UNWRITABLE:
                raise OutputLostError(_unwritable(self.uri, error)) from error
            raise
        return self.path(name)

    def append_rows(self, rows: Sequence[ImageRow]) -> None:
        """`write_part` for rows."""
        self.write_part(rows_to_table(rows, stored=True))

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

    def read_rows(self, parts: Sequence[str]) -> Iterator[list[ImageRow]]:
        """All rows of these parts of rows/, some thousand at a time."""
        for path in parts:
            for batch in self._whole(path).iter_batches(ROWS_PER_BATCH):
                yield table_to_rows(pa.Table.from_batches([batch]))

    def _whole(self, path: str) -> pq.ParquetFile:
        file = self.read_part(path)
        if file is None:
            raise OutputLostError(f"{path} was damaged while the run went on; {GO_ON}")
        return file


@contextmanager
def _replacing(path: str) -> Iterator[Path]:
    """A path to write to, which then takes the place of ``path``."""
    partial = Path(f"{path}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)  # it takes room where there may be none
        raise


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()

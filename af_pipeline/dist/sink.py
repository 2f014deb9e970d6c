"""The output directory of an index run, local or remote: its files, and what is in them.

rows/ is the truth: one row an image, written by the graph. The flat tables are derived from it
(`af_pipeline.dist.publish`) and may be derived again at any time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from af_pipeline.config import tree_differences
from af_pipeline.data.storage import (
    LOCAL,
    SourceError,
    Storage,
    filesystem,
    is_local,
    reading_error,
)
from af_pipeline.schema import ImageRow, rows_to_table, table_to_rows

ROWS_PER_BATCH = 2_000  # images held in memory while publishing
PLAN_FILE = "plan.json"  # what the run was started with; there from the start
RUN_FILE = "run.json"  # totals; written last
FOLDERS = ("rows", "todo", "detections", "images", "chips")
PARTIAL = ".partial"  # what a file is called while it is written, on a file system
READERS = 16  # parts looked into at a time: each is a few requests on remote storage


class OutputError(ValueError):
    """The output directory cannot be used; the message says how to go on."""


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn what a storage driver raises into one line; credentials in it are blotted out."""
    try:
        yield
    except SourceError:
        raise  # it names its own place
    except duckdb.Error as error:
        detail = " ".join(str(error).split())
        raise OutputError(f"comparing ids on this machine's disk failed: {detail}") from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise OutputError(f"output: {reading_error(uri, error)}") from error


@dataclass(frozen=True)
class RunFolder:
    """Files of one run. ``system``: fsspec; ``root``: the directory as it knows it.

    ``run_id`` is how the names of its parts of rows/ begin: a worker that outlives its driver may
    write there when another run has taken the folder.
    """

    uri: str
    system: Any
    root: str
    run_id: str = ""

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
        """Whether nothing is there but what a kill left of a plan, or not even the directory."""
        self.system.invalidate_cache()
        try:
            listed = self.system.ls(self.root, detail=False)
        except FileNotFoundError:
            return True
        # What "create folder" in a console of S3 leaves is a file of the folder's own name.
        left = {str(path).rstrip("/") for path in listed} - {self.root}
        return left <= {self.path(f"{PLAN_FILE}{PARTIAL}")}

    def read_json(self, name: str) -> Any:
        """Content of a JSON file of the run."""
        return json.loads(self.system.cat_file(self.path(name)))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write JSON so that the file is whole or not there."""
        self.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that it is whole or not there."""
        path = self.path(name)
        if not is_local(self.system):
            self.system.pipe_file(path, data)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{path}{PARTIAL}")
        partial.write_bytes(data)
        partial.replace(path)

    def write_file(self, name: str, path: Path) -> None:
        """Copy a local file here so that it is whole or not there."""
        if is_local(self.system):
            partial = Path(f"{self.path(name)}{PARTIAL}")
            shutil.copyfile(path, partial)
            partial.replace(self.path(name))
        else:
            self.system.put_file(str(path), self.path(name))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file so that it is whole or not there."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.write_bytes(name, sink.getvalue().to_pybytes())

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
        plan = self.read_json(PLAN_FILE) if self.exists(PLAN_FILE) else {}
        if plan.get("job") != identity["job"]:
            if plan or not self.is_empty():
                raise OutputError(
                    f"{self.uri} is not empty and holds no run: choose an empty output.uri"
                )
            return
        changes = tree_differences(plan, identity)
        if changes and on_conflict == "refuse":
            raise OutputError(
                f"{self.uri} holds a run with another configuration ({'; '.join(changes[:5])}): "
                "use the same settings to resume it, another output.uri for a new run, or "
                "--set output.on_conflict=overwrite to remove it and begin anew"
            )

    def open(self, identity: dict[str, Any], on_conflict: str = "refuse") -> None:
        """Start, or go on with, a run of this ``identity``; errors as of `check`."""
        self.check(identity, on_conflict)
        if self.exists(PLAN_FILE):
            # First what says that all is there. The plan stays until another takes its place:
            # without one the folder is not known as a run's.
            names = [RUN_FILE, "todo"]
            if tree_differences(self.read_json(PLAN_FILE), identity):
                names += [*FOLDERS, "manifest.parquet"]
            for name in names:
                self.remove(name)
            self._remove_partial()
        self.write_json(PLAN_FILE, identity)
        self.make_directory("rows")

    def _remove_partial(self) -> None:
        """Remove parts that a kill left half-written; single files are written anew anyway."""
        if is_local(self.system):
            for folder in map(self.path, FOLDERS):
                for path in Path(folder).glob(f"*{PARTIAL}"):
                    path.unlink()

    def make_directory(self, name: str) -> None:
        """Make a directory of the run; remote storage has none."""
        if is_local(self.system):
            Path(self.path(name)).mkdir(parents=True, exist_ok=True)

    def finished(self) -> Iterator[tuple[str, pa.Table]]:
        """Each part of rows/ with its columns image_id and failed (bool).

        A part that a kill left unreadable is removed.
        """
        paths = self.parts("rows")
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(paths), READERS):  # no more ids in memory than these
                some = paths[start : start + READERS]
                for path, found in zip(some, pool.map(self._ids_of, some), strict=True):
                    if found is None:
                        self.system.rm_file(path)
                    else:
                        yield path, found

    def _ids_of(self, path: str) -> pa.Table | None:
        if not path.startswith(self.path("rows", self.run_id)):
            return None  # another run's, written late
        try:
            table = self._read(path, ["image_id", "error"])
        except pa.ArrowInvalid:  # cut short; what cannot be read at the moment is an OSError
            return None
        failed = pc.not_equal(table["error"], "")
        return pa.table({"image_id": table["image_id"], "failed": failed})

    def _read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        with self.arrow.open_input_file(path) as file:
            return pq.ParquetFile(file).read(columns)

    def keep_rows(self, path: str, keep: pa.Array) -> None:
        """Rewrite a part of rows/ with those rows only where ``keep`` (bool) holds."""
        table = self._read(path).filter(keep)
        if table.num_rows:
            self.write_table(path[len(self.root) + 1 :], table)
        else:
            self.system.rm_file(path)

    def row_count(self, path: str) -> int:
        """Rows of a part."""
        with self.arrow.open_input_file(path) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)

    def append_rows(self, rows: Sequence[ImageRow]) -> None:
        """Add a part to rows/, complete or not at all."""
        name = f"rows/{self.run_id}_lost-{time.time_ns()}.parquet"
        self.write_table(name, rows_to_table(rows, stored=True))

    def read_rows(self, parts: Sequence[str]) -> Iterator[list[ImageRow]]:
        """All rows of these parts of rows/, some thousand at a time."""
        for path in parts:
            with self.arrow.open_input_file(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_BATCH):
                    yield table_to_rows(pa.Table.from_batches([batch]))

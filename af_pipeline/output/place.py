"""A folder of files, local or remote, and what goes wrong with it in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from af_pipeline.data.access import SourceError, reading_error
from af_pipeline.data.storage import is_local, json_object, replacing

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
            raise kind(unwritable(f"{uri} or {tempfile.gettempdir()}", error)) from error
        raise kind(f"output: {reading_error(uri, error)}; {GO_ON}") from error


def unwritable(place: str, error: Any) -> str:
    """Why nothing can be written to ``place``, and how to go on."""
    reason = os.strerror(error.errno).lower()
    return f"cannot write to {place}: {reason}; once that is mended, {GO_ON}"


@dataclass(frozen=True)
class Place:
    """``system``: fsspec; ``root``: the folder as it knows it."""

    uri: str
    system: Any
    root: str

    @property
    def arrow(self) -> fs.FileSystem:
        """The same place for pyarrow and Ray."""
        if is_local(self.system):
            return fs.LocalFileSystem()
        return fs.PyFileSystem(fs.FSSpecHandler(self.system))

    def path(self, *names: str) -> str:
        """Where something below it is."""
        return "/".join((self.root, *names))

    def exists(self, name: str) -> bool:
        """Whether it has this file."""
        return bool(self.system.exists(self.path(name)))

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file in it; SourceError where it is damaged."""
        return json_object(self.system.cat_file(self.path(name)), f"{self.uri}/{name}")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write JSON so that the file is whole or not there."""
        self.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that it is whole or not there."""
        if is_local(self.system):
            with replacing(self.path(name)) as partial:
                partial.write_bytes(data)
        else:
            self.system.pipe_file(self.path(name), data)

    def write_file(self, name: str, path: Path) -> None:
        """Copy a local file here so that it is whole or not there."""
        if is_local(self.system):
            with replacing(self.path(name)) as partial:
                shutil.copyfile(path, partial)
        else:
            self.system.put_file(str(path), self.path(name))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file so that it is whole or not there."""
        self.write_bytes(name, parquet_bytes(table))

    def parts(self, name: str) -> list[str]:
        """Parquet files of one of its directories, by name."""
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

    def make_directory(self, name: str) -> None:
        """Make a directory of the run; remote storage has none."""
        if is_local(self.system):
            Path(self.path(name)).mkdir(exist_ok=True)


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()

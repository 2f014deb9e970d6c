"""Files, tars and tables that sources are listed from, and what is no file at all."""

import io
import os
import socket
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from af_pipeline.data.manifest import SourceImage


def touch(root: Path, *names: str) -> Path:
    """Files that hold their own names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def ids(images: Iterable[SourceImage]) -> list[str]:
    return [image.image_id for image in images]


def pack(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> str:
    """A tar; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def save_table(path: Path, table: pa.Table | dict[str, Any], rows: int = 3) -> str:
    """A Parquet file, in row groups of so many rows, or CSV; its path."""
    table = pa.table(table) if isinstance(table, dict) else table
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pcsv.write_csv(table, path)
    else:
        pq.write_table(table, path, row_group_size=rows)
    return str(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(40 << 30)


def _bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


# What makes it, and what is said when it is read.
ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "is a pipe, a socket or a device"),
    "socket": (_bound, "is a pipe, a socket or a device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "dangling": (lambda path: path.symlink_to("gone"), "nothing at"),
    "below a file": (lambda path: path.symlink_to(f"{__file__}/a"), "Not a directory"),
    "long link": (lambda path: path.symlink_to("x" * 300), "File name too long"),
    "40 GB": (_sparse, "has 42949672960 bytes, more than storage.max_bytes=2147483648"),
}

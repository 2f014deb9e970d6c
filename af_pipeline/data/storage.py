"""The one door to places, local and remote: reading, and what is said when that fails.

A URI is a local path or an fsspec URL (``s3://bucket/key``). A part of a file is addressed as
``URI#offset=BYTES&size=BYTES``; that is how a member of a tar is read. Credentials come only from
where botocore looks for them (environment, ``~/.aws``, instance role), never from a URI.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import fsspec.core

from af_pipeline.data.access import (
    LOCAL,
    SourceError,
    Storage,
    TooSlow,
    check_size,
    open_regular,
    read_regular,
    reading_error,
    refuse_secrets,
)
from af_pipeline.data.secrets import HTTP, S3, local_path, redact

_LONGEST_PAUSE_S = 20.0

PARTIAL = ".partial"  # what a local file is called while it is written
_RANGE = re.compile(r"(.+)#offset=(\d{1,18})&size=(\d{1,18})", re.DOTALL)


def filesystem(uri: str, storage: Storage = LOCAL) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, one per process and settings, and the path in it.

    Requests to S3 are tried ``storage.attempts`` times by botocore, with growing random pauses.
    """
    if "://" not in uri:  # a name may hold what fsspec would take for a chain ("a::b.jpg")
        return fsspec.filesystem("file"), _absolute(uri)
    refuse_secrets(uri)
    try:
        if protocol(uri) in S3:
            from af_pipeline.data.s3 import OneTryS3

            return OneTryS3.of(uri, storage)
        if protocol(uri) in HTTP:
            from af_pipeline.data.http import BoundedHTTP

            return BoundedHTTP(storage, use_listings_cache=False), uri
        # Without this a listing of millions of objects would stay in memory to the end.
        system, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except Exception as error:
        raise reading_error(uri, error) from None
    return system, local_path(str(path)) if is_local(system) else str(path)


# Reading


def read_bytes(uri: str, storage: Storage = LOCAL) -> bytes:
    """Read a whole file, or the part that ``#offset=...&size=...`` names.

    Raises SourceError for whatever hinders it; where there is no such file, MissingSourceError.
    """
    ranged = _RANGE.fullmatch(uri)
    if ranged is None:
        return _read(uri, None, None, storage)
    return read_range(ranged[1], int(ranged[2]), int(ranged[3]), storage)


def read_range(uri: str, offset: int, size: int, storage: Storage = LOCAL) -> bytes:
    """Read ``size`` bytes from ``offset`` on; a file that ends before is an error."""
    if size == 0:
        return b""
    data = _read(uri, offset, offset + size, storage)
    if len(data) > size:
        raise SourceError(f"{redact(uri)}: its server cannot send a part of a file: copy it")
    if len(data) < size:
        raise SourceError(
            f"{redact(uri)} ends at byte {offset + len(data)}, expected {offset + size}: "
            "it was replaced or cut short since it was listed"
        )
    return data


def range_uri(uri: str, offset: int, size: int) -> str:
    """The URI of a part of a file, bytes; `read_bytes` reads it."""
    return f"{uri}#offset={offset}&size={size}"


def open_file(uri: str, storage: Storage = LOCAL, buffer: int = 1 << 16) -> BinaryIO:
    """Open a file to read and seek in; a remote one is read ``buffer`` bytes at a time or more."""
    system, path = filesystem(uri, storage)
    try:
        if is_local(system):
            return cast(BinaryIO, open_regular(path, buffer))
        info = system.info(path)
    except Exception as error:
        raise reading_error(uri, error) from None
    if info["type"] == "directory":
        raise SourceError(f"{redact(uri)} is a folder, expected a file")
    if info["size"] is None:
        raise SourceError(f"{redact(uri)}: its server does not tell the size: copy the file")
    return cast(
        BinaryIO, io.BufferedReader(_RangeFile(uri, info["size"], listing(storage)), buffer)
    )


def listing(storage: Storage) -> Storage:
    """The same for lists and tars, which ``max_bytes`` of an image does not bound."""
    return replace(storage, max_bytes=max(storage.max_bytes, LOCAL.max_bytes))


class _RangeFile(io.RawIOBase):
    """A remote file by ranged reads, each tried again like any other."""

    def __init__(self, uri: str, size: int, storage: Storage) -> None:
        self._uri, self._size, self._storage, self._at = uri, size, storage, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        buffer[:count] = read_range(self._uri, self._at, count, self._storage)
        self._at += count
        return count


def _read(uri: str, start: int | None, end: int | None, storage: Storage) -> bytes:
    try:
        system, path = filesystem(uri, storage)
        if start is not None and end is not None:
            check_size(end - start, storage.max_bytes)
        if is_local(system):
            return read_regular(path, start, end, storage.max_bytes)
        options = {"limits": storage} if protocol(uri) in S3 else {}
        if start is None and protocol(uri) not in (*S3, *HTTP):  # these look while they read
            check_size(system.info(path).get("size"), storage.max_bytes)
        return _retried(
            lambda: bytes(system.cat_file(path, start=start, end=end, **options)),
            storage.attempts,
        )
    except SourceError:
        raise
    except Exception as error:  # each storage driver has its own kinds
        # The cause of a remote failure is in the message; as it stands it may hold a signed URL.
        raise reading_error(uri, error) from (None if "://" in uri else error)


def _retried(read: Callable[[], bytes], attempts: int) -> bytes:
    for attempt in range(attempts - 1):
        try:
            return read()
        except Exception as error:
            if not _passes(error):
                raise
        time.sleep(min(_LONGEST_PAUSE_S, random.random() * 2**attempt))
    return read()


def _passes(error: Exception) -> bool:
    """Whether a failure may pass and nobody below has tried again yet.

    That is all of HTTP's, and of S3 a body that breaks off: botocore tries only up to the headers.
    """
    import aiohttp
    from botocore.exceptions import IncompleteReadError, ResponseStreamingError

    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in (408, 429)
    cut = (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, TimeoutError, TooSlow)
    return isinstance(error, (*cut, IncompleteReadError, ResponseStreamingError))


# Writing and JSON


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A local path to write to, which then takes the place of ``path``: whole or not there."""
    partial = Path(f"{path}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)  # it takes room where there may be none
        raise


def read_json(path: str, storage: Storage = LOCAL) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    return json_object(read_bytes(path, listing(storage)), path)


def json_object(data: bytes, path: str) -> dict[str, Any]:
    """The object that the JSON ``data`` of the file at ``path`` holds."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{redact(path)} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(
            f"{redact(path)} holds a JSON {type(document).__name__}, expected an object"
        )
    return document


# Places


def protocol(uri: str) -> str:
    """The protocol of a URI in small letters; "file" for a plain path."""
    return uri.partition("://")[0].lower() if "://" in uri else "file"


def is_local(system: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is the local one."""
    protocol = system.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def full_uri(system: fsspec.AbstractFileSystem, path: str) -> str:
    """The URI of a path in a file system: a plain path if local."""
    return path if is_local(system) else str(system.unstrip_protocol(path))


def exists(uri: str, storage: Storage = LOCAL) -> bool:
    """Whether there is something. What cannot be asked for is not: reading it will say why."""
    return _asked("exists", uri, storage)


def is_folder(uri: str, storage: Storage = LOCAL) -> bool:
    """Whether there is a folder, or keys below; False where it cannot be asked for."""
    return _asked("isdir", uri, storage)


def _asked(question: str, uri: str, storage: Storage) -> bool:
    try:
        system, path = filesystem(uri, storage)
        return bool(getattr(system, question)(path))
    except Exception:
        return False


def join(folder: str, name: str) -> str:
    """A name below a folder; absolute names and URLs stay as they are."""
    if "://" in name or name.startswith("/"):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder.rstrip("/") else f"/{name}"


def parent(uri: str) -> str:
    """The folder of a file; absolute if local."""
    return posixpath.dirname(uri if "://" in uri else _absolute(uri))


def _absolute(name: str) -> str:
    # Links are kept: an image beside a linked COCO file is looked for beside the link.
    full = os.path.expanduser(name)  # noqa: PTH111 (Path raises for a user that is none)
    return os.path.normpath(Path(full).absolute())

"""Reading that ends: of regular files only, up to a size, and no slower than a least rate."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_CHUNK = 1 << 20


class Refused(OSError):
    """Something is not read; the message says why and follows the name of the place."""


class TooSlow(OSError):
    """A server sends so little that waiting for the rest is of no use."""


@dataclass(frozen=True)
class Limits:
    """Of one read: ``max_bytes``; ``timeout_s`` and ``min_rate``, bytes/s, as in `Storage`."""

    max_bytes: int
    timeout_s: float
    min_rate: float


def check_size(size: int | None, max_bytes: int) -> None:
    """Raise Refused for more than ``max_bytes``; None: nobody knows before it is read."""
    if size is not None and size > max_bytes:
        raise Refused(f"has {size} bytes, more than source.max_bytes={max_bytes}")


def open_regular(path: str, buffer: int = -1) -> IO[bytes]:
    """Open a local file to read. A pipe would wait for ever, a device may have no end.

    Raises:
        Refused: it is neither a file nor a folder.
        OSError: as `open`, IsADirectoryError for a folder.
    """
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise Refused("is a pipe, a socket or a device, expected a file")

    def opener(name: str, flags: int) -> int:  # what takes the file's place cannot block either
        return os.open(name, flags | os.O_NONBLOCK)

    return open(path, "rb", buffering=buffer, opener=opener)


def read_regular(path: str, start: int | None, end: int | None, max_bytes: int) -> bytes:
    """Bytes ``start`` to ``end`` of a local file, or all; errors as of `open_regular`."""
    with open_regular(path) as file:
        if start is not None and end is not None:
            file.seek(start)
            return file.read(end - start)
        size = os.fstat(file.fileno()).st_size
        check_size(size, max_bytes)
        return file.read(size)


async def read_body(
    read: Callable[[int], Awaitable[bytes]], limits: Limits, wanted: int | None = None
) -> bytes:
    """The body of an answer by ``read(most)``, which gives what has come, b"" at the end.

    Args:
        wanted: bytes of a part of a file; where more come, as from servers that cannot send
            parts, reading stops after a few too many.

    Raises:
        Refused: there is no ``wanted``, and more come than ``limits.max_bytes``.
        TooSlow: after ``timeout_s`` the mean rate is below ``min_rate``.
    """
    began, found = asyncio.get_running_loop().time(), bytearray()
    try:
        # Not a limit on each wait: what comes may be no part of the body, and without end.
        async with asyncio.timeout_at(began + limits.timeout_s) as end:
            while chunk := await read(_CHUNK):
                found += chunk
                if wanted is not None and len(found) > wanted:
                    break
                if wanted is None and len(found) > limits.max_bytes:
                    raise Refused(f"has more than source.max_bytes={limits.max_bytes} bytes")
                end.reschedule(began + limits.timeout_s + len(found) / limits.min_rate)
    except TimeoutError:
        if not end.expired():
            raise
        raise TooSlow(f"less than storage.min_rate={limits.min_rate:g} bytes/s came") from None
    return bytes(found)

"""How places are reached, what is read of them at most, and the errors of sources."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Literal

from pydantic import Field, field_validator

from af_pipeline.config import rule
from af_pipeline.data.secrets import holds_secret, redact, redact_text

_CHUNK = 1 << 20
_LONGEST_SHOWN = 300  # characters of a URI in a message
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}


class SourceError(ValueError):
    """A source cannot be listed or read; the message says what to do."""


class MissingSourceError(SourceError, FileNotFoundError):
    """There is nothing at the given place."""


class Refused(OSError):
    """Something is not read; the message says why and follows the name of the place."""


class TooSlow(OSError):
    """A server sends so little that waiting for the rest is of no use."""


@rule
class Storage:
    """How a place is reached; credentials come from the usual places only. Travels to actors."""

    endpoint: str | None = Field(
        default=None, description="URL of an S3-compatible server; None: AWS"
    )
    anonymous: bool = Field(default=False, description="send no credentials (public buckets)")
    attempts: int = Field(
        default=5, ge=1, le=100, description="tries of one request, with growing pauses"
    )
    timeout_s: float = Field(
        default=60, gt=0, le=3600, description="limit of one try to connect or read"
    )
    min_rate: float = Field(
        default=10_000,
        gt=0,
        description="bytes/s that a file must come with on average, after timeout_s",
    )
    max_bytes: int = Field(
        default=2 << 30,
        gt=0,
        description="bytes; larger files become error rows before they fill memory",
    )
    reach: Literal["own", "any"] = Field(
        default="own",
        description="own: no local files from a remote list, no chains such as simplecache::, no "
        ".. above a list's folder, redirects to the same host only; any: all that can be read",
    )

    @field_validator("endpoint")
    @classmethod
    def _is_server(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            refuse_secrets(endpoint)
            if not re.fullmatch(r"https?://[^/?#]+/?", endpoint):
                raise ValueError(f"must look like https://host:port, not {redact(endpoint)}")
        return endpoint


LOCAL = Storage()


def refuse_secrets(uri: str) -> None:
    """Raise SourceError where `holds_secret`; the message does not tell it."""
    if holds_secret(uri):
        raise SourceError(
            "a URI holds a user name or a secret: leave it out and give credentials by the "
            "environment, ~/.aws or an instance role"
        )


def reading_error(uri: str, error: Exception) -> SourceError:
    """What to say when ``uri`` cannot be read; holds no secret of the URI or the error."""
    place = redact(uri)
    if len(place) > _LONGEST_SHOWN:  # else the reason behind it would be cut off
        place = f"{place[:_LONGEST_SHOWN]}... ({len(place)} characters)"
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(error, SourceError):
        return error
    if isinstance(error, Refused):
        return SourceError(f"{place} {error}")
    if isinstance(error, TimeoutError):
        return SourceError(f"cannot read {place}: no answer within storage.timeout_s")
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return MissingSourceError(f"there is nothing at {place}: check the path")
    if isinstance(error, IsADirectoryError):
        return SourceError(f"{place} is a folder, expected a file")
    if isinstance(error, PermissionError) or status in (401, 403):
        return SourceError(f"no permission to read {place}: check its access rights")
    if type(error).__name__ in _NO_CREDENTIALS:
        return SourceError(
            f"no credentials to read {place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "use an instance role, or ask for anonymous access"
        )
    if isinstance(error, ImportError):
        return SourceError(f"no driver to read {place}: {redact_text(str(error))}")
    if isinstance(status, int) or type(error).__name__ == "ClientPayloadError":
        # Their texts quote what came, which may be of any server or file.
        text = "its answer breaks off" if status is None else f"status {status}"
        return SourceError(f"cannot read {place}: {type(error).__name__}, {text}")
    detail = " ".join(redact_text(str(error).replace(uri or " ", place or " ")).split())
    return SourceError(f"cannot read {place}: {type(error).__name__}: {detail:.{_LONGEST_SHOWN}}")


# Reading that ends: of regular files only, up to a size, and no slower than a least rate


def check_size(size: int | None, max_bytes: int) -> None:
    """Raise Refused for more than ``max_bytes``; None: nobody knows before it is read."""
    if size is not None and size > max_bytes:
        raise Refused(f"has {size} bytes, more than storage.max_bytes={max_bytes}")


def open_regular(path: str, buffer: int = -1) -> IO[bytes]:
    """Open a local file to read. A pipe would wait for ever, a device may have no end."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise Refused("is a pipe, a socket or a device, expected a file")

    def opener(name: str, flags: int) -> int:  # what takes the file's place cannot block either
        return os.open(name, flags | os.O_NONBLOCK)

    return open(path, "rb", buffering=buffer, opener=opener)


def read_regular(path: str, start: int | None, end: int | None, max_bytes: int) -> bytes:
    """Bytes ``start`` to ``end`` of a local file, or all."""
    with open_regular(path) as file:
        if start is not None and end is not None:
            file.seek(start)
            return file.read(end - start)
        size = os.fstat(file.fileno()).st_size
        check_size(size, max_bytes)
        return file.read(size)


async def read_body(
    read: Callable[[int], Awaitable[bytes]], storage: Storage, wanted: int | None = None
) -> bytes:
    """The body of an answer by ``read(most)``, which gives what has come, b"" at the end.

    ``wanted``: bytes of a part of a file; where more come, as from servers that cannot send parts,
    reading stops after a few too many.
    """
    began, found = asyncio.get_running_loop().time(), bytearray()
    try:
        # Not a limit on each wait: what comes may be no part of the body, and without end.
        async with asyncio.timeout_at(began + storage.timeout_s) as end:
            while chunk := await read(_CHUNK):
                found += chunk
                if wanted is not None and len(found) > wanted:
                    break
                if wanted is None and len(found) > storage.max_bytes:
                    raise Refused(f"has more than storage.max_bytes={storage.max_bytes} bytes")
                end.reschedule(began + storage.timeout_s + len(found) / storage.min_rate)
    except TimeoutError:
        if not end.expired():
            raise
        raise TooSlow(f"less than storage.min_rate={storage.min_rate:g} bytes/s came") from None
    return bytes(found)

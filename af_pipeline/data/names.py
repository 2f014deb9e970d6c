"""Names of files as text: a file system takes any bytes, Arrow and Parquet only valid UTF-8.

Python stands for the other bytes by lone surrogates, in which form such a name can be read.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

_PART = re.compile(r"(.+)(#offset=\d{1,18}&size=\d{1,18})", re.DOTALL)
_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")


def text_id(name: str) -> str:
    r"""``name`` as an image_id: bytes that are no UTF-8 become ``\xff``, no two names one id.

    To that end the backslashes of such a name, and of one that looks so already, are doubled.
    """
    if _is_text(name) and not _ESCAPED.search(name):
        return name
    return _bytes(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def text_uri(uri: str) -> str:
    """``uri`` as text: a local path that is no UTF-8 becomes ``file://`` with percent escapes.

    `local_path` turns it back. (A remote name that is no UTF-8 names nothing.)
    """
    if _is_text(uri):
        return uri
    found = _PART.fullmatch(uri)
    place, part = found.groups() if found else (uri, "")
    if "://" in place:
        return _bytes(place).decode("utf-8", "backslashreplace") + part
    return f"file://{quote_from_bytes(_bytes(place))}{part}"


def local_path(name: str) -> str:
    """The path that ``file://NAME`` means: the escapes of `text_uri` are undone, only those."""
    if "%" not in name:
        return name
    found = unquote_to_bytes(os.fsencode(name))
    try:
        found.decode()
    except UnicodeDecodeError:
        return os.fsdecode(found)
    return name


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:  # half of a pair that stands for no byte, as JSON may have
        return name.encode("utf-8", "surrogatepass")

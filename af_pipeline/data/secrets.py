"""URIs and names of files as text: what may be told of them, and as UTF-8.

Told are no query, which may be a signature, no token, no user name, in time linear in the length
of the text. A file system takes any bytes, Arrow and Parquet only valid UTF-8; Python stands for
the other bytes by lone surrogates, in which form such a name can be read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

S3 = ("s3", "s3a")
HTTP = ("http", "https")

_PART = re.compile(r"offset=\d+&size=\d+")  # of a file, see `af_pipeline.data.storage`
_FILE_PART = re.compile(r"(.+)(#offset=\d{1,18}&size=\d{1,18})", re.DOTALL)
_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*\Z")
_LONGEST_SCHEME = 32
# Where what is not told begins. A `?` in an s3 URI may be a wildcard, so that there only
# name=value counts as a query, and a `#` belongs to the key.
_BEGINS = {
    **dict.fromkeys(HTTP, re.compile(r"[?#](?=.)", re.DOTALL)),
    **dict.fromkeys(S3, re.compile(r"\?[^/=?&#]*=")),
}
_BEGINS_ELSEWHERE = re.compile(r"[?#][^/=?&#]*=")
# The same in prose, where a URI ends nobody knows where: each name=value on its own, and what is
# told already, a part of a file or "...", is left as it is.
_TOLD = r"([?#](?:offset=\d+&size=\d+|\.\.\.)(?![^\s'\":;,)#]))"
_IN_PROSE = {
    **dict.fromkeys(HTTP, re.compile(_TOLD + r"|[?#][^\s'\"]+|&[^\s'\"=&]+=[^\s'\"]*")),
    **dict.fromkeys(S3, re.compile(_TOLD + r"|[?&][^\s'\"/=?&#]*=[^\s'\"]*")),
}
_IN_PROSE_ELSEWHERE = re.compile(_TOLD + r"|[?&#][^\s'\"/=?&#]*=[^\s'\"]*")


def redact(uri: str) -> str:
    """A URI or a name without its secrets; text that follows a secret is cut off too."""
    place, mark, part = uri.rpartition("#")
    if not mark or not _PART.fullmatch(part):
        place, mark, part = uri, "", ""
    shown = []
    for scheme, text in _pieces(place):
        text = _without_user(text, scheme, r"[^/?#]*")
        found = _BEGINS.get(scheme, _BEGINS_ELSEWHERE).search(text) if scheme else None
        shown.append(text[: found.start() + 1] + "..." if found else text)
        if found:
            break
    return "://".join(shown) + mark + part


def redact_text(text: str) -> str:
    """A message without the secrets of the URIs in it; what is told already stays."""
    shown = []
    for scheme, piece in _pieces(text):
        if scheme:
            piece = _without_user(piece, scheme, r"[^\s/?#'\"]*")
            pattern = _IN_PROSE.get(scheme, _IN_PROSE_ELSEWHERE)
            piece = pattern.sub(lambda m: m[1] or f"{m[0][0]}...", piece)
        shown.append(piece)
    return "://".join(shown)


def redact_tree(tree: Any) -> Any:
    """JSON values with redacted texts; two texts that differ only in secrets stay different."""
    if isinstance(tree, dict):
        return {key: redact_tree(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redact_tree(value) for value in tree]
    if not isinstance(tree, str) or (shown := redact(tree)) == tree:
        return tree
    return f"{shown} (SHA-256 {hashlib.sha256(tree.encode()).hexdigest()[:8]})"


def holds_secret(uri: str) -> bool:
    """Whether a user name or a secret stands before the host or bucket of a URI."""
    pieces = (piece for piece in _pieces(uri) if piece[0])
    return any(_user_ends(text, scheme, r"[^/?#]*") is not None for scheme, text in pieces)


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """The text cut at each ``://``: what follows it, with the scheme before it or ""."""
    scheme = ""
    for piece in text.split("://"):
        yield scheme, piece
        found = _SCHEME.search(piece[-_LONGEST_SCHEME:])
        scheme = found[0].lower() if found else ""


def _user_ends(text: str, scheme: str, authority: str) -> int | None:
    """Where a user name or a secret at the begin of ``text``, behind the scheme, ends."""
    host = re.match(authority, text)[0]  # type: ignore[index]
    if "@" in host:
        return host.rindex("@")
    # A secret may hold "/", which would cut the authority before its "@".
    port = host.rpartition(":")[2]
    usual = ":" not in host or (port.isdigit() and scheme not in S3)
    if usual or host.startswith(("arn:", "[")):
        return None
    at = text.find("@")
    if at < 0:
        return len(host)
    return at + re.match(authority, text[at:])[0].rindex("@")  # type: ignore[index]


def _without_user(text: str, scheme: str, authority: str) -> str:
    end = _user_ends(text, scheme, authority) if scheme else None
    return text if end is None else f"...{text[end:]}"


# Names that are no UTF-8


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
    found = _FILE_PART.fullmatch(uri)
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

"""What may be told of a URI: no query, which may be a signature, no token, no user name.

Every function takes time linear in the length of its text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

S3 = ("s3", "s3a")
HTTP = ("http", "https")

_PART = re.compile(r"offset=\d+&size=\d+")  # of a file, see `af_pipeline.data.storage`
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

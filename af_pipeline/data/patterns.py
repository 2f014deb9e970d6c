"""Patterns of paths: wildcards, and brace ranges as WebDataset users write them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product

from fsspec.utils import glob_translate

from af_pipeline.data.access import SourceError
from af_pipeline.data.secrets import redact
from af_pipeline.data.storage import exists

_WILD = re.compile(r"[*?[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # names that braces may stand for


@dataclass(frozen=True)
class Pattern:
    """Which names below a folder are meant.

    Attributes:
        root: the longest folder without wildcards; names and ids are relative to it.
        stem: what all names begin with.
        names: relative patterns, one per alternative of the braces; plain names if not ``wild``.
        wild: whether there are wildcards: ``*``, ``?``, ``[ab]`` within a folder's or file's
            name, ``**`` for any number of folders.
    """

    root: str
    stem: str
    names: tuple[str, ...]
    wild: bool

    def matches(self, name: str) -> bool:
        """Whether a name relative to root is meant."""
        return self._regex.match(name) is not None

    def leads(self, folder: str) -> bool:
        """Whether names below a folder, relative to root, may be meant."""
        parts = folder.split("/")
        return any(_leads(parts, pattern) for pattern in self._folders)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile("|".join(glob_translate(name) for name in self.names))

    @cached_property
    def _folders(self) -> list[tuple[re.Pattern[str] | None, ...]]:
        folders = {n if n.endswith("**") else n.rpartition("/")[0] for n in self.names}
        return [
            tuple(None if p == "**" else re.compile(glob_translate(p)) for p in f.split("/") if p)
            for f in sorted(folders)
        ]


def parse_pattern(uri: str) -> Pattern | None:
    """The pattern that ``uri`` is, or None for a plain path, also one of an existing file.

    In an http URL only braces count, ``?`` begins its query.

    Raises:
        SourceError: wildcards in a bucket's name, ``**`` as part of a name, too many names.
    """
    if "://" not in uri and exists(uri):
        return None
    http = uri.lower().startswith(("http://", "https://"))
    expanded = list(expand_braces(uri))
    wild = not http and any(_WILD.search(name) for name in expanded)
    if len(expanded) == 1 and not wild:
        return None
    literal = os.path.commonprefix(expanded)  # noqa: RUF071 (letters are meant)
    if wild and (found := _WILD.search(literal)):
        literal = literal[: found.start()]
    root, slash, stem = literal.rpartition("/")
    if "://" in uri and len(root) < uri.index("://") + 3:
        raise SourceError(f"{redact(uri)}: the bucket must be named in full, without a pattern")
    start = len(root) + len(slash)
    pattern = Pattern(root or slash or ".", stem, tuple(n[start:] for n in expanded), wild)
    try:
        pattern.matches("")
    except (ValueError, re.error) as error:
        raise SourceError(f"{redact(uri)} is no valid pattern: {error}") from error
    return pattern


def expand_braces(text: str) -> Iterator[str]:
    """``a{0..2}`` and ``a{x,y}`` written out, in order; other braces stay as they are.

    Raises:
        SourceError: more than 100,000 names.
    """
    parts = _BRACES.split(text)  # text and content of braces in turn
    choices = [_choices(part) if index % 2 else [part] for index, part in enumerate(parts)]
    count = math.prod(len(choice) for choice in choices)
    if count > _MOST:
        raise SourceError(f"{redact(text)} stands for {count} names: {_MOST} are the most")
    return map("".join, product(*choices))


def _choices(content: str) -> list[str]:
    found = _RANGE.fullmatch(content)
    if found is None:
        return content.split(",") if "," in content else ["{" + content + "}"]
    first, last = found.groups()
    padded = any(len(n) > 1 and n.startswith("0") for n in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    # One more than may be is enough to be refused.
    numbers = islice(range(int(first), int(last) + step, step), _MOST + 1)
    return [f"{number:0{width}d}" for number in numbers]


def _leads(parts: list[str], pattern: tuple[re.Pattern[str] | None, ...]) -> bool:
    for part, wanted in zip(parts, pattern, strict=False):
        if wanted is None:
            return True
        if not wanted.match(part):
            return False
    return len(parts) <= len(pattern)

"""Names of the files below a folder or of a pattern, in order.

In memory bounded by the largest folder, on S3 by a page of one flat listing. A pattern has
wildcards, and brace ranges as WebDataset users write them.
"""

from __future__ import annotations

import errno
import math
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from typing import NamedTuple

import fsspec
from fsspec.utils import glob_translate

from af_pipeline.data.access import LOCAL, SourceError, Storage, reading_error
from af_pipeline.data.secrets import redact
from af_pipeline.data.storage import exists, filesystem, full_uri, is_local

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif")

_WILD = re.compile(r"[*?[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 100_000  # that braces may stand for
_DEEPEST = 200  # folders within each other; pages of a web server can go on for ever


class File(NamedTuple):
    """``name``: path below the listed folder; ``version``: size and ETag where the listing has
    them at no cost, which is on S3."""

    name: str
    version: str = ""


@dataclass(frozen=True)
class Listing:
    """Files below a folder, its absolute path or URL, to be gone through once."""

    root: str
    files: Iterator[File]

    def uri(self, name: str) -> str:
        """Where a file is."""
        return f"{self.root.rstrip('/')}/{name}"


def list_files(
    root: str,
    storage: Storage = LOCAL,
    stem: str = "",
    leads: Callable[[str], bool] = lambda _: True,
) -> Listing:
    """List the files below a folder in the order of their relative paths.

    Names that start with a dot are left out, with all that is below them. Links are followed,
    except where one leads back to a folder it lies in. A root that is missing or a file is an
    error at once, a folder that cannot be listed one while iterating.

    ``stem``: only names that begin so may be asked for; what S3 lists is narrowed by it.
    ``leads``: whether a folder (its relative path) is to be looked into; not asked on S3.
    """
    system, path = filesystem(root, storage)
    if "s3" in system.protocol:
        from af_pipeline.data.s3 import list_keys

        base = path.strip("/")
        return Listing(f"s3://{base}", (File(*f) for f in list_keys(base, stem, root, storage)))
    try:
        info = system.info(path)
    except Exception as error:
        raise reading_error(root, error) from None
    if info["type"] != "directory":
        raise SourceError(f"{redact(root)} is a file, expected a folder")
    base = path.rstrip("/")
    entries = _local_entries if is_local(system) else _entries_of(system)
    trail = frozenset({os.path.realpath(base or "/")})
    names = _walk(entries, base, "", leads, trail, is_local(system))
    return Listing(full_uri(system, base) or "/", map(File, names))


def _walk(
    entries: Callable[[str], list[str]],
    base: str,
    folder: str,
    leads: Callable[[str], bool],
    trail: frozenset[str],
    local: bool,
) -> Iterator[str]:
    """Names below ``folder``, itself relative to base; trail: real folders above and it."""
    place = f"{base}/{folder}".rstrip("/") or "/"
    if folder.count("/") >= _DEEPEST:
        raise SourceError(f"{redact(place):.300} lies more than {_DEEPEST} folders deep")
    # A folder's "/" makes it sort as its content does in the whole paths.
    for entry in sorted(entries(place)):
        name = f"{folder}/{entry}" if folder else entry
        if not entry.endswith("/"):
            yield name
            continue
        name = name.rstrip("/")
        if not leads(name):
            continue
        real = os.path.realpath(f"{base}/{name}") if local else name
        # A folder that is no link cannot be one of those it lies in.
        if real not in trail:
            yield from _walk(entries, base, name, leads, trail | {real}, local)


def _local_entries(folder: str) -> list[str]:
    """Visible names in a folder, those of folders with "/" behind."""
    try:
        with os.scandir(folder) as found:
            return [e.name + "/" * _is_folder(e) for e in found if not e.name.startswith(".")]
    except OSError as error:
        raise reading_error(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # Like a link that leads nowhere, one in a circle is a file that cannot be read.
        nowhere = error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)
        if nowhere or entry.name.lower().endswith(IMAGE_SUFFIXES):
            return False
        raise


def _entries_of(system: fsspec.AbstractFileSystem) -> Callable[[str], list[str]]:
    def entries(folder: str) -> list[str]:
        try:
            found = system.ls(folder, detail=True)
        except Exception as error:
            raise reading_error(full_uri(system, folder), error) from None
        paths = ((e["name"].rstrip("/"), e["type"] == "directory") for e in found)
        # Object stores list a folder's placeholder within itself.
        names = ((posixpath.basename(p), d) for p, d in paths if p != folder.rstrip("/"))
        return [name + "/" * is_dir for name, is_dir in names if name and name[0] != "."]

    return entries


# Patterns


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
    """``a{0..2}`` and ``a{x,y}`` written out, in order; other braces stay as they are."""
    parts = _BRACES.split(text)  # text and content of braces in turn
    choices = [_choices(part) if index % 2 else [part] for index, part in enumerate(parts)]
    count = math.prod(len(choice) for choice in choices)
    if count > _MOST_NAMES:
        raise SourceError(f"{redact(text)} stands for {count} names: {_MOST_NAMES} are the most")
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
    numbers = islice(range(int(first), int(last) + step, step), _MOST_NAMES + 1)
    return [f"{number:0{width}d}" for number in numbers]


def _leads(parts: list[str], pattern: tuple[re.Pattern[str] | None, ...]) -> bool:
    for part, wanted in zip(parts, pattern, strict=False):
        if wanted is None:
            return True
        if not wanted.match(part):
            return False
    return len(parts) <= len(pattern)

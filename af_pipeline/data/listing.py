"""Names of the files below a folder, in order, in memory bounded by the largest folder.

On S3 by pages of one flat listing, so bounded by a page.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import fsspec

from af_pipeline.data.access import LOCAL, MissingSourceError, SourceError, Storage
from af_pipeline.data.secrets import redact
from af_pipeline.data.storage import filesystem, full_uri, is_local, reading_error, s3_config

IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg",
    ".jpeg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
    ".bmp",
    ".gif",
)

_PAGE = 1000  # S3's own limit
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
    leads: Callable[[str], bool] | None = None,
) -> Listing:
    """List the files below a folder in the order of their relative paths.

    Names that start with a dot are left out, with all that is below them. Links are followed,
    except where one leads back to a folder it lies in.

    Args:
        root: local path or fsspec URL.
        storage: how it is reached.
        stem: only names that begin so may be asked for; what S3 lists is narrowed by it.
        leads: whether a folder (its relative path) is to be looked into; not asked on S3.

    Raises:
        SourceError: root is missing or a file (at once), or cannot be listed (while iterating).
    """
    system, path = filesystem(root, storage)
    if "s3" in system.protocol:
        base = path.strip("/")
        return Listing(f"s3://{base}", _s3_files(base, stem, root, storage))
    try:
        info = system.info(path)
    except Exception as error:
        raise reading_error(root, error) from None
    if info["type"] != "directory":
        raise SourceError(f"{redact(root)} is a file, expected a folder")
    base = path.rstrip("/")
    entries = _local_entries if is_local(system) else _entries_of(system)
    trail = frozenset({os.path.realpath(base or "/")})
    names = _walk(entries, base, "", leads or _everywhere, trail, is_local(system))
    return Listing(full_uri(system, base) or "/", map(File, names))


def _everywhere(folder: str) -> bool:
    return True


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


# S3


def _s3_files(base: str, stem: str, root: str, storage: Storage) -> Iterator[File]:
    """Files below bucket/folder; the first page is asked for at once."""
    bucket, _, folder = base.partition("/")
    above = f"{folder}/" if folder else ""
    client = _s3_client(storage, root)
    pages = _s3_pages(client, bucket, above + stem, root)
    first = next(pages)
    if not first and above and not stem:
        raise _nothing_below(client, bucket, folder, root)
    files = (
        File(key[len(above) :], version) for page in chain([first], pages) for key, version in page
    )
    return (file for file in files if _is_visible(file.name))


def _is_visible(name: str) -> bool:
    # A key that ends in "/" is a folder's placeholder.
    return not name.endswith("/") and not name.startswith(".") and "/." not in name and bool(name)


def _s3_pages(client: Any, bucket: str, prefix: str, root: str) -> Iterator[list[File]]:
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE}
    )
    try:
        for page in pages:
            yield [File(item["Key"], _s3_version(item)) for item in page.get("Contents", ())]
    except Exception as error:
        raise _s3_error(root, error) from None


def _s3_version(item: dict[str, Any]) -> str:
    tag = item.get("ETag", "").strip('"')
    return f"{item.get('Size')}-{tag}" if tag else ""


def _nothing_below(client: Any, bucket: str, key: str, root: str) -> SourceError:
    try:
        client.head_object(Bucket=bucket, Key=key)
    except Exception:
        return MissingSourceError(f"there is nothing at {redact(root)}: check the path")
    return SourceError(f"{redact(root)} is a file, expected a folder")


def _s3_client(storage: Storage, root: str) -> Any:
    """A client of its own: s3fs lists folder by folder, or everything into memory."""
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    config = s3_config(storage)
    if storage.anonymous:
        config["signature_version"] = UNSIGNED
    try:
        return Session().create_client("s3", endpoint_url=storage.endpoint, config=Config(**config))
    except Exception as error:
        raise reading_error(root, error) from None


def _s3_error(root: str, error: Exception) -> SourceError:
    from s3fs.errors import translate_boto_error

    return reading_error(root, translate_boto_error(error))

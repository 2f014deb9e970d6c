"""Where images come from: folders and COCO files, local or remote, listed one by one.

A listing never opens an image: a file that is missing or broken must become an error row of the
job later, not stop the listing or be lost.
"""

import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq

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


@dataclass(frozen=True)
class SourceImage:
    """One image to be read: its name within the collection and where its bytes are."""

    image_id: str
    uri: str


class SourceError(ValueError):
    """A source cannot be listed or read; the message says what to do."""


class MissingSourceError(SourceError, FileNotFoundError):
    """There is nothing at the given place."""


def open_source(uri: str, images: str | None = None) -> Iterator[SourceImage]:
    """List a source of either kind: ``*.json`` is a COCO file, everything else a folder.

    Args:
        uri: local path or fsspec URL (``s3://bucket/folder``).
        images: image folder of a COCO file; not for a folder.

    Raises:
        SourceError: nothing there, no image in it, or two images with one id.
    """
    if uri.lower().endswith(".json"):
        return list_coco(uri, images)
    if images is not None:
        raise SourceError(
            f"{uri} is listed as a folder, but an image folder was given too ({images}): "
            "that goes with a COCO .json file only"
        )
    return list_directory(uri)


def list_directory(root: str) -> Iterator[SourceImage]:
    """List the images below a folder in the order of their ids.

    image_id is the path relative to root with ``/``. Suffixes are compared without case; names
    that start with a dot are left out, with all that is below them. Links are followed, except
    where one leads back to a folder it lies in. Memory holds one listing per folder level, so it
    is bounded by the largest folder, not by the collection.

    Raises:
        SourceError: root is missing or a file (at once), or holds no image, or cannot be listed
            (while iterating).
    """
    system, path = _filesystem(root)
    try:
        info = system.info(path)
    except Exception as error:
        raise _reading_error(root, error) from error
    if info["type"] != "directory":
        raise SourceError(f"{root} is a file: give a folder of images or a COCO .json file")
    return _list_images(system, path.rstrip("/"), root)


def list_coco(path: str, images: str | None = None) -> Iterator[SourceImage]:
    """List the images of a COCO file in its order; image_id is file_name.

    Without ``images`` they are looked for beside the file and in ``images/`` beside it, first
    where the first one was found. A listed file that is nowhere is listed all the same, at the
    first of these places. With ``images`` nothing is looked for, which on remote storage saves a
    request per image.

    Raises:
        SourceError: the file cannot be read, is no COCO file, lists no image or one twice (at
            once).
    """
    document = read_json(path)
    entries = document.get("images")
    if not isinstance(entries, list):
        raise SourceError(f"{path} has no list 'images': give a COCO annotation file")
    if not entries:
        raise SourceError(f"{path} lists no image")
    names = [_file_name(path, index, entry) for index, entry in enumerate(entries)]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SourceError(f"{path} lists file_name {name!r} twice: make the names unique")
        seen.add(name)
    return (
        SourceImage(name, uri)
        for name, uri in zip(names, locate_images(names, path, images), strict=True)
    )


def locate_images(names: Iterable[str], path: str, images: str | None = None) -> Iterator[str]:
    """The URI of each name of the COCO file at ``path``, by the rule of :func:`list_coco`."""
    if images is not None:
        for name in names:
            yield _join(images, name)
        return
    beside = _parent(path)
    folders = [beside, _join(beside, "images")]
    preferred: list[str] | None = None
    for name in names:
        if preferred is None:
            found = next((f for f in folders if _exists(_join(f, name))), None)
            rest = [f for f in folders if f != found]
            preferred = folders if found is None else [found, *rest]
            yield _join(preferred[0], name)
            continue
        places = [_join(folder, name) for folder in preferred]
        # A file that is nowhere belongs where the others are: that is where it will be missed.
        yield next((place for place in places if _exists(place)), places[0])


def read_bytes(uri: str) -> bytes:
    """Read a whole file, local or remote.

    Raises:
        MissingSourceError: there is no such file.
        SourceError: it cannot be read (a folder, no permission, no driver for the protocol, ...).
    """
    try:
        system, path = _filesystem(uri)
        return bytes(system.cat_file(path))
    except SourceError:
        raise
    except Exception as error:  # each storage driver has its own kinds
        raise _reading_error(uri, error) from error


def read_json(path: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        SourceError: it cannot be read, is not JSON, or holds something else.
    """
    data = read_bytes(path)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(f"{path} holds a JSON {type(document).__name__}, expected an object")
    return document


def write_manifest(images: Iterable[SourceImage], path: Path, rows_per_group: int = 10_000) -> int:
    """Write a listing to Parquet (columns image_id, uri), one row group in memory at a time.

    The file appears under its name only when complete; parent folders are made.

    Returns:
        The number of images.

    Raises:
        ValueError: rows_per_group below 1.
        SourceError: the listing's own errors, or a name that is not valid Unicode.
    """
    if rows_per_group < 1:
        raise ValueError(f"rows_per_group must be at least 1, not {rows_per_group}")
    schema = pa.schema([("image_id", pa.string()), ("uri", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    rows = iter(images)
    count = 0
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            while group := list(islice(rows, rows_per_group)):
                writer.write_table(_manifest_table(group, schema))
                count += len(group)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _manifest_table(group: list[SourceImage], schema: pa.Schema) -> pa.Table:
    columns = {"image_id": [i.image_id for i in group], "uri": [i.uri for i in group]}
    try:
        return pa.table(columns, schema=schema)
    except UnicodeEncodeError as error:
        raise SourceError(
            f"file name {error.object!r} is not valid UTF-8: rename the file"
        ) from error


# Folders


def _list_images(system: Any, base: str, root: str) -> Iterator[SourceImage]:
    previous: str | None = None
    for path in _walk(system, base, root, _ancestors(system, base)):
        image_id = path[len(base) :].lstrip("/")
        # The walk goes in order of the ids, so twins stand side by side: no set of all ids needed.
        # (Object stores may hold both a/b and a//b.)
        if image_id == previous:
            raise SourceError(f"{root} holds two images with the id {image_id!r}: rename one")
        previous = image_id
        yield SourceImage(image_id, _uri(system, path))
    if previous is None:
        raise SourceError(
            f"no image found under {root}: looked for {', '.join(IMAGE_SUFFIXES)} "
            "at any depth, names starting with '.' left out"
        )


def _walk(system: Any, folder: str, root: str, trail: frozenset[str]) -> Iterator[str]:
    """Paths of images below folder, sorted as whole paths; trail: real folders above it."""
    try:
        entries = system.ls(folder, detail=True)
    except Exception as error:
        raise _reading_error(folder, error) from error
    # A folder sorts by its name with "/" behind it, as its content does in the whole paths.
    names = sorted(_entry(system, entry) for entry in entries)
    del entries  # not to be held while the folders below are walked
    for key, path, is_link in names:
        name = key.rstrip("/")
        if not name or name.startswith(".") or path.rstrip("/") == folder:
            continue  # object stores list a folder's placeholder within itself
        if not key.endswith("/"):
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield path
            continue
        real = os.path.realpath(path) if _is_local(system) else path
        if is_link and real in trail:
            continue
        yield from _walk(system, path, root, trail | {real})


def _entry(system: Any, entry: dict[str, Any]) -> tuple[str, str, bool]:
    """(sort key, path, is a link) of a listed file or folder; a folder's key ends in "/"."""
    path = str(entry["name"])
    is_link = bool(entry.get("islink", False))
    # A link is listed as such; whether it is a folder only its target tells.
    is_folder = system.isdir(path) if is_link else entry["type"] == "directory"
    return posixpath.basename(path.rstrip("/")) + ("/" if is_folder else ""), path, is_link


def _ancestors(system: Any, base: str) -> frozenset[str]:
    return frozenset({os.path.realpath(base)}) if _is_local(system) else frozenset({base})


# Places


def _filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path in it."""
    # A local name may hold what fsspec would take for a chain of URLs ("a::b.jpg").
    if "://" not in uri:
        return fsspec.filesystem("file"), _local_path(uri)
    try:
        # Without this a listing of millions of objects would stay in memory to the end.
        system, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except Exception as error:
        raise _reading_error(uri, error) from error
    return system, str(path)


def _local_path(name: str) -> str:
    # Links are kept: an image beside a linked COCO file is looked for beside the link.
    return os.path.normpath(Path(name).expanduser().absolute())


def _is_local(system: Any) -> bool:
    protocol = system.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _uri(system: Any, path: str) -> str:
    return path if _is_local(system) else str(system.unstrip_protocol(path))


def _exists(uri: str) -> bool:
    try:
        system, path = _filesystem(uri)
        return bool(system.exists(path))
    except Exception:  # what cannot be asked for is not there; reading it will say why
        return False


def _join(folder: str, name: str) -> str:
    if "://" in name or name.startswith("/"):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder.rstrip("/") else f"/{name}"


def _parent(uri: str) -> str:
    return posixpath.dirname(uri if "://" in uri else _local_path(uri))


def _file_name(path: str, index: int, entry: object) -> str:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise SourceError(f"{path}: images[{index}] has no file_name")
    return name


def _reading_error(uri: str, error: Exception) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return MissingSourceError(f"there is nothing at {uri}: check the path")
    if isinstance(error, IsADirectoryError):
        return SourceError(f"{uri} is a folder, expected a file")
    if isinstance(error, PermissionError):
        return SourceError(f"no permission to read {uri}: check its access rights")
    if isinstance(error, ImportError):
        return SourceError(f"no driver to read {uri}: {error}")
    return SourceError(f"cannot read {uri}: {type(error).__name__}: {error}")

"""Images in folders, of patterns and of COCO files, local or remote, listed one by one.

A listing never opens an image: a file that is missing or broken must become an error row of the
job later, not stop the listing or be lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from af_pipeline.data.manifest import SourceImage, local_version
from af_pipeline.data.patterns import Pattern
from af_pipeline.data.reach import refusal
from af_pipeline.data.storage import (
    LOCAL,
    SourceError,
    Storage,
    exists,
    holds_secret,
    join,
    listing,
    parent,
    read_bytes,
    redact,
)
from af_pipeline.data.walk import IMAGE_SUFFIXES, File, Listing, list_files


def list_directory(root: str, storage: Storage = LOCAL) -> Iterator[SourceImage]:
    """List the images below a folder in the order of their ids.

    image_id is the path relative to root with ``/``. Suffixes are compared without case; names
    that start with a dot are left out, with all that is below them. Links are followed, except
    where one leads back to a folder it lies in. Memory holds the names of one folder per level,
    on S3 a page of names.

    Raises:
        SourceError: root is missing or a file (at once), or holds no image, or cannot be listed
            (while iterating).
    """
    return images_of(list_files(root, storage), root)


def list_pattern(pattern: Pattern, uri: str, storage: Storage = LOCAL) -> Iterator[SourceImage]:
    """List the images that a pattern means; ``uri``: how it was written, for messages.

    image_id is the path below the longest folder without wildcards. With wildcards they come in
    the order of their ids, as those of `list_directory` and by its rules; names written out by
    braces in the order of the braces, and nobody looks whether they are there.

    Raises:
        SourceError: as `list_directory`, or braces give one name twice.
    """
    if not pattern.wild:
        names = tuple(pattern.names)
        if len(set(names)) < len(names):
            raise SourceError(f"{redact(uri)} gives one name twice")
        return images_of(Listing(pattern.root, map(File, names)), uri)
    listing = list_files(pattern.root, storage, pattern.stem, pattern.leads)
    meant = (file for file in listing.files if pattern.matches(file.name))
    return images_of(Listing(listing.root, meant), uri)


def images_of(listing: Listing, root: str) -> Iterator[SourceImage]:
    """The images among listed files; ``root``: how the source was written, for messages.

    Raises:
        SourceError: one name twice in a row, or no image, while iterating.
    """
    previous: str | None = None
    for name, version in listing.files:
        if not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        # Names come in order, so twins stand side by side: no set of all ids needed.
        if name == previous:
            raise SourceError(f"{redact(root)} holds two images with the id {name!r}: rename one")
        previous = name
        uri = listing.uri(name)
        yield SourceImage(name, uri, version or local_version(uri))
    if previous is None:
        raise SourceError(
            f"no image found under {redact(root)}: looked for {', '.join(IMAGE_SUFFIXES)} "
            "at any depth, names starting with '.' left out"
        )


def list_coco(
    path: str, images: str | None = None, storage: Storage = LOCAL
) -> Iterator[SourceImage]:
    """List the images of a COCO file in its order; image_id is file_name.

    Without ``images`` they are looked for beside the file and in ``images/`` beside it, first
    where the first one was found. A listed file that is nowhere is listed all the same, at the
    first of these places. With ``images`` nothing is looked for, which on remote storage saves a
    request per image.

    Raises:
        SourceError: the file cannot be read, is no COCO file, lists no image, one twice or one
            that `refusal` names (at once).
    """
    document = read_json(path, storage)
    entries = document.get("images")
    if not isinstance(entries, list):
        raise SourceError(f"{redact(path)} has no list 'images': give a COCO annotation file")
    if not entries:
        raise SourceError(f"{redact(path)} lists no image")
    names = [_file_name(path, index, entry) for index, entry in enumerate(entries)]
    seen: set[str] = set()
    for name in names:
        reason = refusal(name, path, images or parent(path)) if storage.reach == "own" else None
        if reason:
            raise refused_entry(f"{redact(path)}: {redact(name)[:200]!r}", reason)
        if name in seen:
            raise SourceError(
                f"{redact(path)} lists file_name {redact(name)!r} twice: make the names unique"
            )
        seen.add(name)
    return (
        SourceImage(name, uri, local_version(uri))
        for name, uri in zip(names, locate_images(names, path, images, storage), strict=True)
    )


def locate_images(
    names: Iterable[str], path: str, images: str | None = None, storage: Storage = LOCAL
) -> Iterator[str]:
    """The URI of each name of the COCO file at ``path``, by the rule of :func:`list_coco`."""
    if images is not None:
        for name in names:
            yield join(images, name)
        return
    beside = parent(path)
    folders = [beside, join(beside, "images")]
    preferred: list[str] | None = None
    for name in names:
        if preferred is None:
            found = next((f for f in folders if exists(join(f, name), storage)), None)
            rest = [f for f in folders if f != found]
            preferred = folders if found is None else [found, *rest]
            yield join(preferred[0], name)
            continue
        places = [join(folder, name) for folder in preferred]
        # A file that is nowhere belongs where the others are: that is where it will be missed.
        yield next((place for place in places if exists(place, storage)), places[0])


def read_json(path: str, storage: Storage = LOCAL) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        SourceError: it cannot be read, is not JSON, or holds something else.
    """
    return json_object(read_bytes(path, listing(storage)), path)


def json_object(data: bytes, path: str) -> dict[str, Any]:
    """The object that the JSON ``data`` of the file at ``path`` holds; errors as `read_json`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{redact(path)} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(
            f"{redact(path)} holds a JSON {type(document).__name__}, expected an object"
        )
    return document


def refused_entry(entry: str, reason: str) -> SourceError:
    """What to say of an entry of a list that ``source.reach=own`` refuses."""
    return SourceError(f"{entry} {reason}: leave it out, or set source.reach=any")


def _file_name(path: str, index: int, entry: object) -> str:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise SourceError(f"{redact(path)}: images[{index}] has no file_name")
    if holds_secret(name):
        raise SourceError(
            f"{redact(path)}: images[{index}] has a file_name with a user or a secret: leave it out"
        )
    return name

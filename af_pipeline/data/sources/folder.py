"""Single images, and those in folders and of patterns, local or remote, listed one by one.

A listing never opens an image: a file that is missing or broken must become an error row of the
job later, not stop the listing or be lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from af_pipeline.data.access import LOCAL, MissingSourceError, SourceError, Storage, reading_error
from af_pipeline.data.listing import IMAGE_SUFFIXES, File, Listing, list_files
from af_pipeline.data.manifest import Listed, SourceImage, local_version
from af_pipeline.data.secrets import HTTP, redact
from af_pipeline.data.sources.source import Source
from af_pipeline.data.sources.table import SUFFIXES, read_tables
from af_pipeline.data.sources.tar import SUFFIX, read_tars
from af_pipeline.data.storage import exists, filesystem, full_uri, protocol


def is_image(source: Source) -> bool:
    """Whether a source is one file with the suffix of an image."""
    named = source.pattern is None and _name(source.uri).lower().endswith(IMAGE_SUFFIXES)
    return named and not source.is_folder


def list_image(source: Source) -> Listed:
    """The image of a source that is one file or URL; its name is the image_id."""
    source.refuse_images()
    system, path = filesystem(source.uri, source.storage)
    try:
        system.info(path)
    except Exception as error:
        raise reading_error(source.uri, error) from None
    uri = source.uri if protocol(source.uri) in HTTP else full_uri(system, path)
    return iter([SourceImage(_name(source.uri), uri, local_version(uri))])


def _name(uri: str) -> str:
    place = uri if protocol(uri) not in HTTP else re.split(r"[?#]", uri)[0]  # else they are letters
    return place.rpartition("/")[2]


def is_pattern(source: Source) -> bool:
    """Whether a source is a pattern that images can match."""
    pattern = source.pattern
    return pattern is not None and (
        pattern.wild or all(name.lower().endswith(IMAGE_SUFFIXES) for name in pattern.names)
    )


def list_pattern(source: Source) -> Listed:
    """List the images that a pattern means; ids begin below its last plain folder."""
    source.refuse_images()
    return _images(source.listing(), source.uri)


def is_folder(source: Source) -> bool:
    """Whether a source is no pattern: what is no folder either is told by `list_folder`."""
    return source.pattern is None


def list_folder(source: Source) -> Listed:
    """A folder that holds only tars, or only Parquet or CSV, stands for these; else its images."""
    try:
        listing = list_files(source.uri, source.storage)
    except MissingSourceError:
        raise
    except SourceError:
        if not source.is_folder and exists(source.uri, source.storage):
            raise source.unknown() from None
        raise
    ahead: list[File] = []
    for file in listing.files:
        ahead.append(file)
        if not _may_stand_for_images(file.name):
            break
    else:
        files = [name for name, _ in ahead if name.lower().endswith((SUFFIX, *SUFFIXES))]
        if files:
            return _list_only(source, [(name, listing.uri(name)) for name in files])
    source.refuse_images()
    return _images(Listing(listing.root, chain(ahead, listing.files)), source.uri)


def list_directory(root: str, storage: Storage = LOCAL) -> Iterator[SourceImage]:
    """List the images below a folder as `list_files` does, in the order of their ids.

    image_id is the path relative to root with ``/``. Suffixes are compared without case.
    """
    return _images(list_files(root, storage), root)


def _images(listing: Listing, root: str) -> Iterator[SourceImage]:
    """The images among listed files; ``root``: how the source was written, for messages."""
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


def _may_stand_for_images(name: str) -> bool:
    if name.lower().endswith((SUFFIX, *SUFFIXES)):
        return True
    # Spark writes _SUCCESS beside its parts; but cameras write _DSC0001.JPG.
    marker = name.rpartition("/")[2].startswith("_")
    return marker and not name.lower().endswith(IMAGE_SUFFIXES)


def _list_only(source: Source, files: list[tuple[str, str]]) -> Listed:
    kinds = sorted({"." + name.lower().rpartition(".")[2] for name, _ in files})
    if len(kinds) > 1:
        raise SourceError(
            f"{redact(source.uri)} holds {' and '.join(kinds)}: say which by a pattern such as "
            f"{redact(source.uri.rstrip('/'))}/*{kinds[0]}"
        )
    if kinds != [SUFFIX]:
        return read_tables([place for _, place in files], source)
    source.refuse_images()
    return read_tars(files, source.storage)

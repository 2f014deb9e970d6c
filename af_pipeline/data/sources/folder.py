"""Images in folders, of patterns and of COCO files, local or remote, listed one by one.

A listing never opens an image: a file that is missing or broken must become an error row of the
job later, not stop the listing or be lost.
"""

from __future__ import annotations

from collections.abc import Iterator

from af_pipeline.data.access import LOCAL, SourceError, Storage
from af_pipeline.data.listing import IMAGE_SUFFIXES, File, Listing, list_files
from af_pipeline.data.manifest import SourceImage, local_version
from af_pipeline.data.patterns import Pattern
from af_pipeline.data.secrets import redact


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

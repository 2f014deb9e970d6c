"""What a source of images is asked for, and the files that its URI means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from af_pipeline.data.access import LOCAL, MissingSourceError, SourceError, Storage
from af_pipeline.data.listing import File, Listing, Pattern, list_files, parse_pattern
from af_pipeline.data.secrets import redact
from af_pipeline.data.storage import filesystem, full_uri, is_folder

POSSIBLE = (
    "a folder of images, a pattern such as photos/**/*.jpg, a single image, a COCO .json, a VOC "
    "image set (ROOT/ImageSets/Main/NAME.txt), .parquet or .csv with a column of URIs, or .tar of "
    "images; several of the last three by a pattern such as shard-{000..099}.tar, or as a folder "
    "that holds nothing else"
)
ID_COLUMN = "image_id"


@dataclass(frozen=True)
class Source:
    """What is to be listed.

    Attributes:
        uri: local path or fsspec URL.
        images: folder of the images of a COCO json, VOC image set, Parquet or CSV, if they are
            not where the file says.
        storage: how remote places are reached.
        id_column: column of ids in Parquet and CSV; if the default one is missing, the URI is
            the id, without its query.
        uri_column: column of URIs in Parquet and CSV; relative ones are below ``images``, else
            below the file's folder.
    """

    uri: str
    images: str | None = None
    storage: Storage = LOCAL
    id_column: str = ID_COLUMN
    uri_column: str = "uri"

    def ends(self, suffixes: str | tuple[str, ...]) -> bool:
        """Whether the URI ends so; the suffixes are in small letters."""
        return self.uri.lower().endswith(suffixes)

    @cached_property
    def pattern(self) -> Pattern | None:
        """The pattern that the URI is, or None."""
        return parse_pattern(self.uri)

    @cached_property
    def is_folder(self) -> bool:
        """Whether the URI is that of a folder; a pattern is none."""
        return self.pattern is None and is_folder(self.uri, self.storage)

    def listing(self) -> Listing:
        """The file, or those that the pattern means; names are below its root.

        With wildcards in the order of the names; names written out by braces in the order of the
        braces, and nobody looks whether they are there.
        """
        if self.pattern is None:
            root, _, name = full_uri(*filesystem(self.uri, self.storage)).rpartition("/")
            return Listing(root, iter([File(name)]))
        if self.pattern.wild:
            found = list_files(
                self.pattern.root, self.storage, self.pattern.stem, self.pattern.leads
            )
            return Listing(found.root, (f for f in found.files if self.pattern.matches(f.name)))
        names = self.pattern.names
        if len(set(names)) < len(names):
            raise SourceError(f"{redact(self.uri)} gives one name twice")
        return Listing(
            full_uri(*filesystem(self.pattern.root, self.storage)), iter(map(File, names))
        )

    def files(self) -> Iterator[tuple[str, str]]:
        """Name and URI of each file of `listing`. Raises MissingSourceError where there is none."""
        listing = self.listing()
        found = [(name, listing.uri(name)) for name, _ in listing.files]
        if not found:
            raise MissingSourceError(f"there is nothing at {redact(self.uri)}: check the path")
        return iter(found)

    def refuse_images(self) -> None:
        """Raise SourceError where an image folder was given."""
        if self.images is not None:
            raise SourceError(
                f"{redact(self.uri)} needs no image folder, but one was given too "
                f"({redact(self.images)}): that goes with a COCO .json, a VOC image set, .parquet "
                "or .csv"
            )

    def unknown(self) -> SourceError:
        """The error of a source of no known kind."""
        return SourceError(f"{redact(self.uri)} is nothing that lists images: give {POSSIBLE}")

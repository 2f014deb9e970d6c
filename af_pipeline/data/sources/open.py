"""What `source.uri` may name, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pyarrow as pa

from af_pipeline.core.schema import MANIFEST
from af_pipeline.data.access import LOCAL, MissingSourceError, SourceError, Storage, refuse_secrets
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.data.annotations.voc import is_image_set
from af_pipeline.data.listing import IMAGE_SUFFIXES, File, Listing, list_files
from af_pipeline.data.manifest import SourceImage, image_tables, local_version
from af_pipeline.data.patterns import Pattern, parse_pattern
from af_pipeline.data.secrets import redact
from af_pipeline.data.sources.annotated import list_coco
from af_pipeline.data.sources.folder import images_of, list_pattern
from af_pipeline.data.sources.table import ID_COLUMN, SUFFIXES, Columns, read_uri_tables
from af_pipeline.data.sources.tar import SUFFIX, list_tars, refuse_compressed
from af_pipeline.data.storage import exists, filesystem, full_uri, is_folder

POSSIBLE = (
    "a folder of images, a pattern such as photos/**/*.jpg, a COCO .json, a VOC image set "
    "(ROOT/ImageSets/Main/NAME.txt), .parquet or .csv with a column of URIs, or .tar of images; "
    "several of the last three by a pattern such as shard-{000..099}.tar, or as a folder that "
    "holds nothing else"
)


def list_tables(
    uri: str,
    images: str | None = None,
    storage: Storage = LOCAL,
    id_column: str = ID_COLUMN,
    uri_column: str = "uri",
) -> Iterator[pa.Table]:
    """The images of a source as tables of `MANIFEST`.

    Those of Parquet and CSV have the other columns of the file behind, typed as they are. What
    the URI may be: `POSSIBLE`. Ids are unique, except for Parquet and CSV, where that is checked
    by `write_tables`.

    Args:
        uri: local path or fsspec URL.
        images: folder of the images of a COCO json, VOC image set, Parquet or CSV, if they are
            not where the file says.
        storage: how remote places are reached.
        id_column: column of ids in Parquet and CSV; if the default one is missing, the URI is
            the id, without its query.
        uri_column: column of URIs in Parquet and CSV; relative ones are below ``images``, else
            below the file's folder.

    Raises:
        SourceError: nothing there, no image in it, or it cannot be listed; at once or while
            iterating.
    """
    columns = Columns(id_column, uri_column, images)
    found = _open(uri, columns, storage)
    if isinstance(found, list):
        return read_uri_tables(found, columns, storage)
    return image_tables(found)


def list_images(
    uri: str,
    images: str | None = None,
    storage: Storage = LOCAL,
    id_column: str = ID_COLUMN,
    uri_column: str = "uri",
) -> Iterator[SourceImage]:
    """The images of a source one by one, without further columns: see `list_tables`."""
    columns = Columns(id_column, uri_column, images)
    found = _open(uri, columns, storage)
    if not isinstance(found, list):
        return found
    tables = read_uri_tables(found, columns, storage)
    return chain.from_iterable(map(_images, tables))


def _images(table: pa.Table) -> Iterator[SourceImage]:
    return (SourceImage(**record) for record in table.select(MANIFEST.names).to_pylist())


def _open(uri: str, columns: Columns, storage: Storage) -> Iterator[SourceImage] | list[str]:
    """The images, or the files that list them."""
    if not uri:
        raise SourceError(f"no source: give source.uri: {POSSIBLE}")
    images = columns.images
    for place in (uri, images or ""):
        refuse_secrets(place)
    if is_image_set(uri):
        return _list_voc(uri, images)
    if uri.lower().endswith(".json"):
        return list_coco(uri, images, storage)
    refuse_compressed(uri)
    pattern = parse_pattern(uri)
    if pattern is None and not uri.lower().endswith((SUFFIX, *SUFFIXES)):
        return _open_folder(uri, images, storage)
    if pattern is None and is_folder(uri, storage):  # Spark writes folders named x.parquet
        return _open_folder(uri, images, storage)
    if uri.lower().endswith(SUFFIXES):
        return [place for _, place in _files(uri, pattern, storage)]
    _refuse_images(uri, images)
    if uri.lower().endswith(SUFFIX):
        return list_tars(_files(uri, pattern, storage), IMAGE_SUFFIXES, storage)
    assert pattern is not None
    if not pattern.wild and not all(n.lower().endswith(IMAGE_SUFFIXES) for n in pattern.names):
        raise _unknown(uri)
    return list_pattern(pattern, uri, storage)


def _files(uri: str, pattern: Pattern | None, storage: Storage) -> list[tuple[str, str]]:
    """Name and URI of each file that is meant; the name below the pattern's root."""
    if pattern is None:
        system, path = filesystem(uri, storage)
        place = full_uri(system, path)
        return [(place.rpartition("/")[2], place)]
    if not pattern.wild:
        root = Listing(full_uri(*filesystem(pattern.root, storage)), iter(()))
        names = list(pattern.names)
        if len(set(names)) < len(names):
            raise SourceError(f"{redact(uri)} gives one name twice")
        return [(name, root.uri(name)) for name in names]
    listing = list_files(pattern.root, storage, pattern.stem, pattern.leads)
    found = [(n, listing.uri(n)) for n, _ in listing.files if pattern.matches(n)]
    if not found:
        raise MissingSourceError(f"there is nothing at {redact(uri)}: check the path")
    return found


def _open_folder(
    uri: str, images: str | None, storage: Storage
) -> Iterator[SourceImage] | list[str]:
    """A folder that holds only tars, or only Parquet or CSV, stands for these; else its images."""
    try:
        listing = list_files(uri, storage)
    except MissingSourceError:
        raise
    except SourceError:
        if not is_folder(uri, storage) and exists(uri, storage):
            raise _unknown(uri) from None
        raise
    ahead: list[File] = []
    for file in listing.files:
        ahead.append(file)
        if not _may_stand_for_images(file.name):
            break
    else:
        files = [name for name, _ in ahead if name.lower().endswith((SUFFIX, *SUFFIXES))]
        if files:
            return _open_only(uri, images, [(n, listing.uri(n)) for n in files], storage)
    _refuse_images(uri, images)
    return images_of(Listing(listing.root, chain(ahead, listing.files)), uri)


def _may_stand_for_images(name: str) -> bool:
    if name.lower().endswith((SUFFIX, *SUFFIXES)):
        return True
    # Spark writes _SUCCESS beside its parts; but cameras write _DSC0001.JPG.
    marker = name.rpartition("/")[2].startswith("_")
    return marker and not name.lower().endswith(IMAGE_SUFFIXES)


def _open_only(
    uri: str, images: str | None, files: list[tuple[str, str]], storage: Storage
) -> Iterator[SourceImage] | list[str]:
    kinds = sorted({"." + name.lower().rpartition(".")[2] for name, _ in files})
    if len(kinds) > 1:
        raise SourceError(
            f"{redact(uri)} holds {' and '.join(kinds)}: say which by a pattern such as "
            f"{redact(uri.rstrip('/'))}/*{kinds[0]}"
        )
    if kinds != [SUFFIX]:
        return [place for _, place in files]
    _refuse_images(uri, images)
    return list_tars(files, IMAGE_SUFFIXES, storage)


def _list_voc(uri: str, images: str | None) -> Iterator[SourceImage]:
    try:
        dataset = load_annotations([uri], images, on_broken="drop")
    except ValueError as error:
        raise SourceError(str(error)) from error
    return (SourceImage(i.image_id, i.uri, local_version(i.uri)) for i in dataset.images)


def _refuse_images(uri: str, images: str | None) -> None:
    if images is not None:
        raise SourceError(
            f"{redact(uri)} needs no image folder, but one was given too ({redact(images)}): that "
            "goes with a COCO .json, a VOC image set, .parquet or .csv"
        )


def _unknown(uri: str) -> SourceError:
    return SourceError(f"{redact(uri)} is nothing that lists images: give {POSSIBLE}")

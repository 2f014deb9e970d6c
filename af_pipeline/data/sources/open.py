"""What `source.uri` may name: the kinds of sources, tried in order."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pyarrow as pa

from af_pipeline.data.access import LOCAL, SourceError, Storage, refuse_secrets
from af_pipeline.data.manifest import Listed, SourceImage, image_tables, images_of
from af_pipeline.data.sources.source import ID_COLUMN, POSSIBLE, Source

# Whether a source is of the kind (a function of `Source`), and what lists its images or tables.
KINDS = {
    "voc": ("annotated:is_voc", "annotated:list_voc"),
    "coco": ("annotated:is_coco", "annotated:list_coco"),
    "tar": ("tar:is_tar", "tar:list_tars"),
    "table": ("table:is_table", "table:list_table"),
    "image": ("folder:is_image", "folder:list_image"),
    "pattern": ("folder:is_pattern", "folder:list_pattern"),
    "folder": ("folder:is_folder", "folder:list_folder"),
}


def list_tables(
    uri: str,
    images: str | None = None,
    storage: Storage = LOCAL,
    id_column: str = ID_COLUMN,
    uri_column: str = "uri",
) -> Iterator[pa.Table]:
    """The images of a source as tables of `MANIFEST`.

    Those of Parquet and CSV have the other columns of the file behind, typed as they are. What
    the URI may be: `POSSIBLE`; the arguments are those of `Source`. Ids are unique, except for
    Parquet and CSV, where that is checked by `write_tables`. Errors come at once or while
    iterating.
    """
    return image_tables(open_source(Source(uri, images, storage, id_column, uri_column)))


def list_images(
    uri: str,
    images: str | None = None,
    storage: Storage = LOCAL,
    id_column: str = ID_COLUMN,
    uri_column: str = "uri",
) -> Iterator[SourceImage]:
    """The images of a source one by one, without further columns: see `list_tables`."""
    return images_of(open_source(Source(uri, images, storage, id_column, uri_column)))


def open_source(source: Source) -> Listed:
    """The images of a source, or tables of them, by the first kind that takes it."""
    if not source.uri:
        raise SourceError(f"no source: give source.uri: {POSSIBLE}")
    for place in (source.uri, source.images or ""):
        refuse_secrets(place)
    for matches, lister in KINDS.values():
        if _function(matches)(source):
            found: Listed = _function(lister)(source)
            return found
    raise source.unknown()


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(f"af_pipeline.data.sources.{module}"), function)

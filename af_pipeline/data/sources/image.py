"""A single image, a file or a URL; its name is the image_id."""

from __future__ import annotations

import re

from af_pipeline.data.access import reading_error
from af_pipeline.data.listing import IMAGE_SUFFIXES
from af_pipeline.data.manifest import Listed, SourceImage, local_version
from af_pipeline.data.secrets import HTTP
from af_pipeline.data.sources.source import Source
from af_pipeline.data.storage import filesystem, full_uri, protocol


def _name(uri: str) -> str:
    path = (
        re.split(r"[?#]", uri)[0] if protocol(uri) in HTTP else uri
    )  # else "?" and "#" are letters
    return path.rpartition("/")[2]


def is_image(source: Source) -> bool:
    """Whether a source is one file with the suffix of an image."""
    named = source.pattern is None and _name(source.uri).lower().endswith(IMAGE_SUFFIXES)
    return named and not source.is_folder


def list_image(source: Source) -> Listed:
    """The image. Raises SourceError where there is none."""
    source.refuse_images()
    system, path = filesystem(source.uri, source.storage)
    try:
        system.info(path)
    except Exception as error:
        raise reading_error(source.uri, error) from None
    uri = source.uri if protocol(source.uri) in HTTP else full_uri(system, path)
    return iter([SourceImage(_name(source.uri), uri, local_version(uri))])

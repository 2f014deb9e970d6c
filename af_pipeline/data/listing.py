"""What `source.uri` may name, in one place."""

from __future__ import annotations

from collections.abc import Iterator

from af_pipeline.data.sources import SourceError, SourceImage, open_source
from af_pipeline.data.voc import is_image_set, load_voc


def list_images(uri: str, images: str | None = None) -> Iterator[SourceImage]:
    """The images of a folder, a COCO json or a VOC image set.

    ``images``: image folder of a json or image set. Raises SourceError where there is nothing.
    """
    if not is_image_set(uri):
        yield from open_source(uri, images)
        return
    try:
        dataset = load_voc(uri, images, on_broken="drop")
    except ValueError as error:
        raise SourceError(str(error)) from error
    yield from (SourceImage(image.image_id, image.uri) for image in dataset.images)

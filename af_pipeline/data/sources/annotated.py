"""The images that a COCO file or a VOC image set lists."""

from __future__ import annotations

from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import locate_images
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.data.annotations.voc import is_image_set
from af_pipeline.data.manifest import Listed, SourceImage, local_version
from af_pipeline.data.reach import refusal, refused_entry
from af_pipeline.data.secrets import holds_secret, redact
from af_pipeline.data.sources.source import Source
from af_pipeline.data.storage import parent, read_json


def is_voc(source: Source) -> bool:
    """Whether a source is a VOC image set."""
    return is_image_set(source.uri)


def list_voc(source: Source) -> Listed:
    """List the images of a VOC image set."""
    try:
        dataset = load_annotations([source.uri], source.images, on_broken="drop")
    except ValueError as error:
        raise SourceError(str(error)) from error
    return (SourceImage(i.image_id, i.uri, local_version(i.uri)) for i in dataset.images)


def is_coco(source: Source) -> bool:
    """Whether a source is a COCO file."""
    return source.ends(".json")


def list_coco(source: Source) -> Listed:
    """List the images of a COCO file in its order; image_id is file_name.

    Without ``images`` they are looked for beside the file and in ``images/`` beside it, first
    where the first one was found. A listed file that is nowhere is listed all the same, at the
    first of these places. With ``images`` nothing is looked for, which on remote storage saves a
    request per image.
    """
    path, storage = source.uri, source.storage
    entries = read_json(path, storage).get("images")
    if not isinstance(entries, list):
        raise SourceError(f"{redact(path)} has no list 'images': give a COCO annotation file")
    if not entries:
        raise SourceError(f"{redact(path)} lists no image")
    names = [_file_name(path, index, entry) for index, entry in enumerate(entries)]
    folder, seen = source.images or parent(path), set[str]()
    for name in names:
        if storage.reach == "own" and (reason := refusal(name, path, folder)):
            raise refused_entry(f"{redact(path)}: {redact(name)[:200]!r}", reason)
        if name in seen:
            raise SourceError(
                f"{redact(path)} lists file_name {redact(name)!r} twice: make the names unique"
            )
        seen.add(name)
    uris = locate_images(names, path, source.images, storage)
    return (SourceImage(n, uri, local_version(uri)) for n, uri in zip(names, uris, strict=True))


def _file_name(path: str, index: int, entry: object) -> str:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise SourceError(f"{redact(path)}: images[{index}] has no file_name")
    if holds_secret(name):
        raise SourceError(
            f"{redact(path)}: images[{index}] has a file_name with a user or a secret: leave it out"
        )
    return name

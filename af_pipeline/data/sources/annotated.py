"""The images that a COCO file lists."""

from __future__ import annotations

from collections.abc import Iterator

from af_pipeline.data.access import LOCAL, SourceError, Storage
from af_pipeline.data.annotations.dataset import locate_images
from af_pipeline.data.json_file import read_json, refused_entry
from af_pipeline.data.manifest import SourceImage, local_version
from af_pipeline.data.reach import refusal
from af_pipeline.data.secrets import holds_secret, redact
from af_pipeline.data.storage import parent


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


def _file_name(path: str, index: int, entry: object) -> str:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise SourceError(f"{redact(path)}: images[{index}] has no file_name")
    if holds_secret(name):
        raise SourceError(
            f"{redact(path)}: images[{index}] has a file_name with a user or a secret: leave it out"
        )
    return name

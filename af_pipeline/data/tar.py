"""Images in tar files as WebDataset writes them, addressed where they lie: nothing is unpacked.

A member's URI is that of the tar with its byte range, ``s3://b/a.tar#offset=1536&size=20480``.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from af_pipeline.data.manifest import SourceImage
from af_pipeline.data.storage import LOCAL, SourceError, Storage, open_file, range_uri, redact

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")

# Bytes read where a header is wanted. Remotely 256 KiB take hardly longer than 512 bytes, and
# hold the headers of several small images.
_READ_AHEAD, _READ_AHEAD_LOCAL = 1 << 18, 1 << 13
_AT_ONCE = 32  # tars whose headers are read side by side: a remote one is all waiting
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def list_tars(
    tars: Iterable[tuple[str, str]], suffixes: tuple[str, ...], storage: Storage = LOCAL
) -> Iterator[SourceImage]:
    """The images in tars, tar by tar, in their order within; image_id is ``NAME/MEMBER``.

    Only headers are read. Members of other suffixes are passed over, and so is what has a part
    of its path starting with a dot. Memory holds the members of a few tars.

    Args:
        tars: name, as it stands in ids, and URI of each.
        suffixes: endings of images, in small letters.
        storage: how the URIs are reached.

    Raises:
        SourceError: a tar is missing, compressed, broken or cut short, has two members of one
            name or an image that is a link or sparse; or there is no image at all.
    """
    source = iter(tars)
    found = False
    with ThreadPoolExecutor(_AT_ONCE, "tar") as pool:
        for group in iter(lambda: list(islice(source, _AT_ONCE)), []):
            for images in pool.map(lambda t: list_tar(t[0], t[1], suffixes, storage), group):
                found = found or bool(images)
                yield from images
    if not found:
        raise SourceError(f"no image found in the tars: looked for {', '.join(suffixes)}")


def list_tar(
    name: str, uri: str, suffixes: tuple[str, ...], storage: Storage = LOCAL
) -> list[SourceImage]:
    """The images of one tar, see `list_tars`; an empty list where it has none."""
    refuse_compressed(uri)
    images = {}
    for member in _members(uri, storage):
        path = member.name.removeprefix("./").lstrip("/")
        hidden = any(part.startswith(".") for part in path.split("/"))
        if member.isdir() or hidden or not path.lower().endswith(suffixes):
            continue
        if not member.isreg() or member.issparse():
            raise SourceError(
                f"{redact(uri)}: {path} is a link or sparse: pack the tar anew with "
                "--dereference --hard-dereference and without --sparse"
            )
        if path in images:
            raise SourceError(f"{redact(uri)} holds {path} twice: make the names unique")
        part = range_uri(uri, member.offset_data, member.size)
        images[path] = SourceImage(f"{name}/{path}", part, f"{member.size}-{member.mtime}")
    return list(images.values())


def refuse_compressed(uri: str) -> None:
    """Raise SourceError for the name of a compressed tar: its members have no place of their own.

    Those that do not look so are found out when they are read.
    """
    if uri.lower().endswith(COMPRESSED):
        raise _compressed(uri)


def _compressed(uri: str) -> SourceError:
    return SourceError(
        f"{redact(uri)} is compressed, so single images in it cannot be read: unpack it once "
        "(gunzip FILE.tar.gz); compressed images do not get smaller in it anyway"
    )


def _members(uri: str, storage: Storage) -> Iterator[tarfile.TarInfo]:
    ahead = _READ_AHEAD if "://" in uri else _READ_AHEAD_LOCAL
    with open_file(uri, storage, ahead) as file:
        start = file.read(8)
        if any(start.startswith(magic) for magic in _MAGIC):
            raise _compressed(uri)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                count = 0
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # else every header stays
                    count += 1
                    yield member
                # tarfile takes a broken header for the end.
                file.seek(tar.offset)
                whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except (tarfile.TarError, UnicodeError, ValueError, EOFError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{redact(uri)} is no tar, broken or cut short: {error}") from error
        if not whole:
            raise SourceError(
                f"{redact(uri)} is broken or cut short after {count} members, at byte {tar.offset}"
            )

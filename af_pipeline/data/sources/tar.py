"""Images in tar files as WebDataset writes them, addressed where they lie: nothing is unpacked.

A member's URI is that of the tar with its byte range, ``s3://b/a.tar#offset=1536&size=20480``.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from af_pipeline.data.access import LOCAL, SourceError, Storage
from af_pipeline.data.listing import IMAGE_SUFFIXES
from af_pipeline.data.manifest import Listed, SourceImage
from af_pipeline.data.secrets import redact
from af_pipeline.data.sources.source import Source
from af_pipeline.data.storage import open_file, range_uri

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")

# Bytes read where a header is wanted. Remotely 256 KiB take hardly longer than 512 bytes, and
# hold the headers of several small images.
_READ_AHEAD, _READ_AHEAD_LOCAL = 1 << 18, 1 << 13
_AT_ONCE = 32  # tars whose headers are read side by side: a remote one is all waiting
_EXTENDED = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_EXTENDED |= {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_MAX_EXTENSION = 1 << 20  # bytes: a name has 4,096 at most, further attributes some 65,536
_SPARSE = {"GNU.sparse.major", "GNU.sparse.size", "GNU.sparse.map"}
_KEYWORDS = {"path", "size", "GNU.sparse.name"} | _SPARSE
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def is_tar(source: Source) -> bool:
    """Whether a source is a tar or a pattern of tars; raises SourceError for compressed ones."""
    _refuse_compressed(source.uri)
    return source.ends(SUFFIX) and not source.is_folder


def list_tars(source: Source) -> Listed:
    """The images in a tar, or in those of a pattern."""
    source.refuse_images()
    return read_tars(source.files(), source.storage)


def read_tars(tars: Iterable[tuple[str, str]], storage: Storage = LOCAL) -> Iterator[SourceImage]:
    """The images in tars, given by name and URI, in their order; image_id is ``NAME/MEMBER``.

    Only headers are read. Members of other suffixes are passed over, and so is what has a part
    of its path starting with a dot. Memory holds the members of a few tars.
    """
    source = iter(tars)
    found = False
    with ThreadPoolExecutor(_AT_ONCE, "tar") as pool:
        for group in iter(lambda: list(islice(source, _AT_ONCE)), []):
            for images in pool.map(lambda tar: list_tar(tar[0], tar[1], storage), group):
                found = found or bool(images)
                yield from images
    if not found:
        raise SourceError(f"no image found in the tars: looked for {', '.join(IMAGE_SUFFIXES)}")


def list_tar(name: str, uri: str, storage: Storage = LOCAL) -> list[SourceImage]:
    """The images of one tar, see `read_tars`; an empty list where it has none."""
    _refuse_compressed(uri)
    images = {}
    for member in _members(uri, storage):
        path = member.name.removeprefix("./").lstrip("/")
        hidden = any(part.startswith(".") for part in path.split("/"))
        if member.is_folder or hidden or not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        if not member.is_file:
            raise SourceError(
                f"{redact(uri)}: {path} is a link or sparse: pack the tar anew with "
                "--dereference --hard-dereference and without --sparse"
            )
        if path in images:
            raise SourceError(f"{redact(uri)} holds {path} twice: make the names unique")
        part = range_uri(uri, member.offset, member.size)
        images[path] = SourceImage(f"{name}/{path}", part, f"{member.size}-{member.mtime}")
    return list(images.values())


def _refuse_compressed(uri: str) -> None:
    """Raise for the name of a compressed tar; one that does not look so is told when it is read."""
    if uri.lower().endswith(COMPRESSED):
        raise _compressed(uri)


def _compressed(uri: str) -> SourceError:
    return SourceError(
        f"{redact(uri)} is compressed, so single images in it cannot be read: unpack it once "
        "(gunzip FILE.tar.gz); compressed images do not get smaller in it anyway"
    )


@dataclass(frozen=True)
class _Member:
    """One member of a tar; ``offset`` and ``size`` of its bytes, ``is_file`` and nothing else;
    ``mtime``: time of its last change, s."""

    name: str
    offset: int
    size: int
    is_file: bool
    is_folder: bool
    mtime: int


def _members(uri: str, storage: Storage) -> Iterator[_Member]:
    ahead = _READ_AHEAD if "://" in uri else _READ_AHEAD_LOCAL
    with open_file(uri, storage, ahead) as file:
        start = file.read(8)
        if any(start.startswith(magic) for magic in _MAGIC):
            raise _compressed(uri)
        try:
            yield from _walk(file)
        except (tarfile.TarError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{redact(uri)} is no tar, broken or cut short: {error}") from error


def _walk(file: BinaryIO) -> Iterator[_Member]:
    """The members of a tar, header by header.

    tarfile reads extended headers within each other, of any number and size, and goes round for
    ever where a size is negative.
    """
    whole = file.seek(0, io.SEEK_END)
    at = count = 0
    common: dict[str, str] = {}  # pax keywords for all members that follow
    own: dict[str, str] = {}  # for the next one
    while (header := _header(file, at, count)) is not None:
        known = common | own
        extends = header.type in _EXTENDED
        data = at + tarfile.BLOCKSIZE
        if header.type == tarfile.GNUTYPE_SPARSE:
            data = _behind_sparse(file, data)
        size = header.size if extends else int(known.get("size", header.size))
        without = header.type in tarfile.SUPPORTED_TYPES and not header.isreg() and not extends
        held = 0 if without else size
        if size < 0 or data + held > whole:
            raise ValueError(f"{size} bytes of member {count} do not fit, at byte {at} of {whole}")
        if not extends:
            name = known.get("GNU.sparse.name") or known.get("path") or header.name
            sparse = header.type == tarfile.GNUTYPE_SPARSE or bool(known.keys() & _SPARSE)
            is_file = header.isreg() and not sparse
            yield _Member(name, data, size, is_file, header.isdir(), int(header.mtime))
            own = {}
            count += 1
        elif header.type == tarfile.XGLTYPE:
            common = common | _extension(file, header.type, data, size)
        else:
            own = own | _extension(file, header.type, data, size)
        at = data + -(-held // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _header(file: BinaryIO, at: int, count: int) -> tarfile.TarInfo | None:
    """The header block at byte ``at``; None for the empty one that ends a tar."""
    file.seek(at)
    block = file.read(tarfile.BLOCKSIZE)
    if block == bytes(tarfile.BLOCKSIZE):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise ValueError(f"{error} after {count} members, at byte {at}") from None


def _behind_sparse(file: BinaryIO, at: int) -> int:
    """Where the data of an old sparse member begin, whose header goes on at byte ``at``."""
    file.seek(at - tarfile.BLOCKSIZE + 482)
    while file.read(1) not in (b"\0", b""):
        file.seek(at + 504)
        at += tarfile.BLOCKSIZE
    return at


def _extension(file: BinaryIO, kind: bytes, at: int, size: int) -> dict[str, str]:
    """The pax keywords that matter here, a GNU long name as "path"."""
    if kind == tarfile.GNUTYPE_LONGLINK:
        return {}
    if size > _MAX_EXTENSION:
        raise ValueError(f"an extended header has {size} bytes, more than {_MAX_EXTENSION}")
    file.seek(at)
    data = file.read(size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": _decoded(data.partition(b"\0")[0])}
    found = {}
    place = 0
    while place < len(data) and data[place]:  # LENGTH NAME=VALUE, a line each
        digits = data[place : place + 20].partition(b" ")[0]
        end = place + int(digits) if digits.isdigit() else 0
        name, equals, value = data[place + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise ValueError(f"a pax header is broken, at byte {at + place}")
        key = _decoded(name)
        if key in _KEYWORDS:
            found[key] = _decoded(value)
        place = end
    if not found.get("size", "0").isdecimal() or len(found.get("size", "")) > 20:
        raise ValueError(f"a pax header has a size that is none, at byte {at}")
    return found


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")

"""TIFF directories: which picture of a file is meant, and whether all of it is there."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Tag(IntEnum):
    """The tags that are looked at, by their names in the specification, shortened."""

    NEW_KIND, OLD_KIND, WIDTH, HEIGHT, BITS, COMPRESSION = 254, 255, 256, 257, 258, 259
    PHOTOMETRIC, FILL_ORDER, OFFSETS, ORIENTATION, SAMPLES, ROWS = 262, 266, 273, 274, 277, 278
    COUNTS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = 279, 284, 317, 322, 323
    TILE_OFFSETS, TILE_COUNTS, MORE_PAGES, EXTRA, FORMAT = 324, 325, 330, 338, 339
    SUBSAMPLING, NODATA = 530, 42113


RAW, JPEG, PACKBITS = 1, 7, 32773  # compressions
BLACK_IS_ZERO, YCBCR = 1, 6  # photometric interpretations

_INTEGER = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4"}
_INTEGER |= {16: "u8", 17: "i8", 18: "u8"}
TYPE_BYTES = {kind: int(name[1]) for kind, name in _INTEGER.items()}
TYPE_BYTES |= {2: 1, 5: 8, 7: 1, 10: 8, 11: 4, 12: 8}
_MOST_PAGES = 1000
# A tile is unpacked whole, so it may exceed the picture only so far.
_ALWAYS_FINE_TILE = 4096 * 4096


@dataclass(frozen=True)
class Layout:
    """Of numbers in a file: byte order, and whether it is a BigTIFF."""

    order: str
    big: bool

    @property
    def formats(self) -> tuple[struct.Struct, struct.Struct, struct.Struct]:
        """How many entries, the head of one (tag, type, count), and an offset."""
        parts = ("Q", "HHQ", "Q") if self.big else ("H", "HHI", "I")
        first, second, third = (struct.Struct(self.order + part) for part in parts)
        return first, second, third


@dataclass(frozen=True)
class Page:
    """One picture of a TIFF file: its tags, as (type, count, position of the value)."""

    data: bytes
    layout: Layout
    entries: dict[int, tuple[int, int, int]]
    following: int

    def numbers(self, tag: int, default: tuple[int, ...] | None = None) -> NDArray[np.int64]:
        """The integers of a tag. Raises ValueError where it has none and there is no default."""
        if tag not in self.entries:
            if default is None:
                raise ValueError(f"tag {tag} is missing")
            return np.asarray(default, np.int64)
        kind, count, position = self.entries[tag]
        if kind not in _INTEGER:
            raise ValueError(f"tag {tag} has values of type {kind}, which are no integers")
        dtype = np.dtype(self.layout.order + _INTEGER[kind])
        if position + count * dtype.itemsize > len(self.data):
            raise ValueError(f"truncated: tag {tag} lies behind the end of the file")
        values = np.frombuffer(self.data, dtype, count, position)
        return np.minimum(values.astype(np.int64), 2**60)

    def number(self, tag: int, default: int | None = None) -> int:
        """The only integer of a tag. Raises ValueError, as `numbers` or where it has several."""
        values = self.numbers(tag, None if default is None else (default,))
        if len(values) != 1:
            raise ValueError(f"tag {tag} has {len(values)} values instead of one")
        return int(values[0])

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels as stored."""
        height, width = self.number(Tag.HEIGHT), self.number(Tag.WIDTH)
        if not 0 < height < 2**31 or not 0 < width < 2**31:
            raise ValueError(f"a size of {width}x{height} pixels")
        return height, width

    @property
    def orientation(self) -> int:
        """1..8, as EXIF's; 1 where there is none."""
        try:
            value = self.number(Tag.ORIENTATION, 1)
        except ValueError:
            return 1
        return value if 1 <= value <= 8 else 1

    @property
    def is_partial(self) -> bool:
        """Whether it is a smaller version, or the mask, of another picture."""
        return bool(self.number(Tag.NEW_KIND, 0) & 5) or self.number(Tag.OLD_KIND, 1) == 2

    @cached_property
    def samples(self) -> int:
        """Values of a pixel."""
        samples = self.number(Tag.SAMPLES, 1)
        if not 0 < samples < 2**16:
            raise ValueError(f"{samples} samples a pixel")
        return samples

    @cached_property
    def bits(self) -> int:
        """Bits of a value. Raises ValueError where samples differ."""
        values = set(self.numbers(Tag.BITS, (1,)).tolist())
        if len(values) != 1 or not 0 < min(values) <= 64:
            raise ValueError(f"samples of {sorted(values)} bits")
        return int(values.pop())

    @property
    def photometric(self) -> int:
        """What the values mean."""
        return self.number(Tag.PHOTOMETRIC, 0)

    @property
    def compression(self) -> int:
        """TIFF's number of it."""
        return self.number(Tag.COMPRESSION, RAW)

    @property
    def has_values(self) -> bool:
        """Whether it is read by `read_values`: more than 8 bits, or bands that are no colours."""
        return self.bits > 8 or (self.photometric == BLACK_IS_ZERO and self.samples > 2)

    @property
    def nodata(self) -> float | None:
        """GDAL's mark of pixels without a value."""
        kind, count, position = self.entries.get(Tag.NODATA, (0, 0, 0))
        try:
            return float(self.data[position : position + count].strip(b" \0")) if kind else None
        except ValueError:
            return None


# Pages


def first_page(data: bytes) -> Page:
    """The first picture that is no smaller version or mask of another; else the first at all."""
    first = None
    for page in _pages(data):
        if not page.is_partial:
            return page
        first = first or page
    if first is None:
        raise ValueError("no picture in the file")
    return first


def _pages(data: bytes) -> Iterator[Page]:
    """All in the file's order, those that a page has below it behind that page."""
    layout = Layout("<" if data[:2] == b"II" else ">", 43 in data[2:4])
    offset = layout.formats[2]
    waiting, seen = [_unpack(offset, data, 8 if layout.big else 4)[0]], {0}
    while waiting and len(seen) <= _MOST_PAGES:
        position = waiting.pop(0)
        if position in seen:
            continue
        seen.add(position)
        page = _page(data, layout, position)
        yield page
        waiting = [
            *page.numbers(Tag.MORE_PAGES, ()).tolist()[:_MOST_PAGES],
            page.following,
            *waiting,
        ]


def _page(data: bytes, layout: Layout, position: int) -> Page:
    number, head, offset = layout.formats
    (count,) = _unpack(number, data, position)
    step, start = head.size + offset.size, position + number.size
    end = start + count * step
    if end > len(data):
        raise ValueError("truncated: a directory lies behind the end of the file")
    entries: dict[int, tuple[int, int, int]] = {}
    for at in range(start, end, step):
        tag, kind, values = head.unpack_from(data, at)
        if kind not in TYPE_BYTES:
            continue  # a type of the future; such tags are to be skipped
        inside = values * TYPE_BYTES[kind] <= offset.size
        at += head.size
        entries.setdefault(tag, (kind, values, at if inside else offset.unpack_from(data, at)[0]))
    following = offset.unpack_from(data, end)[0] if end + offset.size <= len(data) else 0
    return Page(data, layout, entries, following)


def _unpack(form: struct.Struct, data: bytes, position: int) -> tuple[Any, ...]:
    if position + form.size > len(data):
        raise ValueError("truncated: an offset points behind the end of the file")
    return form.unpack_from(data, position)


# Strips and tiles


@dataclass(frozen=True)
class Segments:
    """The strips or tiles of a page: rows and columns of one, how many side by side, and where.

    ``offsets``, ``counts``: bytes, int64 [planes, segments].
    """

    rows: int
    columns: int
    across: int
    is_tiled: bool
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]


def segments_of(page: Page) -> Segments:
    """Those of a page. Raises ValueError unless all of them are in the file."""
    height, width = page.size
    tiled = Tag.TILE_WIDTH in page.entries
    if tiled:
        rows, columns = page.number(Tag.TILE_HEIGHT), page.number(Tag.TILE_WIDTH)
    else:
        rows, columns = min(height, page.number(Tag.ROWS, height)), width
    if rows < 1 or columns < 1:
        raise ValueError(f"tiles or strips of {columns}x{rows} pixels")
    if tiled and rows * columns > max(4 * height * width, _ALWAYS_FINE_TILE):
        raise ValueError(f"tiles of {columns}x{rows} pixels in an image of {height * width} pixels")
    across = -(-width // columns)
    planes = page.samples if page.number(Tag.PLANAR, 1) == 2 else 1
    shape = planes, across * -(-height // rows)
    what = "tiles" if tiled else "strips"
    offsets = _first(
        page.numbers(Tag.TILE_OFFSETS if Tag.TILE_OFFSETS in page.entries else Tag.OFFSETS), shape
    )
    counts = _counts(page, offsets, shape)
    absent = int(((offsets <= 0) | (counts <= 0)).sum())
    if absent:
        raise ValueError(
            f"truncated: {absent} of {offsets.size} {what} are absent; if they were left out on "
            "purpose, write the file anew without sparse tiles"
        )
    if page.compression == PACKBITS and page.number(Tag.PREDICTOR, 1) != 1:
        raise ValueError("differences compressed by PackBits, which decoders take for values")
    found = Segments(rows, columns, across, tiled, offsets, counts)
    least = _least_counts(page, found)
    short = int(((offsets + np.maximum(least, 0) > len(page.data)) | (counts < least)).sum())
    if short:
        raise ValueError(f"truncated: {short} of {offsets.size} {what} are cut off")
    return found


def _first(values: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    needed = shape[0] * shape[1]
    if len(values) < needed:
        raise ValueError(f"truncated: {len(values)} strips or tiles of {needed}")
    if len(values) > 8 * needed:
        raise ValueError(f"strips cover the image {len(values) // needed} times")
    return values[:needed].reshape(shape)


def _counts(page: Page, offsets: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    tag = Tag.TILE_COUNTS if Tag.TILE_COUNTS in page.entries else Tag.COUNTS
    if tag in page.entries:
        return _first(page.numbers(tag), shape)
    if page.compression != RAW and offsets.size > 1:
        raise ValueError("the sizes of strips or tiles are missing")
    return np.maximum(len(page.data) - offsets, 0)


def _least_counts(page: Page, segments: Segments) -> NDArray[np.int64]:
    """The bytes that each must have: all that are said, or what its pixels take uncompressed."""
    if page.compression == JPEG:
        return np.array(
            [
                [count if page.data.rfind(b"\xff\xd9", at, at + count) >= 0 else 2**60]
                for at, count in zip(segments.offsets.flat, segments.counts.flat, strict=True)
            ]
        ).reshape(segments.counts.shape)
    if page.compression != RAW:
        return segments.counts
    if page.photometric == YCBCR and page.numbers(Tag.SUBSAMPLING, (2, 2)).tolist() != [1, 1]:
        raise ValueError("uncompressed YCbCr with subsampled colours is not supported")
    height = page.size[0]
    rows = np.full(segments.offsets.shape[1], segments.rows)
    if not segments.is_tiled:
        rows[-1] = height - segments.rows * (len(rows) - 1)
    together = page.samples if len(segments.offsets) == 1 else 1
    row_bytes = (segments.columns * together * page.bits + 7) // 8
    return np.broadcast_to(rows * row_bytes, segments.offsets.shape)

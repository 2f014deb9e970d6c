"""The pixels of a page of a TIFF file.

No decompressor is called here: a file that holds the one picture, and nothing that was not
checked, is written for Pillow (with libtiff). Of values deeper than 8 bits that file shows the
bytes as a gray picture, because Pillow does not know most of their arrangements.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.images.tiff import (
    BLACK_IS_ZERO,
    JPEG,
    PACKBITS,
    RAW,
    TYPE_BYTES,
    Layout,
    Page,
    Segments,
    Tag,
    segments_of,
)

# What a decoder needs besides offsets and counts: fax options, palette, JPEG tables, YCbCr.
_KEPT: tuple[int, ...] = (Tag.WIDTH, Tag.HEIGHT, Tag.BITS, Tag.COMPRESSION, Tag.PHOTOMETRIC)
_KEPT += (Tag.FILL_ORDER, Tag.SAMPLES, Tag.PLANAR, 292, 293, Tag.PREDICTOR, 320, Tag.EXTRA)
_KEPT += (Tag.FORMAT, 347, 529, Tag.SUBSAMPLING, 532)
WHITE_IS_ZERO, _RGB, CMYK = 0, 2, 5
_WITH_PREDICTOR = (5, 8, 32946, 34925, 50000)  # LZW, Deflate twice, LZMA, Zstandard
_LOSSLESS = (RAW, PACKBITS, *_WITH_PREDICTOR)
_OF_COLOURS = (*_LOSSLESS, JPEG, 2, 3, 4)  # and of fax
_OTHERS = {6: "old JPEG", 34712: "JPEG 2000", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL"}
_BLOCK = 1 << 20  # packed bytes that are spread out at a time

Entry = tuple[int, int, bytes]  # type, count, value


def page_alone(page: Page) -> bytes:
    """A TIFF file that holds this picture only, with the tags that decoding needs."""
    _check_compression(page, _OF_COLOURS)
    found = segments_of(page)
    tags: dict[int, Entry] = {}
    for tag in _KEPT:
        if tag in page.entries:
            kind, count, position = page.entries[tag]
            value = page.data[position : position + count * TYPE_BYTES[kind]]
            if len(value) < count * TYPE_BYTES[kind]:
                raise ValueError(f"truncated: tag {tag} lies behind the end of the file")
            tags[tag] = kind, count, value
    return _write(page, tags, found, found.offsets, found.counts)


def _check_compression(page: Page, known: tuple[int, ...]) -> None:
    method = page.compression
    if method not in known:
        name = _OTHERS.get(method, f"number {method}")
        raise ValueError(
            f"the compression {name} of {page.bits} bits is not supported; Deflate and LZW are"
        )


def _write(
    page: Page,
    tags: dict[int, Entry],
    segments: Segments,
    offsets: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> bytes:
    """The page's file with another directory at its end, and the header that points there.

    A big-endian BigTIFF, which Pillow does not open, becomes an ordinary TIFF.
    """
    order, size = page.layout.order, len(page.data)
    layout = Layout(order, page.layout.big and order == "<")
    if not layout.big and size > 2**32 - 2**24:
        raise ValueError("a big-endian BigTIFF of more than 4 GB is not supported")
    number, head, offset = layout.formats
    tile = {Tag.TILE_WIDTH: segments.columns, Tag.TILE_HEIGHT: segments.rows}
    shape = tile if segments.is_tiled else {Tag.ROWS: segments.rows}
    places = (Tag.TILE_OFFSETS, Tag.TILE_COUNTS) if segments.is_tiled else (Tag.OFFSETS, Tag.COUNTS)
    kind, form = (16, "u8") if layout.big else (4, "u4")
    for tag, values in zip(places, (offsets, counts), strict=True):
        tags[tag] = kind, values.size, values.astype(order + form).tobytes()
    for tag, side in shape.items():
        tags[tag] = 4, 1, struct.pack(order + "I", side)
    start = size + size % 2
    behind = start + number.size + len(tags) * (head.size + offset.size) + offset.size
    directory, values_behind = [number.pack(len(tags))], []
    for name, (number_type, count, value) in sorted(tags.items()):
        directory.append(head.pack(name, number_type, count))
        if len(value) <= offset.size:
            directory.append(value.ljust(offset.size, b"\0"))
            continue
        directory.append(offset.pack(behind))
        values_behind.append(value + bytes(len(value) % 2))
        behind += len(values_behind[-1])
    magic = struct.pack(order + "HHH", 43, 8, 0) if layout.big else struct.pack(order + "H", 42)
    first = page.data[:2] + magic + offset.pack(start)
    body = memoryview(page.data)[len(first) :]
    return b"".join((first, body, bytes(size % 2), *directory, offset.pack(0), *values_behind))


def read_values(
    page: Page, most_bytes: int, unpack: Callable[[bytes], NDArray[np.uint8]]
) -> NDArray[Any]:
    """Integers or floats [H, W, C] as stored, native byte order: gray, RGB or CMYK, no alpha.

    Bands of a file that does not say RGB (as GDAL writes them) are taken for it, the first three
    where there are more. ``unpack``: a gray TIFF file to uint8 [H, W]. Raises ValueError where some
    of it is missing or not supported, or has more than ``most_bytes`` (unpacked).
    """
    dtype, colours = _dtype(page), _colours(page)
    _check_compression(page, _LOSSLESS)
    found = segments_of(page)
    is_planar = len(found.offsets) > 1
    per_row = found.columns * (1 if is_planar else page.samples)
    row_bytes = (per_row * page.bits + 7) // 8
    total = page.size[0] * found.across * row_bytes * (colours if is_planar else 1)
    if total > most_bytes:
        raise ValueError(
            f"its values have {total} bytes, more than {most_bytes}, 8 a pixel allowed"
        )
    inner = (found.columns, per_row // found.columns)
    planes = []
    for plane in range(colours if is_planar else 1):
        file = _bytes_as_gray(page, found, row_bytes, plane)
        raw = unpack(file).reshape(page.size[0], found.across, row_bytes)
        values = _values(raw, page, dtype, inner)
        planes.append(values.reshape(page.size[0], -1, inner[1])[:, : page.size[1], :colours])
    return np.concatenate(planes, axis=2) if is_planar else planes[0]


def _dtype(page: Page) -> np.dtype[Any]:
    """Of a value in the file."""
    kinds = set(page.numbers(Tag.FORMAT, (1,)).tolist())
    letter = {1: "u", 2: "i", 3: "f", 4: "u"}.get(kinds.pop()) if len(kinds) == 1 else None
    whole = page.bits in (8, 16, 32, 64)
    if letter is None or not (whole or (letter == "u" and 8 < page.bits < 16)):
        raise ValueError(f"values of {page.bits} bits of this kind are not supported")
    if letter in "if" and page.bits == 8:
        raise ValueError("signed values and floats of 8 bits are not supported")
    return np.dtype(page.layout.order + letter + str(page.bits // 8 if whole else 2))


def _colours(page: Page) -> int:
    """How many of the samples are shown: 1, 3, or 4 of CMYK."""
    alphas = int(np.isin(page.numbers(Tag.EXTRA, ()), (1, 2)).sum())
    shown = page.samples - alphas
    wanted = {_RGB: 3, CMYK: 4, WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 3 if shown >= 3 else 1}
    colours = wanted.get(page.photometric)
    if colours is None or colours > page.samples:
        raise ValueError(
            f"{page.samples} samples of {page.bits} bits with the photometric interpretation "
            f"{page.photometric} are not supported"
        )
    return colours


def _bytes_as_gray(page: Page, segments: Segments, row_bytes: int, plane: int) -> bytes:
    """A gray TIFF file of 8 bits whose pixels are the bytes of the page's tiles or strips."""
    order = page.layout.order
    sizes = {
        Tag.WIDTH: segments.across * row_bytes,
        Tag.HEIGHT: page.size[0],
        Tag.BITS: 8,
        Tag.SAMPLES: 1,
    }
    sizes |= {Tag.COMPRESSION: page.compression, Tag.PHOTOMETRIC: BLACK_IS_ZERO}
    sizes[Tag.FILL_ORDER] = page.number(Tag.FILL_ORDER, 1)
    tags: dict[int, Entry] = {
        tag: (4, 1, struct.pack(order + "I", value)) for tag, value in sizes.items()
    }
    shape = replace(segments, columns=row_bytes)
    return _write(page, tags, shape, segments.offsets[plane], segments.counts[plane])


def _values(
    raw: NDArray[np.uint8], page: Page, dtype: np.dtype[Any], inner: tuple[int, int]
) -> NDArray[Any]:
    """Bytes [H, across, B] to values [H, across, columns, samples], differences summed up."""
    shape = (*raw.shape[:2], *inner)
    method = page.number(Tag.PREDICTOR, 1) if page.compression in _WITH_PREDICTOR else 1
    if page.bits % 8:
        if method != 1:
            raise ValueError(f"differences of {page.bits} bits are not supported")
        return _spread(raw, page.bits, inner[0] * inner[1]).reshape(shape)
    if method == 3 and dtype.kind == "f":  # the bytes of a row lie apart, the first ones first
        summed = raw.reshape(*raw.shape[:2], -1, inner[1]).cumsum(axis=2, dtype=np.uint8)
        apart = summed.reshape(*raw.shape[:2], dtype.itemsize, -1)
        raw, dtype = np.ascontiguousarray(apart.swapaxes(2, 3)), dtype.newbyteorder(">")
    values = raw.reshape(*raw.shape[:2], -1).view(dtype).reshape(shape)
    values = values.astype(dtype.newbyteorder("="), copy=False)
    if method == 2 and dtype.kind != "f":
        return values.cumsum(axis=2, dtype=values.dtype)
    if method not in (1, 3) or (method == 3 and dtype.kind != "f"):
        raise ValueError(f"predictor {method} of such values is not supported")
    return values


def _spread(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16]:
    """Packed values of 9 to 15 bits, highest bit first: [H, across, B] to [H, across, count]."""
    weights = 2 ** np.arange(bits)[::-1].astype(np.uint16)
    result = np.empty((*raw.shape[:2], count), np.uint16)
    rows = max(1, _BLOCK // raw[0].size)
    for start in range(0, len(raw), rows):
        single = np.unpackbits(raw[start : start + rows], axis=2)[:, :, : count * bits]
        result[start : start + rows] = single.reshape(*single.shape[:2], count, bits) @ weights
    return result

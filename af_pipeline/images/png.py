"""PNG files: whether every row is there, and the picture alone, without the chunks around it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Colour type: channels, and the bit depths that it may have.
_KINDS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16))}
_KINDS[6] = (4, (8, 16))
_PALETTE, _GRAY = 3, (0, 4)
# First row, first column and their distances in the passes of an interlaced picture.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
_ADAM7 = (*_PASSES, (1, 0, 2, 1))
_HEADER = struct.Struct(">IIBBBBB")
_MOST_PIXELS = 2**30  # OpenCV's limit
_PIECE, _INFLATED = 1 << 16, 1 << 20  # most bytes in and out of a step of inflating
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


@dataclass(frozen=True)
class PngHeader:
    """Size in pixels, bits of a channel, colour type and whether rows are interlaced."""

    height: int
    width: int
    bits: int
    colour: int
    interlaced: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of all rows before compression, their filter bytes included."""
        bits = self.bits * _KINDS[self.colour][0]
        total = 0
        for top, left, down, across in _ADAM7 if self.interlaced else ((0, 0, 1, 1),):
            rows = (self.height - top + down - 1) // down
            columns = (self.width - left + across - 1) // across
            if columns > 0:
                total += rows * (1 + (columns * bits + 7) // 8)
        return total


def png_header(data: bytes) -> PngHeader:
    """From the first chunk."""
    name, chunk = next(_chunks(data), (b"", b""))
    if name != b"IHDR" or len(chunk) != 25:
        raise ValueError("no header")
    width, height, bits, colour, method, filters, interlace = _HEADER.unpack_from(chunk, 8)
    if width == 0 or height == 0:
        raise ValueError(f"a size of {width}x{height} pixels")
    known = colour in _KINDS and bits in _KINDS[colour][1]
    if not known or method or filters or interlace > 1:
        raise ValueError(f"{bits} bits of colour type {colour}, or a method, are not known")
    return PngHeader(height, width, bits, colour, interlace == 1)


def read_png(data: bytes, header: PngHeader) -> NDArray[Any]:
    """Pixels as stored, uint8 or uint16 without alpha: [H, W, 3] RGB, or [H, W, 1] gray.

    Text, profiles and further frames are not looked at, whatever they hold.
    """
    if header.height * header.width > _MOST_PIXELS:
        raise ValueError(f"{header.width}x{header.height} pixels, more than OpenCV reads of a PNG")
    chunks = list(_chunks(data))
    needed = [chunk for chunk in chunks if chunk[0] in (b"PLTE", b"IDAT")]
    if header.colour == _PALETTE and (not needed or needed[0][0] != b"PLTE"):
        raise ValueError("no palette")
    rows = [chunk[8:-4] for name, chunk in needed if name == b"IDAT"]
    if chunks[-1][0] != b"IEND":  # else left to libpng, which writes to stderr what it misses
        _check_rows(rows, header.row_bytes)
    packed: list[bytes | memoryview] = [data[:33], *(chunk for _, chunk in needed), _END]
    colours = cv2.IMREAD_GRAYSCALE if header.colour in _GRAY else cv2.IMREAD_COLOR
    flags = colours | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(b"".join(packed), np.uint8), flags)
    if pixels is None:
        _check_rows(rows, header.row_bytes)
        raise ValueError("a row, or the end of the rows, cannot be decoded")
    if header.colour in _GRAY:
        return pixels[:, :, None]
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and bytes of each whole chunk; the checksums of those that matter hold."""
    view, position = memoryview(data), 8
    while position < len(data):
        name = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            return
        chunk = view[position:end]
        is_needed = name in (b"IHDR", b"PLTE", b"IDAT")
        if is_needed and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ValueError(f"wrong checksum of the chunk at byte {position}")
        yield name, chunk
        if name == b"IEND":
            return
        position = end


def _check_rows(parts: Sequence[memoryview], expected: int) -> None:
    """Raise ValueError unless so many bytes can be inflated; little more than that are."""
    packer, count = zlib.decompressobj(), 0
    for part in parts:
        for start in range(0, len(part), _PIECE):
            rest: bytes | memoryview = part[start : start + _PIECE]
            while len(rest) and count < expected and not packer.eof:
                count += len(packer.decompress(rest, _INFLATED))
                rest = packer.unconsumed_tail
    if count < expected:
        raise ValueError(f"truncated: rows of {count} bytes, the picture has {expected}")

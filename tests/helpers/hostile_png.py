"""Hostile PNG files."""

import struct
import zlib

from tests.helpers.hostile_kinds import TOO_MANY_PIXELS, decoded, deflated, refused
from tests.helpers.pictures import png

GRAY = struct.pack(">IIBBBBB", 4, 3, 8, 0, 0, 0, 0)  # an IHDR: 4 wide, 3 high
ROWS = bytes(15)


def chunk(name: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + check


def png_with(*chunks: bytes) -> bytes:
    """A good PNG of 4x3 pixels with these chunks behind its header."""
    data = png(GRAY, ROWS)
    return data[:33] + b"".join(chunks) + data[33:]


def png_of(depth: int, colour: int, interlace: int, rows: bytes) -> bytes:
    return png(struct.pack(">IIBBBBB", 4, 3, depth, colour, 0, 0, interlace), rows)


@refused("damaged PNG.*checksum", 30)
@refused("damaged PNG", 46)
def png_bad_checksum(position: int) -> bytes:
    data = bytearray(png(GRAY, ROWS))
    data[position] ^= 1
    return bytes(data)


# Chunks beside the picture are not looked at.
@decoded((3, 4), "zTXt", b"a\x00\x00", bomb=True)
@decoded((3, 4), "iTXt", b"a\x00\x01\x00\x00\x00", bomb=True)
@decoded((3, 4), "iCCP", b"a\x00\x00", bomb=True)
def png_bomb_in(name: str, head: bytes) -> bytes:
    return png_with(chunk(name.encode(), head + deflated(256)))


@decoded((3, 4), bomb=True)
def png_many_texts() -> bytes:
    return png_with(*[chunk(b"zTXt", b"a\x00\x00" + deflated(1))] * 1000)


@refused("PNG.*the end of the rows", bomb=True)
def png_bomb_behind_the_rows() -> bytes:
    return png(GRAY, b"").replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", deflated(256)))


@refused("PNG: no palette", "no-palette", 8, 3, 0)
@refused("PNG", "depth", 7, 0, 0)
@refused("PNG", "colour", 8, 5, 0)
@refused("PNG", "16-bit-palette", 16, 3, 0)
@refused("PNG", "interlaced", 16, 2, 1)
@refused("PNG", "too-few-rows", 16, 6, 0)
@decoded((3, 4), "1-bit", 1, 0, 0)
def png_unusual(_: str, depth: int, colour: int, interlace: int) -> bytes:
    return png_of(depth, colour, interlace, ROWS)


@decoded((3, 4))
def png_palette_too_short() -> bytes:
    data = png_of(8, 3, 0, (b"\x00" + b"\xff" * 4) * 3)
    return data[:33] + chunk(b"PLTE", b"\x01\x02\x03") + data[33:]


@refused("PNG")
def png_unknown_filter() -> bytes:
    return png(GRAY, (b"\x09" + bytes(4)) * 3)


@refused("PNG", 0, 3)
@refused("PNG", 4, 0)
@refused("image has .* pixels", 0xFFFFFFFF, 0xFFFFFFFF)
def png_size(width: int, height: int) -> bytes:
    return png(struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), ROWS)


@refused("truncated PNG: rows of", 1, 8, 2)
@refused("truncated PNG: rows of", 5, 8, 2)
@refused("truncated PNG: rows of", 9, 8, 2)
@refused("truncated PNG: rows of", 9, 1, 0)
@refused("truncated PNG: rows of", 9, 8, 3)
@refused("truncated PNG: rows of", 9, 16, 4)
@refused("truncated PNG: rows of", 9, 16, 6)
@refused("truncated PNG: rows of", 9, 16, 6, 1)
@decoded((10, 12), 10, 16, 6)
def png_of_fewer_rows(rows: int, depth: int, colour: int, interlace: int = 0) -> bytes:
    """Whole in every other respect: so many of 10 rows, black like those that are missing."""
    row = 1 + (12 * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] + 7) // 8
    data = png(struct.pack(">IIBBBBB", 12, 10, depth, colour, 0, 0, interlace), bytes(row * rows))
    return data[:33] + (chunk(b"PLTE", bytes(6)) if colour == 3 else b"") + data[33:]


@refused("PNG")
def png_without_data() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", GRAY) + chunk(b"IEND", b"")


@refused("PNG")
def png_endless_chunk() -> bytes:
    return png(GRAY, ROWS)[:33] + b"\x7f\xff\xff\xffzTXtabc"


@decoded((3, 4))
def apng_broken_second_frame() -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, 4, 3, 0, 0, 1, 1, 0, 0)
    data = png_with(chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", control))
    return data[:-12] + chunk(b"fcTL", bytes(26)) + chunk(b"fdAT", b"\x00\x00\x00\x02noise")


@decoded((3, 4))
def apng_cut_behind_the_first_frame() -> bytes:
    return png_with()[:-12] + chunk(b"fdAT", bytes(99))[:50]


@refused(TOO_MANY_PIXELS, bomb=True)
def png_huge_header() -> bytes:
    return png(struct.pack(">IIBBBBB", 65_500, 65_500, 8, 2, 0, 0, 0), b"")

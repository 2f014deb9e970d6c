"""Straight from a file's bytes, without decoding anything: its EXIF orientation, and what makes
it take far more time or memory than its pixels (JPEG scans, TIFF tiles)."""

import re
import struct

SIDEWAYS = (5, 6, 7, 8)
"""The orientations in which the stored rows are the columns of the upright picture."""

_TAG = 0x0112
_VALUE_FORMAT = {1: "B", 3: "H", 4: "I"}  # EXIF's types BYTE, SHORT and LONG

# Any number of fill bytes, the marker and the length.
_SEGMENT = re.compile(rb"\xff+([^\xff])(..)", re.DOTALL)
# All but stuffed and fill bytes, restart markers and the others without a length.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_TILE_WIDTH, _TILE_HEIGHT = 322, 323


def orientation(data: bytes, kind: str) -> int:
    """The EXIF orientation 1..8 of a JPEG, PNG or WebP file; 1 where there is none.

    A damaged EXIF block counts as none: it does not make the picture unusable. Other formats
    give 1 (Pillow applies TIFF's while loading; BMP and GIF have none).
    """
    if kind == "JPEG":
        return _in_jpeg(data)
    if kind == "PNG":
        return _in_png(data)
    if kind == "WebP":
        return _in_webp(data)
    return 1


def _in_jpeg(data: bytes) -> int:
    """From the segments before the first scan."""
    position = 2
    while match := _SEGMENT.match(data, position):
        marker, length = match[1][0], int.from_bytes(match[2], "big")
        if marker in (0xDA, 0xD9):  # start of scan, end of image
            break
        start, position = match.end(), match.end() - 2 + length
        if marker == 0xE1 and data[start : start + 6] == b"Exif\x00\x00":
            return _in_block(data[start + 6 : position])
    return 1


def _in_png(data: bytes) -> int:
    position = 8
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"eXIf":
            return _in_block(data[position + 8 : position + 8 + length])
        position += 12 + length
    return 1


def _in_webp(data: bytes) -> int:
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"EXIF":
            return _in_block(data[position + 8 : position + 8 + length])
        position += 8 + length + length % 2  # chunks are padded to an even length
    return 1


def _in_block(block: bytes) -> int:
    """From an EXIF block, which is a small TIFF file."""
    if block[:6] == b"Exif\x00\x00":
        block = block[6:]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag == _TAG:
                value = struct.unpack_from(order + _VALUE_FORMAT.get(kind, "H"), block, entry + 8)
                return int(value[0]) if 1 <= value[0] <= 8 else 1
    except struct.error:  # an offset points behind the block's end
        pass
    return 1


def more_scans(data: bytes, limit: int) -> bool:
    """Whether a JPEG has more than so many scans. What is damaged is left to the decoder to find.

    Behind a first scan that has all colours nothing is searched for: no decoder reads on there.
    """
    position, scans, parts = 2, 0, 0
    while scans <= limit and (match := _JPEG_MARKER.search(data, position)):
        marker, position = match[0][1], match.end()
        if marker in (0xC0, 0xC1):  # a frame that is not progressive, and how many colours it has
            parts = int.from_bytes(data[position + 7 : position + 8], "big")
        if marker == 0xDA:
            scans += 1
            if data[position + 2 : position + 3] == bytes([parts]):  # all of them in this scan
                break
        if marker == 0xD9:  # end of image
            break
        position += int.from_bytes(data[position : position + 2], "big")
    return scans > limit


def tiff_tile(data: bytes, directory: int) -> tuple[int, int]:
    """(width, height) of the tiles in the TIFF directory at that position; zeros where it has none.

    Raises:
        ValueError: an unusual type or count, which decoders do not all understand alike.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    number = struct.Struct(order + ("Q" if big else "H"))
    head = struct.Struct(order + ("HHQ" if big else "HHI"))
    formats = {3: "H", 4: "I", 16: "Q"} if big else {3: "H", 4: "I"}
    step = head.size + (8 if big else 4)
    first = directory + number.size
    last = first + step * number.unpack_from(data, directory)[0]
    size = {_TILE_WIDTH: 0, _TILE_HEIGHT: 0}
    for entry in range(first, min(last, len(data) - step + 1), step):
        tag, kind, count = head.unpack_from(data, entry)
        if tag in size:
            if kind not in formats or count != 1:
                raise ValueError(f"tile size with {count} values of type {kind}")
            (value,) = struct.unpack_from(order + formats[kind], data, entry + head.size)
            size[tag] = max(size[tag], value)
    return size[_TILE_WIDTH], size[_TILE_HEIGHT]

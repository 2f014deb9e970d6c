"""The EXIF orientation of a file, straight from its bytes."""

import re
import struct

SIDEWAYS = (5, 6, 7, 8)
"""The orientations in which the stored rows are the columns of the upright picture."""

_TAG = 0x0112
_VALUE_FORMAT = {1: "B", 3: "H", 4: "I"}  # EXIF's types BYTE, SHORT and LONG

# Any number of fill bytes, the marker and the length.
_SEGMENT = re.compile(rb"\xff+([^\xff])(..)", re.DOTALL)


def orientation(data: bytes, kind: str) -> int:
    """The EXIF orientation 1..8 of a JPEG, PNG or WebP file; 1 where there is none.

    A damaged EXIF block counts as none: it does not make the picture unusable. Other formats
    give 1 (TIFF's is a tag like any other; BMP and GIF have none).
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

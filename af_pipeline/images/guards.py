"""What every reader of images needs to be safe: Pillow without warnings, the EXIF orientation."""

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from af_pipeline.images.jpeg import SCAN, segments

SIDEWAYS = (5, 6, 7, 8)
"""The orientations in which the stored rows are the columns of the upright picture."""

_TAG = 0x0112

# warnings.catch_warnings swaps a process-wide list; without the lock two threads decoding at once
# could restore it in the wrong order and leave all warnings off.
_WARNINGS_LOCK = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the warnings of Pillow; one thread at a time."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def orientation(data: bytes, kind: str) -> int:
    """The EXIF orientation 1..8 of a JPEG, PNG or WebP file; 1 where there is none.

    A damaged EXIF block counts as none: it does not make the picture unusable. Other formats
    give 1 (TIFF's is a tag like any other; BMP and GIF have none).
    """
    block = _exif(data, kind)
    if not block:
        return 1
    exif = Image.Exif()
    try:
        with quiet():
            exif.load(block)
            value = exif.get(_TAG)
    except Exception:  # Pillow raises nearly every kind
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif(data: bytes, kind: str) -> bytes:
    """The EXIF block. Pillow's own readers take memory for more than that on opening."""
    if kind == "JPEG":
        for marker, start, end in segments(data):
            if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
                return data[start:end]
            if marker == SCAN:
                break
        return b""
    if kind not in ("PNG", "WebP"):
        return b""
    position = 8 if kind == "PNG" else 12
    while position + 8 <= len(data):
        if kind == "PNG":
            length, name = struct.unpack_from(">I4s", data, position)
            behind = 4  # a checksum
        else:
            name, length = struct.unpack_from("<4sI", data, position)
            behind = length % 2  # chunks are padded to an even length
        if name in (b"eXIf", b"EXIF"):
            return data[position + 8 : position + 8 + length]
        position += 8 + length + behind
    return b""

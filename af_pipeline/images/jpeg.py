"""JPEG files: libjpeg-turbo with every loss of pixels told, and what it does not look at."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray

# libjpeg's warnings under which no pixel is lost. Every other one (premature end, bad Huffman
# code, lost restart marker) means that a part of the picture is made up.
_HARMLESS = (
    "extraneous bytes",
    "Unknown Adobe color transform",
    "Inconsistent progression sequence",
    "unknown JFIF revision",
    "Invalid SOS parameters",
    "bad ICC marker",
)
_DATA_LOST = ("Premature end", "Corrupt JPEG data")
# Encoders write about ten; each costs a walk over all pixels, and as little as a dozen bytes.
_MAX_SCANS = 100
# All but stuffed and fill bytes, restart markers and the others without a length.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_PROGRESSIVE = (0xC2, 0xCA)
SCAN, _END = 0xDA, 0xD9
_FRAMES = (0xC0, 0xC1, *_PROGRESSIVE, 0xC9)


class UnknownJpeg(ValueError):
    """libjpeg-turbo does not take the file; another decoder may."""


def jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """(height, width, colour space), or None where libjpeg-turbo does not take the header."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    return int(height), int(width), str(space)  # type: ignore[call-overload,unused-ignore]


def read_jpeg(data: bytes, space: str) -> NDArray[np.uint8]:
    """Pixels [H, W, C] in a colour space of simplejpeg's.

    libjpeg tells its first warning only. Where that one is harmless, its cause is taken out of the
    file and the rest is read once more, so that a loss behind it is told too, as ValueError.
    """
    for as_it_is in (True, False):
        file = data if as_it_is else without_blemishes(data)
        try:
            return np.asarray(simplejpeg.decode_jpeg(file, colorspace=space), np.uint8)
        except ValueError as error:
            if not _says(error, _HARMLESS):
                raise error if _says(error, _DATA_LOST) else UnknownJpeg(str(error)) from error
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace=space, strict=False), np.uint8)
    except ValueError as error:
        raise UnknownJpeg(str(error)) from error


def without_blemishes(data: bytes) -> bytes:
    """The same picture without what libjpeg warns of harmlessly in and between segments.

    Stray bytes before a marker and colour profiles are left out; an unknown JFIF revision becomes
    1, an unknown Adobe transform the one that libjpeg takes in its stead, and the scan of a
    sequential frame gets the parameters that it must have. What lies behind a scan's data stays.
    """
    kept, sequential, colours = [data[:2]], True, 3
    for marker, start, end in segments(data):
        segment = bytearray(data[start - 4 : end])
        if marker in _FRAMES and len(segment) > 9:
            sequential, colours = marker not in _PROGRESSIVE, segment[9]
        if marker == 0xE0 and segment[4:9] == b"JFIF\0" and len(segment) > 9:
            segment[9] = 1
        if marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) > 15:
            segment[15] = segment[15] if segment[15] < 3 else (2 if colours == 4 else 1)
        if marker == SCAN:
            if sequential:
                segment[-3:] = b"\x00\x3f\x00"
            after = _MARKER.search(data, end)
            segment += data[end : after.start() if after else len(data)]
        if marker != 0xE2:
            kept.append(bytes(segment))
    return b"".join(kept)


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, first byte and end of each segment up to the end of the image.

    What lies between them, such as the data of a scan, is passed over.
    """
    position = 2
    while match := _MARKER.search(data, position):
        marker, start = match[0][1], match.end()
        if marker == _END:
            yield marker, start + 2, start
            return
        position = start + int.from_bytes(data[start : start + 2], "big")
        yield marker, start + 2, position


def _says(error: ValueError, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)


def check_scans(data: bytes) -> None:
    """Raise ValueError where there are too many scans, or where the last ones are missing.

    A file that was cut between two scans and got an end marker is a whole, coarse picture to every
    decoder. Behind a first scan that has all colours of a frame that is not progressive nothing
    is searched for: no decoder reads on there. What is damaged is left to the decoder to find.
    """
    scans, frame, parts = 0, 0, b""
    # Of each part (colour) and coefficient, how many of its low bits are still to come.
    missing: dict[tuple[int, int], int] = {}
    for marker, start, _ in segments(data):
        if marker in _FRAMES and not parts:
            frame, parts = marker, data[start + 6 : start + 6 + 3 * _byte(data, start + 5) : 3]
        if marker == SCAN:
            scans += 1
            if scans > _MAX_SCANS:
                raise ValueError(f"more than {_MAX_SCANS} scans")
            if frame not in _PROGRESSIVE and _byte(data, start) == len(parts):
                return
            missing = missing or {(part, place): 14 for part in parts for place in range(64)}
            _enter(missing, data, start, frame in _PROGRESSIVE)
    if any(missing.values()):
        raise ValueError(f"truncated behind scan {scans}: more are missing")


def _enter(missing: dict[tuple[int, int], int], data: bytes, start: int, progressive: bool) -> None:
    """Note what the scan with the segment at ``start`` brings."""
    names = start + 1 + 2 * _byte(data, start)
    tail = data[names : names + 3]
    if len(tail) < 3:
        return
    first, last, low = (tail[0], tail[1], tail[2] & 15) if progressive else (0, 63, 0)
    for name in data[start + 1 : names : 2]:
        for place in range(first, min(last, 63) + 1):
            if (name, place) in missing:
                missing[name, place] = low


def _byte(data: bytes, position: int) -> int:
    return data[position] if position < len(data) else 0

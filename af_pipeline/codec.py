"""Bytes to arrays and back.

Every image in this project is RGB, uint8, shape [H, W, 3], C-contiguous, upright (its EXIF
orientation already applied). This module is the one border where foreign bytes come in: whatever
they hold, the only exception that leaves it is :class:`DecodeError`.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from af_pipeline.exif import SIDEWAYS, more_scans, orientation, tiff_tile

RGB = NDArray[np.uint8]

MAX_PIXELS = 200_000_000


class _GifReader(GifImagePlugin.GifImageFile):
    """Pillow's, but for the first picture only: no memory for what is left behind it.

    Pillow takes that on opening, up to 178 MB, before its size could be looked at.
    """

    disposal_method = property(lambda self: 0, lambda self, value: None)


# Pillow's reader classes are called directly, not through Image.open: only formats meant to be
# read are tried, and its pixel limit (a process-wide setting) does not stand before ours.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": _GifReader,
}
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
)
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
# A tile is unpacked whole, so it may exceed the picture only so far (TIFF).
_ALWAYS_FINE_TILE = 4096 * 4096
# cv2.flip's axis by orientation, behind the transposition of those that lie sideways.
_FLIP = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}

# warnings.catch_warnings swaps a process-wide list; without the lock two threads decoding at once
# could restore it in the wrong order and leave all warnings off.
_WARNINGS_LOCK = threading.Lock()


class DecodeError(ValueError):
    """The bytes are not an image that can be decoded in full; the message says what is wrong."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decode an image file to upright RGB uint8 [H, W, 3], C-contiguous.

    JPEG, PNG, TIFF, WebP, BMP and GIF (of an animation or a multi-page file the first picture).
    Gray is repeated over the three channels. Alpha is dropped, not composited: the colour stored
    under a transparent pixel is kept, no background is invented. 16-bit gray is divided by 257
    (12-bit by 4095/255), so the full range of the type maps to 0..255 whatever the content;
    16-bit colour keeps its high byte. Embedded colour profiles are ignored, and so is an
    orientation that is found in XMP only.

    Args:
        data: the whole file.
        max_pixels: larger images are refused from their header, before memory is taken. (TIFF and
            WebP stop at Pillow's own limit of 179 million too, where that is lower.)

    Raises:
        DecodeError: empty, not an image, truncated or damaged, too large, or values without a
            fixed range (floating point, 32-bit integers beyond 0..65535).
    """
    kind = _sniff(data)
    try:
        if kind == "JPEG":
            return _decode_jpeg(data, max_pixels)
        return _decode_pillow(data, kind, max_pixels)
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise nearly every kind, MemoryError included
        raise _as_decode_error(kind, error) from error


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of what :func:`decode_image` would return, from the header only.

    Raises:
        DecodeError: empty, not an image, or a damaged header. (Damage behind the header is not
            seen, and no pixel limit is applied.)
    """
    kind = _sniff(data)
    try:
        return _header_size(data, kind)
    except DecodeError:
        raise
    except Exception as error:  # as in decode_image
        raise _as_decode_error(kind, error) from error


def resize(image: RGB, height: int, width: int) -> RGB:
    """Resize [H, W, 3] uint8 to [height, width, 3]; the same size returns the input itself.

    Axes that shrink are averaged by area (no aliasing), axes that grow are interpolated linearly.

    Raises:
        ValueError: height or width below 1, or not an RGB uint8 image.
    """
    _check_rgb(image)
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize to {height}x{width} pixels, both must be at least 1")
    # Two steps, each empty in most cases: cv2's INTER_AREA averages only where both axes shrink.
    small = _resize_step(
        image, min(height, image.shape[0]), min(width, image.shape[1]), cv2.INTER_AREA
    )
    return _resize_step(small, height, width, cv2.INTER_LINEAR)


def encode_jpeg(image: RGB, quality: int = 92) -> bytes:
    """Encode RGB uint8 [H, W, 3] as JPEG (4:2:0 chroma), quality 1..100.

    Raises:
        ValueError: not an RGB uint8 image, quality out of range, or a side above 65535 px.
    """
    _check_rgb(image)
    if not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality must be 1..100, not {quality}")
    if max(image.shape) > 65535:
        raise ValueError(f"JPEG sides are limited to 65535 px, the image is {image.shape[:2]}")
    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
        )
    )


def encode_png(image: RGB) -> bytes:
    """Encode RGB uint8 [H, W, 3] as PNG (lossless).

    Raises:
        ValueError: not an RGB uint8 image.
    """
    _check_rgb(image)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} as PNG")
    return bytes(encoded.tobytes())


def _check_rgb(image: RGB) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"expected a non-empty RGB uint8 image [H, W, 3], got {image.dtype} {image.shape}"
        )


def _resize_step(image: RGB, height: int, width: int, interpolation: int) -> RGB:
    if image.shape[:2] == (height, width):
        return image
    image = np.ascontiguousarray(image)
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def _sniff(data: bytes) -> str:
    """The format's name by the first bytes; file names are not trusted."""
    if len(data) == 0:
        raise DecodeError("empty file")
    for magic, kind in _MAGIC:
        if data[: len(magic)] == magic:
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    raise DecodeError(
        f"not an image of a known format ({', '.join(_READERS)}): "
        f"{len(data)} bytes starting with {bytes(data[:8])!r}"
    )


def _as_decode_error(kind: str, error: Exception) -> DecodeError:
    if isinstance(error, MemoryError):
        return DecodeError(f"{kind} needs more memory than there is")
    text = (str(error) or type(error).__name__).splitlines()[0][:200]
    if not any(letter.isalpha() for letter in text):  # a bare key, as of a tag that is missing
        text = f"a value is missing or unknown: {text}"
    truncated = "truncated" in text.lower() or "premature" in text.lower()
    return DecodeError(f"{'truncated' if truncated else 'damaged'} {kind}: {text}")


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise DecodeError(
            f"image has {height * width} pixels ({width}x{height}), "
            f"more than max_pixels={max_pixels}"
        )


# JPEG


def _decode_jpeg(data: bytes, max_pixels: int) -> RGB:
    if more_scans(data, _MAX_SCANS):
        raise DecodeError(f"JPEG of more than {_MAX_SCANS} scans")
    header = _jpeg_header(data)
    if header is None:
        return _decode_pillow(data, "JPEG", max_pixels)
    height, width, space = header
    _check_pixels(height, width, max_pixels)
    four = space in ("CMYK", "YCCK")
    try:
        pixels = _turbo(data, "CMYK" if four else "RGB")
    except ValueError as error:
        if any(sign in str(error) for sign in _DATA_LOST) and not _is_harmless(error):
            raise _as_decode_error("JPEG", error) from error
        return _decode_pillow(data, "JPEG", max_pixels)
    return _upright(_cmyk_to_rgb(pixels) if four else pixels, orientation(data, "JPEG"))


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """(height, width, colour space), or None where libjpeg-turbo does not take the header."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    return int(height), int(width), str(space)  # type: ignore[call-overload,unused-ignore]


def _turbo(data: bytes, space: str) -> RGB:
    """Decode with libjpeg-turbo; ValueError for every warning under which pixels are lost."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace=space), np.uint8)
    except ValueError as error:
        if not _is_harmless(error):
            raise
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace=space, strict=False), np.uint8)


def _is_harmless(error: ValueError) -> bool:
    return any(text in str(error) for text in _HARMLESS)


def _cmyk_to_rgb(cmyk: NDArray[np.uint8]) -> RGB:
    """[H, W, 4] as stored to RGB; inverted as Adobe writes it, like Pillow and the browsers."""
    height, width = cmyk.shape[:2]
    image = Image.frombuffer("CMYK", (width, height), cmyk.tobytes(), "raw", "CMYK;I", 0, 1)
    return np.array(image.convert("RGB"))


def _upright(image: RGB, turn: int) -> RGB:
    """Undo an EXIF orientation 1..8."""
    turned = cv2.transpose(image) if turn in SIDEWAYS else image
    axis = _FLIP.get(turn)
    return np.asarray(turned if axis is None else cv2.flip(turned, axis), np.uint8)


# Pillow


@contextmanager
def _quiet() -> Iterator[None]:
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open_pillow(data: bytes, kind: str) -> ImageFile.ImageFile:
    """Read the header with Pillow. Held under the lock: it is short, and where it warns."""
    with _quiet():
        return _READERS[kind](io.BytesIO(data))


def _webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header: Pillow's reader takes memory for the canvas on opening."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    if len(data) < 30 or width == 0 or height == 0:
        raise DecodeError("truncated WebP: no complete header")
    return height, width


def _header_size(data: bytes, kind: str) -> tuple[int, int]:
    turbo = _jpeg_header(data) if kind == "JPEG" else None
    if turbo is not None:
        height, width = turbo[:2]
    elif kind == "WebP":
        height, width = _webp_size(data)
    else:
        width, height = _open_pillow(data, kind).size
    return (width, height) if orientation(data, kind) in SIDEWAYS else (height, width)


def _decode_pillow(data: bytes, kind: str, max_pixels: int) -> RGB:
    if kind == "WebP":
        _check_pixels(*_webp_size(data), max_pixels)
    image = _open_pillow(data, kind)
    _check_pixels(image.height, image.width, max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiles(image, data)
        image.info.pop("xmp", None)  # Pillow would apply the orientation in it
    # Of all readers only TIFF's warns while loading; the others may decode side by side.
    hush: AbstractContextManager[None] = _quiet() if kind == "TIFF" else nullcontext()
    with hush:
        image.load()
    return _upright(_to_rgb(image), orientation(data, kind))


def _check_tiles(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Refuse a small picture with a huge tile, or with strips that lie on top of one another."""
    pixels = image.height * image.width
    width, height = tiff_tile(data, image.tag_v2.offset)
    if width * height > max(4 * pixels, _ALWAYS_FINE_TILE):
        raise DecodeError(f"TIFF tiles of {width}x{height} pixels in an image of {pixels} pixels")
    boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
    covered = sum((right - left) * (low - top) for left, top, right, low in boxes)
    if covered > 8 * pixels:  # once for each band is right, where they are stored apart
        raise DecodeError(f"TIFF strips cover the image {covered // pixels} times")


def _to_rgb(image: ImageFile.ImageFile) -> RGB:
    if image.mode.startswith("I"):
        return _gray_to_rgb(_integers_to_gray(image))
    if image.mode == "F":
        raise DecodeError(
            "floating point image: its values have no fixed range, save as 8 or 16 bit"
        )
    # Otherwise convert() would warn, and look for a colour to keep apart.
    image.info.pop("transparency", None)
    plain = image.convert("L") if image.mode in ("1", "LA", "La") else image
    return np.array(plain.convert("RGB"))


def _gray_to_rgb(gray: NDArray[np.uint8]) -> RGB:
    return np.repeat(gray[:, :, None], 3, axis=2)


def _integers_to_gray(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """[H, W] of Pillow's 16 and 32-bit integer modes, scaled by the range of the type."""
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    full = 4095 if tags.get(258) == (12,) else 65535  # BitsPerSample
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > full:
        raise DecodeError(
            f"integer image with values {low}..{high}: only 0..{full} has a fixed range, "
            "save as 8 or 16 bit"
        )
    table = ((np.arange(full + 1) * 255 + full // 2) // full).astype(np.uint8)
    # PhotometricInterpretation: white is zero, which Pillow does not undo at this depth.
    return np.take(table[::-1] if tags.get(262) == 0 else table, values)

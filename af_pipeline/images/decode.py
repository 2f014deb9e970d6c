"""Bytes to arrays and back.

Every image in this project is RGB, uint8, shape [H, W, 3], C-contiguous, upright (its EXIF
orientation already applied). This module is the one border where foreign bytes come in: whatever
they hold, the only exception that leaves it is :class:`DecodeError`.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from af_pipeline.core.resize import RGB, check_rgb
from af_pipeline.images.depth import BY_TYPE, DepthConfig, to_8_bit
from af_pipeline.images.guards import SIDEWAYS, orientation, quiet
from af_pipeline.images.jpeg import UnknownJpeg, check_scans, jpeg_header, read_jpeg
from af_pipeline.images.png import png_header, read_png
from af_pipeline.images.tiff import Page, first_page
from af_pipeline.images.tiff_values import WHITE_IS_ZERO, page_alone, read_values

MAX_PIXELS = 200_000_000


class _GifReader(GifImageFile):
    """Pillow's without the memory for what the first picture leaves behind: up to 178 MB, which it
    takes on opening, before its size could be looked at."""

    disposal_method = property(lambda self: 0, lambda self, value: None)


# Pillow's own limit of 179 million pixels would stand beside max_pixels, and it has no other switch
# than this one of the process. Sizes are checked here before memory is taken.
Image.MAX_IMAGE_PIXELS = None

# Pillow's reader classes are called directly, not through Image.open: only formats meant to be
# read are tried.
_PILLOW: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": _GifReader,
}
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    **dict.fromkeys((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), "TIFF"),
    b"BM": "BMP",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
}
# Bytes of deep values that a file may unpack to, for each pixel of max_pixels: four of 16 bits.
_VALUE_BYTES = 8
# cv2.flip's axis by orientation, behind the transposition of those that lie sideways.
_FLIP = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


class DecodeError(ValueError):
    """The bytes are not an image that can be decoded in full; the message says what is wrong."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, depth: DepthConfig = BY_TYPE) -> RGB:
    """Decode an image file to upright RGB uint8 [H, W, 3], C-contiguous.

    JPEG, PNG, TIFF, WebP, BMP and GIF (of an animation the first picture, of a multi-page TIFF the
    first that is no smaller version or mask of another). Gray is repeated over the three channels;
    of a TIFF with bands instead of colours the first three are taken. Alpha is dropped, not
    composited: the colour stored under a transparent pixel is kept, no background is invented.
    Embedded colour profiles are ignored, and so is an orientation that is found in XMP only.

    ``max_pixels``: larger images are refused from their header, before memory is taken;
    ``depth``: how values of more than 8 bits (PNG, TIFF) become 8 bits.

    Raises DecodeError for every other file. One of which rows, strips, tiles or planes are missing
    is among them, because nobody saw what is there.
    """
    kind = _sniff(data)
    with _only_decode_errors(kind):
        header = READERS[kind](data)
        pixels = header.height * header.width
        if pixels > max_pixels:
            raise DecodeError(
                f"image has {pixels} pixels ({header.width}x{header.height}), "
                f"more than max_pixels={max_pixels}"
            )
        return _upright(header.read(max_pixels, depth), header.turn)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of what :func:`decode_image` would return, from the header only.

    Damage behind the header is not seen, and no pixel limit is applied.
    """
    kind = _sniff(data)
    with _only_decode_errors(kind):
        header = READERS[kind](data)
        size = header.height, header.width
        return size[::-1] if header.turn in SIDEWAYS else size


def encode_jpeg(image: RGB, quality: int = 92) -> bytes:
    """Encode RGB uint8 [H, W, 3] as JPEG (4:2:0 chroma), quality 1..100."""
    check_rgb(image)
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
    """Encode RGB uint8 [H, W, 3] as PNG (lossless)."""
    check_rgb(image)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} as PNG")
    return bytes(encoded.tobytes())


def _sniff(data: bytes) -> str:
    """The format's name by the first bytes; file names are not trusted."""
    if len(data) == 0:
        raise DecodeError("empty file")
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    known = ", ".join(sorted(READERS))
    raise DecodeError(f"not an image of a known format ({known}): {len(data)} bytes")


@contextmanager
def _only_decode_errors(kind: str) -> Iterator[None]:
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise nearly every kind, MemoryError included
        raise _as_decode_error(kind, error) from error


def _as_decode_error(kind: str, error: Exception) -> DecodeError:
    if isinstance(error, MemoryError):
        return DecodeError(f"{kind} needs more memory than there is")
    text = (str(error) or type(error).__name__).splitlines()[0][:200]
    if not any(letter.isalpha() for letter in text):  # a bare key, as of a tag that is missing
        text = f"a value is missing or unknown: {text}"
    fault = "damaged"
    if "truncated" in text.lower() or "premature" in text.lower():
        fault, text = "truncated", text.removeprefix("truncated: ").removeprefix("truncated ")
    elif "not supported" in text:
        fault = "unsupported"
    return DecodeError(f"{fault} {kind}: {text}")


@dataclass(frozen=True)
class _Header:
    """The size as stored, px, the EXIF orientation 1..8, and what reads the pixels as stored."""

    height: int
    width: int
    turn: int
    read: Callable[[int, DepthConfig], RGB]


def _upright(image: RGB, turn: int) -> RGB:
    """Undo an EXIF orientation 1..8."""
    turned = cv2.transpose(image) if turn in SIDEWAYS else image
    axis = _FLIP.get(turn)
    return np.asarray(turned if axis is None else cv2.flip(turned, axis), np.uint8)


def _jpeg(data: bytes) -> _Header:
    found = jpeg_header(data)
    if found is None:
        return _with_pillow(data, "JPEG")
    height, width, space = found

    def read(*_: object) -> RGB:
        check_scans(data)
        try:
            pixels = read_jpeg(data, "CMYK" if space in ("CMYK", "YCCK") else "RGB")
        except UnknownJpeg:
            return _load(_open_pillow(data, "JPEG"))
        return _inks_to_rgb(pixels, "CMYK;I") if pixels.shape[2] == 4 else pixels

    return _Header(height, width, orientation(data, "JPEG"), read)


def _inks_to_rgb(cmyk: NDArray[np.uint8], stored: str) -> RGB:
    """[H, W, 4] to RGB; ``stored`` "CMYK", or "CMYK;I" inverted as Adobe writes it in JPEG."""
    height, width = cmyk.shape[:2]
    image = Image.frombuffer("CMYK", (width, height), cmyk.tobytes(), "raw", stored, 0, 1)
    return np.array(image.convert("RGB"))


def _with_pillow(data: bytes, kind: str) -> _Header:
    image = _open_pillow(data, kind)

    def read(*_: object) -> RGB:
        if kind == "JPEG":
            check_scans(data)
        return _load(image)

    return _Header(image.height, image.width, orientation(data, kind), read)


def _open_pillow(data: bytes, kind: str) -> ImageFile:
    """Read the header with Pillow. Held under the lock: it is short, and where it warns."""
    with quiet():
        return _PILLOW[kind](io.BytesIO(data))


def _load(image: ImageFile) -> RGB:
    image.load()
    # Otherwise convert() would warn, and look for a colour to keep apart.
    image.info.pop("transparency", None)
    plain = image.convert("L") if image.mode in ("1", "LA", "La") else image
    return np.array(plain.convert("RGB"))


def _webp(data: bytes) -> _Header:
    """By hand: Pillow's reader takes memory for the canvas on opening."""
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

    def read(*_: object) -> RGB:
        image = _open_pillow(data, "WebP")
        if image.size != (width, height):
            raise ValueError("two sizes")
        return _load(image)

    return _Header(height, width, orientation(data, "WebP"), read)


def _png(data: bytes) -> _Header:
    header = png_header(data)

    def read(_: int, depth: DepthConfig) -> RGB:
        pixels = read_png(data, header)
        return _three_channels(pixels if pixels.dtype == np.uint8 else to_8_bit(pixels, 16, depth))

    return _Header(header.height, header.width, orientation(data, "PNG"), read)


def _tiff(data: bytes) -> _Header:
    page = first_page(data)

    def read(max_pixels: int, depth: DepthConfig) -> RGB:
        if page.has_values:
            return _values_to_rgb(page, max_pixels, depth)
        with quiet():  # of all readers only TIFF's warns while loading
            return _load(TiffImageFile(io.BytesIO(page_alone(page))))

    return _Header(*page.size, page.orientation, read)


def _values_to_rgb(page: Page, max_pixels: int, depth: DepthConfig) -> RGB:
    def unpack(file: bytes) -> NDArray[np.uint8]:
        with quiet():
            return np.asarray(TiffImageFile(io.BytesIO(file)))

    values = read_values(page, _VALUE_BYTES * max_pixels, unpack)
    pixels = to_8_bit(values, page.bits, depth, page.nodata) if page.bits > 8 else values
    if page.photometric == WHITE_IS_ZERO:
        pixels = 255 - pixels
    if pixels.shape[2] == 4:
        return _inks_to_rgb(pixels, "CMYK")
    return _three_channels(pixels)


def _three_channels(pixels: NDArray[np.uint8]) -> RGB:
    """[H, W, 1 or 3] with gray repeated, C-contiguous."""
    if pixels.shape[2] == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8)
    return np.ascontiguousarray(pixels)


# What reads the header of each kind; its result reads the pixels.
READERS: dict[str, Callable[[bytes], _Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "TIFF": _tiff,
    "WebP": _webp,
    "BMP": partial(_with_pillow, kind="BMP"),
    "GIF": partial(_with_pillow, kind="GIF"),
}

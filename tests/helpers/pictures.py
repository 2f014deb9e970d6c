"""Small pictures in many file formats, for the tests of the codec."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from af_pipeline.images.decode import image_size

ORIENTATION = 0x0112

# What somebody may call a class or an image, or what an error may quote of one.
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</td></tr></table></style><h1>",
    "<!-- -->]]>&lt;&#60;&amp",
    "two\nlines\r\n\tand\x0ba tab",
    "\x00\x07\x1b[31mred\x7f\x85",
    "\u202egpj.exe\u2066\u200f",
    "\U0001f697\U0001f468\u200d\U0001f469 \u00e9\u4e2d",
    "$\\frac{$ {x} $\\wrong{1}$ %s \\",
    "../../../etc/passwd",
    "C:\\con|nul:*?",
    "x" * 10_000,
    "many words " * 1000,
    "",
    " ",
)
# Of all pages of a report.
PAGE_TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr"}
PAGE_TAGS |= {"th", "td", "figure", "figcaption", "a", "img", "div", "br", "span"}


@contextmanager
def no_warnings() -> Iterator[None]:
    """Fail where the codec or Pillow lets a warning out."""
    # Recorded, not raised: raised inside the codec they would pass as a DecodeError.
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        yield
    assert not [w for w in leaked if "af_pipeline" in w.filename or "PIL" in w.filename]


def scene(height: int = 37, width: int = 53) -> NDArray[np.uint8]:
    """Smooth and different in every corner and channel, so that every turn and swap shows."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * y / max(height - 1, 1), 255 * x / max(width - 1, 1)
    return np.stack([red, green, (red + 2 * green) / 3], axis=2).astype(np.uint8)


def save(image: Image.Image | NDArray[Any], form: str, **options: Any) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def check_form(image: NDArray[np.uint8], data: bytes) -> None:
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)
    assert image.flags.c_contiguous
    assert image_size(data) == image.shape[:2]


def oriented(orientation: int, form: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return save(scene(), form, exif=exif, **options)


def noisy(height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG from its IHDR body and its raw rows: for what Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )

"""A corpus of hostile image files, the same bytes each time: (name, maker, outcome).

The outcome is the size (height, width) that a file decodes to in spite of everything, or what the
message of its DecodeError is like.
"""

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, TiffImagePlugin

from tests.helpers import image_files as made
from tests.helpers.image_files import HERE, chunk, png_of, png_with, tiff
from tests.helpers.pictures import noisy, save, scene

SIZE, SMALL = (37, 53), (3, 4)  # of scene(), and of what is made byte by byte
TOO_MANY_PIXELS = r"image has 4290250000 pixels \(65500x65500\), more than max_pixels"
FORMS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
BLEMISHES = ("revision", "stray bytes", "scan parameters", "Adobe transform")
HUGE_LOSSLESS = (b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20))

Kind = tuple[str, Callable[[], bytes], tuple[int, int] | str]


def _replaced(data: bytes, old: bytes, new: bytes, behind: int = 0) -> bytes:
    """``new`` written over the bytes that lie so far behind the first ``old``."""
    start = data.index(old) + behind
    return data[:start] + new + data[start + len(new) :]


def _progressive(mode: str, kept: int) -> bytes:
    """Cut between two scans and ended: every decoder shows a whole, coarse picture."""
    data = save(Image.fromarray(noisy()).convert(mode), "JPEG", progressive=True)
    return data[: made.scans(data)[kept]] + b"\xff\xd9"


def _cut_behind(blemish: str) -> bytes:
    data = made.blemished(save(noisy(), "JPEG"), blemish)
    return data[: len(data) * 2 // 3] + b"\xff\xd9"


def _cmyk(transform: int) -> bytes:
    data = save(Image.fromarray(scene()).convert("CMYK"), "JPEG")
    return _replaced(data, b"Adobe", bytes([transform]), 11)


def _frames(form: str) -> bytes:
    second = {"save_all": True, "append_images": [Image.new("RGB", SIZE[::-1])]}
    return save(Image.fromarray(scene()), form, **second)


def _without_tables() -> bytes:
    data = save(scene(), "JPEG")
    return data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]


def _two_frames() -> bytes:
    data = save(scene(), "JPEG")
    start = data.index(b"\xff\xc0")
    return data[:start] + data[start : start + 19] + data[start:]


def _apng(ending: bytes) -> bytes:
    return png_with(chunk(b"acTL", struct.pack(">II", 2, 0)))[:-12] + ending


def _damaged(compression: str) -> bytes:
    data = save(noisy(), "TIFF", compression=compression)
    return data[:1000] + b"\xaa" * 400 + data[1400:]


def _plane_missing() -> bytes:
    tags: dict[int, made.Tag | None] = {258: 8, 262: 2, 277: 3, 284: 2}
    where = len(tiff(tags)) - 12
    places = struct.pack("<4I", 200, 200, 12, 12)
    return tiff({**tags, 273: (4, 2, HERE), 279: (4, 2, where + 8)}, places + bytes(100))


def _xmp() -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700] = b'<x tiff:Orientation="6"/>'
    return save(scene(), "TIFF", tiffinfo=tags)


FOREIGN = {
    "one byte": b"\xff",
    "html": b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>",
    "heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    "riff that is no webp": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "byte order mark before a jpeg": b"\xef\xbb\xbf\xff\xd8\xff\xe0",
}
FIRST_BYTES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "TIFF": b"II*\x00"}
FIRST_BYTES |= {"WebP": b"RIFF\x00\x00\x00\x00WEBPVP8X", "BMP": b"BM", "GIF": b"GIF89a"}
LAST_BYTE = ("truncated JPEG", (64, 64), "truncated TIFF", "WebP", "BMP", (64, 64))  # by FORMS
ODD_TAGS: dict[str, tuple[int, int | None]] = {
    "width": (256, 0),
    "bits": (258, 7),
    "compression": (259, 77),
    "LERC": (259, 34_887),
    "LZW": (259, 5),
    "palette": (262, 3),
    "strip offset": (273, 0xFFFFFFF0),
    "samples": (277, 65_535),
    "rows per strip": (278, 0),
}
STRIPS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, int] | str]] = {
    "no offset": ((0, 300, 310), (4, 4, 4), "truncated TIFF: 1 of 3 .* absent.*write the file"),
    "no bytes": ((290, 300, 310), (4, 0, 4), "truncated TIFF: 1 of 3 .* absent.*write the file"),
    "short list": ((290, 300), (4, 4), "truncated TIFF: 2 strips or tiles of 3"),
    "too few bytes": ((290, 300, 310), (4, 3, 4), "truncated TIFF: 1 of 3 strips are cut off"),
    "outside": ((290, 300, 5000), (4, 4, 4), "truncated TIFF: 1 of 3 strips are cut off"),
    "whole": ((290, 300, 310), (4, 4, 4), SMALL),
}

KINDS: list[Kind] = [
    ("empty", lambda: b"", "empty file"),
    *[(n, lambda d=d: d, "not an image of a known format.* bytes") for n, d in FOREIGN.items()],
    *[(f"only {form}", lambda d=d: d, form) for form, d in FIRST_BYTES.items()],
    *[
        (f"{form} without the last byte", lambda f=form: save(noisy(), f)[:-1], outcome)
        for form, outcome in zip(FORMS, LAST_BYTE, strict=True)
    ],
    # JPEG
    *[(f"cut behind {b}", lambda b=b: _cut_behind(b), "truncated JPEG") for b in BLEMISHES],
    *[(f"whole with {b}", lambda b=b: made.blemished(made.jpeg(), b), SIZE) for b in BLEMISHES],
    ("one scan", lambda: _progressive("RGB", 1), "truncated JPEG: behind scan 1"),
    ("one scan less", lambda: _progressive("RGB", -1), "truncated JPEG: behind scan 9"),
    (
        "bad huffman table",
        lambda: _replaced(made.jpeg(), b"\xff\xc4", b"\xff" * 16, 5),
        "damaged JPEG",
    ),
    (
        "bad huffman code",
        lambda: _replaced(save(noisy(), "JPEG"), b"\xff\xda", b"\xff\0" * 40, 999),
        "damaged JPEG.*uffman",
    ),
    ("no height", lambda: made.jpeg_with_size(0, 53), "JPEG"),
    ("arithmetic", lambda: made.jpeg_with_frame(0xC9), SIZE),
    ("12 bits", lambda: made.jpeg_with_frame(0xC1, 12), "JPEG"),
    ("two frames", _two_frames, "JPEG"),
    ("without quantization", _without_tables, "JPEG"),
    ("a megabyte of fill", lambda: made.jpeg(b"\xff" * (1 << 20)), SIZE),
    (
        "EXIF loop",
        lambda: made.jpeg_with_exif((0x8769, 4, 1, 8), (0x8825, 4, 1, 8), following=8),
        SIZE,
    ),
    (
        "EXIF far offset",
        lambda: made.jpeg_with_exif((0x0112, 3, 2**32 - 1, 2**32 - 16), (0x010F, 2, 2**31 - 1, 4)),
        SIZE,
    ),
    (
        "EXIF of many entries",
        lambda: made.jpeg(made.segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x13")),
        SIZE,
    ),
    ("four colours, unknown", lambda: _cmyk(77), SIZE),
    ("MPO with a broken second picture", lambda: _frames("MPO")[:-300], SIZE),
    # PNG
    ("header's checksum", lambda: _replaced(png_of(), b"IHDR", b"\xff", 18), "PNG.*checksum"),
    ("rows' checksum", lambda: _replaced(png_of(), b"IDAT", b"\xff", 5), "damaged PNG"),
    ("no palette", lambda: png_of(8, 3), "PNG: no palette"),
    ("palette of 16 bits", lambda: png_of(16, 3), "PNG"),
    (
        "palette too short",
        lambda: png_with(
            chunk(b"PLTE", b"\1\2\3"), data=png_of(8, 3, 0, (b"\0" + b"\xff" * 4) * 3)
        ),
        SMALL,
    ),
    ("unknown filter", lambda: png_of(rows=(b"\x09" + bytes(4)) * 3), "PNG"),
    ("PNG of no size", lambda: png_of(size=(0, 3)), "PNG"),
    *[
        (f"rows missing: {way}", lambda w=way: made.png_of_fewer_rows(*w), "truncated PNG: rows of")
        for way in ((5, 8, 2), (9, 1, 0), (9, 8, 3), (9, 16, 4), (9, 16, 6, 1))
    ],
    ("all rows there", lambda: made.png_of_fewer_rows(10, 16, 6), (10, 12)),
    ("without rows", lambda: png_of()[:33] + chunk(b"IEND", b""), "PNG"),
    ("endless chunk", lambda: png_of()[:33] + b"\x7f\xff\xff\xffzTXtabc", "PNG"),
    ("broken second frame", lambda: _apng(chunk(b"fcTL", bytes(26)) + b"\0\0\0\2noise"), SMALL),
    ("cut behind the first frame", lambda: _apng(chunk(b"fdAT", bytes(99))[:50]), SMALL),
    # BMP
    ("BMP top down", lambda: made.bmp((4, -3)), SMALL),
    ("BMP of huge negative size", lambda: made.bmp((4, -(2**31))), "image has .* pixels"),
    *[
        (f"BMP {odd}", lambda o=odd: made.bmp(**o), "BMP")
        for odd in (
            {"method": 4},
            {"info": 0xFFFFFFFF},
            {"offset": 0xFFFFFFF0},
        )
    ],
    ("8-bit runs that overflow", lambda: made.bmp(body=b"\xff\x01" * 99, method=1), "BMP"),
    ("4-bit runs", lambda: made.bmp(body=b"\xff\x12" * 99, bits=4, method=2), "BMP"),
    ("runs that jump out", lambda: made.bmp(body=b"\x00\x02\xff\xff" * 9, method=1), SMALL),
    ("runs cut", lambda: made.bmp(body=b"\x00\xff\x01", method=1), "BMP"),
    # GIF
    (
        "GIF's second frame",
        lambda: made.gif(made.gif_frame(), made.gif_frame(codes=b"\x08\x03\xff\xff\xff\x00")),
        SMALL,
    ),
    (
        "frame beyond the screen",
        lambda: made.gif(save(Image.new("P", (8, 9)), "GIF")[19:-1]),
        (9, 8),
    ),
    (
        "codes of noise",
        lambda: made.gif(made.gif_frame(codes=b"\x02\x05\xff\xaa\xff\xaa\xff\0")),
        "GIF",
    ),
    ("comments only", lambda: made.gif(b"!\xfe" + (b"\xff" + bytes(255)) * 4000), "GIF"),
    ("without a palette", lambda: _replaced(made.gif(made.gif_frame()), b"\x80", b"\0"), SMALL),
    # WebP
    (
        "canvas of another size",
        lambda: made.webp(made.webp_canvas(36, 53), made.webp_picture()),
        "WebP",
    ),
    ("WebP's second frame", lambda: _frames("WEBP")[:-30] + b"\xaa" * 30, SIZE),
    (
        "WebP of noise",
        lambda: made.webp((b"VP8L", made.webp_picture(lossless=True)[1][:5] + noisy().tobytes())),
        "WebP",
    ),
    ("WebP without a picture", lambda: made.webp(made.webp_canvas(*SIZE), (b"EXIF", b"")), "WebP"),
    (
        "EXIF and profile of noise",
        lambda: made.webp(
            made.webp_canvas(*SIZE, flags=0x28),
            (b"ICCP", noisy().tobytes()),
            made.webp_picture(),
            (b"EXIF", noisy().tobytes()),
        ),
        SIZE,
    ),
    # TIFF
    *[(f"TIFF {n}", lambda t=tag: tiff({t[0]: t[1]}), "TIFF") for n, tag in ODD_TAGS.items()],
    *[(f"strips, {n}", lambda s=s: made.tiff_strips(s[0], s[1]), s[2]) for n, s in STRIPS.items()],
    ("TIFF orientation 9", lambda: tiff({274: 9}), SMALL),
    ("directory loop", lambda: tiff({0x8769: 8, 0x8825: 8, 330: 8}, following=8), SMALL),
    ("directory at 0", lambda: b"II*\x00" + bytes(104), "TIFF"),
    (
        "tags of huge count",
        lambda: tiff(dict.fromkeys((258, 273, 279), (4, 0x0FFFFFFF, 8))),
        "TIFF",
    ),
    (
        "private tags of huge count",
        lambda: tiff(dict.fromkeys(range(50_000, 52_000), (5, 0x1FFFFFFF, 8))),
        SMALL,
    ),
    (
        "tiles missing",
        lambda: tiff({273: None, 278: None, 279: None, 322: 16, 323: 16}),
        "TIFF",
    ),
    ("tiles cut off", lambda: made.tiled(16, compression=1, pixels=b"end"), "truncated TIFF"),
    ("plane missing", _plane_missing, "truncated TIFF: 2 strips or tiles of 3"),
    (
        "JPEG in a TIFF cut",
        lambda: made.tiff_of_jpeg(save(noisy(), "JPEG")[:-500], 64),
        "truncated TIFF: 1 of 1 strips are cut off",
    ),
    ("subsampled", lambda: tiff({262: 6, 277: 3}, bytes(99)), "unsupported TIFF: .*subsampled"),
    (
        "endless BigTIFF directory",
        lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**64 - 1) + bytes(200),
        "TIFF",
    ),
    ("damaged LZW", lambda: _damaged("tiff_lzw"), "TIFF"),
    ("damaged PackBits", lambda: _damaged("packbits"), (64, 64)),  # nothing in it tells
    ("damaged JPEG", lambda: _damaged("jpeg"), (64, 64)),  # libtiff keeps it to itself
    ("floats of 64 bits", lambda: tiff({258: (3, 1, 64), 339: (3, 1, 3)}, bytes(96)), "TIFF"),
    *[
        (f"TIFF of {m}", lambda m=m: save(Image.fromarray(scene()).convert(m), "TIFF"), SIZE)
        for m in ("CMYK", "YCbCr", "1", "P")
    ],
    ("orientation in XMP only", _xmp, SIZE),
]


def _many_scans() -> bytes:
    data = save(np.full((3000, 3000, 3), 128, np.uint8), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 1000 + data[-2:]


def _strips_on_top_of_one_another() -> bytes:
    count, side = 10_000, 2000
    body = struct.pack(f"<{count}I", *[200 + n % 9 for n in range(count)]) + bytes(side * side)
    return tiff({256: side, 257: side, 273: (4, count, HERE), 278: side - 1}, body)


def _bomb_in(name: bytes, head: bytes) -> bytes:
    return png_with(chunk(name, head + made.deflated(256)))


def _behind_the_rows() -> bytes:
    empty = chunk(b"IDAT", zlib.compress(b""))
    return png_of(rows=b"").replace(empty, chunk(b"IDAT", made.deflated(256)))


HUGE_TILE = "tiles of 20000x20000 pixels in an image of 12 pixels"
# What would take memory or time; chunks beside the picture of a PNG are not looked at.
BOMBS: list[Kind] = [
    ("JPEG of many scans", _many_scans, "more than 100 scans"),
    ("huge JPEG", lambda: made.jpeg_with_size(65_500, 65_500), TOO_MANY_PIXELS),
    ("huge PNG", lambda: png_of(8, 2, size=(65_500, 65_500), rows=b""), TOO_MANY_PIXELS),
    ("huge BMP", lambda: made.bmp((65_500, 65_500)), TOO_MANY_PIXELS),
    ("huge GIF", lambda: made.gif(made.gif_frame(), size=(65_500, 65_500)), TOO_MANY_PIXELS),
    (
        "huge WebP",
        lambda: made.webp(made.webp_canvas(65_500, 65_500), made.webp_picture()),
        TOO_MANY_PIXELS,
    ),
    ("huge TIFF", lambda: tiff({256: 65_500, 257: 65_500}), TOO_MANY_PIXELS),
    ("zTXt", lambda: _bomb_in(b"zTXt", b"a\0\0"), SMALL),
    ("iCCP", lambda: _bomb_in(b"iCCP", b"a\0\0"), SMALL),
    ("many texts", lambda: png_with(*[chunk(b"zTXt", b"a\0\0" + made.deflated(1))] * 1000), SMALL),
    ("behind the rows", _behind_the_rows, "PNG.*the end of the rows"),
    (
        "GIF frame to dispose of",
        lambda: made.gif(b"!\xf9\x04\x08\0\0\0\0", made.gif_frame(13_000, 13_000)),
        "image has 169000000 pixels",
    ),
    ("huge lossless WebP", lambda: made.webp(HUGE_LOSSLESS), "image has 268435456 pixels"),
    (
        "huge picture on a small canvas",
        lambda: made.webp(made.webp_canvas(3, 4), HUGE_LOSSLESS),
        "WebP",
    ),
    ("huge tile", lambda: made.tiled(20_000, pixels=made.deflated(400)), HUGE_TILE),
    (
        "huge JPEG in a strip",
        lambda: tiff({258: 8, 259: 7, 262: 6, 277: 3}, made.jpeg_with_size(65_500, 65_500)),
        "TIFF",
    ),
    ("strips on top of one another", _strips_on_top_of_one_another, "strips cover the image"),
    ("bomb in a strip", lambda: tiff({259: 8, 278: 2**32 - 1}, made.deflated(256)), SMALL),
]

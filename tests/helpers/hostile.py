"""A corpus of hostile image files, the same bytes each time: ``kinds()`` lists them.

Here those of any format and of BMP, GIF and WebP; the other formats have a module each.
"""

import struct
from types import ModuleType
from typing import Any

from PIL import Image

from tests.helpers import hostile_jpeg, hostile_png, hostile_tiff
from tests.helpers.hostile_kinds import KINDS, SIZE, TOO_MANY_PIXELS, Kind, decoded, refused
from tests.helpers.pictures import noisy, save, scene

MODULES: tuple[ModuleType, ...] = (hostile_jpeg, hostile_png, hostile_tiff)  # they fill KINDS


def kinds(bomb: bool) -> list[Kind]:
    """The bombs, or all others."""
    return [kind for kind in KINDS if kind.bomb == bomb]


@refused("JPEG", b"\xff\xd8\xff", "JPEG")
@refused("PNG", b"\x89PNG\r\n\x1a\n", "PNG")
@refused("TIFF", b"II*\x00", "TIFF")
@refused("TIFF", b"MM\x00+", "BigTIFF")
@refused("WebP", b"RIFF\x00\x00\x00\x00WEBPVP8X", "WebP")
@refused("BMP", b"BM", "BMP")
@refused("GIF", b"GIF89a", "GIF")
def only_the_first_bytes(magic: bytes, _: str) -> bytes:
    return magic


# Any format


FOREIGN = {
    "text": b"hello, world",
    "html": b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>",
    "json": b'{"error": "AccessDenied"}',
    "zeros": bytes(1000),
    "zip": b"PK\x03\x04\x14\x00\x00\x00\x08\x00",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "ico": b"\x00\x00\x01\x00\x01\x00\x10\x10",
    "psd": b"8BPS\x00\x01\x00\x00\x00\x00",
    "heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    "avif": b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00mif1avif",
    "jpeg2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    "jpegxl": b"\xff\x0a\xfa\x7f\x01\x90",
    "riff-that-is-no-webp": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "byte-order-mark-before-a-jpeg": b"\xef\xbb\xbf\xff\xd8\xff\xe0",
}


@refused("empty file")
def empty() -> bytes:
    return b""


@refused("not an image .* 1 bytes")
def one_byte() -> bytes:
    return b"\xff"


def foreign(name: str) -> bytes:
    return FOREIGN[name]


for foreign_name in FOREIGN:
    refused("not an image of a known format", foreign_name)(foreign)


@refused("JPEG", "JPEG")
@refused("PNG", "PNG")
@refused("TIFF", "TIFF")
@refused("truncated WebP", "WEBP")
@refused("BMP", "BMP")
@refused("GIF", "GIF")
def cut_in_the_header(form: str) -> bytes:
    return save(noisy(), form)[:20]


@refused("truncated JPEG", "JPEG")
@refused("truncated PNG", "PNG")
@refused("truncated TIFF", "TIFF")
@refused("WebP", "WEBP")
@refused("truncated BMP", "BMP")
@refused("truncated GIF", "GIF")
def cut_in_the_middle(form: str) -> bytes:
    data = save(noisy(), form)
    return data[: len(data) // 2]


@refused("truncated JPEG", "JPEG")
@refused("truncated TIFF", "TIFF")
@refused("WebP", "WEBP")
@decoded((64, 64), "PNG")
@refused("BMP", "BMP")
@decoded((64, 64), "GIF")
def without_the_last_byte(form: str) -> bytes:
    return save(noisy(), form)[:-1]


# BMP


def bmp(size: tuple[int, int], body: bytes, bits: int = 8, method: int = 0, **head: int) -> bytes:
    """A BMP of this (width, height); its palette is empty but for the colours asked for."""
    colours = head.get("colours", 256)
    start = 54 + 4 * 256
    info = (head.get("info", 40), *size, 1, bits, method, len(body), 0, 0, colours, 0)
    offset = head.get("offset", start)
    header = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, offset)
    return header + struct.pack("<IiiHHIIiiII", *info) + bytes(4 * 255) + b"\x01\x02\x03\x00" + body


@refused(TOO_MANY_PIXELS, bomb=True)
def bmp_huge_header() -> bytes:
    return bmp((65_500, 65_500), b"")


@decoded((3, 4))
def bmp_top_down() -> bytes:
    return bmp((4, -3), bytes(12))


@refused("image has .* pixels", -4, 3)
@refused("BMP", 0, 3)
@refused("BMP", 4, 0)
@refused("image has .* pixels", 4, -(2**31))
@refused("image has .* pixels", 2**31 - 1, 2**31 - 1)
def bmp_size(width: int, height: int) -> bytes:
    return bmp((width, height), bytes(12))


@refused("BMP", "bits", {"bits": 7})
@refused("BMP", "jpeg", {"method": 4})
@refused("BMP", "png", {"method": 5})
@refused("BMP", "bitfields", {"method": 3, "bits": 32})
@refused("BMP", "colours", {"colours": 70_000})
@refused("BMP", "no header", {"info": 0})
@refused("BMP", "huge header", {"info": 0xFFFFFFFF})
@refused("BMP", "offset", {"offset": 0xFFFFFFF0})
def bmp_with(_: str, odd: dict[str, int]) -> bytes:
    return bmp((4, 3), bytes(12), **odd)


@refused("BMP", "8-bit overflow", 8, 1, b"\xff\x01" * 99)
@refused("BMP", "4-bit overflow", 4, 2, b"\xff\x12" * 99)
@decoded((3, 4), "delta", 8, 1, b"\x00\x02\xff\xff" * 9)
@refused("BMP", "end", 8, 1, b"\x00\x01")
@refused("BMP", "cut", 8, 1, b"\x00\xff\x01")
def bmp_rle(_: str, bits: int, method: int, body: bytes) -> bytes:
    return bmp((4, 3), body, bits, method)


# GIF


def gif(*blocks: bytes, size: tuple[int, int] = (4, 3), flags: int = 0x80) -> bytes:
    palette = b"\xff\x00\x00" + bytes(3)
    return b"GIF89a" + struct.pack("<HHBBB", *size, flags, 0, 0) + palette + b"".join(blocks) + b";"


def gif_frame(width: int = 4, height: int = 3, codes: bytes = b"") -> bytes:
    """A picture block; the codes are by default those of a good picture of 4x3."""
    good = save(Image.new("P", (4, 3)), "GIF")[29:-1]
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + (codes or good)


@refused(TOO_MANY_PIXELS, bomb=True)
def gif_huge_header() -> bytes:
    return gif(gif_frame(), size=(65_500, 65_500))


@refused("image has 169000000 pixels", bomb=True)
def gif_huge_frame_to_dispose_of() -> bytes:
    return gif(b"!\xf9\x04\x08\x00\x00\x00\x00", gif_frame(13_000, 13_000))


@decoded((3, 4))
def gif_broken_second_frame() -> bytes:
    return gif(gif_frame(), gif_frame(codes=b"\x08\x03\xff\xff\xff\x00"))


@decoded((9, 8))
def gif_frame_beyond_the_screen() -> bytes:
    return gif(save(Image.new("P", (8, 9)), "GIF")[19:-1])


@refused("GIF", "noise", b"\x02\x05\xff\xaa\xff\xaa\xff\x00")
@refused("GIF", "code size", b"\x0d\x02\x00\x00\x00")
@refused("GIF", "no codes", b"\x08\x00")
def gif_broken_first_frame(_: str, codes: bytes) -> bytes:
    return gif(gif_frame(codes=codes))


@refused("GIF", 0, 0)
@refused("GIF", 4, 0)
def gif_of_no_size(width: int, height: int) -> bytes:
    return gif(gif_frame(width, height), size=(width, height))


@refused("GIF")
def gif_without_a_picture() -> bytes:
    return gif()


@refused("GIF")
def gif_of_comments_only() -> bytes:
    return gif(b"!\xfe" + (b"\xff" + bytes(255)) * 4000)


@decoded((3, 4))
def gif_without_a_palette() -> bytes:
    data = gif(gif_frame(), flags=0)
    return data[:13] + data[19:]


# WebP


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
        for name, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_picture(**options: Any) -> tuple[bytes, bytes]:
    """The one chunk of a good WebP of scene()."""
    data = save(scene(), "WEBP", **options)
    return data[12:16], data[20:]


def canvas(height: int, width: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"VP8X", struct.pack("<I", flags) + sides


@refused(TOO_MANY_PIXELS, bomb=True)
def webp_huge_header() -> bytes:
    return webp(canvas(65_500, 65_500), webp_picture())


@refused("image has 268435456 pixels", bomb=True)
def webp_huge_lossless_header() -> bytes:
    return webp((b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20)))


@refused("WebP", bomb=True)
def webp_huge_picture_on_a_small_canvas() -> bytes:
    return webp(canvas(3, 4), (b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20)))


@refused("WebP", 36, 53)
@refused("WebP", 38, 54)
def webp_canvas_of_another_size(height: int, width: int) -> bytes:
    return webp(canvas(height, width), webp_picture())


@decoded((3, 4))
def webp_broken_second_frame() -> bytes:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    data = bytearray(save(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    start = data.rindex(b"ANMF") + 42  # keeps the heads of the chunk and of the picture in it
    data[start:] = b"\xaa" * (len(data) - start)
    return bytes(data)


@refused("WebP")
def webp_noise() -> bytes:
    name, content = webp_picture(lossless=True)
    return webp((name, content[:5] + noisy().tobytes()))


@refused("WebP")
def webp_without_a_picture() -> bytes:
    return webp(canvas(*SIZE), (b"EXIF", b"II*\x00"))


@refused("WebP")
def webp_of_an_unknown_chunk() -> bytes:
    return webp((b"JUNK", bytes(30)), webp_picture())


@decoded(SIZE)
def webp_exif_and_profile_of_noise() -> bytes:
    noise = noisy().tobytes()
    return webp(canvas(*SIZE, flags=0x28), (b"ICCP", noise), webp_picture(), (b"EXIF", noise))


@refused("WebP")
def webp_wrong_file_size() -> bytes:
    data = save(scene(), "WEBP")
    return data[:4] + b"\xff\xff\xff\x7f" + data[8:]

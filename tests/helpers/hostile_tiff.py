"""Hostile TIFF files."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from tests.helpers.hostile_jpeg import jpeg_with_size
from tests.helpers.hostile_kinds import SIZE, TOO_MANY_PIXELS, decoded, deflated, refused
from tests.helpers.pictures import noisy, save, scene

Tag = int | tuple[int, int, int]  # a LONG, or (type, count, value or offset)
HERE = -1  # the position of the pixels
SMALL = (3, 4)  # of tiff()


def tiff(changes: dict[int, Tag | None], pixels: bytes = bytes(12), following: int = 0) -> bytes:
    """A TIFF of 4x3 gray pixels with other tags; None leaves one out."""
    usual = {256: 4, 257: 3, 258: 8, 259: 1, 262: 1, 273: HERE, 277: 1, 278: 3, 279: len(pixels)}
    tags = {tag: value for tag, value in sorted({**usual, **changes}.items()) if value is not None}
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [value if isinstance(value, tuple) else (4, 1, value) for value in tags.values()]
    body = b"".join(
        struct.pack("<HHII", tag, kind, count, start if value == HERE else value)
        for tag, (kind, count, value) in zip(tags, entries, strict=True)
    )
    head = b"II*\x00" + struct.pack("<IH", 8, len(tags))
    return head + body + struct.pack("<I", following) + pixels


def tiled(side: int, kind: int = 4, compression: int = 8, pixels: bytes = b"") -> bytes:
    """4x3 pixels in one tile of side x side."""
    data = pixels or zlib.compress(bytes(side * side), 9)
    tags: dict[int, Tag | None] = {273: None, 278: None, 279: None, 259: compression}
    tags |= {322: (kind, 1, side), 323: (kind, 1, side), 324: HERE, 325: len(data)}
    return tiff(tags, data)


@refused(TOO_MANY_PIXELS, bomb=True)
def tiff_huge_header() -> bytes:
    return tiff({256: 65_500, 257: 65_500})


@refused("tiles of 20000x20000 pixels in an image of 12 pixels", bomb=True)
def tiff_huge_tile() -> bytes:
    return tiled(20_000, pixels=deflated(400))


@refused("TIFF", bomb=True)
def tiff_huge_jpeg_in_a_strip() -> bytes:
    data = jpeg_with_size(save(scene(), "JPEG"), 65_500, 65_500)
    return tiff({258: 8, 259: 7, 262: 6, 277: 3}, data)


@refused("TIFF")
def tiff_jpeg_strip_cut() -> bytes:
    data = save(noisy(), "JPEG")
    size = {256: 64, 257: 64, 278: 64, 279: len(data)}
    return tiff({**size, 258: 8, 259: 7, 262: 6, 277: 3}, data[:-500])


@refused("tiles of 20000x20000 pixels in an image of 12 pixels", bomb=True)
def tiff_huge_tile_of_odd_type() -> bytes:
    return tiled(20_000, kind=9, pixels=deflated(400))


@refused("strips cover the image .* times", bomb=True)
def tiff_strips_on_top_of_one_another() -> bytes:
    count, side = 10_000, 2000
    body = struct.pack(f"<{count}I", *[200 + n % 9 for n in range(count)]) + bytes(side * side)
    return tiff({256: side, 257: side, 273: (4, count, HERE), 278: side - 1}, body)


@decoded(SMALL, bomb=True)
def tiff_bomb_in_a_strip() -> bytes:
    return tiff({259: 8, 278: 0xFFFFFFFF}, deflated(256))


@decoded(SMALL)
def tiff_directory_loop() -> bytes:
    return tiff({}, following=8)


@refused("TIFF", 0)
@refused("TIFF", 0xFFFFFFFF)
def tiff_directory_at(position: int) -> bytes:
    return b"II*\x00" + struct.pack("<I", position) + bytes(100)


@refused("TIFF", 2)
@refused("TIFF", 4)
@refused("TIFF", 12)
def tiff_tags_of_huge_count(kind: int) -> bytes:
    return tiff(dict.fromkeys((258, 273, 279), (kind, 0x0FFFFFFF, 8)))


@decoded(SMALL)
def tiff_private_tags_of_huge_count() -> bytes:
    return tiff(dict.fromkeys(range(50_000, 52_000), (5, 0x1FFFFFFF, 8)))


@refused("TIFF")
def tiff_tiles_missing() -> bytes:
    return tiff({273: None, 278: None, 279: None, 322: 16, 323: 16})


@refused("TIFF", 0)
@refused("TIFF", 16)
def tiff_tiles_behind_the_end(side: int) -> bytes:
    return tiled(side, compression=1, pixels=b"end")


@refused("TIFF", "width", 256, 0)
@refused("TIFF", "height", 257, 0)
@refused("TIFF", "missing width", 256, None)
@refused("TIFF", "bits", 258, 7)
@refused("TIFF", "compression", 259, 12_345)
@refused("TIFF", "old JPEG", 259, 6)
@refused("TIFF", "JPEG", 259, 7)
@refused("TIFF", "fax", 259, 4)
@refused("TIFF", "LZW", 259, 5)
@refused("TIFF", "deflate", 259, 8)
@refused("TIFF", "LZMA", 259, 34_925)
@refused("TIFF", "colours", 262, 99)
@refused("TIFF", "palette without colours", 262, 3)
@refused("TIFF", "strip offset", 273, 0xFFFFFFF0)
@refused("TIFF", "samples", 277, 65_535)
@refused("TIFF", "rows per strip", 278, 0)
@decoded(SMALL, "orientation", 274, 9)
@decoded(SMALL[::-1], "orientation", 274, 6)
def tiff_with(_: str, tag: int, value: int | None) -> bytes:
    return tiff({tag: value})


def big_endian_bigtiff(values: NDArray[np.uint16]) -> bytes:
    """Gray values of 16 bits in one strip."""
    height, width = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 0, 277: 1, 279: values.nbytes}
    tags[273] = 16 + 8 + 20 * len(tags) + 8
    body = b"".join(struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in tags.items())
    head = b"MM\x00+\x00\x08\x00\x00" + struct.pack(">QQ", 16, len(tags))
    return head + body + bytes(8) + values.astype(">u2").tobytes()


@decoded(SIZE)
def bigtiff_of_the_other_byte_order() -> bytes:
    return big_endian_bigtiff(scene()[:, :, 0].astype(np.uint16))


SPARSE = "truncated TIFF: 1 of 3 .* absent.*write the file anew"


@refused(SPARSE, "no offset", (0, 300, 310), (4, 4, 4))
@refused(SPARSE, "no bytes", (290, 300, 310), (4, 0, 4))
@refused("truncated TIFF: 2 strips or tiles of 3", "short list", (290, 300), (4, 4))
@refused("truncated TIFF: 1 of 3 strips are cut off", "too few bytes", (290, 300, 310), (4, 3, 4))
@refused("truncated TIFF: 1 of 3 strips are cut off", "outside", (290, 300, 5000), (4, 4, 4))
@decoded(SMALL, "whole", (290, 300, 310), (4, 4, 4))
def tiff_strips(_: str, offsets: tuple[int, ...], counts: tuple[int, ...]) -> bytes:
    """Three strips of one row each, their places and sizes behind the directory."""
    numbers = struct.pack(f"<{2 * len(offsets)}I", *offsets, *counts)
    where = len(tiff({})) - 12
    tags: dict[int, Tag | None] = {278: 1, 273: (4, len(offsets), HERE)}
    return tiff({**tags, 279: (4, len(counts), where + 4 * len(offsets))}, numbers + bytes(200))


@refused("truncated TIFF: 2 strips or tiles of 3")
def tiff_plane_missing() -> bytes:
    tags: dict[int, Tag | None] = {258: 8, 262: 2, 277: 3, 284: 2}
    places = struct.pack("<4I", 200, 200, 12, 12)
    where = len(tiff(tags)) - 12
    return tiff({**tags, 273: (4, 2, HERE), 279: (4, 2, where + 8)}, places + bytes(100))


@refused("truncated TIFF: 1 of 1 strips are cut off")
def tiff_jpeg_cut_inside() -> bytes:
    """The file is whole, its only strip is not."""
    data = save(noisy(), "JPEG")[:-500]
    size = {256: 64, 257: 64, 278: 64, 279: len(data)}
    return tiff({**size, 258: 8, 259: 7, 262: 6, 277: 3}, data)


@refused("unsupported TIFF: the compression LERC", 34_887)
@refused("unsupported TIFF: the compression WebP", 50_001)
@refused("unsupported TIFF: the compression number 77", 77)
def tiff_compressed_by(method: int) -> bytes:
    return tiff({259: method})


@refused("unsupported TIFF: .*subsampled")
def tiff_subsampled_colours_uncompressed() -> bytes:
    return tiff({262: 6, 277: 3}, bytes(99))


@decoded(SIZE)
def bigtiff() -> bytes:
    return save(scene(), "TIFF", big_tiff=True)


@refused("TIFF")
def bigtiff_endless_directory() -> bytes:
    return b"II+\x00\x08\x00\x00\x00" + struct.pack("<QQ", 16, 2**64 - 1) + bytes(200)


@refused("TIFF")
def bigtiff_with_an_empty_directory_of_the_other_byte_order() -> bytes:
    return b"MM\x00+\x00\x08\x00\x00" + struct.pack(">QQ", 16, 0) + bytes(20)


@refused("TIFF", "tiff_lzw")
@refused("TIFF", "tiff_adobe_deflate")
@decoded((64, 64), "packbits")  # nothing in it tells
@decoded((64, 64), "jpeg")  # libtiff keeps it to itself
def tiff_damaged(compression: str) -> bytes:
    data = bytearray(save(noisy(), "TIFF", compression=compression))
    data[1000:1400] = b"\xaa" * 400
    return bytes(data)


@refused("floating point", "float32")
@refused("TIFF", "float64")
@refused("integer image with values", "int32")
@decoded((2, 2), "uint16")
@decoded((2, 2), "bool")
def tiff_of(kind: str) -> bytes:
    values = np.array([[0, 70_000], [1, 2]])
    if kind == "float64":
        return tiff({258: (3, 1, 64), 339: (3, 1, 3), 279: 96}, bytes(96))
    return save(values.astype(kind), "TIFF")


@decoded(SIZE, "CMYK")
@decoded(SIZE, "LAB")
@decoded(SIZE, "YCbCr")
@decoded(SIZE, "1")
@decoded(SIZE, "P")
def tiff_in(mode: str) -> bytes:
    return save(Image.fromarray(scene()).convert("RGB").convert(mode), "TIFF")


@decoded(SIZE)
def tiff_orientation_in_xmp_only() -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700] = b'<x tiff:Orientation="6"/>'
    return save(scene(), "TIFF", tiffinfo=tags)


@decoded(SMALL)
def tiff_exif_loop() -> bytes:
    return tiff({0x8769: 8, 0x8825: 8, 0xA005: 8, 330: 8})

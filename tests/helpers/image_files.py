"""Builders of image files byte by byte, good and odd ones."""

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.pictures import png, save, scene

# JPEG


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes, **options: Any) -> bytes:
    """A good JPEG with these segments at its start."""
    data = save(scene(), "JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_with_exif(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A JPEG with such an EXIF block: (tag, type, count, value) each."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, len(entries))
    return jpeg(segment(0xE1, head + body + struct.pack("<I", following)))


def jpeg_with_size(height: int, width: int) -> bytes:
    data = save(scene(), "JPEG")
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def jpeg_with_frame(code: int, precision: int = 8) -> bytes:
    data = bytearray(save(scene(), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 1], data[start + 4] = code, precision
    return bytes(data)


def scans(data: bytes) -> list[int]:
    """Where each scan begins, with the tables before it."""
    found = [i for i in range(len(data)) if data[i : i + 2] in (b"\xff\xc4", b"\xff\xda")]
    return [i for i, before in zip(found, [0, *found], strict=False) if data[before + 1] != 0xC4]


def blemished(data: bytes, kind: str) -> bytes:
    """What libjpeg warns of though no pixel is lost: it tells its first warning only."""
    frame, scan = data.index(b"\xff\xdb"), data.index(b"\xff\xda")
    after = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    return {
        "revision": data.replace(b"JFIF\0\x01", b"JFIF\0\x07", 1),
        "stray bytes": data[:frame] + b"abc" + data[frame:],
        "scan parameters": data[: after - 3] + b"\x01\x20\0" + data[after:],
        "Adobe transform": data[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\x09") + data[2:],
    }[kind]


# PNG: 4 wide, 3 high where nothing else is said


def chunk(name: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + check


def png_of(
    depth: int = 8,
    colour: int = 0,
    interlace: int = 0,
    rows: bytes = bytes(15),
    size: tuple[int, int] = (4, 3),
) -> bytes:
    return png(struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace), rows)


def png_with(*chunks: bytes, data: bytes = b"") -> bytes:
    """A good PNG with these chunks behind its header."""
    data = data or png_of()
    return data[:33] + b"".join(chunks) + data[33:]


def png_of_fewer_rows(rows: int, depth: int, colour: int, interlace: int = 0) -> bytes:
    """Whole in every other respect: so many of 10 rows, black like those that are missing."""
    row = 1 + (12 * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] + 7) // 8
    data = png_of(depth, colour, interlace, bytes(row * rows), (12, 10))
    return png_with(chunk(b"PLTE", bytes(6)), data=data) if colour == 3 else data


def deflated(megabytes: int) -> bytes:
    """So many megabytes of zeros in a thousandth of that; the stream has no end."""
    packer = zlib.compressobj(9)
    head, block = [
        packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    ]
    return head + block * (megabytes - 1)


# BMP, GIF, WebP: 4 wide, 3 high


def bmp(
    size: tuple[int, int] = (4, 3), body: bytes = bytes(12), bits: int = 8, **head: int
) -> bytes:
    """A BMP of this (width, height); its palette is empty but for the colours asked for."""
    start = 54 + 4 * 256
    method, colours = head.get("method", 0), head.get("colours", 256)
    info = (head.get("info", 40), *size, 1, bits, method, len(body), 0, 0, colours, 0)
    header = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, head.get("offset", start))
    return header + struct.pack("<IiiHHIIiiII", *info) + bytes(4 * 255) + b"\x01\x02\x03\x00" + body


def gif(*blocks: bytes, size: tuple[int, int] = (4, 3), flags: int = 0x80) -> bytes:
    palette = b"\xff\x00\x00" + bytes(3)
    return b"GIF89a" + struct.pack("<HHBBB", *size, flags, 0, 0) + palette + b"".join(blocks) + b";"


def gif_frame(width: int = 4, height: int = 3, codes: bytes = b"") -> bytes:
    """A picture block; the codes are by default those of a good picture of 4x3."""
    good = save(Image.new("P", (4, 3)), "GIF")[29:-1]
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + (codes or good)


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


def webp_canvas(height: int, width: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"VP8X", struct.pack("<I", flags) + sides


# TIFF


Tag = int | tuple[int, int, int]  # a LONG, or (type, count, value or offset)
HERE = -1  # the position of the pixels


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


def tiff_of_jpeg(data: bytes, side: int) -> bytes:
    """A square picture whose only strip is that JPEG."""
    size: dict[int, Tag | None] = {256: side, 257: side, 278: side, 279: len(data)}
    return tiff({**size, 258: 8, 259: 7, 262: 6, 277: 3}, data)


def tiff_strips(offsets: tuple[int, ...], counts: tuple[int, ...]) -> bytes:
    """Three strips of one row each, their places and sizes behind the directory."""
    numbers = struct.pack(f"<{2 * len(offsets)}I", *offsets, *counts)
    where = len(tiff({})) - 12
    tags: dict[int, Tag | None] = {278: 1, 273: (4, len(offsets), HERE)}
    return tiff({**tags, 279: (4, len(counts), where + 4 * len(offsets))}, numbers + bytes(200))


def big_endian_bigtiff(values: NDArray[np.uint16]) -> bytes:
    """Gray values of 16 bits in one strip."""
    height, width = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 0, 277: 1, 279: values.nbytes}
    tags[273] = 16 + 8 + 20 * len(tags) + 8
    body = b"".join(struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in tags.items())
    head = b"MM\x00+\x00\x08\x00\x00" + struct.pack(">QQ", 16, len(tags))
    return head + body + bytes(8) + values.astype(">u2").tobytes()


def pages(*kinds: int, below: bool = False) -> bytes:
    """A TIFF of pages of that NewSubfileType, 10 px smaller one after the other from the last.

    ``below``: the second is not behind but below the first (SubIFDs).
    """
    sizes = [40 - 10 * (len(kinds) - n) for n in range(1, len(kinds) + 1)]
    first, *rest = [Image.fromarray(scene(size, size + 5)) for size in sizes]
    tags = {254: 9, **({330: 7} if below else {})}
    options = {"save_all": True, "append_images": rest, "tiffinfo": tags}
    data = bytearray(save(first, "TIFF", **options))
    for kind in kinds:
        at = data.index(struct.pack("<HHII", 254, 4, 1, 9))
        data[at : at + 12] = struct.pack("<HHII", 254, 4, 1, kind)
    if below:
        start = struct.unpack_from("<I", data, 4)[0]
        following = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
        at = data.index(struct.pack("<HHII", 330, 4, 1, 7))
        data[at + 8 : at + 12] = data[following : following + 4]
        data[following : following + 4] = bytes(4)
    return bytes(data)


# More than 8 bits

DEEP = np.multiply.outer(np.arange(40) * 97, np.ones(50, int)) + np.arange(50)  # 0..3832
COLOURS = np.stack([DEEP, DEEP[::-1], 4095 - DEEP], axis=2)
U16, COLOURS16 = DEEP.astype(np.uint16), COLOURS.astype(np.uint16)


def deep_png(values: NDArray[Any]) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_of(16, 2 if values.ndim == 3 else 0, 0, rows, values.shape[1::-1])


def deep_tiff(values: NDArray[Any], changes: dict[int, Tag | None] | None = None) -> bytes:
    """One strip of little-endian values as they are; RGB where there are three."""
    samples = values.shape[2] if values.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape[:2]
    tags: dict[int, Tag | None] = {256: width, 257: height, 278: height, 277: samples, 339: kind}
    tags |= {258: 8 * values.dtype.itemsize, 262: 2 if samples == 3 else 1}
    return tiff({**tags, **(changes or {})}, values.tobytes())


def _differences(values: NDArray[np.uint16]) -> bytes:
    """Deflated, as TIFF's predictor 2 stores them."""
    steps = np.diff(values, axis=1, prepend=np.zeros_like(values[:, :1]))
    data = zlib.compress(steps.tobytes())
    plain = deep_tiff(steps, {259: 8, 279: len(data), 317: 2})
    return plain.replace(steps.tobytes(), data)


def _packed(values: NDArray[Any], changes: dict[int, Tag | None]) -> bytes:
    """12 bits each, rows padded to whole bytes."""
    bits = values.reshape(len(values), -1)[:, :, None] >> np.arange(12)[::-1] & 1
    pixels = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()
    return tiff({256: 50, 257: 40, 278: 40, 258: 12, **changes}, pixels)


# Name to file and the values that it holds.
ARRANGEMENTS = {
    "PNG gray": (deep_png(DEEP), DEEP),
    "PNG colour": (deep_png(COLOURS), COLOURS),
    "TIFF gray": (deep_tiff(U16), DEEP),
    "TIFF colour": (deep_tiff(COLOURS16), COLOURS),
    "LZW": (save(U16, "TIFF", compression="tiff_lzw"), DEEP),
    "bands without colours": (deep_tiff(COLOURS16, {262: 1}), COLOURS),
    "bands of 8 bits": (deep_tiff((COLOURS // 16).astype(np.uint8), {262: 1}), None),
    "alpha": (deep_tiff(np.dstack([COLOURS16, U16]), {262: 2, 338: 2}), COLOURS),
    "differences": (_differences(COLOURS16), COLOURS),
    "12 bits": (_packed(DEEP, {}), DEEP),
    "12 bits of colour": (_packed(COLOURS, {277: 3, 262: 2}), COLOURS),
    "signed": (deep_tiff(DEEP.astype(np.int16)), DEEP),
    "floats": (deep_tiff(DEEP.astype(np.float32)), DEEP),
    "big-endian BigTIFF": (big_endian_bigtiff(U16), DEEP),
}

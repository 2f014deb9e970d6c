"""Files of more than 8 bits in the ways to store them, and TIFF files of several pages."""

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.hostile_tiff import Tag, big_endian_bigtiff, tiff
from tests.helpers.pictures import png, save, scene

DEEP = np.multiply.outer(np.arange(40) * 97, np.ones(50, int)) + np.arange(50)  # 0..3832
COLOURS = np.stack([DEEP, DEEP[::-1], 4095 - DEEP], axis=2)


def deep_png(values: NDArray[Any]) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = 2 if values.ndim == 3 else 0
    return png(struct.pack(">IIBBBBB", *values.shape[1::-1], 16, colour, 0, 0, 0), rows)


def deep_tiff(values: NDArray[Any], changes: dict[int, Tag | None] | None = None) -> bytes:
    """One strip of little-endian values as they are; RGB where there are three."""
    samples = values.shape[2] if values.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape[:2]
    tags: dict[int, Tag | None] = {256: width, 257: height, 278: height, 277: samples, 339: kind}
    tags |= {258: 8 * values.dtype.itemsize, 262: 2 if samples == 3 else 1}
    return tiff({**tags, **(changes or {})}, values.tobytes())


def differences(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """As TIFF's predictor 2 stores them."""
    return np.diff(values, axis=1, prepend=np.zeros_like(values[:, :1]))


def packed(values: NDArray[Any]) -> bytes:
    """12 bits each, rows padded to whole bytes."""
    bits = values[:, :, None] >> np.arange(12)[::-1] & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def deflated_tiff(values: NDArray[Any], changes: dict[int, Tag | None]) -> bytes:
    data = zlib.compress(values.tobytes())
    plain = deep_tiff(values, {259: 8, 279: len(data), **changes})
    return plain.replace(values.tobytes(), data)


U16, COLOURS16 = DEEP.astype(np.uint16), COLOURS.astype(np.uint16)
ARRANGEMENTS = {
    "PNG gray": (deep_png(DEEP), DEEP),
    "PNG colour": (deep_png(COLOURS), COLOURS),
    "TIFF gray": (deep_tiff(U16), DEEP),
    "TIFF colour": (deep_tiff(COLOURS16), COLOURS),
    "LZW": (save(U16, "TIFF", compression="tiff_lzw"), DEEP),
    "bands without colours": (deep_tiff(COLOURS16, {262: 1}), COLOURS),
    "bands of 8 bits": (deep_tiff((COLOURS // 16).astype(np.uint8), {262: 1}), None),
    "alpha": (deep_tiff(np.dstack([COLOURS16, U16]), {262: 2, 338: 2}), COLOURS),
    "differences": (deflated_tiff(differences(COLOURS16), {317: 2}), COLOURS),
    "12 bits": (tiff({256: 50, 257: 40, 278: 40, 258: 12}, packed(DEEP)), DEEP),
    "12 bits of colour": (
        tiff(
            {256: 50, 257: 40, 278: 40, 258: 12, 277: 3, 262: 2}, packed(COLOURS.reshape(40, 150))
        ),
        COLOURS,
    ),
    "signed": (deep_tiff(DEEP.astype(np.int16)), DEEP),
    "floats": (deep_tiff(DEEP.astype(np.float32)), DEEP),
    "big-endian BigTIFF": (big_endian_bigtiff(U16), DEEP),
}


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

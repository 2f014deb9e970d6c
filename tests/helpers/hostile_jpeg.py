"""Hostile JPEG files."""

import struct
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.hostile_kinds import SIZE, TOO_MANY_PIXELS, decoded, refused
from tests.helpers.pictures import noisy, oriented, save, scene


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes, **options: Any) -> bytes:
    """A good JPEG with these segments at its start."""
    data = save(scene(), "JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def exif(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A JPEG with such an EXIF block: (tag, type, count, value) each."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, len(entries))
    return jpeg(segment(0xE1, head + body + struct.pack("<I", following)))


def jpeg_with_size(data: bytes, height: int, width: int) -> bytes:
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def jpeg_with_frame(code: int, precision: int = 8) -> bytes:
    data = save(scene(), "JPEG")
    start = data.index(b"\xff\xc0")
    return (
        data[: start + 1]
        + bytes([code])
        + data[start + 2 : start + 4]
        + bytes([precision])
        + (data[start + 5 :])
    )


@refused("truncated JPEG")
def jpeg_progressive_cut() -> bytes:
    data = save(noisy(), "JPEG", progressive=True)
    return data[: len(data) // 2]


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


@refused("truncated JPEG", "revision")
@refused("truncated JPEG", "stray bytes")
@refused("truncated JPEG", "scan parameters")
@refused("truncated JPEG", "Adobe transform")
def jpeg_cut_behind_a_harmless_warning(kind: str) -> bytes:
    data = blemished(save(noisy(), "JPEG"), kind)
    return data[: len(data) * 2 // 3] + b"\xff\xd9"


@decoded(SIZE, "revision")
@decoded(SIZE, "stray bytes")
@decoded(SIZE, "scan parameters")
@decoded(SIZE, "Adobe transform")
def jpeg_whole_behind_a_harmless_warning(kind: str) -> bytes:
    return blemished(save(scene(), "JPEG"), kind)


@refused("truncated JPEG: behind scan 1", "RGB", 1)
@refused("truncated JPEG: behind scan 9", "RGB", -1)
@refused("truncated JPEG: behind scan 5", "L", -1)
def jpeg_progressive_without_the_last_scans(mode: str, kept: int) -> bytes:
    """Cut between two scans and ended: every decoder shows a whole, coarse picture."""
    data = save(Image.fromarray(noisy()).convert(mode), "JPEG", progressive=True)
    return data[: scans(data)[kept]] + b"\xff\xd9"


@refused("damaged JPEG")
def jpeg_bad_huffman_table() -> bytes:
    data = save(scene(), "JPEG")
    start = data.index(b"\xff\xc4") + 5
    return data[:start] + b"\xff" * 16 + data[start + 16 :]


@refused("damaged JPEG.*uffman")
def jpeg_bad_huffman_code() -> bytes:
    data = save(noisy(), "JPEG")
    half = len(data) // 2
    return data[:half] + b"\xff\x00" * 40 + data[half + 80 :]


@refused("truncated JPEG")
def jpeg_without_end() -> bytes:
    return save(scene(), "JPEG")[:-2]


@refused("JPEG", 0, 53)
@refused("JPEG", 37, 0)
@refused("JPEG", 0, 0)
def jpeg_of_no_size(height: int, width: int) -> bytes:
    return jpeg_with_size(save(scene(), "JPEG"), height, width)


@refused("JPEG", "lossless", 0xC3)
@decoded(SIZE, "arithmetic", 0xC9)
@refused("JPEG", "hierarchical", 0xC5)
@refused("JPEG", "12-bit", 0xC1, 12)
@refused("JPEG", "1-bit", 0xC0, 1)
def jpeg_of_a_rare_kind(_: str, code: int, precision: int = 8) -> bytes:
    return jpeg_with_frame(code, precision)


@refused("JPEG")
def jpeg_with_two_frames() -> bytes:
    data = save(scene(), "JPEG")
    start = data.index(b"\xff\xc0")
    return data[:start] + data[start : start + 19] + data[start:]


@refused("JPEG")
def jpeg_without_quantization() -> bytes:
    data = save(scene(), "JPEG")
    return data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]


@refused("JPEG")
def jpeg_with_only_a_thumbnail() -> bytes:
    return b"\xff\xd8" + segment(0xE1, b"Exif\x00\x00" + save(scene(9, 9), "JPEG")) + b"\xff\xd9"


@decoded(SIZE)
def jpeg_with_trailing_junk() -> bytes:
    junk = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    return save(scene(), "JPEG") + junk.tobytes()


@decoded(SIZE)
def jpeg_with_a_megabyte_of_fill() -> bytes:
    return jpeg(b"\xff" * (1 << 20))


@decoded(SIZE)
def jpeg_with_a_profile_of_noise() -> bytes:
    return jpeg(segment(0xE2, b"ICC_PROFILE\x00\x05\x02" + noisy().tobytes()))


@decoded(SIZE, 0)
@decoded(SIZE, 9)
@decoded(SIZE, 65_535)
@decoded(SIZE[::-1], 6)
def jpeg_orientation(value: int) -> bytes:
    return oriented(value, "JPEG")


@decoded(SIZE)
def jpeg_exif_loop() -> bytes:
    return exif((0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0xA005, 4, 1, 8), following=8)


@decoded(SIZE)
def jpeg_exif_far_offset() -> bytes:
    return exif((0x0112, 3, 0xFFFFFFFF, 0xFFFFFFF0), (0x010F, 2, 0x7FFFFFFF, 4))


@decoded(SIZE)
def jpeg_exif_of_many_entries() -> bytes:
    return jpeg(segment(0xE1, b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x13"))


@decoded(SIZE, 0)
@decoded(SIZE, 2)
@decoded(SIZE, 77)
def jpeg_of_four_colours(transform: int) -> bytes:
    data = save(Image.fromarray(scene()).convert("CMYK"), "JPEG")
    start = data.index(b"Adobe") + 11
    return data[:start] + bytes([transform]) + data[start + 1 :]


@decoded(SIZE)
def mpo_with_a_broken_second_picture() -> bytes:
    data = save(
        Image.fromarray(scene()), "MPO", save_all=True, append_images=[Image.new("RGB", SIZE)]
    )
    return data[:-300]


@refused("more than 100 scans", bomb=True)
def jpeg_of_many_scans() -> bytes:
    data = save(np.full((3000, 3000, 3), 128, np.uint8), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 1000 + data[-2:]


@refused(TOO_MANY_PIXELS, bomb=True)
def jpeg_huge_header() -> bytes:
    return jpeg_with_size(save(scene(), "JPEG"), 65_500, 65_500)

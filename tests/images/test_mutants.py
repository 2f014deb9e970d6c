"""Ten thousand mutated files, decoded in a process of their own, so that a crash has a name.

Every file follows from the seed and its index alone: ``mutant(index)`` is the one a failure names.
"""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from af_pipeline.images.decode import DecodeError, decode_image, image_size
from tests.helpers.image_files import ARRANGEMENTS, bmp, pages, tiled
from tests.helpers.pictures import oriented, png, save, scene

SEED = 20_240_229
MAX_PIXELS = 100_000
MEMORY = 512 << 20
MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"II*\x00\x08\x00\x00\x00",
    b"MM\x00*\x00\x00\x00\x08",
    b"II+\x00\x08\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00",
    b"BM\x00\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00",
    b"GIF89a",
    b"RIFF\x00\x01\x00\x00WEBPVP8X\x0a\x00\x00\x00",
    b"RIFF\x00\x01\x00\x00WEBPVP8L\x80\x00\x00\x00\x2f",
)
ODD_VALUES = (0, 1, 2, 7, 8, 9, 16, 127, 128, 255, 256, 32_767, 32_768, 65_535, 2**31 - 1, 2**31)
Rng = np.random.Generator
Mutation = Callable[[Rng, bytes], bytes]


def colours(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(scene(9, 14)).convert(mode)


def frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [Image.new("RGB", (14, 9), "blue")]}


@cache
def originals() -> tuple[bytes, ...]:
    """Small good files of every format and of the ways to store it."""
    tiffs = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd")
    return (
        *[save(colours(mode), "JPEG") for mode in ("RGB", "L", "CMYK")],
        *[save(colours(), "JPEG", **{way: 1}) for way in ("progressive", "restart_marker_blocks")],
        *[oriented(6, form) for form in ("JPEG", "PNG", "WEBP", "TIFF")],
        save(colours(), "MPO", **frames()),
        *[save(colours(mode), "PNG") for mode in ("RGB", "RGBA", "LA", "P", "1", "I;16")],
        save(colours(), "PNG", **frames()),
        png(b"\x00\x00\x00\x0e\x00\x00\x00\x09\x08\x02\x00\x00\x01", bytes(500)),
        *[save(colours(), "TIFF", compression=way) for way in tiffs],
        *[save(colours("1"), "TIFF", compression=way) for way in ("group3", "group4")],
        *[save(colours(mode), "TIFF") for mode in ("L", "P", "CMYK", "LAB", "I;16", "F")],
        save(colours(), "TIFF", big_tiff=True),
        save(colours(), "TIFF", **frames()),
        tiled(16),
        *[data for data, _ in ARRANGEMENTS.values()],
        pages(1, 0),
        tiled(16, compression=1, pixels=bytes(256)),
        *[save(colours("RGBA"), "WEBP", lossless=way) for way in (False, True)],
        save(colours(), "WEBP", **frames()),
        *[save(colours(mode), "BMP") for mode in ("RGB", "RGBA", "P", "1")],
        bmp((14, 9), b"\x0e\x05\x00\x00" * 9 + b"\x00\x01", method=1),
        bmp((14, 9), b"\x0e\x12\x00\x00" * 9 + b"\x00\x01", bits=4, method=2),
        save(colours(), "GIF"),
        save(colours(), "GIF", **frames(), disposal=2),
    )


def place(rng: Rng, data: bytes) -> int:
    """A position, half of the time near the start, where the headers are."""
    end = max(len(data), 1)
    return int(rng.integers(0, min(end, 64) if rng.random() < 0.5 else end))


def flip_bits(rng: Rng, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        changed[place(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def overwrite_field(rng: Rng, data: bytes) -> bytes:
    """Two or four bytes in either order, a value at the edge of something."""
    width = int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice(ODD_VALUES)) * int(rng.choice([1, 1, -1])) % (1 << 8 * width)
    start = place(rng, data)
    field = value.to_bytes(width, "little" if rng.random() < 0.5 else "big")
    return data[:start] + field + data[start + width :]


def overwrite_block(rng: Rng, data: bytes) -> bytes:
    start, noise = place(rng, data), rng.bytes(int(rng.integers(1, 40)))
    return data[:start] + noise + data[start + len(noise) :]


def cut(rng: Rng, data: bytes) -> bytes:
    return data[: place(rng, data)]


def remove_block(rng: Rng, data: bytes) -> bytes:
    start = place(rng, data)
    return data[:start] + data[start + int(rng.integers(1, 60)) :]


def repeat_block(rng: Rng, data: bytes) -> bytes:
    start = place(rng, data)
    end = start + int(rng.integers(1, 200))
    return data[:end] + data[start:end] * int(rng.integers(1, 6)) + data[end:]


def splice(rng: Rng, data: bytes) -> bytes:
    other = originals()[int(rng.integers(len(originals())))]
    return data[: place(rng, data)] + other[place(rng, other) :]


MUTATIONS: tuple[Mutation, ...] = (flip_bits, overwrite_field, overwrite_field, overwrite_block)
MUTATIONS += (cut, remove_block, repeat_block, splice)


def mutant(index: int) -> bytes:
    """The file of that number; every tenth is noise behind the first bytes of a format."""
    rng = np.random.default_rng([SEED, index])
    if index % 10 == 0:
        return MAGIC[index // 10 % len(MAGIC)] + rng.bytes(int(rng.integers(0, 400)))
    data = originals()[int(rng.integers(len(originals())))]
    for _ in range(int(rng.integers(1, 4))):
        data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, data)
    return data


def check(data: bytes) -> str:
    """What is wrong with how this file is decoded; empty where nothing is."""
    size: object
    try:
        size = image_size(data)
    except DecodeError as error:
        size = str(error)
    try:
        image = decode_image(data, MAX_PIXELS)
    except DecodeError as error:
        unclear = [text for text in (size, str(error)) if isinstance(text, str) and odd(text)]
        return f"message {unclear}" if unclear else ""
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.flags.c_contiguous:
        return f"array {image.dtype} {image.shape}"
    if image.shape[:2] != size or not 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS:
        return f"shape {image.shape}, image_size {size}"
    return ""


def odd(message: str) -> bool:
    useless = len(message.splitlines()) != 1 or not 5 < len(message) < 400
    return useless or "more memory" in message


# The process of its own


def work(first: int, count: int, crash_at: int = -1) -> None:
    """Decode so many mutants; says each index before it, and what was wrong with it behind."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for index in range(first, first + count):
        os.write(1, f"{index}\n".encode())
        if index == crash_at:
            os.kill(os.getpid(), signal.SIGSEGV)
        try:
            fault = check(mutant(index))
        except Exception as error:  # the very thing that must not come out of the codec
            fault = f"{type(error).__name__}: {error}"
        if fault:
            os.write(1, f"{index}: {fault}\n".encode())


def faults(first: int, count: int, crash_at: int = -1) -> list[str]:
    """What went wrong in the worker, by seed and index."""
    call = f"from tests.images.test_mutants import work; work({first}, {count}, {crash_at})"
    done = subprocess.run(
        [sys.executable, "-c", call],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    lines = done.stdout.splitlines()
    found = [f"seed {SEED}, index {line}" for line in lines if ":" in line]
    if done.returncode != 0 or lines[-1:] != [str(first + count - 1)]:
        last = lines[-1] if lines else "none"
        found.append(f"seed {SEED}, index {last}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return found


def test_a_crash_is_named() -> None:
    (fault,) = faults(0, 9, crash_at=5)
    assert fault.startswith(f"seed {SEED}, index 5: exit -{signal.SIGSEGV.value}")


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_mutants_decode_or_are_refused(count: int) -> None:
    assert faults(0, count) == []

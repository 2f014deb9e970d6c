"""codec: every broken, hostile or random file is a DecodeError and nothing else."""

import struct
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from af_pipeline.codec import DecodeError, decode_image, image_size
from tests.pictures import difference, no_warnings, noisy, oriented, png, save, scene


@pytest.fixture(autouse=True)
def _no_warning_leaks() -> Iterator[None]:
    with no_warnings():
        yield


# Broken files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"hello, world", r"not an image .*b'hello, w'"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X", "WebP"),
        (b"II*\x00", "TIFF"),
        (b"BM", "BMP"),
        (b"GIF89a", "GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%PDF-1.7", "not an image"),
        (b"\x00" * 1000, "not an image"),
    ],
)
def test_not_images(data: bytes, message: str) -> None:
    for function in (decode_image, image_size):
        with pytest.raises(DecodeError, match=message):
            function(data)


CUT = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("GIF", {}),
]


@pytest.mark.parametrize(("form", "options"), CUT)
@pytest.mark.parametrize("part", [0.03, 0.3, 0.6, 0.95])
def test_truncated(form: str, options: dict[str, Any], part: float) -> None:
    data = save(noisy(), form, **options)
    with pytest.raises(DecodeError):
        decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_truncated_jpeg_says_so(mode: str) -> None:
    data = save(Image.fromarray(noisy()).convert(mode), "JPEG")
    with pytest.raises(DecodeError, match="truncated JPEG"):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_truncated_jpeg_with_an_end_marker_is_no_half_gray_picture(mode: str) -> None:
    data = save(Image.fromarray(noisy()).convert(mode), "JPEG")
    with pytest.raises(DecodeError, match="truncated JPEG"):
        decode_image(data[: len(data) // 2] + b"\xff\xd9")


def test_size_of_a_truncated_file_is_still_known() -> None:
    for form in ("JPEG", "PNG", "WEBP", "BMP"):
        data = save(noisy(), form)
        assert image_size(data[: int(len(data) * 0.6)]) == (64, 64)


def test_harmless_jpeg_faults_are_tolerated() -> None:
    data = save(scene(), "JPEG", restart_marker_blocks=2)
    restart = data.index(b"\xff\xd1")
    stray = data[:restart] + b"\x01\x02\x03" + data[restart:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(stray)
    np.testing.assert_array_equal(decode_image(stray), decode_image(data))
    np.testing.assert_array_equal(decode_image(data + b"appended"), decode_image(data))


def test_jpeg_that_the_fast_decoder_refuses_goes_to_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such subsampling")

    data = oriented(6, "JPEG")
    expected = decode_image(data)
    for function in ("decode_jpeg", "decode_jpeg_header"):
        monkeypatch.setattr(simplejpeg, function, refuse)
        assert difference(decode_image(data), expected) < 1
        assert image_size(data) == (53, 37)


# Size limits


def with_jpeg_size(data: bytes, height: int, width: int) -> bytes:
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def bombs() -> dict[str, bytes]:
    side = 60_000
    bitmap = bytearray(save(scene(), "BMP"))
    bitmap[18:26] = struct.pack("<ii", side, side)
    gif = bytearray(save(scene(), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    tiff = save(scene(), "TIFF")
    for tag, size in ((256, 53), (257, 37)):
        old = next(
            struct.pack("<HHI", tag, kind, 1) + struct.pack(code, size)
            for kind, code in ((3, "<HH"[:2] + "xx"), (4, "<I"))
            if struct.pack("<HHI", tag, kind, 1) + struct.pack(code, size) in tiff
        )
        tiff = tiff.replace(old, struct.pack("<HHII", tag, 4, 1, side))
    canvas = struct.pack("<I", 16_382)[:3]
    extended = b"VP8X" + struct.pack("<II", 10, 0) + canvas * 2 + save(scene(), "WEBP")[12:]
    return {
        "JPEG": with_jpeg_size(save(scene(), "JPEG"), side, side),
        "PNG": png(struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b""),
        "BMP": bytes(bitmap),
        "GIF": bytes(gif),
        "TIFF": tiff,
        "WebP": b"RIFF" + struct.pack("<I", len(extended) + 4) + b"WEBP" + extended,
    }


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WebP"])
def test_huge_dimensions_are_refused_from_the_header(kind: str) -> None:
    pixels = 16_383**2 if kind == "WebP" else 60_000**2
    with pytest.raises(DecodeError, match=f"image has {pixels} pixels.*max_pixels=200000000"):
        decode_image(bombs()[kind])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_max_pixels_is_inclusive(form: str) -> None:
    data = save(scene(), form)
    assert decode_image(data, max_pixels=37 * 53).shape == (37, 53, 3)
    with pytest.raises(DecodeError, match="image has 1961 pixels"):
        decode_image(data, max_pixels=37 * 53 - 1)


# Anything goes in, only DecodeError comes out


def survives(data: bytes) -> None:
    for decode in (lambda: decode_image(data, max_pixels=4_000_000), lambda: image_size(data)):
        message = "decoded"
        try:
            decode()
        except DecodeError as error:
            message = str(error)
        assert 5 < len(message) < 400


def seeds() -> list[bytes]:
    small = scene(9, 14)
    return [
        save(small, "JPEG"),
        save(small, "JPEG", progressive=True),
        save(Image.fromarray(small).convert("CMYK"), "JPEG"),
        oriented(6, "JPEG"),
        save(small, "PNG"),
        save(Image.fromarray(small).quantize(8), "PNG", transparency=bytes([0, 100, 200])),
        save(small, "TIFF"),
        save(small, "TIFF", compression="tiff_lzw"),
        save(small[:, :, 0].astype(np.uint16), "TIFF"),
        save(small, "WEBP"),
        save(small, "BMP"),
        save(small, "GIF"),
    ]


SEEDS = seeds()
MAGIC = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00*", b"BM", b"GIF89a"]
fuzz = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(
    magic=st.sampled_from([*MAGIC, b"RIFF\x20\x00\x00\x00WEBPVP8 "]), rest=st.binary(max_size=300)
)
def test_random_bytes(magic: bytes, rest: bytes) -> None:
    survives(magic + rest)


@fuzz
@given(
    seed=st.sampled_from(range(len(SEEDS))),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 1000)),
)
def test_damaged_files(seed: int, edits: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(SEEDS[seed])
    for position, value in edits:
        data[position % len(data)] ^= value
    survives(bytes(data[:cut]))


@pytest.mark.parametrize("seed", [0, 4])
def test_every_single_bit_flip_in_the_header(seed: int) -> None:
    data = bytearray(SEEDS[seed])
    for position in range(min(len(data), 200)):
        for bit in (1, 128):
            data[position] ^= bit
            survives(bytes(data))
            data[position] ^= bit


def test_lost_restart_marker_is_damage() -> None:
    data = save(scene(), "JPEG", restart_marker_blocks=2)
    start, end = data.index(b"\xff\xd1"), data.index(b"\xff\xd3")
    with pytest.raises(DecodeError, match="damaged JPEG"):
        decode_image(data[:start] + data[end:])


def test_memory_error_is_a_decode_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", full)
    with pytest.raises(DecodeError, match="more memory than there is"):
        decode_image(save(scene(), "JPEG"))


def test_threads_leave_the_warning_filters_alone() -> None:
    files = [data for data in SEEDS if not data.startswith(b"\xff\xd8")]
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [decode_image(data) for data in files * 5])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before

"""codec: every broken, hostile or random file is a DecodeError and nothing else."""

import json
import re
import resource
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from af_pipeline.images.decode import DecodeError, decode_image, image_size
from tests.helpers.hostile import kinds
from tests.helpers.hostile_kinds import KINDS, Kind
from tests.helpers.pictures import check_form, difference, no_warnings, noisy, oriented, save, scene


@pytest.fixture(autouse=True)
def _no_warning_leaks() -> Iterator[None]:
    with no_warnings():
        yield


# The corpus


MAX_PIXELS = 10_000_000
MEMORY = 128 << 20  # that decoding a bomb may take
SECONDS = 5.0  # mostly milliseconds; a busy machine takes longer


def name(kind: Kind) -> str:
    return kind.name


def test_names_are_unique() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 190


@pytest.mark.parametrize("kind", kinds(bomb=False), ids=name)
def test_hostile_file(kind: Kind) -> None:
    data = kind.make()
    if kind.size is not None:
        image = decode_image(data, MAX_PIXELS)
        check_form(image, data)
        assert image.shape == (*kind.size, 3)
        return
    with pytest.raises(DecodeError) as caught:
        decode_image(data, MAX_PIXELS)
    check_message(str(caught.value), kind)
    try:
        assert min(image_size(data)) > 0
    except DecodeError as error:
        check_message(str(error))


def check_message(message: str, kind: Kind | None = None) -> None:
    assert len(message.splitlines()) == 1
    assert 5 < len(message) < 400
    assert "more memory" not in message
    assert kind is None or re.search(kind.message, message)


def decode_bombs() -> None:
    """In a process that may not take much more memory: print what becomes of each."""
    files = [(kind.name, kind.make()) for kind in kinds(bomb=True)]
    for form in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"):
        decode_image(save(scene(), form))  # for what is loaded at first use
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for kind, data in files:
        start = time.monotonic()
        print(json.dumps([kind, *outcome(data), time.monotonic() - start]), flush=True)


def outcome(data: bytes) -> tuple[list[int] | None, str, str]:
    """The shape that the file decodes to, and the messages of decode_image and image_size."""
    shape, messages = None, ["", ""]
    try:
        shape = list(decode_image(data, MAX_PIXELS).shape)
    except DecodeError as error:
        messages[0] = str(error)
    try:
        image_size(data)
    except DecodeError as error:
        messages[1] = str(error)
    return shape, messages[0], messages[1]


@pytest.fixture(scope="module")
def bombs() -> dict[str, Any]:
    """(shape, two messages, seconds) by name, as far as the process came."""
    call = "from tests.images.test_codec_hostile import decode_bombs; decode_bombs()"
    process = subprocess.Popen(
        [sys.executable, "-c", call],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        printed, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    return {kind: rest for kind, *rest in map(json.loads, printed.splitlines())}


@pytest.mark.parametrize("kind", kinds(bomb=True), ids=name)
def test_bomb(kind: Kind, bombs: dict[str, Any]) -> None:
    assert kind.name in bombs, "the process did not survive it, or one before it"
    shape, decoding, sizing, seconds = bombs[kind.name]
    assert shape == (kind.size and [*kind.size, 3]), decoding
    if decoding:
        check_message(decoding, kind)
    if sizing:
        check_message(sizing)
    assert seconds < SECONDS


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "65500" in kind.message], ids=name)
def test_huge_dimensions_are_refused_without_a_limit_given(kind: Kind) -> None:
    with pytest.raises(DecodeError, match=f"{kind.message}=200000000"):
        decode_image(kind.make())


# Broken files


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

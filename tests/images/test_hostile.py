"""Every broken, hostile or random file is a DecodeError and nothing else."""

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
from PIL import Image

from af_pipeline.images.decode import DecodeError, decode_image, image_size
from tests.helpers.hostile import BOMBS, FORMS, KINDS, Kind
from tests.helpers.pictures import check_form, difference, no_warnings, noisy, oriented, save, scene

MAX_PIXELS = 10_000_000
MEMORY = 128 << 20  # that decoding a bomb may take
SECONDS = 5.0  # mostly milliseconds; a busy machine takes longer


@pytest.fixture(autouse=True)
def _no_warning_leaks() -> Iterator[None]:
    with no_warnings():
        yield


def test_names_are_unique() -> None:
    names = [kind[0] for kind in (*KINDS, *BOMBS)]
    assert len(set(names)) == len(names) > 100


def check_message(message: str, pattern: str = "") -> None:
    assert len(message.splitlines()) == 1
    assert 5 < len(message) < 400
    assert "more memory" not in message
    assert re.search(pattern, message)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_hostile_file(kind: Kind) -> None:
    _, make, expected = kind
    data = make()
    if not isinstance(expected, str):
        image = decode_image(data, MAX_PIXELS)
        check_form(image, data)
        assert image.shape == (*expected, 3)
        return
    with pytest.raises(DecodeError) as caught:
        decode_image(data, MAX_PIXELS)
    check_message(str(caught.value), expected)
    try:
        assert min(image_size(data)) > 0
    except DecodeError as error:
        check_message(str(error))


def decode_bombs() -> None:
    """In a process that may not take much more memory: print what becomes of each."""
    files = [(name, make()) for name, make, _ in BOMBS]
    for form in FORMS:
        decode_image(save(scene(), form))  # for what is loaded at first use
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, data in files:
        start = time.monotonic()
        print(json.dumps([name, *outcome(data), time.monotonic() - start]), flush=True)


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


def test_bombs_take_neither_memory_nor_time() -> None:
    call = "from tests.images.test_hostile import decode_bombs; decode_bombs()"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=root, capture_output=True, timeout=120, check=False
    )
    found = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    for name, _, expected in BOMBS:
        assert name in found, f"the process did not survive {name}: {done.stderr[-999:]!r}"
        shape, decoding, sizing, seconds = found[name]
        if isinstance(expected, str):
            assert shape is None
            check_message(decoding, expected)
        else:
            assert shape == [*expected, 3], decoding
        if sizing:
            check_message(sizing)
        assert seconds < SECONDS, name


def test_huge_dimensions_are_refused_without_a_limit_given() -> None:
    for name, make, expected in BOMBS:
        if "65500" in str(expected):
            with pytest.raises(DecodeError, match=f"{expected}=200000000"):
                decode_image(make())
            assert name.startswith("huge")


# Broken files


CUT: list[tuple[str, dict[str, Any]]] = [(form, {}) for form in FORMS]
CUT += [("JPEG", {"progressive": True}), ("TIFF", {"compression": "tiff_lzw"})]
CUT += [("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("form", "options"), CUT)
@pytest.mark.parametrize("part", [0.03, 0.3, 0.6, 0.95])
def test_truncated(form: str, options: dict[str, Any], part: float) -> None:
    data = save(noisy(), form, **options)[: int(len(save(noisy(), form, **options)) * part)]
    with pytest.raises(DecodeError) as caught:
        decode_image(data)
    says_so = part > 0.1 and form not in ("WEBP", "PNG")
    check_message(str(caught.value), f"truncated {form}" if says_so else "")
    if part > 0.5 and form not in ("TIFF", "GIF"):  # the size is still known
        assert image_size(data) == (64, 64)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_half_a_jpeg_is_no_half_gray_picture(mode: str, end: bytes) -> None:
    data = save(Image.fromarray(noisy()).convert(mode), "JPEG")
    with pytest.raises(DecodeError, match="truncated JPEG"):
        decode_image(data[: len(data) // 2] + end)


def test_restart_markers() -> None:
    data = save(scene(), "JPEG", restart_marker_blocks=2)
    first, third = data.index(b"\xff\xd1"), data.index(b"\xff\xd3")
    stray = data[:first] + b"\x01\x02\x03" + data[first:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(stray)
    np.testing.assert_array_equal(decode_image(stray), decode_image(data))
    np.testing.assert_array_equal(decode_image(data + b"appended"), decode_image(data))
    with pytest.raises(DecodeError, match="damaged JPEG"):  # one is lost
        decode_image(data[:first] + data[third:])


def test_jpeg_that_the_fast_decoder_refuses_goes_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such subsampling")

    data = oriented(6, "JPEG")
    expected = decode_image(data)
    for function in ("decode_jpeg", "decode_jpeg_header"):
        monkeypatch.setattr(simplejpeg, function, refuse)
        assert difference(decode_image(data), expected) < 1
        assert image_size(data) == (53, 37)


@pytest.mark.parametrize("form", FORMS)
def test_max_pixels_is_inclusive(form: str) -> None:
    data = save(scene(), form)
    assert decode_image(data, max_pixels=37 * 53).shape == (37, 53, 3)
    with pytest.raises(DecodeError, match="image has 1961 pixels"):
        decode_image(data, max_pixels=37 * 53 - 1)


def test_memory_error_is_a_decode_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", full)
    with pytest.raises(DecodeError, match="more memory than there is"):
        decode_image(save(scene(), "JPEG"))


def test_threads_leave_the_warning_filters_alone() -> None:
    files = [oriented(6, form) for form in ("JPEG", "PNG", "TIFF", "WEBP")]
    files += [save(scene(), form) for form in ("BMP", "GIF")]
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

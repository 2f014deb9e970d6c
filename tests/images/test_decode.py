"""Every format, orientation and depth is decoded right, resized and encoded."""

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from af_pipeline.core.resize import resize
from af_pipeline.images.decode import DecodeError, decode_image, encode_jpeg, encode_png, image_size
from tests.helpers.pictures import (
    ORIENTATION,
    check_form,
    difference,
    no_warnings,
    noisy,
    oriented,
    png,
    save,
    scene,
)
from tests.helpers.realdata import real_data


@pytest.fixture(autouse=True)
def _no_warning_leaks() -> Iterator[None]:
    with no_warnings():
        yield


# Formats


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ],
)
def test_lossless_formats_are_exact(form: str, options: dict[str, Any]) -> None:
    data = save(scene(), form, **options)
    image = decode_image(data)
    check_form(image, data)
    np.testing.assert_array_equal(image, scene())


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "keep_rgb": True}),
        ("JPEG", {"quality": 95, "restart_marker_blocks": 2}),
        ("WEBP", {"quality": 95}),
        ("GIF", {}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_lossy_formats_are_close(form: str, options: dict[str, Any]) -> None:
    data = save(scene(), form, **options)
    image = decode_image(data)
    check_form(image, data)
    assert difference(image, scene()) < 8


def test_jpeg_is_what_the_fast_decoder_gives() -> None:
    data = save(scene(), "JPEG")
    np.testing.assert_array_equal(decode_image(data), simplejpeg.decode_jpeg(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "GIF"])
def test_gray_fills_three_channels(form: str) -> None:
    gray = scene()[:, :, 1]
    data = save(gray, form)
    image = decode_image(data)
    check_form(image, data)
    assert (image == image[:, :, :1]).all()
    assert difference(image[:, :, 0], gray) < 2


@pytest.mark.parametrize("progressive", [False, True])
def test_cmyk_jpeg_like_pillow(progressive: bool) -> None:
    picture = Image.fromarray(scene()).convert("CMYK")
    data = save(picture, "JPEG", quality=95, progressive=progressive)
    image = decode_image(data)
    check_form(image, data)
    np.testing.assert_array_equal(image, np.array(Image.open(io.BytesIO(data)).convert("RGB")))
    assert difference(image, scene()) < 4


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_not_composited(form: str) -> None:
    alpha = np.zeros((37, 53, 1), np.uint8)
    alpha[10:] = 128
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    data = save(np.concatenate([scene(), alpha], axis=2), form, **options)
    image = decode_image(data)
    check_form(image, data)
    np.testing.assert_array_equal(image, scene())


def test_gray_with_alpha_and_one_colour_declared_transparent() -> None:
    pair = np.stack([scene()[:, :, 1], np.zeros((37, 53), np.uint8)], axis=2)
    image = decode_image(save(Image.fromarray(pair, "LA"), "PNG"))
    np.testing.assert_array_equal(image, np.repeat(pair[:, :, :1], 3, axis=2))
    data = save(scene(), "PNG", transparency=(0, 0, 0))
    np.testing.assert_array_equal(decode_image(data), scene())


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 250, 10))])
def test_palette(transparency: int | bytes | None) -> None:
    picture = Image.fromarray(scene()).quantize(32)
    options = {} if transparency is None else {"transparency": transparency}
    data = save(picture, "PNG", **options)
    image = decode_image(data)
    check_form(image, data)
    np.testing.assert_array_equal(image, np.array(picture.convert("RGB")))


def test_one_bit() -> None:
    bits = Image.fromarray(scene()[:, :, 1] > 100)
    image = decode_image(save(bits, "PNG"))
    assert set(np.unique(image)) == {0, 255}
    np.testing.assert_array_equal(image[:, :, 0] == 255, scene()[:, :, 1] > 100)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_by_the_range_of_the_type(form: str) -> None:
    deep = np.array([[0, 128, 129, 257], [1000, 32768, 65406, 65535]], np.uint16)
    data = save(deep, form)
    image = decode_image(data)
    check_form(image, data)
    np.testing.assert_array_equal(image[:, :, 0], np.round(deep / 257).astype(np.uint8))


def test_16_bit_gray_tiff_with_white_as_zero() -> None:
    data = save(np.array([[0, 65535]], np.uint16), "TIFF")
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert data.count(entry) == 1
    image = decode_image(data.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
    assert image[0, :, 0].tolist() == [255, 0]


def test_32_bit_integers_only_in_the_16_bit_range() -> None:
    fits = decode_image(save(np.array([[0, 65535]], np.int32), "TIFF"))
    assert fits[0, :, 0].tolist() == [0, 255]
    for values in ([[0, 65536]], [[-1, 5]]):
        with pytest.raises(DecodeError, match="integer image with values"):
            decode_image(save(np.array(values, np.int32), "TIFF"))


def test_16_bit_colour_is_scaled_like_gray() -> None:
    row = b"\x00" + struct.pack(">6H", 0, 32768, 65535, 256, 385, 386)
    image = decode_image(png(struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0), row))
    assert image.tolist() == [[[0, 128, 255], [1, 1, 2]]]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_tiny_images(form: str, shape: tuple[int, int]) -> None:
    data = save(scene(*shape), form)
    check_form(decode_image(data), data)
    assert image_size(data) == shape


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF"])
def test_first_picture_of_several(form: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = save(frames[0], form, save_all=True, append_images=frames[1:], **options)
    image = decode_image(data)
    check_form(image, data)
    np.testing.assert_array_equal(image, np.full((6, 8, 3), (255, 0, 0), np.uint8))


# Orientation


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_like_pillow(form: str, orientation: int) -> None:
    data = oriented(orientation, form)
    image = decode_image(data)
    check_form(image, data)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    assert difference(image, expected) < 1.5
    assert image.shape == ((53, 37, 3) if orientation >= 5 else (37, 53, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_cmyk_and_of_one_row(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    four = save(Image.fromarray(scene()).convert("CMYK"), "JPEG", exif=exif)
    row = save(scene(1, 20), "JPEG", exif=exif, subsampling=0, quality=100)
    for data in (four, row):
        image = decode_image(data)
        check_form(image, data)
        with Image.open(io.BytesIO(data)) as picture:
            expected = ImageOps.exif_transpose(picture).convert("RGB")
        assert difference(image, np.array(expected)) < 1.5


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_senseless_orientation_is_ignored(value: int) -> None:
    assert decode_image(oriented(value, "JPEG")).shape == (37, 53, 3)


def test_broken_exif_does_not_lose_the_image() -> None:
    for block in (
        b"",
        b"II",
        b"II*\x00\xff\xff\xff\xff",
        b"MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12",
    ):
        assert decode_image(save(scene(), "JPEG", exif=b"Exif\x00\x00" + block)).shape == (
            37,
            53,
            3,
        )


# Resizing and encoding


def test_resize_same_size_is_the_input() -> None:
    image = scene()
    assert resize(image, 37, 53) is image


def test_resize_averages_when_shrinking() -> None:
    board = np.indices((40, 60)).sum(axis=0) % 2 * 254
    image = np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8)
    assert (resize(image, 20, 30) == 127).all()
    # also where only one axis shrinks, whatever becomes of the other
    for height, width in ((20, 60), (20, 120), (80, 30)):
        small = resize(image, height, width)
        assert small.shape == (height, width, 3)
        assert (small == 127).all()


def test_resize_enlarges_smoothly() -> None:
    image = scene(10, 12)
    large = resize(image, 40, 48)
    assert large.shape == (40, 48, 3)
    assert large.flags.c_contiguous
    assert difference(resize(large, 10, 12), image) < 2
    assert resize(scene(1, 1), 5, 3).shape == (5, 3, 3)


def test_resize_of_a_flipped_view() -> None:
    image = scene()
    np.testing.assert_array_equal(
        resize(image[:, ::-1], 20, 20), resize(np.ascontiguousarray(image[:, ::-1]), 20, 20)
    )


def test_png_round_trip_is_exact() -> None:
    np.testing.assert_array_equal(decode_image(encode_png(scene())), scene())
    view = scene()[::2, ::-1]
    np.testing.assert_array_equal(decode_image(encode_png(view)), view)


def test_jpeg_round_trip_is_close() -> None:
    assert difference(decode_image(encode_jpeg(scene())), scene()) < 3
    assert len(encode_jpeg(noisy(), quality=30)) < len(encode_jpeg(noisy(), quality=95))
    assert decode_image(encode_jpeg(scene()[::2, ::-1])).shape == (19, 53, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_only_rgb_images_are_taken(image: NDArray[Any]) -> None:
    for function in (encode_jpeg, encode_png, lambda x: resize(x, 2, 2)):
        with pytest.raises(ValueError, match="RGB uint8"):
            function(image)


def test_senseless_arguments() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        resize(scene(), 0, 5)
    with pytest.raises(ValueError, match="quality"):
        encode_jpeg(scene(), quality=101)
    with pytest.raises(ValueError, match="65535"):
        encode_jpeg(np.zeros((1, 65536, 3), np.uint8))


# Real photographs


@pytest.mark.parametrize("name", ["aerial-cars", "coco128"])
def test_real_photographs_like_pillow(name: str) -> None:
    for path in sorted((real_data(name) / "images").iterdir())[:4]:
        data = path.read_bytes()
        image = decode_image(data)
        check_form(image, data)
        with Image.open(path) as picture:
            expected = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        assert difference(image, expected) < 1

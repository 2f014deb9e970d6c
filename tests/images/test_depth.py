"""More than 8 bits, the arrangements of TIFF values, its pages, and images of any size."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from af_pipeline.config import ConfigError, config_from, load_config
from af_pipeline.core.schema import ImageRow
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.images.decode import DecodeError, decode_image, image_size
from af_pipeline.images.depth import DepthConfig, to_8_bit
from af_pipeline.indexing.stages import CoarseStage, StageSettings
from af_pipeline.output.account import NOT_IDENTITY
from af_pipeline.settings.index import SourceConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.settings.train import TrainConfig
from af_pipeline.sniper.images import FileImages, ImageCache, read_image
from af_pipeline.training.trainer import validation_config
from af_pipeline.tuning.sample import SampleImage, read_sample
from tests.helpers.image_files import (
    ARRANGEMENTS,
    COLOURS,
    COLOURS16,
    DEEP,
    HERE,
    U16,
    Tag,
    deep_png,
    deep_tiff,
    pages,
    tiff,
)
from tests.helpers.pictures import check_form, save, scene
from tests.helpers.planted import index_config, source
from tests.helpers.realdata import real_data
from tests.helpers.training import write_config

WINDOW = DepthConfig(stretch="window", low=100, high=3900)
PERCENTILES = DepthConfig(stretch="percentiles", low=2, high=98)


def stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    steps = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.floor(np.clip(steps, 0, 255) + 0.5).astype(np.uint8)


def rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_window_shows_the_same_values_alike_however_they_are_stored(name: str) -> None:
    data, values = ARRANGEMENTS[name]
    image = decode_image(data, depth=WINDOW)
    check_form(image, data)
    expected = COLOURS // 16 if values is None else stretched(values, 100, 3900)
    np.testing.assert_array_equal(image, rgb(expected.astype(np.uint8)))


def test_planes_stored_apart() -> None:
    planes = np.ascontiguousarray(np.moveaxis(COLOURS16, 2, 0))
    tags: dict[int, Tag | None] = {256: 50, 257: 40, 278: 40, 277: 3, 258: 16, 262: 2, 284: 2}
    start = len(tiff(tags)) - 12
    offsets = struct.pack(
        "<6I", *(start + 24 + n * planes[0].nbytes for n in range(3)), *[4000] * 3
    )
    places: dict[int, Tag | None] = {273: (4, 3, HERE), 279: (4, 3, start + 12)}
    data = tiff({**tags, **places}, offsets + planes.tobytes())
    np.testing.assert_array_equal(decode_image(data, depth=WINDOW), stretched(COLOURS, 100, 3900))


def test_percentiles_are_those_of_the_image_over_all_channels() -> None:
    for values, data in ((COLOURS, deep_png(COLOURS)), (DEEP, deep_tiff(U16))):
        bounds = np.percentile(values, [2, 98], method="nearest")
        image = decode_image(data, depth=PERCENTILES)
        np.testing.assert_array_equal(image, rgb(stretched(values, *bounds)))
        assert image.min() == 0
        assert image.max() == 255
        assert decode_image(data).max() <= 16  # by type: black


def test_values_of_8_bits_are_never_stretched() -> None:
    for form in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decode_image(save(scene(), form), depth=WINDOW), scene())


def test_pixels_without_a_value_are_black_and_count_in_no_percentile() -> None:
    values = DEEP.astype(np.float32) + 1000
    bounds = np.percentile(values[10:], [2, 98], method="nearest")
    values[:5], values[5:10] = -32768, np.nan
    text = b"-32768\0\0"
    tags: dict[int, Tag | None] = {256: 50, 257: 40, 278: 40, 258: 32, 339: 3, 279: values.nbytes}
    tags[42113] = (2, 7, HERE)
    tags[273] = len(tiff(tags)) - 12 + len(text)
    marked = tiff(tags, text + values.tobytes())
    image = decode_image(marked, depth=PERCENTILES)
    assert not image[:10].any()
    np.testing.assert_array_equal(image[10:], rgb(stretched(values[10:], *map(float, bounds))))


@pytest.mark.parametrize("depth", [DepthConfig(), WINDOW, PERCENTILES])
def test_a_uniform_image_is_no_division_by_zero(depth: DepthConfig) -> None:
    assert len(np.unique(decode_image(deep_png(np.full((3, 4), 700)), depth=depth))) == 1


def test_a_few_bright_pixels_on_black_are_seen() -> None:
    """Both percentiles are 0: what is above is white."""
    values = np.zeros((100, 100), np.uint16)
    values[40:50, 40:50] = 4000
    seen = to_8_bit(values, 16, PERCENTILES)
    assert np.array_equal(seen, np.where(values, 255, 0))


def test_pixels_without_a_value_are_outside_of_no_range() -> None:
    values = np.full((8, 8), 500, np.int16)
    values[:2] = -9999
    with pytest.raises(ValueError, match="fixed range"):
        to_8_bit(values, 16)
    assert set(np.unique(to_8_bit(values, 16, nodata=-9999))) == {0, 2}


def test_values_without_a_fixed_range_say_which_setting_helps() -> None:
    for values in (DEEP.astype(np.float32), -DEEP.astype(np.int16)):
        with pytest.raises(DecodeError, match=r"fixed range.*source\.depth\.stretch"):
            decode_image(deep_tiff(values))


def test_many_bands_are_limited_by_max_pixels() -> None:
    data = deep_tiff(np.zeros((10, 10, 90), np.uint16))
    assert decode_image(data, max_pixels=2250).shape == (10, 10, 3)
    with pytest.raises(DecodeError, match="18000 bytes"):
        decode_image(data, max_pixels=2249)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"stretch": "window", "low": 5}, "needs low and high"),
        ({"stretch": "window", "low": 5, "high": 5}, "low below high"),
        ({"stretch": "percentiles", "low": -1, "high": 98}, "between 0 and 100"),
        ({"low": 1, "high": 2}, "belong to stretch"),
        ({"stretch": "minmax"}, "stretch"),
        ({"strech": "type"}, "did you mean 'stretch'"),
    ],
)
def test_wrong_depths_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from(SourceConfig, {"depth": tree}, (), "depth")


# One setting, wherever images are read


def test_training_tuning_and_indexing_see_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(deep_png(COLOURS))
    expected = decode_image(path.read_bytes(), depth=PERCENTILES)
    config = index_config(tmp_path, tmp_path / "out")
    config = config.model_copy(
        update={"source": config.source.model_copy(update={"depth": PERCENTILES})}
    )
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    dataset = AnnotatedDataset.of((AnnotatedImage("a", str(path), 50, 40, *none),), ("x",), (1,))
    stage = CoarseStage(StageSettings(build_plan(config), source(), 10**9, depth=PERCENTILES))
    for image in (
        read_image(str(path), PERCENTILES),
        FileImages(dataset, ImageCache(10**6), depth=PERCENTILES).load(0).image,
        read_sample(SampleImage("a", str(path)), config),
        stage._decode(ImageRow("a", str(path)), path.read_bytes()),
    ):
        assert image is not None
        np.testing.assert_array_equal(image, expected)


def test_a_training_is_judged_on_pixels_like_those_it_learns_from(tmp_path: Path) -> None:
    sets = (f"validation.index={tmp_path}/index.yaml", f"data.depth={PERCENTILES.__dict__}")
    config = load_config(TrainConfig, write_config(tmp_path), sets)
    with pytest.raises(ValueError, match=r"index\.yaml differ"):
        validation_config(config)
    tree = yaml.safe_load((tmp_path / "index.yaml").read_text())
    tree["source"] = {"depth": PERCENTILES.__dict__}
    (tmp_path / "index.yaml").write_text(yaml.safe_dump(tree))
    assert validation_config(config).source.depth == PERCENTILES


def test_another_depth_is_another_run() -> None:
    assert not any("source.depth".startswith(key) for key in NOT_IDENTITY)


# Pages


@pytest.mark.parametrize(
    ("kinds", "below", "side"),
    [
        ((1, 0), False, 40),  # the thumbnail first
        ((1, 0), True, 40),
        ((4, 1, 0), False, 40),  # a mask, then a smaller version
        ((0, 1), False, 30),  # as in a COG
        ((0, 0), False, 30),
        ((1, 1), False, 30),  # nothing else: the first
    ],
)
def test_the_full_picture_of_a_tiff_is_read(kinds: tuple[int, ...], below: bool, side: int) -> None:
    data = pages(*kinds, below=below)
    image = decode_image(data)
    check_form(image, data)
    np.testing.assert_array_equal(image, scene(side, side + 5))


def test_a_thumbnail_is_no_stand_in_for_a_picture_that_is_cut_off() -> None:
    data = pages(1, 0)
    with pytest.raises(DecodeError, match="truncated TIFF"):
        decode_image(data[: len(data) - 100])


# Large images


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xfe\x3f\0\xfe\x3f\0" + bytes(20), 268_402_689),
        (tiff({256: 20_000, 257: 10_000, 278: 10_000, 258: 1}), 200_000_000),
    ],
)
def test_only_max_pixels_limits_the_size(data: bytes, pixels: int) -> None:
    """The files end behind the header: what is refused is not their size."""
    assert np.prod(image_size(data)) == pixels
    with pytest.raises(DecodeError, match="max_pixels"):
        decode_image(data, max_pixels=pixels - 1)
    with pytest.raises(DecodeError, match=r"^(truncated|damaged) (TIFF|WebP): (?!.*pixels)"):
        decode_image(data, max_pixels=pixels)


@pytest.mark.slow
def test_an_image_above_the_limit_of_pillow_is_decoded() -> None:
    side = 13_400  # 179.6 million pixels
    rows = zlib.compress(b"\xff" * ((side + 7) // 8 * side))
    data = tiff({256: side, 257: side, 278: side, 258: 1, 259: 8, 279: len(rows)}, rows)
    image = decode_image(data)
    assert image.shape == (side, side, 3)
    assert image.min() == 255


# Real rasters


@pytest.mark.parametrize(
    ("name", "size", "bits"),
    [("cog", (2667, 2658), 13), ("cog_gcps", (837, 1280), 10), ("mosaic_cog1", (790, 779), 16)],
)
def test_real_rasters_are_no_longer_black(name: str, size: tuple[int, int], bits: int) -> None:
    data = (real_data("rasters") / f"{name}.tif").read_bytes()
    by_type, image = decode_image(data), decode_image(data, depth=PERCENTILES)
    assert by_type.shape == image.shape == (*size, 3)  # not that of an overview
    assert by_type.max() < 2 ** (bits - 8)
    assert (image == 0).mean() > 0
    assert (image == 255).mean() > 0.005

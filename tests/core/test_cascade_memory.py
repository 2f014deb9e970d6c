"""Bounded memory: huge chips are resized tile by tile, small crops do not hold the whole image."""

import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.core import chips
from af_pipeline.core.cascade import Prediction, advance, look, start_row
from af_pipeline.core.focus import STRIDE
from af_pipeline.core.lanes import Lane, make_lanes
from af_pipeline.core.pixels import ArrayPixels
from af_pipeline.core.resize import resize, resize_part
from af_pipeline.core.scales import Scale, scaled_size
from af_pipeline.core.schema import Chip, ImageRow, rows_to_table
from tests.helpers.fakes import FakePredictor, make_plan, paint, run_cascade, scatter

SEEDS = st.integers(0, 10**6)
SIDES = st.integers(1, 300)
# Any factor, whose grid meets the image's hardly ever, and those where it does every few pixels.
FACTORS = st.one_of(
    st.floats(0.1, 1.0), st.floats(1.0, 4.0), st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
)
MB = 1e6


def noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Black and white, where a misplaced sample shows most; or every grey."""
    levels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return (levels // 128) * 255 if rng.random() < 0.5 else levels


def plain(row: ImageRow) -> dict:
    (found,) = rows_to_table([replace(row, ledger=replace(row.ledger, forward_ms=0))]).to_pylist()
    return found


def silent(crops: Sequence[NDArray[np.uint8]], lane: Lane) -> list[Prediction]:
    """A predictor that finds nothing and holds nothing."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    return [
        Prediction(*none, np.zeros((lane.height // STRIDE, lane.width // STRIDE), np.float32))
        for _ in crops
    ]


def peak_of(run: Callable[[], object]) -> float:
    """Most MB that were allocated at once, beyond what was there before."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / MB
    finally:
        tracemalloc.stop()


# ---- a part of a resized image


@settings(max_examples=200, deadline=None)
@given(SEEDS, SIDES, SIDES, FACTORS)
def test_a_part_is_what_the_whole_has_there(seed: int, h: int, w: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    image = noise(rng, h, w)
    height, width = scaled_size(h, w, factor)
    y0, x0 = int(rng.integers(height)), int(rng.integers(width))
    y1, x1 = int(rng.integers(y0, height)) + 1, int(rng.integers(x0, width)) + 1
    part = resize_part(image, height, width, (x0, y0, x1, y1))
    wanted = resize(image, height, width)[y0:y1, x0:x1]
    assert part.dtype == np.uint8
    assert np.abs(part.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("side", [20_000, 19_997])
def test_far_from_the_origin_nothing_drifts(side: int, factor: float) -> None:
    image = noise(np.random.default_rng(0), 8, side)
    height, width = scaled_size(8, side, factor)
    whole = resize(image, height, width)
    for start in (0, width // 2, width - 512):
        part = resize_part(image, height, width, (start, 0, start + 512, height))
        assert np.abs(part.astype(int) - whole[:, start : start + 512]).max() <= 1


# ---- the cascade


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 20), st.sampled_from(["autofocus", "pyramid"]))
def test_tile_by_tile_finds_the_same(seed: int, count: int, mode: str) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(300, 900, 2))
    image = paint(scatter(rng, count, height, width), height, width)
    plan = make_plan(mode, lanes=make_lanes((128, 256)), overlap=128, batch_pixels=100_000)
    whole, tiled = FakePredictor(), FakePredictor()
    (wanted,) = run_cascade([image], plan, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chips, "HELD_PIXELS", 1)
        (found,) = run_cascade([image], plan, tiled)
    assert plain(found) == plain(wanted)
    assert tiled.batches == whole.batches


@pytest.mark.parametrize("side", [2000, 1999])
@pytest.mark.parametrize("factor", [2.0, 1.7, 0.9])
def test_a_huge_chip_is_never_resized_whole(
    side: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chips, "HELD_PIXELS", 1_000_000)
    image = np.zeros((side, side, 3), np.uint8)
    plan = make_plan(scales=(Scale(factor),), rules=(), lanes=make_lanes((256,)), overlap=64)
    row = ImageRow("0", "")
    start_row(row, image, plan)
    # Whole it would be 10 to 48 MB.
    assert peak_of(lambda: look([row], 0, plan, silent)) < 7


def seen_by_tiles(row: ImageRow) -> list[chips.Crop]:
    plan = make_plan(scales=(Scale(2.0),), rules=(), lanes=make_lanes((128, 256)), overlap=32)
    return [chips.crop_of(0, index, row, plan) for index in range(len(row.chips))]


def test_resized_chips_are_held_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chips, "HELD_PIXELS", 200_000)
    rng = np.random.default_rng(0)
    row = ImageRow("0", "", 600, 600)
    row.chips = [
        Chip(0, -1, (0, 0, 150, 130), 1.0, 0.0, ArrayPixels(noise(rng, 130, 150))) for _ in range(6)
    ]
    seen = seen_by_tiles(row)
    cutter = chips.Cutter(seen)
    lanes = make_lanes((128, 256))
    tiles = [t for i, crop in enumerate(seen) for t in chips.tiles_of(i, crop, lanes)]
    assert len(tiles) > 12
    for number in rng.permutation(np.repeat(np.arange(len(tiles)), 2)):
        tile = tiles[number]
        x0, y0, x1, y1 = tile.rect
        whole = row.chips[tile.crop].pixels.read(260, 300)
        np.testing.assert_array_equal(cutter.cut(tile), whole[y0:y1, x0:x1])
        assert sum(image.shape[0] * image.shape[1] for image in cutter.held.values()) <= 200_000


def test_threads_cut_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chips, "HELD_PIXELS", 100_000)  # one crop: each thread wants another
    rng = np.random.default_rng(0)
    row = ImageRow("0", "", 600, 600)
    row.chips = [
        Chip(0, -1, (0, 0, 150, 130), 1.0, 0.0, ArrayPixels(noise(rng, 130, 150))) for _ in range(6)
    ]
    seen = seen_by_tiles(row)
    lanes = make_lanes((128, 256))
    tiles = [t for i, crop in enumerate(seen) for t in chips.tiles_of(i, crop, lanes)]
    tiles = [tiles[number] for number in rng.permutation(np.repeat(np.arange(len(tiles)), 20))]
    one, many = chips.Cutter(seen), chips.Cutter(seen)
    with ThreadPoolExecutor(8) as pool:
        for tile, image in zip(tiles, pool.map(many.cut, tiles), strict=True):
            np.testing.assert_array_equal(image, one.cut(tile))


# ---- crops


def test_a_crop_does_not_hold_the_image() -> None:
    image = paint(np.array([[100, 100, 120, 120], [600, 500, 624, 520]]), 700, 900)
    plan = make_plan()
    row = ImageRow("0", "")
    start_row(row, image, plan)
    look([row], 0, plan, FakePredictor())
    advance([row], 0, plan)
    crops = [chip.pixels.array for chip in row.chips if chip.pixels is not None]
    assert len(crops) == 2
    assert not any(np.shares_memory(crop, image) for crop in crops)
    assert all(crop.base is None for crop in crops)

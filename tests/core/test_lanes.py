"""Lanes, tiles and batches: everything is covered, nothing is larger than its lane."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.lanes import (
    TILE_STEP,
    Lane,
    LaneConfig,
    canvas_sides,
    lane_of,
    make_lanes,
    pack,
    split_axis,
    tile_rects,
)

LANES = make_lanes((64, 128, 512))


def test_lanes_are_all_pairs_smallest_first() -> None:
    assert [(lane.height, lane.width) for lane in make_lanes((64, 128))] == [
        (64, 64), (64, 128), (128, 64), (128, 128),
    ]  # fmt: skip
    areas = [lane.pixels for lane in LANES]
    assert areas == sorted(areas)
    square, *_ = [lane for lane in make_lanes((64, 128, 256)) if lane.pixels == 128 * 128]
    assert square == Lane(128, 128)


@pytest.mark.parametrize(
    ("size", "lane"),
    [
        ((1, 1), Lane(64, 64)),
        ((64, 64), Lane(64, 64)),
        ((65, 64), Lane(128, 64)),
        ((64, 65), Lane(64, 128)),
        ((65, 65), Lane(128, 128)),
        ((20, 512), Lane(64, 512)),
        ((512, 512), Lane(512, 512)),
    ],
)
def test_the_smallest_lane_that_fits(size: tuple[int, int], lane: Lane) -> None:
    assert LANES[lane_of(*size, LANES)] == lane


@pytest.mark.parametrize(
    ("sides", "reason"),
    [((256, 304), "multiples of 32"), ((256, 256), "must rise"), ((), "multiples of 32")],
)
def test_sides_that_cannot_be_are_refused(sides: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LaneConfig(sides=sides)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600))
def test_no_smaller_lane_fits(height: int, width: int) -> None:
    fitting = [n for n in LANES if n.height >= height and n.width >= width]
    index = lane_of(height, width, LANES)
    if index < 0:
        assert not fitting
    else:
        assert LANES[index] in fitting
        assert LANES[index].pixels == min(lane.pixels for lane in fitting)


# ---- tiles


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20_000), st.sampled_from([256, 500, 1024, 1536]), st.integers(0, 128))
def test_pieces_cover_an_axis(length: int, limit: int, overlap: int) -> None:
    pieces = split_axis(length, limit, overlap)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == length
    assert all(start % TILE_STEP == 0 for start, _ in pieces)
    assert all(0 < stop - start <= limit for start, stop in pieces)
    for (low, end), (start, stop) in pairwise(pieces):
        assert end - start >= overlap
        assert low < start
        assert end < stop
    # what a cut that need not start at multiples of 32 could do with
    least = max(1, -(-(length - overlap) // (limit - overlap)))
    spare = limit - overlap - 2 * TILE_STEP
    assert least <= len(pieces) <= max(1, -(-(length - overlap) // spare))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 16_000), st.integers(0, 200))
def test_pieces_are_at_most_one_more_than_needed(length: int, overlap: int) -> None:
    least = max(1, -(-(length - overlap) // (1536 - overlap)))
    assert len(split_axis(length, 1536, overlap)) <= least + 1


def test_what_fits_is_one_piece() -> None:
    assert split_axis(512, 512, 128) == [(0, 512)]
    assert len(split_axis(513, 512, 128)) == 2


def test_pieces_are_as_small_as_their_number_allows() -> None:
    # Steps of 288 and 320 px; each piece ends 128 px behind the start of the next.
    assert split_axis(1000, 512, 128) == [(0, 416), (288, 736), (608, 1000)]


def test_an_overlap_that_leaves_no_step() -> None:
    assert split_axis(100, 160, 90) == [(0, 100)]
    with pytest.raises(ValueError, match="overlap 90 leaves no step for tiles of 160 px"):
        split_axis(1000, 160, 90)


def test_tiles_cover_the_plane_row_by_row() -> None:
    rects = tile_rects(700, 1100, 512, 128)
    seen = np.zeros((700, 1100), int)
    for x0, y0, x1, y1 in rects:
        assert max(x1 - x0, y1 - y0) <= 512
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1
    np.testing.assert_array_equal(np.lexsort((rects[:, 0], rects[:, 1])), np.arange(len(rects)))
    assert tile_rects(10, 20, 512, 128).tolist() == [[0, 0, 20, 10]]


# ---- batches


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 6)), max_size=40),
    st.integers(1, 10**6),
)
def test_batches(keys: list[tuple[int, int, int]], budget: int) -> None:
    """Keys as the cascade's: image, and the sides of the canvas in multiples of 32."""
    pixels = [height * width * TILE_STEP**2 for _, height, width in keys]
    batches = pack(keys, pixels, budget)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(keys)))
    found = []
    for batch in batches:
        (key,) = {keys[i] for i in batch}
        assert len(batch) == 1 or sum(pixels[i] for i in batch) <= budget
        assert list(batch) == sorted(batch)
        found.append(key)
    assert found == sorted(found)
    for key in set(found):  # no batch that the one before had room for
        sizes = [len(b) for b, of in zip(batches, found, strict=True) if of == key]
        full = max(1, budget // (key[1] * key[2] * TILE_STEP**2))
        assert all(size == full for size in sizes[:-1])


# ---- canvases


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=20))
def test_a_canvas_is_the_smallest_lane_that_holds_it(sizes: list[tuple[int, int]]) -> None:
    for (h, w), pixels in zip(sizes, canvas_sides(np.array(sizes), LANES).prod(1), strict=True):
        if (lane := lane_of(h, w, LANES)) >= 0:
            assert pixels == LANES[lane].pixels
        else:  # larger than the largest: at least itself
            assert pixels >= h * w
    for (h, w), pixels in zip(sizes, canvas_sides(np.array(sizes)).prod(1), strict=True):
        rows, columns = (len(range(0, side, TILE_STEP)) * TILE_STEP for side in (h, w))
        assert pixels == rows * columns


def test_canvases_of_known_sizes() -> None:
    sides = np.array([0, 1, 64, 65, 512, 513])
    assert canvas_sides(sides, make_lanes((64, 128, 512))).tolist() == [64, 64, 64, 128, 512, 544]
    assert canvas_sides(sides).tolist() == [0, 32, 64, 96, 512, 544]

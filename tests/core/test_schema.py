"""The data contract: rows survive the table, and every table has the same schema."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.pixels import ArrayPixels
from af_pipeline.core.schema import (
    COUNTERS,
    ROW,
    STORED_ROW,
    Candidate,
    Chip,
    Detections,
    ImageRow,
    Ledger,
    join_detections,
    no_detections,
    rows_to_table,
    table_to_rows,
)

WORDS = st.text(max_size=12)


def f32(value: float) -> float:
    return float(np.float32(value))


@st.composite
def rows(draw: st.DrawFn) -> ImageRow:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, chips, scales = (draw(st.integers(0, most)) for most in (6, 4, 3))
    return ImageRow(
        draw(WORDS),
        draw(WORDS),
        *(int(n) for n in rng.integers(0, 2**31, 2)),
        int(rng.integers(0, 2**40)),
        draw(WORDS),
        Detections(
            rng.normal(0, 1000, (count, 4)).astype(np.float32),
            rng.random(count).astype(np.float32),
            rng.integers(-(2**31), 2**31, count).astype(np.int32),
            rng.integers(0, 127, count).astype(np.int8),
        ),
        [make_chip(rng) for _ in range(chips)],
        Ledger(
            *([int(n) for n in rng.integers(0, 2**30, scales)] for _ in range(4)),
            *(int(n) for n in rng.integers(0, 2**31, 1 + len(COUNTERS))),
            f32(rng.random() * 100),
            f32(rng.random() * 100),
        ),
        [make_candidate(rng) for _ in range(chips)],
    )


def make_chip(rng: np.random.Generator) -> Chip:
    x0, y0, width, height = (int(n) for n in rng.integers(1, 9, 4))
    pixels = rng.integers(0, 256, (2 * height, width, 3)).astype(np.uint8)[::2]  # not contiguous
    box = (x0, y0, x0 + width, y0 + height)
    pending = ArrayPixels(pixels) if rng.random() < 0.7 else None
    return Chip(
        int(rng.integers(0, 4)),
        int(rng.integers(-1, 300)),
        box,
        f32(rng.random()),
        f32(rng.random() * 99),
        pending,
        bool(rng.random() < 0.5),
    )


def make_candidate(rng: np.random.Generator) -> Candidate:
    x0, y0, x1, y1 = (int(n) for n in rng.integers(0, 2**31, 4))
    focus, gain = f32(rng.random()), f32(rng.random() * 99)
    return Candidate((x0, y0, x1, y1), focus, gain, int(rng.integers(0, 99)))


def check_same(found: ImageRow, wanted: ImageRow, pixels: bool = True) -> None:
    assert found.candidates == (wanted.candidates if pixels else [])
    for name in ("image_id", "uri", "width", "height", "bytes", "error", "ledger"):
        assert getattr(found, name) == getattr(wanted, name)
    for name, value in vars(wanted.detections).items():
        other = getattr(found.detections, name)
        np.testing.assert_array_equal(other, value)
        assert other.dtype == value.dtype
        assert other.shape == value.shape
    assert len(found.chips) == len(wanted.chips)
    for one, other in zip(found.chips, wanted.chips, strict=True):
        looked = other.looked if pixels else True  # what is stored is done
        assert replace(one, pixels=None) == replace(other, pixels=None, looked=looked)
        if pixels and other.pixels is not None:
            np.testing.assert_array_equal(one.pixels.array, other.pixels.array)
            assert one.pixels.array.dtype == np.uint8
        else:
            assert one.pixels is None


@settings(max_examples=80, deadline=None)
@given(st.lists(rows(), max_size=4), st.booleans())
def test_rows_survive_the_table(made: list[ImageRow], stored: bool) -> None:
    table = rows_to_table(made, stored)
    table.validate(full=True)
    assert table.schema.equals(STORED_ROW if stored else ROW)
    back = table_to_rows(table)
    assert len(back) == len(made)
    for found, wanted in zip(back, made, strict=True):
        check_same(found, wanted, pixels=not stored)


@settings(max_examples=40, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=6), st.data())
def test_pieces_of_tables_are_the_same_rows(made: list[ImageRow], data: st.DataObject) -> None:
    """Chunks, slices and empty chunks, as Ray Data makes them."""
    cut = data.draw(st.integers(0, len(made)))
    whole = rows_to_table(made)
    chunked = pa.concat_tables([rows_to_table(made[:cut]), rows_to_table([]), whole.slice(cut)])
    for found, wanted in zip(table_to_rows(chunked), made, strict=True):
        check_same(found, wanted)
    for found, wanted in zip(table_to_rows(whole.slice(cut)), made[cut:], strict=True):
        check_same(found, wanted)
    for found, wanted in zip(
        table_to_rows(whole.take(pa.array(range(cut), pa.int64()))), made[:cut], strict=True
    ):
        check_same(found, wanted)


@pytest.mark.parametrize("stored", [False, True])
def test_empty_tables_have_the_schema(stored: bool) -> None:
    schema = STORED_ROW if stored else ROW
    for made in ([], [ImageRow("a", "b")]):
        table = rows_to_table(made, stored)
        assert table.schema.equals(schema)
        assert len(table_to_rows(table)) == len(made)
    assert table_to_rows(schema.empty_table()) == []
    (plain,) = table_to_rows(rows_to_table([ImageRow("a", "b")], stored))
    check_same(plain, ImageRow("a", "b"))


def test_pixels_are_dropped_only_when_stored() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    row = ImageRow(
        "a",
        "b",
        chips=[
            Chip(1, 0, (3, 5, 7, 7), 0.5, 2.5, ArrayPixels(pixels)),
            Chip(0, 0, (0, 0, 9, 9), 1),
        ],
    )
    (flying,) = table_to_rows(rows_to_table([row]))
    np.testing.assert_array_equal(flying.chips[0].pixels.array, pixels)
    assert flying.chips[1].pixels is None
    (stored,) = table_to_rows(rows_to_table([row], stored=True))
    assert [chip.pixels for chip in stored.chips] == [None, None]
    assert stored.chips[0].box == (3, 5, 7, 7)
    assert stored.chips[0].gain == 2.5


def test_joining_and_selecting() -> None:
    assert len(join_detections([])) == 0
    one = Detections(
        np.eye(4, dtype=np.float32)[:3],
        np.array([0.1, 0.2, 0.3], np.float32),
        np.arange(3, dtype=np.int32),
        np.zeros(3, np.int8),
    )
    both = join_detections([one, no_detections(), one])
    assert both.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert both.select(both.scores > 0.25).labels.tolist() == [2, 2]
    assert both.select(np.array([3, 1])).scores == pytest.approx([0.1, 0.2])

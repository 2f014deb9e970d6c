"""A replay is the cascade, told by a record what the detector would say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.cascade import run_cascade
from af_pipeline.core.focus import STRIDE, ChipRule
from af_pipeline.core.schema import ImageRow
from af_pipeline.tuning.replay import load_record, record_image, replay, save_record, shifted_map
from tests.helpers.fakes import FakePredictor, make_plan, paint, scatter

AUTOFOCUS, PYRAMID = make_plan("autofocus"), make_plan("pyramid")


def real(image: np.ndarray, plan) -> ImageRow:
    row = ImageRow("a", "")
    run_cascade(row, image, plan, FakePredictor())
    return row


def account(row: ImageRow) -> tuple:
    found = row.detections
    order = np.lexsort(found.boxes.T)
    return found.boxes[order].tolist(), row.ledger.chips, row.ledger.pixels


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10), st.integers(200, 900), st.integers(200, 900))
def test_the_full_pyramid_is_replayed_exactly(
    seed: int, count: int, height: int, width: int
) -> None:
    image = paint(scatter(np.random.default_rng(seed), count, height, width), height, width)
    record = record_image("a", image, AUTOFOCUS, FakePredictor())
    assert account(replay(record, PYRAMID)) == account(real(image, PYRAMID))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 8))
def test_chips_and_detections_of_a_replay_are_those_of_the_cascade(seed: int, count: int) -> None:
    """Boxes on the grid of all scales, so that a shifted map is the map of the shifted crop."""
    grid = 2 * STRIDE  # original px of a cell of the coarsest scale
    rng = np.random.default_rng(seed)
    cells = rng.permutation(12 * 16)[:count]
    corner = np.stack([cells % 16, cells // 16], 1) * 2 * grid
    boxes = np.hstack([corner, corner + rng.choice([16, 48], (count, 2))])
    image = paint(boxes, 24 * grid, 32 * grid)
    plan = replace(AUTOFOCUS, rules=(ChipRule(0.5, 3, 64, "cost", 0.0),) * 2)
    record = record_image("a", image, plan, FakePredictor())
    again, truth = replay(record, plan), real(image, plan)
    assert [c.box for c in again.chips if c.scale == 1] == [
        c.box for c in truth.chips if c.scale == 1
    ]
    near = np.abs(again.detections.boxes[:, None] - truth.detections.boxes[None]).max(-1) < 1.01
    assert len(again.detections) == len(truth.detections)
    assert near.any(0).all()


def test_an_object_cut_by_a_chip_is_dropped_as_in_the_cascade() -> None:
    image = paint(np.array([[36, 36, 56, 56]]), 512, 512)
    record = record_image("a", image, AUTOFOCUS, FakePredictor())
    maps = tuple(np.zeros_like(one) for one in record.maps)
    maps[0][1, 1] = maps[1][2, 2] = 1  # the cell of 32..48 px: half of the object
    rule = ChipRule(0.5, 1, 16)
    row = replay(replace(record, maps=maps), replace(AUTOFOCUS, rules=(rule, rule)))
    assert row.ledger.chips[1] == 1
    assert len(row.detections) == 0
    assert row.ledger.dropped_border > 0


def test_a_map_shifted_by_whole_cells_is_cut() -> None:
    focus = np.random.default_rng(0).random((9, 11)).astype(np.float32)
    part = shifted_map(focus, np.array([2.0, 3.0]) * STRIDE, (40, 70))
    np.testing.assert_allclose(part, focus[3:6, 2:7], atol=1e-6)
    between = shifted_map(focus, np.array([2.5, 3.0]) * STRIDE, (16, 16))
    np.testing.assert_allclose(between, focus[3:4, 2:4].mean(keepdims=True), atol=1e-6)


def test_records_survive_the_disk(tmp_path: Path) -> None:
    image = paint(scatter(np.random.default_rng(1), 5, 300, 400), 300, 400)
    record = record_image("x/ü.png", image, AUTOFOCUS, FakePredictor())
    save_record(record, tmp_path / "a.npz")
    again = load_record(tmp_path / "a.npz")
    assert (again.image_id, again.height, again.width) == ("x/ü.png", 300, 400)
    for name, array in vars(record.found).items():
        np.testing.assert_array_equal(getattr(again.found, name), array)
    for one, other in zip(again.maps, record.maps, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_record_keeps_what_no_range_allows() -> None:
    """Ranges are applied when it is replayed: each object is seen at every scale."""
    image = paint(np.array([[50, 50, 80, 80]]), 200, 200)
    record = record_image("a", image, AUTOFOCUS, FakePredictor())
    assert sorted(record.found.scales) == [0, 1, 2]
    assert len(replay(record, PYRAMID).detections) == 1


@pytest.mark.parametrize("shape", [(1, 1), (17, 500), (500, 17)])
def test_small_and_long_images(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 255, np.uint8)
    record = record_image("a", image, AUTOFOCUS, FakePredictor())
    row = replay(record, AUTOFOCUS)
    assert (row.height, row.width) == shape
    assert row.ledger.chips[0] == 1

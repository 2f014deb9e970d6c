"""The cascade shared out: lanes in several hands, and fixed windows instead of FocusChips."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.cascade import advance, look, pending_pixels, stack, start_row
from af_pipeline.core.chips import make_chip
from af_pipeline.core.lanes import make_lanes, split_axis
from af_pipeline.core.pixels import ArrayPixels
from af_pipeline.core.plan import TileRule
from af_pipeline.core.scales import Scale
from af_pipeline.core.schema import ImageRow, rows_to_table, table_to_rows
from tests.helpers.fakes import (
    LARGE,
    SCALES,
    SMALL,
    FakePredictor,
    TouchyPredictor,
    check_found,
    glow,
    make_plan,
    paint,
    run_cascade,
    scatter,
)

AUTOFOCUS, PYRAMID = make_plan("autofocus"), make_plan("pyramid")
SEEDS = st.integers(0, 10**6)
OPEN = tuple(replace(scale, valid_range=(-1.0, -1.0)) for scale in SCALES)


def plain(row: ImageRow) -> dict:
    timeless = replace(row, ledger=replace(row.ledger, forward_ms=0.0))
    (found,) = rows_to_table([timeless]).to_pylist()
    return found


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 14), st.sampled_from([AUTOFOCUS, PYRAMID]), st.integers(2, 4))
def test_any_split_of_the_lanes_gives_the_same_row(seed: int, count: int, plan, hands: int) -> None:
    rng = np.random.default_rng(seed)
    image = paint(scatter(rng, count, 700, 900), 700, 900)
    (wanted,) = run_cascade([image], plan)
    row = ImageRow("0", "")
    start_row(row, image, plan)
    for scale in range(len(plan.scales)):
        owner = {lane: rng.integers(hands) for lane in range(-1, len(plan.lanes))}
        for hand in rng.permutation(hands):
            own = {lane for lane, other in owner.items() if other == hand}
            look([row], scale, plan, FakePredictor(), own)
            [row] = table_to_rows(rows_to_table([row]))  # as from one pool to the next
        assert pending_pixels(row, scale, plan) == 0
        advance([row], scale, plan)
    stack(row, plan.stack)
    assert plain(row) == plain(wanted)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 10**6), st.integers(2, 4))
def test_a_split_is_the_same_to_the_last_bit(seed: int, batch: int, hands: int) -> None:
    """With a detector that feels the size of its batch, and chips of many tiles."""
    rng = np.random.default_rng(seed)
    image = glow(rng, 500, 600, 8)
    plan = make_plan(lanes=make_lanes((64, 128, 256)), overlap=64, batch_pixels=batch)
    rows = []
    for split in (1, hands):
        row = ImageRow("0", "")
        start_row(row, image, plan)
        for scale in range(len(plan.scales)):
            owner = rng.integers(split, size=len(plan.lanes) + 1)
            for hand in range(split):
                own = set((np.flatnonzero(owner == hand) - 1).tolist())
                look([row], scale, plan, TouchyPredictor(plan), own)
            advance([row], scale, plan)
        stack(row, plan.stack)
        rows.append(plain(row))
    assert rows[0] == rows[1]


def test_tiles_and_whole_chips_of_one_shape_share_no_batch() -> None:
    """The pool of the larger chips may be another."""
    image = glow(np.random.default_rng(0), 160, 288, 6)
    lanes = make_lanes((64, 128, 256))
    plan = make_plan(scales=(Scale(1.0),), rules=(), lanes=lanes, overlap=64, batch_pixels=10**6)
    found = []
    for hands in ([None], [{-1}, set(range(len(lanes)))]):
        row = ImageRow("0", "")
        start_row(row, image, plan)
        part = (0, 0, 160, 160)
        row.chips.append(make_chip(row, 0, part, None, ArrayPixels(image[:, :160]), plan))
        for own in hands:
            look([row], 0, plan, TouchyPredictor(plan), own)
        stack(row, plan.stack)
        found.append(plain(row))
    assert found[0] == found[1]


def test_a_chip_is_looked_at_once() -> None:
    image = paint(scatter(np.random.default_rng(1), 6, 300, 300), 300, 300)
    row = ImageRow("0", "")
    start_row(row, image, AUTOFOCUS)
    assert pending_pixels(row, 0, AUTOFOCUS) == 150 * 150
    look([row], 0, AUTOFOCUS, FakePredictor())
    found, waiting = len(row.detections), list(row.candidates)
    look([row], 0, AUTOFOCUS, FakePredictor())
    assert (len(row.detections), row.candidates) == (found, waiting)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(40, 900), st.integers(40, 900))
def test_tiles_find_what_is_there(seed: int, count: int, height: int, width: int) -> None:
    boxes = scatter(np.random.default_rng(seed), count, height, width, [SMALL, LARGE])
    plan = make_plan("tiles", scales=(OPEN[0], OPEN[2]), windows=TileRule(256, 64))
    predictor = FakePredictor()
    (row,) = run_cascade([paint(boxes, height, width)], plan, predictor)
    check_found(row, boxes, 2.01)
    assert [chip.box for chip in row.chips] == [(0, 0, width, height)] * 2
    rows, columns = (len(split_axis(2 * side, 256, 64)) for side in (height, width))
    assert len(predictor.batches) == 1 + rows * columns
    assert row.ledger.pixels[1] >= 4 * height * width

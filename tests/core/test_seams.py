"""Nothing is lost at a seam: objects of any size, anywhere, in tiles of any size, in every mode."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.core.cascade import Prediction, look
from af_pipeline.core.lanes import make_lanes
from af_pipeline.core.pixels import ArrayPixels
from af_pipeline.core.plan import TileRule
from af_pipeline.core.scales import Scale
from af_pipeline.core.schema import Chip, ImageRow
from af_pipeline.core.seams import cut_sides, join_parts, seen_further
from tests.helpers.fakes import SCALES, FakePredictor, check_found, make_plan, paint, run_cascade

MODES = ("autofocus", "pyramid", "whole", "tiles")
LEFT, TOP, RIGHT, LOW = range(4)


def span(place: float, size: float, length: int) -> tuple[int, int]:
    """A stretch of an axis: ``size`` of what fits, at ``place``, both from 0 to 1."""
    own = 8 + round(size * (length - 8))
    start = round(place * (length - own))
    return start, start + own


SHARE = st.floats(0, 1)


@settings(max_examples=250, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    shape=st.tuples(st.integers(60, 700), st.integers(60, 700)),
    places=st.tuples(SHARE, SHARE),
    sizes=st.tuples(SHARE, SHARE),
    sides=st.sampled_from([(128,), (64, 192), (256, 512)]),
)
@example("whole", (600, 700), (0.5, 0.5), (1.0, 1.0), (128,))
@example("pyramid", (600, 700), (0.5, 1.0), (0.9, 0.3), (128,))
@example("tiles", (700, 600), (0.3, 0.4), (0.4, 0.1), (256, 512))
def test_no_object_is_lost_to_geometry(
    mode: str,
    shape: tuple[int, int],
    places: tuple[float, float],
    sizes: tuple[float, float],
    sides: tuple[int, ...],
) -> None:
    (y0, y1), (x0, x1) = (span(*both) for both in zip(places, sizes, shape, strict=True))
    box = np.array([[x0, y0, x1, y1]])
    changes: dict = {"lanes": make_lanes(sides), "overlap": 32}
    if mode == "whole":
        changes |= {"scales": (Scale(1.0),), "rules": ()}
    elif mode == "tiles":
        changes |= {"scales": (Scale(0.5), Scale(2.0)), "rules": (None,)}
        changes |= {"windows": TileRule(160, 32)}
    plan = make_plan(mode, **changes)
    (row,) = run_cascade([paint(box, *shape)], plan)
    check_found(row, box, 2.01)
    assert row.ledger.cut_seam == 0


class HalfBlindPredictor(FakePredictor):
    """Overlooks what the left edge of a crop cuts."""

    def predict(self, crop: NDArray[np.uint8]) -> Prediction:
        found = super().predict(crop)
        seen = found.boxes[:, 0] > 0
        picked = found.boxes[seen], found.scores[seen], found.labels[seen]
        return Prediction(*picked, found.focus)


def test_a_part_without_its_other_half_is_kept_and_counted() -> None:
    image = paint(np.array([[100, 100, 400, 140]]), 500, 500)
    plan = make_plan("whole", scales=(Scale(1.0),), rules=(), lanes=make_lanes((256,)), overlap=32)
    (row,) = run_cascade([image], plan, HalfBlindPredictor())
    ((x0, y0, x1, y1),) = row.detections.boxes.tolist()
    assert (x0, y0, y1) == (100, 100, 140)
    assert 150 < x1 < 256
    assert (row.ledger.cut_seam, row.ledger.joined_seam) == (1, 0)


def test_a_cut_part_that_its_scale_does_not_answer_for_is_counted_once() -> None:
    image = paint(np.array([[100, 100, 400, 140]]), 500, 500)
    scales = (Scale(1.0, valid_range=(200, -1)),)
    plan = make_plan("whole", scales=scales, rules=(), lanes=make_lanes((256,)), overlap=32)
    (row,) = run_cascade([image], plan, HalfBlindPredictor())
    assert (row.ledger.dropped_range, row.ledger.cut_seam) == (1, 0)


TILE, TILES = (96, 0, 224, 128), [(0, 0, 128, 128), (96, 0, 224, 128), (192, 0, 300, 128)]


@pytest.mark.parametrize(
    ("box", "cut", "further"),
    [
        ((120, 10, 180, 50), (), False),  # whole
        ((120, 10, 224, 50), (RIGHT,), False),  # the next tile begins behind its left end
        ((200, 10, 224, 50), (RIGHT,), True),  # the next tile sees its left end too
        ((195, 10, 224, 50), (RIGHT,), False),  # but too near its edge
        ((96, 10, 120, 50), (LEFT,), True),
        ((96, 10, 126, 50), (LEFT,), False),
        ((96, 10, 224, 50), (LEFT, RIGHT), False),
        ((120, 0, 180, 128), (), False),  # the chip's own edges are no seams
    ],
)
def test_a_cut_part_is_needed_where_no_neighbour_sees_more(
    box: tuple[int, ...], cut: tuple[int, ...], further: bool
) -> None:
    boxes = np.array([box], np.float32)
    cuts = cut_sides(boxes, TILE, (128, 300), 4.0)
    assert np.flatnonzero(cuts[0]).tolist() == list(cut)
    assert seen_further(boxes, cuts, TILE, TILES, 4.0).tolist() == [further]


def test_parts_are_joined_where_label_and_extent_agree() -> None:
    boxes = np.array(
        [
            [50, 10, 128, 60],  # with the second, and the third beyond it
            [96, 12, 224, 60],
            [192, 10, 260, 58],
            [60, 11, 128, 61],  # a weaker double: its partner is taken
            [70, 90, 128, 120],  # of another class than the one beside it
            [96, 90, 150, 120],
        ],
        np.float32,
    )
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.5], np.float32)
    labels = np.array([1, 1, 1, 1, 2, 3], np.int32)
    cuts = np.zeros((6, 4), bool)
    cuts[[0, 1, 3, 4], RIGHT] = cuts[[1, 2, 5], LEFT] = True
    cells = np.array([[0, 0], [1, 0], [2, 0], [0, 0], [0, 0], [1, 0]])
    best, whole, still, member = join_parts(boxes, scores, labels, cuts, cells)
    assert sorted(zip(best.tolist(), whole.tolist(), still.tolist(), strict=True)) == [
        (0, [50, 10, 260, 60], False),
        (3, [60, 11, 128, 61], True),
        (4, [70, 90, 128, 120], True),
        (5, [96, 90, 150, 120], True),
    ]
    assert best[member].tolist() == [0, 0, 0, 3, 4, 5]


@pytest.mark.parametrize(("low", "objects"), [(50, 1), (49, 2)])
def test_parts_are_joined_from_half_of_their_extent_on(low: int, objects: int) -> None:
    boxes = np.array([[50, 0, 128, 100], [96, 0, 150, low]], np.float32)
    cuts = np.array([[False, False, True, False], [True, False, False, False]])
    cells = np.array([[0, 0], [1, 0]])
    best, *_ = join_parts(boxes, np.array([0.9, 0.8]), np.array([1, 1]), cuts, cells)
    assert len(best) == objects


def test_what_leaves_the_chip_across_a_seam_leaves_no_part() -> None:
    """A chip of three tiles; the object goes on beyond it."""
    image = paint(np.array([[40, 100, 600, 130]]), 300, 600)
    plan = make_plan("whole", scales=(Scale(1.0),), rules=(), lanes=make_lanes((192,)), overlap=32)
    row = ImageRow("0", "", 600, 300)
    row.ledger.pixels, row.ledger.padded, row.ledger.chips = [0], [0], [0]
    row.chips = [Chip(0, -1, (0, 0, 400, 300), 1.0, pixels=ArrayPixels(image[:, :400]))]
    look([row], 0, plan, FakePredictor())
    assert not len(row.detections)
    assert (row.ledger.dropped_border, row.ledger.cut_seam) == (1, 0)
    assert row.ledger.joined_seam > 0


def test_an_object_over_four_tiles_is_one() -> None:
    plan = make_plan("whole", scales=(Scale(1.0),), rules=(), lanes=make_lanes((128,)), overlap=32)
    box = np.array([[40, 50, 180, 190]])
    (row,) = run_cascade([paint(box, 220, 220)], plan)
    check_found(row, box, 0)
    assert row.ledger.joined_seam == 3
    assert SCALES[0].valid(box).all()

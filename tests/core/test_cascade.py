"""The cascade with a predictor that finds planted rectangles: nothing is lost, nothing doubled."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.cascade import Prediction
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.lanes import Lane, lane_of, make_lanes, split_axis
from af_pipeline.core.scales import Scale, pyramid_pixels, scaled_size
from af_pipeline.core.schema import ImageRow, rows_to_table
from af_pipeline.core.stacking import StackRule
from tests.helpers.fakes import (
    LARGE,
    MIDDLE,
    SCALES,
    SMALL,
    FakePredictor,
    check_found,
    make_plan,
    paint,
    run_cascade,
    scatter,
)

AUTOFOCUS, PYRAMID = make_plan("autofocus"), make_plan("pyramid")
SEEDS = st.integers(0, 10**6)
SOME = settings(max_examples=40, deadline=None)
COARSE_STEP = 2.01  # original px that the coarsest scale's boxes may be off


class SpreadPredictor(FakePredictor):
    """Called as ``run`` does it, `map` or a pool's; knows by whom, and the px of each look."""

    def __init__(self, run: Callable[..., Iterator]) -> None:
        super().__init__()
        self.run, self.threads = run, set[int]()
        self.looks: list[list[int]] = []

    def spread(self, function: Callable, batches: Sequence) -> Iterator:
        self.looks.append([])
        return self.run(function, batches)

    def __call__(self, crops: Sequence[np.ndarray], lane: Lane) -> list[Prediction]:
        self.threads.add(threading.get_ident())
        sides = -(-np.array([crop.shape[:2] for crop in crops]) // 32)
        self.looks[-1].append(int(sides.prod(1).sum()))
        return super().__call__(crops, lane)


def chips_of(row: ImageRow, scale: int) -> np.ndarray:
    boxes = [chip.box for chip in row.chips if chip.scale == scale]
    return np.array(boxes, np.int64).reshape(-1, 4)


def holds(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    low = (outer[:, None, :2] <= inner[None, :, :2]).all(-1)
    return low & (outer[:, None, 2:] >= inner[None, :, 2:]).all(-1)


def plain(row: ImageRow) -> dict:
    """What must not depend on the company an image is looked at in."""
    timeless = replace(row, ledger=replace(row.ledger, forward_ms=0.0))
    (found,) = rows_to_table([timeless]).to_pylist()
    return found


# ---- what is found


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_autofocus_finds_what_the_pyramid_finds_with_fewer_pixels(seed: int, count: int) -> None:
    boxes = scatter(np.random.default_rng(seed), count, 700, 900, [SMALL])
    image = paint(boxes, 700, 900)
    (focused,), (whole,) = run_cascade([image], AUTOFOCUS), run_cascade([image], PYRAMID)
    check_found(focused, boxes, 1)
    check_found(whole, boxes, 1)
    np.testing.assert_allclose(
        np.sort(focused.detections.boxes, 0), np.sort(whole.detections.boxes, 0), atol=1
    )
    assert set(focused.detections.scales) == {2}
    assert sum(focused.ledger.pixels) < 0.7 * sum(whole.ledger.pixels)


@SOME
@given(SEEDS, st.integers(0, 30), st.integers(200, 900), st.integers(200, 900))
def test_objects_on_seams_are_found_once(seed: int, count: int, height: int, width: int) -> None:
    """Of chips and of tiles: the image is up to four tiles wide at its finest scale."""
    boxes = scatter(np.random.default_rng(seed), count, height, width)
    image = paint(boxes, height, width)
    for plan in (AUTOFOCUS, PYRAMID):
        (row,) = run_cascade([image], plan)
        check_found(row, boxes, COARSE_STEP)


@pytest.mark.parametrize("sides", [SMALL, MIDDLE])
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_objects_across_every_tile_seam(sides: tuple[int, int], quarter: int) -> None:
    height, width = 1300, 1700
    seams = [edge for piece in split_axis(width // 2, 512, 128) for edge in piece][1:-1]
    boxes = []
    for number, x in enumerate(seams):
        side = sides[0] + 3 * number
        left, top = 2 * x - side * quarter // 3, 150 + 100 * number
        boxes.append((left, top, left + side, top + side))
    image = paint(np.array(boxes), height, width)
    for turn in range(4):
        turned = np.ascontiguousarray(np.rot90(image, turn))
        wanted = np.array(boxes)
        h, w = height, width
        for _ in range(turn):  # counter-clockwise: (x, y) -> (y, w - x)
            wanted = np.stack([wanted[:, 1], w - wanted[:, 2], wanted[:, 3], w - wanted[:, 0]], 1)
            h, w = w, h
        (row,) = run_cascade([turned], AUTOFOCUS)
        check_found(row, wanted, 1)


def test_soft_suppression_keeps_the_copies_of_an_overlap_low() -> None:
    boxes = scatter(np.random.default_rng(0), 30, 900, 1200)
    plan = replace(AUTOFOCUS, stack=StackRule("soft"))
    (row,) = run_cascade([paint(boxes, 900, 1200)], plan)
    high = row.detections.scores > 0.5
    check_found(replace(row, detections=row.detections.select(high)), boxes, COARSE_STEP)
    assert (row.detections.scores[~high] < 0.16).all()


def test_whole_mode_is_open_to_every_size() -> None:
    boxes = scatter(np.random.default_rng(1), 30, 700, 900)
    coarse = Scale(0.5)
    plan = replace(AUTOFOCUS, scales=(coarse,), rules=())
    (row,) = run_cascade([paint(boxes, 700, 900)], plan)
    check_found(row, boxes, COARSE_STEP)
    assert row.ledger.pixels == [350 * 450]
    assert row.ledger.dropped_range == 0
    assert row.ledger.pixels_pyramid == pyramid_pixels(700, 900, SCALES)


# ---- chips


@SOME
@given(SEEDS, st.integers(0, 25), st.integers(1, 1100), st.integers(1, 1100))
def test_chips_lie_in_their_parents(seed: int, count: int, height: int, width: int) -> None:
    boxes = scatter(np.random.default_rng(seed), count, height, width)
    (row,) = run_cascade([paint(boxes, height, width)], AUTOFOCUS)
    assert chips_of(row, 0).tolist() == [[0, 0, width, height]]
    for scale in (1, 2):
        chips = chips_of(row, scale)
        assert holds(chips_of(row, scale - 1), chips).any(0).all()
        assert len(np.unique(chips, axis=0)) == len(chips)
    for chip in row.chips:
        x0, y0, x1, y1 = chip.box
        assert chip.pixels is None
        assert chip.focus == pytest.approx(1)
        size = scaled_size(y1 - y0, x1 - x0, SCALES[chip.scale].factor or 0)
        assert chip.lane == lane_of(*size, AUTOFOCUS.lanes)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 12))
def test_a_tiled_map_is_the_map_of_one_piece(seed: int, count: int) -> None:
    boxes = scatter(np.random.default_rng(seed), count, 1200, 1500, [SMALL, MIDDLE])
    image = paint(boxes, 1200, 1500)
    plan = replace(AUTOFOCUS, scales=SCALES[:2], rules=AUTOFOCUS.rules[:1])
    (tiled,) = run_cascade([image], plan)
    (whole,) = run_cascade([image], replace(plan, lanes=make_lanes((2048,))))
    assert tiled.chips[0].lane == -1
    assert whole.chips[0].lane == 0
    np.testing.assert_array_equal(chips_of(tiled, 1), chips_of(whole, 1))
    assert holds(chips_of(tiled, 1), boxes).any(0).all()


def test_without_focus_there_is_no_chip() -> None:
    predictor = FakePredictor()
    (row,) = run_cascade([np.zeros((300, 400, 3), np.uint8)], AUTOFOCUS, predictor)
    assert len(row.chips) == 1
    assert len(row.detections) == 0
    assert predictor.batches == [1]
    ledger = row.ledger
    assert (ledger.pixels, ledger.padded, ledger.chips) == ([30_000, 0, 0], [0, 0, 0], [1, 0, 0])
    assert ledger.pixels_pyramid == 150 * 200 + 300 * 400 + 600 * 800
    assert ledger.forward_ms > 0
    assert run_cascade([], AUTOFOCUS) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (1000, 3), (17, 33), (5, 1)])
@pytest.mark.parametrize("bright", [0, 255])
def test_odd_sizes(size: tuple[int, int], bright: int) -> None:
    image = np.full((*size, 3), bright, np.uint8)
    paper = tuple(Scale(None, *sides) for sides in ((48, 512), (80, 1280), (140, 2000)))
    for plan in (AUTOFOCUS, PYRAMID, replace(AUTOFOCUS, scales=paper, pyramid=paper)):
        (row,) = run_cascade([image], plan)
        assert (row.height, row.width) == size
        assert len({chip.scale for chip in row.chips}) == (3 if bright or plan is PYRAMID else 1)
        for scale in range(3):
            for box in chips_of(row, scale):
                assert holds(np.array([[0, 0, size[1], size[0]]]), box[None]).all()
        found = row.detections.boxes
        assert (found >= 0).all()
        assert (found <= np.array([size[1], size[0]] * 2) + 1e-3).all()
        assert len(found) >= (bright > 0 and plan.scales is paper)


# ---- the account


@SOME
@given(SEEDS, st.integers(0, 30), st.sampled_from(["hard", "soft"]))
def test_the_ledger_adds_up(seed: int, count: int, method: str) -> None:
    boxes = scatter(np.random.default_rng(seed), count, 700, 900)
    predictor = FakePredictor()
    stack_rule = StackRule(method, min_score=0.2, max_detections=20)
    plan = replace(AUTOFOCUS, stack=stack_rule)
    (row,) = run_cascade([paint(boxes, 700, 900)], plan, predictor)
    ledger = row.ledger
    dropped = ledger.dropped_border + ledger.dropped_range + ledger.dropped_score
    suppressed = ledger.dropped_nms + ledger.dropped_image + ledger.joined_seam
    assert predictor.found == len(row.detections) + dropped + suppressed
    assert ledger.pixels_pyramid == pyramid_pixels(700, 900, SCALES)
    for scale in range(3):
        area = 0
        for x0, y0, x1, y1 in chips_of(row, scale):
            height, width = scaled_size(y1 - y0, x1 - x0, SCALES[scale].factor or 0)
            rows, columns = ((height,), (width,))
            if lane_of(height, width, plan.lanes) < 0:
                rows, columns = (  # tiles
                    tuple(b - a for a, b in split_axis(side, 512, plan.overlap))
                    for side in (height, width)
                )
            area += sum(rows) * sum(columns)
        assert ledger.pixels[scale] == area
        assert ledger.chips[scale] == len(chips_of(row, scale))


# ---- in company


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(2, 4), st.sampled_from([1, 300_000, 10**9]))
def test_images_together_are_images_alone(seed: int, count: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        height, width = (int(n) for n in rng.integers(1, 900, 2))
        images.append(paint(scatter(rng, 12, height, width), height, width))
    predictor = FakePredictor()
    together = run_cascade(images, replace(AUTOFOCUS, batch_pixels=budget), predictor)
    assert max(predictor.batches) == 1 or budget > 1
    order = rng.permutation(count)
    shuffled = run_cascade([images[i] for i in order], replace(AUTOFOCUS, batch_pixels=budget))
    for number, image in enumerate(images):
        (alone,) = run_cascade([image], AUTOFOCUS)
        wanted = plain(replace(alone, image_id=str(number)))
        assert plain(together[number]) == wanted
        other = shuffled[int(np.flatnonzero(order == number)[0])]
        assert plain(replace(other, image_id=str(number))) == wanted


@pytest.mark.parametrize("pad", [False, True])
def test_padded_batches_hold_chips_of_many_images(pad: bool) -> None:
    images = [paint(scatter(np.random.default_rng(s), 4, 300, 300), 300, 300) for s in range(6)]
    predictor = FakePredictor()
    run_cascade(images, replace(AUTOFOCUS, batch_pixels=10**9, pad=pad), predictor)
    assert predictor.batches[:6] == ([6, *predictor.batches[1:6]] if pad else [1] * 6)


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(1, 4), st.sampled_from([1, 300_000]))
def test_threads_find_the_same(seed: int, count: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    images = [paint(scatter(rng, 12, 700, 900), 700, 900) for _ in range(count)]
    plan = replace(AUTOFOCUS, batch_pixels=budget, lanes=make_lanes((128, 256)), overlap=128)
    with ThreadPoolExecutor(4) as pool:
        spread = SpreadPredictor(pool.map)
        found = run_cascade(images, plan, spread)
    assert [plain(row) for row in found] == [plain(row) for row in run_cascade(images, plan)]
    assert spread.threads
    assert threading.get_ident() not in spread.threads
    serial = SpreadPredictor(map)
    run_cascade(images, plan, serial)
    assert all(sizes == sorted(sizes, reverse=True) for sizes in serial.looks)
    assert [sorted(sizes) for sizes in spread.looks] == [sorted(sizes) for sizes in serial.looks]


def test_what_fails_in_a_thread_is_told() -> None:
    class Failing(SpreadPredictor):
        def __call__(self, crops: Sequence[np.ndarray], lane: Lane) -> list[Prediction]:
            raise ValueError("no memory")

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="no memory"):
        run_cascade([np.zeros((200, 200, 3), np.uint8)], AUTOFOCUS, Failing(pool.map))


def test_a_rule_may_be_missing_for_one_step() -> None:
    """Chips of scale 1 that go on whole are the chips of scale 2."""
    boxes = scatter(np.random.default_rng(3), 8, 700, 900, [SMALL, LARGE])
    rule = ChipRule(0.5, 3, 64)
    (row,) = run_cascade([paint(boxes, 700, 900)], replace(AUTOFOCUS, rules=(rule, None)))
    np.testing.assert_array_equal(chips_of(row, 2), chips_of(row, 1))
    check_found(row, boxes, COARSE_STEP)

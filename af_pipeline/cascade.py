"""The AutoFocus cascade on plain objects: look at the chips of one scale, cut those of the next.

Source: AutoFocus (ICCV 2019) §3. No torch and no Ray: the detector comes in as a function from
a batch of crops to predictions, so every mode, plan and test runs the same code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from af_pipeline.focus import STRIDE, ChipRule, chips_from_map, merge_rects, project_chips
from af_pipeline.lanes import Lane, lane_of, pack, tile_rects
from af_pipeline.scales import Scale, pyramid_pixels, scaled_size
from af_pipeline.schema import Candidate, Chip, Detections, ImageRow, join_detections
from af_pipeline.stacking import StackRule, border_keep, suppress
from af_pipeline.views import Cutter, Tile, View, tiles_of, view_of


@dataclass(frozen=True)
class Prediction:
    """A detector's answer for one crop of h x w network px.

    boxes float32 [D, 4] network px; scores float32 [D]; labels int32 [D]; focus float32
    [>= h/16, >= w/16] FocusPixel probabilities (cells of padding are ignored); padded: network
    px that the forward spent on padding of this crop.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    focus: NDArray[np.float32]
    padded: int = 0


Box = tuple[int, int, int, int]  # x0, y0, x1, y1

# Crops uint8 [h, w, 3] of one lane (all fit in it) -> one prediction each.
Predictor = Callable[[Sequence[NDArray[np.uint8]], Lane], Sequence[Prediction]]


@dataclass(frozen=True)
class GridRule:
    """Fixed windows of ``side`` network px of the next scale, overlapping by ``overlap`` px."""

    side: int
    overlap: int


@dataclass(frozen=True)
class Plan:
    """Everything the cascade needs to know.

    ``scales`` coarse to fine, as many as are run; ``pyramid`` all scales of the full pyramid,
    for the account; ``rules[i]`` makes the chips of scale i+1: out of the focus map of scale i, a
    fixed grid (mode tiles), or None: every chip goes on whole (mode pyramid). ``border`` and
    ``overlap`` in network px.
    """

    scales: tuple[Scale, ...]
    pyramid: tuple[Scale, ...]
    rules: tuple[ChipRule | GridRule | None, ...]
    lanes: tuple[Lane, ...]
    stack: StackRule
    overlap: int = 128
    border: float = 4.0
    batch_pixels: int = 1


def start_row(row: ImageRow, image: NDArray[np.uint8], plan: Plan) -> None:
    """Give a decoded image its size and its only chip of scale 0: all of it."""
    row.height, row.width = image.shape[:2]
    row.chips = [_make_chip(row, 0, (0, 0, row.width, row.height), 1.0, image, plan)]
    row.ledger.pixels_pyramid = pyramid_pixels(row.height, row.width, plan.pyramid)
    for counter in (row.ledger.pixels, row.ledger.padded, row.ledger.chips):
        counter[:] = [0] * len(plan.scales)


def look(
    rows: Sequence[ImageRow],
    scale: int,
    plan: Plan,
    predict: Predictor,
    lanes: Collection[int] | None = None,
) -> None:
    """Look at the chips of ``scale`` that nobody has looked at, in all ``rows``, in place.

    ``lanes``: only chips of these (-1: larger than the largest lane); None: all. Detections and
    the candidates of the next scale join the rows; `advance` makes chips of these.
    """
    began = time.perf_counter()
    views = [
        view_of(number, index, row, plan.scales[scale])
        for number, row in enumerate(rows)
        for index, chip in enumerate(row.chips)
        if chip.scale == scale and not chip.looked and (lanes is None or chip.lane in lanes)
    ]
    if not views:
        return
    tiles = [
        tile
        for index, view in enumerate(views)
        for tile in tiles_of(index, view, plan.lanes, plan.overlap)
    ]
    predictions = _predict_tiles(tiles, views, plan, predict)
    total = sum(view.pixels for view in views)
    milliseconds = (time.perf_counter() - began) * 1000
    answers: list[list[tuple[Tile, Prediction]]] = [[] for _ in views]
    for tile, prediction in zip(tiles, predictions, strict=True):
        answers[tile.view].append((tile, prediction))
    for view, answer in zip(views, answers, strict=True):
        row = rows[view.row]
        _collect(row, view, answer, scale, plan)
        share = view.pixels / total
        row.ledger.forward_ms += milliseconds * share
        row.chips[view.index] = replace(view.chip, looked=True)
        if scale + 1 < len(plan.scales):
            row.candidates = row.candidates + _candidates(row, view, answer, scale, plan)


def advance(rows: Sequence[ImageRow], scale: int, plan: Plan) -> None:
    """Make the candidates of all rows into chips of the next scale, in place.

    To be called when every chip of ``scale`` was looked at; their pixels are let go. The order in
    which they were looked at makes no difference.
    """
    for row in rows:
        _advance(row, scale, plan)


def run_cascade(row: ImageRow, image: NDArray[np.uint8], plan: Plan, predict: Predictor) -> None:
    """The whole cascade on one decoded image [H, W, 3] RGB, in place."""
    start_row(row, image, plan)
    for scale in range(len(plan.scales)):
        look([row], scale, plan, predict)
        advance([row], scale, plan)
    stack(row, plan.stack)


def pending_pixels(row: ImageRow, scale: int, plan: Plan) -> int:
    """Network px of the chips of ``scale`` that `look` would make, without overlaps of tiles."""
    factor = plan.scales[scale].factor_for(row.height, row.width)
    area = sum(
        (chip.box[2] - chip.box[0]) * (chip.box[3] - chip.box[1])
        for chip in row.chips
        if chip.scale == scale and not chip.looked
    )
    return int(area * factor**2)


def stack(row: ImageRow, rule: StackRule) -> None:
    """Merge the detections of all scales of one image, in place, whatever order they came in."""
    found = row.detections
    keys = (*found.boxes.T[::-1], found.labels, -found.scores, found.scales)
    found = found.select(np.lexsort(keys))
    kept, scores = suppress(found.boxes, found.scores, found.labels, rule)
    low = int((found.scores < rule.min_score).sum())
    row.ledger.dropped_score += low
    row.ledger.dropped_nms += len(found) - low - len(kept)
    row.detections = replace(found.select(kept), scores=scores)


def _make_chip(
    row: ImageRow,
    scale: int,
    box: Box,
    focus: float,
    pixels: NDArray[np.uint8],
    plan: Plan,
) -> Chip:
    factor = plan.scales[scale].factor_for(row.height, row.width)
    height, width = scaled_size(box[3] - box[1], box[2] - box[0], factor)
    return Chip(scale, lane_of(height, width, plan.lanes), box, focus, pixels)


def _predict_tiles(
    tiles: Sequence[Tile], views: Sequence[View], plan: Plan, predict: Predictor
) -> list[Prediction]:
    """Predictions of all tiles, batched by lane across images."""
    answers: dict[int, Prediction] = {}
    cutter = Cutter(views)
    for batch in pack([tile.lane for tile in tiles], plan.lanes, plan.batch_pixels):
        crops = [cutter.cut(tiles[i]) for i in batch]
        lane = plan.lanes[tiles[batch[0]].lane]
        for i, answer in zip(batch, predict(crops, lane), strict=True):
            answers[int(i)] = answer
    return [answers[i] for i in range(len(tiles))]


def _collect(
    row: ImageRow,
    view: View,
    answer: Sequence[tuple[Tile, Prediction]],
    scale: int,
    plan: Plan,
) -> None:
    """Border rule, valid range and projection of one chip's detections; its account."""
    parts = [row.detections]
    factor_y, factor_x = view.factors
    height, width = view.height, view.width
    cx0, cy0, cx1, cy1 = view.chip.box
    for tile, prediction in answer:
        x0, y0, x1, y1 = tile.rect
        inner = (
            x0 > 0 or cx0 > 0,
            y0 > 0 or cy0 > 0,
            x1 < width or cx1 < row.width,
            y1 < height or cy1 < row.height,
        )
        keep = border_keep(prediction.boxes, (y1 - y0, x1 - x0), inner, plan.border)
        row.ledger.dropped_border += int((~keep).sum())
        factors = np.array([factor_x, factor_y] * 2)
        boxes = (prediction.boxes[keep] + np.array([x0, y0] * 2)) / factors
        boxes = (boxes + np.array([cx0, cy0] * 2)).astype(np.float32)
        valid = plan.scales[scale].valid(boxes)
        row.ledger.dropped_range += int((~valid).sum())
        count = int(valid.sum())
        parts.append(
            Detections(
                boxes[valid],
                prediction.scores[keep][valid],
                prediction.labels[keep][valid],
                np.full(count, scale, np.int8),
            )
        )
        row.ledger.pixels[scale] += (y1 - y0) * (x1 - x0)
        row.ledger.padded[scale] += prediction.padded
    row.ledger.chips[scale] += 1
    row.detections = join_detections(parts)


def _candidates(
    row: ImageRow, view: View, answer: Sequence[tuple[Tile, Prediction]], scale: int, plan: Plan
) -> list[Candidate]:
    """Chips of the next scale in one chip, original px, with their focus."""
    rule = plan.rules[scale]
    if rule is None:
        return [Candidate(view.chip.box, 1.0, view.index)]
    if isinstance(rule, GridRule):
        return [Candidate(box, 1.0, view.index) for box in _grid(row, scale + 1, rule, plan)]
    rects, focus = chips_from_map(_focus_map(view, answer), rule, (view.height, view.width))
    rects = project_chips(rects, view.chip.box, view.factors)
    return [
        Candidate(_box(rect), float(mean), view.index)
        for rect, mean in zip(rects, focus, strict=True)
    ]


def _focus_map(view: View, answer: Sequence[tuple[Tile, Prediction]]) -> NDArray[np.float32]:
    """The focus map of a chip, put together from its tiles: the higher where they overlap."""
    height, width = view.height, view.width
    focus = np.zeros((-(-height // STRIDE), -(-width // STRIDE)), np.float32)
    for tile, prediction in answer:
        x0, y0, x1, y1 = tile.rect
        left, top = x0 // STRIDE, y0 // STRIDE
        rows, columns = -(-(y1 - y0) // STRIDE), -(-(x1 - x0) // STRIDE)
        part = focus[top : top + rows, left : left + columns]
        np.maximum(part, prediction.focus[:rows, :columns], out=part)
    return focus


def _grid(row: ImageRow, scale: int, rule: GridRule, plan: Plan) -> list[Box]:
    """Windows over the whole image, original px: none larger than ``rule.side`` network px."""
    factor = plan.scales[scale].factor_for(row.height, row.width)
    height, width = scaled_size(row.height, row.width, factor)
    rects = tile_rects(height, width, rule.side, rule.overlap)
    low, high = np.ceil(rects[:, :2] / factor), np.floor(rects[:, 2:] / factor)
    high = np.where(rects[:, 2:] == [width, height], [row.width, row.height], high)
    return [_box(rect) for rect in np.concatenate([low, high], 1).astype(np.int64)]


def _box(rect: NDArray) -> Box:
    return int(rect[0]), int(rect[1]), int(rect[2]), int(rect[3])


def _advance(row: ImageRow, scale: int, plan: Plan) -> None:
    """Replace the chips of ``scale`` by done ones and append those of the next scale."""
    found = sorted(row.candidates, key=lambda one: one.parent)
    parents = [row.chips[index] for index in sorted({one.parent for one in found})]
    row.chips = [replace(c, pixels=None) if c.scale == scale else c for c in row.chips]
    row.candidates = []
    if not found:
        return
    rule = plan.rules[scale]
    merged = members = np.array([one.box for one in found], np.int64)
    focus = np.array([one.focus for one in found], np.float32)
    if isinstance(rule, ChipRule) and len(parents) > 1:
        factor = plan.scales[scale].factor_for(row.height, row.width)
        boxes = np.array([parent.box for parent in parents], np.int64)
        merged = merge_rects(members, rule.merge, rule.chip_cost / factor**2, boxes)
    # Crops that overlap may be more than what they are cut from, and then stay views of it.
    copy = _area(merged) < _area(np.array([parent.box for parent in parents], np.int64))
    for rect in merged:
        held = (members[:, :2] >= rect[:2]).all(1) & (members[:, 2:] <= rect[2:]).all(1)
        box = _box(rect)
        pixels = _cut(box, parents, copy)
        row.chips.append(_make_chip(row, scale + 1, box, float(focus[held].mean()), pixels, plan))


def _area(boxes: NDArray[np.int64]) -> int:
    return int((boxes[:, 2:] - boxes[:, :2]).prod(1).sum())


def _cut(box: Box, parents: Sequence[Chip], copy: bool) -> NDArray[np.uint8]:
    """The native crop of ``box`` out of the parent that holds it; a view keeps all of that."""
    x0, y0, x1, y1 = box
    for parent in parents:
        px0, py0, px1, py1 = parent.box
        if px0 <= x0 and py0 <= y0 and x1 <= px1 and y1 <= py1:
            assert parent.pixels is not None
            crop = parent.pixels[y0 - py0 : y1 - py0, x0 - px0 : x1 - px0]
            return crop.copy() if copy and box != parent.box else crop
    raise AssertionError(f"chip {box} lies in no parent")

"""The AutoFocus cascade on plain objects: look at the chips of one scale, cut those of the next.

Source: AutoFocus (ICCV 2019) §3. No torch and no Ray: the detector comes in as a function from
a batch of crops to predictions, so every mode, plan and test runs the same code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from af_pipeline.codec import resize
from af_pipeline.focus import STRIDE, ChipRule, chips_from_map, merge_rects, project_chips
from af_pipeline.lanes import Lane, lane_of, pack, tile_rects
from af_pipeline.scales import Scale, pyramid_pixels, scaled_size
from af_pipeline.schema import Chip, Detections, ImageRow, join_detections
from af_pipeline.stacking import StackRule, border_keep, suppress


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


# Crops uint8 [h, w, 3] of one lane (all fit in it) -> one prediction each.
Predictor = Callable[[Sequence[NDArray[np.uint8]], Lane], Sequence[Prediction]]


@dataclass(frozen=True)
class Plan:
    """Everything the cascade needs to know.

    ``scales`` coarse to fine, as many as are run; ``pyramid`` all scales of the full pyramid,
    for the account; ``rules[i]`` turns the focus map of scale i into the chips of scale i+1,
    None sends every chip on whole (mode pyramid). ``border`` and ``overlap`` in network px.
    """

    scales: tuple[Scale, ...]
    pyramid: tuple[Scale, ...]
    rules: tuple[ChipRule | None, ...]
    lanes: tuple[Lane, ...]
    stack: StackRule
    overlap: int = 128
    border: float = 4.0
    batch_pixels: int = 1


@dataclass(frozen=True)
class _View:
    """A chip resized to network input: factors (y, x) are network px per original px."""

    row: int
    chip: Chip
    image: NDArray[np.uint8]
    factors: tuple[float, float]


@dataclass(frozen=True)
class _Tile:
    """The part of a view that one forward sees: rect x0, y0, x1, y1 network px of the view."""

    view: int
    rect: tuple[int, int, int, int]
    lane: int


def start_row(row: ImageRow, image: NDArray[np.uint8], plan: Plan) -> None:
    """Give a decoded image its size and its only chip of scale 0: all of it."""
    row.height, row.width = image.shape[:2]
    row.chips = [_make_chip(row, 0, (0, 0, row.width, row.height), 1.0, image, plan)]
    row.ledger.pixels_pyramid = pyramid_pixels(row.height, row.width, plan.pyramid)
    for counter in (row.ledger.pixels, row.ledger.padded, row.ledger.chips):
        counter[:] = [0] * len(plan.scales)


def look(rows: Sequence[ImageRow], scale: int, plan: Plan, predict: Predictor) -> None:
    """Resolve the pending chips of ``scale`` in all ``rows``, in place.

    Detections join the rows; chips of the next scale are cut from their parents' pixels, which
    are then let go.
    """
    began = time.perf_counter()
    views = [
        _resized(index, row, chip, plan.scales[scale])
        for index, row in enumerate(rows)
        for chip in row.chips
        if chip.scale == scale and chip.pixels is not None
    ]
    if not views:
        return
    tiles = [tile for index, view in enumerate(views) for tile in _tiles(index, view, plan)]
    predictions = _predict_tiles(tiles, views, plan, predict)
    total = sum(view.image.shape[0] * view.image.shape[1] for view in views)
    milliseconds = (time.perf_counter() - began) * 1000
    answers: list[list[tuple[_Tile, Prediction]]] = [[] for _ in views]
    for tile, prediction in zip(tiles, predictions, strict=True):
        answers[tile.view].append((tile, prediction))
    children: list[list[tuple[NDArray[np.int64], NDArray[np.float32], Chip]]] = [[] for _ in rows]
    for view, answer in zip(views, answers, strict=True):
        row = rows[view.row]
        _collect(row, view, answer, scale, plan)
        share = view.image.shape[0] * view.image.shape[1] / total
        row.ledger.forward_ms += milliseconds * share
        if scale + 1 < len(plan.scales):
            rects, focus = _next_rects(view, answer, plan.rules[scale])
            children[view.row].append((rects, focus, view.chip))
    for row, found in zip(rows, children, strict=True):
        _advance(row, scale, found, plan)


def run_cascade(row: ImageRow, image: NDArray[np.uint8], plan: Plan, predict: Predictor) -> None:
    """The whole cascade on one decoded image [H, W, 3] RGB, in place."""
    start_row(row, image, plan)
    for scale in range(len(plan.scales)):
        look([row], scale, plan, predict)
    stack(row, plan.stack)


def stack(row: ImageRow, rule: StackRule) -> None:
    """Merge the detections of all scales of one image, in place."""
    found = row.detections
    kept, scores = suppress(found.boxes, found.scores, found.labels, rule)
    low = int((found.scores < rule.min_score).sum())
    row.ledger.dropped_score += low
    row.ledger.dropped_nms += len(found) - low - len(kept)
    row.detections = replace(found.select(kept), scores=scores)


def _make_chip(
    row: ImageRow,
    scale: int,
    box: tuple[int, int, int, int],
    focus: float,
    pixels: NDArray[np.uint8],
    plan: Plan,
) -> Chip:
    factor = plan.scales[scale].factor_for(row.height, row.width)
    height, width = scaled_size(box[3] - box[1], box[2] - box[0], factor)
    return Chip(scale, lane_of(height, width, plan.lanes), box, focus, pixels)


def _resized(index: int, row: ImageRow, chip: Chip, scale: Scale) -> _View:
    assert chip.pixels is not None
    native_h, native_w = chip.pixels.shape[:2]
    factor = scale.factor_for(row.height, row.width)
    height, width = scaled_size(native_h, native_w, factor)
    image = resize(chip.pixels, height, width)
    return _View(index, chip, image, (height / native_h, width / native_w))


def _tiles(index: int, view: _View, plan: Plan) -> list[_Tile]:
    """One tile for a chip that fits its lane, overlapping ones for a larger chip."""
    height, width = view.image.shape[:2]
    lane = lane_of(height, width, plan.lanes)
    if lane >= 0:
        return [_Tile(index, (0, 0, width, height), lane)]
    side = max(max(lane.height, lane.width) for lane in plan.lanes)
    rects = tile_rects(height, width, side, plan.overlap)
    return [
        _Tile(index, (int(x0), int(y0), int(x1), int(y1)), lane_of(y1 - y0, x1 - x0, plan.lanes))
        for x0, y0, x1, y1 in rects
    ]


def _predict_tiles(
    tiles: Sequence[_Tile], views: Sequence[_View], plan: Plan, predict: Predictor
) -> list[Prediction]:
    """Predictions of all tiles, batched by lane across images."""
    answers: dict[int, Prediction] = {}
    for batch in pack([tile.lane for tile in tiles], plan.lanes, plan.batch_pixels):
        crops = []
        for i in batch:
            x0, y0, x1, y1 = tiles[i].rect
            crops.append(views[tiles[i].view].image[y0:y1, x0:x1])
        lane = plan.lanes[tiles[batch[0]].lane]
        for i, answer in zip(batch, predict(crops, lane), strict=True):
            answers[int(i)] = answer
    return [answers[i] for i in range(len(tiles))]


def _collect(
    row: ImageRow,
    view: _View,
    answer: Sequence[tuple[_Tile, Prediction]],
    scale: int,
    plan: Plan,
) -> None:
    """Border rule, valid range and projection of one chip's detections; its account."""
    parts = [row.detections]
    factor_y, factor_x = view.factors
    height, width = view.image.shape[:2]
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


def _next_rects(
    view: _View, answer: Sequence[tuple[_Tile, Prediction]], rule: ChipRule | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Chips of the next scale in one chip, original px, with their focus."""
    if rule is None:
        return np.array([view.chip.box], np.int64), np.ones(1, np.float32)
    height, width = view.image.shape[:2]
    focus = np.zeros((-(-height // STRIDE), -(-width // STRIDE)), np.float32)
    for tile, prediction in answer:
        x0, y0, x1, y1 = tile.rect
        left, top = x0 // STRIDE, y0 // STRIDE
        rows, columns = -(-(y1 - y0) // STRIDE), -(-(x1 - x0) // STRIDE)
        part = focus[top : top + rows, left : left + columns]
        np.maximum(part, prediction.focus[:rows, :columns], out=part)
    rects, mean = chips_from_map(focus, rule, (height, width))
    return project_chips(rects, view.chip.box, view.factors), mean


def _advance(
    row: ImageRow,
    scale: int,
    found: Sequence[tuple[NDArray[np.int64], NDArray[np.float32], Chip]],
    plan: Plan,
) -> None:
    """Replace the chips of ``scale`` by looked-at ones and append those of the next scale."""
    done = [replace(chip, pixels=None) if chip.scale == scale else chip for chip in row.chips]
    row.chips = done
    rects = [r for r, _, _ in found if len(r)]
    if not rects:
        return
    parents = [chip for r, _, chip in found if len(r)]
    boxes = np.array([parent.box for parent in parents], np.int64)
    members = np.concatenate(rects)
    focus = np.concatenate([f for _, f, _ in found])
    rule = plan.rules[scale]
    merged = members
    if rule is not None and len(parents) > 1:
        factor = plan.scales[scale].factor_for(row.height, row.width)
        merged = merge_rects(members, rule.merge, rule.chip_cost / factor**2, boxes)
    for rect in merged:
        held = (members[:, :2] >= rect[:2]).all(1) & (members[:, 2:] <= rect[2:]).all(1)
        box = (int(rect[0]), int(rect[1]), int(rect[2]), int(rect[3]))
        pixels = _cut(box, parents)
        row.chips.append(_make_chip(row, scale + 1, box, float(focus[held].mean()), pixels, plan))


def _cut(box: tuple[int, int, int, int], parents: Sequence[Chip]) -> NDArray[np.uint8]:
    """The native crop of ``box`` out of the parent that holds it."""
    x0, y0, x1, y1 = box
    for parent in parents:
        px0, py0, px1, py1 = parent.box
        if px0 <= x0 and py0 <= y0 and x1 <= px1 and y1 <= py1:
            assert parent.pixels is not None
            return parent.pixels[y0 - py0 : y1 - py0, x0 - px0 : x1 - px0]
    raise AssertionError(f"chip {box} lies in no parent")

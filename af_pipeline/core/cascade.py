"""The AutoFocus cascade on plain objects: look at the chips of one scale, cut those of the next.

Source: AutoFocus (ICCV 2019) §3. No torch and no Ray: the detector comes in as a function from
a batch of crops to predictions, so every mode, plan and test runs the same code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.chips import (
    Crop,
    Cutter,
    Tile,
    candidates_of,
    canvas_of,
    crop_of,
    make_chip,
    next_chips,
    tiles_of,
)
from af_pipeline.core.lanes import Lane, pack
from af_pipeline.core.pixels import Pixels, as_pixels
from af_pipeline.core.plan import Plan
from af_pipeline.core.resize import RGB
from af_pipeline.core.scales import pyramid_pixels
from af_pipeline.core.schema import Detections, ImageRow, Ledger, join_detections
from af_pipeline.core.seams import any_of, cut_sides, join_parts, seen_further
from af_pipeline.core.stacking import StackRule, border_keep, suppress


@dataclass(frozen=True)
class Prediction:
    """A detector's answer for one crop of h x w network px.

    boxes float32 [D, 4] network px; scores float32 [D]; labels int32 [D]; focus float32
    [>= h/16, >= w/16] FocusPixel probabilities (cells of padding are ignored); padded: network
    px that the forward spent on padding of this crop; dropped: detections that were good enough but
    more than the detector answers with; looked: whether it looked at all, see
    `FocusNetworkConfig.first`.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    focus: NDArray[np.float32]
    padded: int = 0
    dropped: int = 0
    looked: bool = True


class Predictor(Protocol):
    """A detector, whoever made it: ``class_names`` by label.

    One that may be called from several threads at once has an attribute ``spread``, which is used
    as `map` is on its batches.
    """

    class_names: tuple[str, ...]

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Lane, /) -> Sequence[Prediction]:
        """Crops uint8 [h, w, 3] RGB of one lane (all fit in it) -> one prediction each."""


# Tiles, their crops and the plan -> one prediction per tile, wherever it comes from.
Answers = Callable[[Sequence[Tile], Sequence[Crop], Plan], Sequence[Prediction]]


def start_row(row: ImageRow, image: RGB | Pixels, plan: Plan) -> None:
    """Give an image, RGB [H, W, 3] or `Pixels`, its size and its chip of scale 0: all of it."""
    pixels = as_pixels(image)
    start_sized(row, *pixels.size, plan, pixels)


def start_sized(
    row: ImageRow, height: int, width: int, plan: Plan, image: Pixels | None = None
) -> None:
    """`start_row` for an image of which the size is enough: see `resolve`."""
    row.height, row.width = height, width
    row.chips = [make_chip(row, 0, (0, 0, width, height), None, image, plan)]
    row.ledger.pixels_pyramid = pyramid_pixels(height, width, plan.pyramid)
    ledger = row.ledger
    for counter in (ledger.pixels, ledger.padded, ledger.chips, ledger.refused):
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

    def answers(tiles: Sequence[Tile], crops: Sequence[Crop], plan: Plan) -> list[Prediction]:
        return predict_tiles(tiles, crops, plan, predict)

    resolve(rows, scale, plan, answers, lanes)


def resolve(
    rows: Sequence[ImageRow],
    scale: int,
    plan: Plan,
    answers: Answers,
    lanes: Collection[int] | None = None,
) -> None:
    """`look` with predictions from anywhere: chips may have no pixels if ``answers`` needs none."""
    began = time.perf_counter()
    crops = [
        crop_of(number, index, row, plan)
        for number, row in enumerate(rows)
        for index, chip in enumerate(row.chips)
        if chip.scale == scale and not chip.looked and (lanes is None or chip.lane in lanes)
    ]
    if not crops:
        return
    tiles = [tile for index, crop in enumerate(crops) for tile in tiles_of(index, crop, plan.lanes)]
    predictions = answers(tiles, crops, plan)
    total = sum(crop.pixels for crop in crops)
    milliseconds = (time.perf_counter() - began) * 1000
    found: list[list[tuple[Tile, Prediction]]] = [[] for _ in crops]
    for tile, prediction in zip(tiles, predictions, strict=True):
        found[tile.crop].append((tile, prediction))
    for crop, answer in zip(crops, found, strict=True):
        row = rows[crop.row]
        _collect(row, crop, answer, scale, plan)
        row.ledger.forward_ms += milliseconds * crop.pixels / total
        row.chips[crop.index] = replace(crop.chip, looked=True)
        if scale + 1 < len(plan.scales):
            maps = [(tile, prediction.focus) for tile, prediction in answer]
            row.candidates = row.candidates + candidates_of(row, crop, maps, scale, plan)


def advance(rows: Sequence[ImageRow], scale: int, plan: Plan) -> None:
    """Make the candidates of all rows into chips of the next scale, in place.

    To be called when every chip of ``scale`` was looked at; their pixels are let go. The order in
    which they were looked at makes no difference.
    """
    for row in rows:
        next_chips(row, scale, plan)


def run_cascade(row: ImageRow, image: RGB | Pixels, plan: Plan, predict: Predictor) -> None:
    """The whole cascade on one image, RGB [H, W, 3] or `Pixels`, in place."""
    run_block([row], [image], plan, predict)


def run_block(
    rows: Sequence[ImageRow],
    images: Sequence[RGB | Pixels],
    plan: Plan,
    predict: Predictor,
) -> None:
    """`run_cascade` on several images, scale by scale: more chips to share threads and batches."""
    for row, image in zip(rows, images, strict=True):
        start_row(row, image, plan)
    for scale in range(len(plan.scales)):
        look(rows, scale, plan, predict)
        advance(rows, scale, plan)
    for row in rows:
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
    row.ledger.dropped_image += max(0, len(kept) - rule.max_detections)
    kept, scores = kept[: rule.max_detections], scores[: rule.max_detections]
    row.detections = replace(found.select(kept), scores=scores)


def predict_tiles(
    tiles: Sequence[Tile], crops: Sequence[Crop], plan: Plan, predict: Predictor
) -> list[Prediction]:
    """Predictions of all tiles, in batches of one shape.

    Padded to their lane, tiles of many images share a batch. Else only those of one image do, and
    tiles not with whole chips: what a forward computes may differ in the last bits with the size of
    its batch, and a row must depend neither on which images came along nor on who takes which lane.
    """
    canvases = [canvas_of(tile, plan) for tile in tiles]
    chips = [(crops[tile.crop].row, crops[tile.crop].chip.lane) for tile in tiles]
    keys = [
        canvas if plan.pad else (*chip, *canvas)
        for chip, canvas in zip(chips, canvases, strict=True)
    ]
    pixels = [height * width for height, width in canvases]
    batches = pack(keys, pixels, plan.batch_pixels)
    # The longest first, so that threads end at about the same time.
    batches.sort(key=lambda batch: -pixels[batch[0]] * len(batch))
    cutter = Cutter(crops)

    def answer(batch: NDArray[np.int64]) -> Sequence[Prediction]:
        images = [cutter.cut(tiles[i]) for i in batch]
        return predict(images, plan.lanes[tiles[batch[0]].lane])

    spread = getattr(predict, "spread", map)
    predictions = dict(
        zip(np.concatenate(batches), chain.from_iterable(spread(answer, batches)), strict=True)
    )
    return [predictions[i] for i in range(len(tiles))]


def _collect(
    row: ImageRow,
    crop: Crop,
    answer: Sequence[tuple[Tile, Prediction]],
    scale: int,
    plan: Plan,
) -> None:
    """Take one chip's detections into its row, and its account."""
    ledger = row.ledger
    found, parts = _seen_in_tiles(row, crop, answer, plan)
    cut = parts.cuts.any(1)
    if cut.any():
        found, cut = _joined(found, parts, ledger)
    valid = plan.scales[scale].valid(found.boxes)
    ledger.dropped_range += int((~valid).sum())
    ledger.cut_seam += int((valid & cut).sum())
    row.detections = join_detections([row.detections, found.select(np.flatnonzero(valid))])
    for tile, prediction in answer:
        x0, y0, x1, y1 = tile.rect
        ledger.pixels[scale] += (y1 - y0) * (x1 - x0) * prediction.looked
        ledger.padded[scale] += prediction.padded
        ledger.dropped_forward += prediction.dropped
    ledger.chips[scale] += 1


@dataclass(frozen=True)
class _Parts:
    """What is known of N detections of one chip beside their boxes.

    cuts: bool [N, 4], sides (left, top, right, low) that a seam between tiles cuts; leaves: bool
    [N], whether the border rule drops it, since an edge of the chip may cut it; cells: int [N, 2],
    column and row of its tile.
    """

    cuts: NDArray[np.bool_]
    leaves: NDArray[np.bool_]
    cells: NDArray[np.int64]


def _seen_in_tiles(
    row: ImageRow, crop: Crop, answer: Sequence[tuple[Tile, Prediction]], plan: Plan
) -> tuple[Detections, _Parts]:
    """Detections of all tiles of a chip, original px, without those that are not needed.

    What leaves the chip is kept only where a seam cuts it too: its other parts must not stay.
    """
    size = (crop.height, crop.width)
    x0, y0, x1, y1 = crop.chip.box
    inner = (x0 > 0, y0 > 0, x1 < row.width, y1 < row.height)
    rects = [tile.rect for tile, _ in answer]
    starts = [sorted({rect[axis] for rect in rects}) for axis in (0, 1)]
    factors, corner = np.array([*crop.factors[::-1]] * 2), np.array([x0, y0] * 2)
    found, parts = [], []
    for tile, prediction in answer:
        boxes = prediction.boxes + np.array(tile.rect[:2] * 2)
        cuts = cut_sides(boxes, tile.rect, size, plan.stack.border)
        leaves = ~border_keep(boxes, size, inner, plan.stack.border)
        keep = ~leaves | cuts.any(1)
        keep &= ~seen_further(boxes, cuts, tile.rect, rects, plan.stack.border)
        row.ledger.dropped_border += int((~keep).sum())
        count = int(keep.sum())
        found.append(
            Detections(
                (boxes[keep] / factors + corner).astype(np.float32),
                prediction.scores[keep],
                prediction.labels[keep],
                np.full(count, crop.chip.scale, np.int8),
            )
        )
        cell = [starts[axis].index(tile.rect[axis]) for axis in (0, 1)]
        parts.append((cuts[keep], leaves[keep], np.tile(np.array(cell), (count, 1))))
    return join_detections(found), _Parts(*map(np.concatenate, zip(*parts, strict=True)))


def _joined(
    found: Detections, parts: _Parts, ledger: Ledger
) -> tuple[Detections, NDArray[np.bool_]]:
    """Detections put together across the seams, and which of them a seam still cuts."""
    own, others = np.flatnonzero(parts.cuts.any(1)), np.flatnonzero(~parts.cuts.any(1))
    whole, cut = found.select(others), found.select(own)
    best, boxes, still, member = join_parts(
        cut.boxes, cut.scores, cut.labels, parts.cuts[own], parts.cells[own]
    )
    stay = np.flatnonzero(~any_of(parts.leaves[own], member, len(best)))
    ledger.joined_seam += len(own) - len(best)
    ledger.dropped_border += len(best) - len(stay)
    objects = replace(cut.select(best), boxes=boxes.astype(np.float32)).select(stay)
    return (
        join_detections([whole, objects]),
        np.concatenate([np.zeros(len(whole), bool), still[stay]]),
    )

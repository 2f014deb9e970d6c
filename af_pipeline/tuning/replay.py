"""What the cascade would do under other focus settings, from one recorded look at everything.

A record holds what the detector said of every scale of an image, seen whole. A replay runs the
cascade's own code with answers taken from it: chips, account, border rule, valid ranges and
stacking are real. What is not is the edge of a chip: the detector itself would see less around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_area
from af_pipeline.core.cascade import (
    Prediction,
    Predictor,
    advance,
    predict_tiles,
    resolve,
    stack,
    start_row,
    start_sized,
)
from af_pipeline.core.chips import Crop, Tile, canvas_of, focus_map
from af_pipeline.core.focus import STRIDE
from af_pipeline.core.plan import Plan, unfocused
from af_pipeline.core.scales import OPEN
from af_pipeline.core.schema import Detections, ImageRow, no_detections
from af_pipeline.data.storage import replacing

VISIBLE = 0.25  # share of an object, or of a tile by it, from which it is seen there


@dataclass(frozen=True)
class Record:
    """One image, seen whole at every scale of a pyramid.

    ``found``: detections of all scales, original px, neither in valid ranges nor stacked;
    ``maps``: per scale float32 [ceil(h/16), ceil(w/16)] FocusPixel probabilities.
    """

    image_id: str
    height: int
    width: int
    found: Detections
    maps: tuple[NDArray[np.float32], ...]


def full_pyramid(plan: Plan) -> Plan:
    """The plan that looks at every scale whole and keeps detections of any size."""
    scales = tuple(replace(one, valid_range=OPEN) for one in plan.scales)
    return unfocused(replace(plan, scales=scales))


def record_image(image_id: str, image: NDArray[np.uint8], plan: Plan, predict: Predictor) -> Record:
    """Look at a decoded image [H, W, 3] at every scale of ``plan``, whole."""
    whole = full_pyramid(plan)
    row = ImageRow(image_id, "")
    start_row(row, image, whole)
    maps: list[NDArray[np.float32]] = []

    def answers(tiles: Sequence[Tile], crops: Sequence[Crop], plan: Plan) -> list[Prediction]:
        found = predict_tiles(tiles, crops, plan, predict)
        pairs = zip(tiles, found, strict=True)
        maps.append(focus_map(crops[0], [(tile, one.focus) for tile, one in pairs]))
        return found

    for scale in range(len(whole.scales)):
        resolve([row], scale, whole, answers)
        advance([row], scale, whole)
    return Record(image_id, row.height, row.width, row.detections, tuple(maps))


def replay(record: Record, plan: Plan) -> ImageRow:
    """The row of the image under ``plan``, whose scales are those of the record."""
    return cascade_of(record, plan, record.maps)


def cascade_of(record: Record, plan: Plan, maps: Sequence[NDArray[np.float32]]) -> ImageRow:
    """`replay` with other focus maps, such as those of ground truth."""
    row = ImageRow(record.image_id, "")
    start_sized(row, record.height, record.width, plan)
    for scale in range(len(plan.scales)):

        def answers(
            tiles: Sequence[Tile], crops: Sequence[Crop], plan: Plan, scale: int = scale
        ) -> list[Prediction]:
            own = record.found.select(record.found.scales == scale)
            return [_answer(tile, crops[tile.crop], own, maps[scale], plan) for tile in tiles]

        resolve([row], scale, plan, answers)
        advance([row], scale, plan)
    stack(row, plan.stack)
    return row


def _answer(
    tile: Tile, crop: Crop, found: Detections, focus: NDArray[np.float32], plan: Plan
) -> Prediction:
    """What was recorded in a tile, in its network px; boxes are cut to it.

    A detector is taken to see an object of which a quarter is there, or that fills a quarter of the
    tile.
    """
    x0, y0, x1, y1 = tile.rect
    factors = np.array([crop.factors[1], crop.factors[0]])
    corner = np.array(crop.chip.box[:2]) + np.array([x0, y0]) / factors
    boxes = (found.boxes - np.tile(corner, 2)) * np.tile(factors, 2)
    size = np.array([x1 - x0, y1 - y0])
    parts = np.clip(boxes, 0, np.tile(size, 2))
    area = box_area(parts)
    seen = (area > 0) & (area >= VISIBLE * np.minimum(box_area(boxes), size.prod()))
    own = np.flatnonzero(seen)
    rows, columns = canvas_of(tile, plan)
    return Prediction(
        parts[own].astype(np.float32),
        found.scores[own],
        found.labels[own],
        shifted_map(focus, corner * factors, (int(size[1]), int(size[0]))),
        rows * columns - int(size.prod()),
    )


def shifted_map(
    focus: NDArray[np.float32], corner: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float32]:
    """The map of a crop at ``corner`` (x, y) of ``size`` (height, width), network px, out of that
    of the whole image [h, w]: interpolated at the centres of its cells."""
    rows, columns = (-(-side // STRIDE) for side in size)
    x = (np.arange(columns) + corner[0] / STRIDE).astype(np.float32)
    y = (np.arange(rows) + corner[1] / STRIDE).astype(np.float32)
    grid_x, grid_y = np.meshgrid(x, y)
    moved = cv2.remap(focus, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


def save_record(record: Record, path: Path) -> None:
    """Write a record as npz; maps as 16-bit floats. In place in one step."""
    arrays: dict[str, Any] = {
        "image_id": np.array(record.image_id),
        "size": np.array([record.height, record.width]),
        **vars(record.found),
    }
    for number, one in enumerate(record.maps):
        arrays[f"map{number}"] = one.astype(np.float16)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_record(path: Path) -> Record:
    """Read what `save_record` wrote."""
    with np.load(path) as stored:
        height, width = map(int, stored["size"])
        maps = tuple(
            stored[f"map{i}"].astype(np.float32)
            for i in range(sum(name.startswith("map") for name in stored.files))
        )
        found = replace(
            no_detections(),
            **{name: stored[name] for name in ("boxes", "scores", "labels", "scales")},
        )
        return Record(str(stored["image_id"]), height, width, found, maps)

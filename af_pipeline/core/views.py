"""Chips as the detector sees them: resized, cut into tiles, and let go as soon as may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.lanes import TILE_STEP, Lane, lane_of, tile_rects
from af_pipeline.core.plan import Plan, TileRule
from af_pipeline.core.scales import scaled_size
from af_pipeline.core.schema import Chip, ImageRow

# Network px of resized chips held at once, about 200 MB; the tiles of a larger chip are resized
# one by one.
HELD_PIXELS = 64_000_000

Box = tuple[int, int, int, int]  # x0, y0, x1, y1


@dataclass(frozen=True)
class View:
    """A chip and its size at network input; factors (y, x) are network px per original px;
    ``row``: its row's number, ``index``: the chip's among those of its row; ``tiling``: how it is
    cut where it is too large for one forward."""

    row: int
    index: int
    chip: Chip
    height: int
    width: int
    factors: tuple[float, float]
    tiling: TileRule

    @property
    def pixels(self) -> int:
        """Area in network px."""
        return self.height * self.width


@dataclass(frozen=True)
class Tile:
    """The part of a view that one forward sees: rect x0, y0, x1, y1 network px of the view."""

    view: int
    rect: tuple[int, int, int, int]
    lane: int


def view_of(number: int, index: int, row: ImageRow, plan: Plan) -> View:
    """The view of chip ``index`` of ``row``, which is the ``number``th."""
    chip = row.chips[index]
    x0, y0, x1, y1 = chip.box
    native_h, native_w = y1 - y0, x1 - x0
    factor = plan.scales[chip.scale].factor_for(row.height, row.width)
    height, width = scaled_size(native_h, native_w, factor)
    factors = (height / native_h, width / native_w)
    return View(number, index, chip, height, width, factors, plan.tiling(chip.scale, factor))


def tiles_of(index: int, view: View, lanes: Sequence[Lane]) -> list[Tile]:
    """What is forwarded of a view: all of it where one tile holds it, else overlapping tiles."""
    rects = tile_rects(view.height, view.width, view.tiling.side, view.tiling.overlap)
    return [
        Tile(index, (x0, y0, x1, y1), lane_of(y1 - y0, x1 - x0, lanes))
        for x0, y0, x1, y1 in rects.tolist()
    ]


def canvas_of(tile: Tile, plan: Plan) -> tuple[int, int]:
    """Height and width of the network input that a forward of ``tile`` takes."""
    if plan.pad:
        return plan.lanes[tile.lane].height, plan.lanes[tile.lane].width
    x0, y0, x1, y1 = tile.rect
    return -(-(y1 - y0) // TILE_STEP) * TILE_STEP, -(-(x1 - x0) // TILE_STEP) * TILE_STEP


def forward_pixels(row: ImageRow, scale: int, box: Box, plan: Plan) -> int:
    """Network px that a chip ``box`` (original px) takes at ``scale``, padding included."""
    chip = Chip(scale, -1, box, 0.0)
    view = view_of(0, 0, replace(row, chips=[chip]), plan)
    canvases = (canvas_of(tile, plan) for tile in tiles_of(0, view, plan.lanes))
    return sum(rows * columns for rows, columns in canvases)


class Cutter:
    """Cuts tiles out of views; holds `HELD_PIXELS` of resized ones at most, the latest.

    Several threads may cut at once.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self.views = views
        self.held: dict[int, NDArray[np.uint8]] = {}
        self.lock = Lock()

    def cut(self, tile: Tile) -> NDArray[np.uint8]:
        """The network input of one tile."""
        view = self.views[tile.view]
        assert view.chip.pixels is not None
        if tile.rect == (0, 0, view.width, view.height):
            return view.chip.pixels.read(view.height, view.width)
        if view.pixels > HELD_PIXELS:
            return view.chip.pixels.read(view.height, view.width, tile.rect)
        x0, y0, x1, y1 = tile.rect
        with self.lock:
            return self._whole(tile.view)[y0:y1, x0:x1]

    def _whole(self, index: int) -> NDArray[np.uint8]:
        if index not in self.held:
            view = self.views[index]
            held = sum(self.views[other].pixels for other in self.held)
            while self.held and held + view.pixels > HELD_PIXELS:
                oldest = next(iter(self.held))
                held -= self.views[oldest].pixels
                del self.held[oldest]
            assert view.chip.pixels is not None
            self.held[index] = view.chip.pixels.read(view.height, view.width)
        return self.held[index]

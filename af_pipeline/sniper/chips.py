"""SNIPER training chips: which windows of which scale an image gives in one epoch.

Stateless: everything follows from the generator passed in, so the chips are the same whichever
worker asks. Source: Singh, Najibi, Davis, "SNIPER", NeurIPS 2018, §3; boxes are original px,
half-open, sizes are sqrt(area).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from af_pipeline.config import Count, Section, Side
from af_pipeline.core.boxes import box_side, intersection_area, visible_share
from af_pipeline.core.scales import Scale
from af_pipeline.sniper.cover import Grid, greedy_cover, make_grid

MIN_SIDE = 10.0  # chip px: a smaller object gives no loss (the official code made it background)
Kind = Literal["positive", "focus", "negative"]


@dataclass(frozen=True)
class ChipWindow:
    """A training chip: ``size`` x ``size`` network px at ``factor`` network px per original px.

    x0, y0: its corner in original px, integer; may lie outside the image (padding). ``owned``:
    under official bounds, the indices of the boxes that this chip alone may learn; else None.
    """

    scale: int
    factor: float
    x0: int
    y0: int
    size: int
    kind: Kind = "positive"
    owned: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Side of the window in original px."""
        return max(1, round(self.size / self.factor))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The window as x0, y0, x1, y1 in original px."""
        return self.x0, self.y0, self.x0 + self.span, self.y0 + self.span


@dataclass(frozen=True)
class ChipBoxes:
    """Boxes of a chip in chip px. boxes [N, 4] clipped to the chip, unclipped [N, 4] as scaled;
    labels [N]; valid [N]: to be learned; ignored [N]: give no loss (out of the valid range, too
    small, cut, or crowd); crowd [N]. Every box that meets the chip is valid or ignored.
    """

    boxes: NDArray[np.float32]
    unclipped: NDArray[np.float32]
    labels: NDArray[np.int32]
    valid: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class CoverRule:
    """How chips are laid. ``size``: network px; ``stride``: bounds of the grid's step as a share
    of the chip's side, drawn anew each time; ``jitter``: bounds of the scale change.

    ``negatives``: at most so many negative chips an image and epoch; a mined one holds more than
    ``min_proposals`` proposals (finest scale, other scales). ``focus_chips``: at most so many
    chips an image and epoch around objects of ``focus_sides`` (network px, above and below) that
    no positive chip shows: the FocusPixel head learns from them.
    ``bounds``: "both" learns what lies inside the valid range; "official" tests the upper bound
    alone (the lower at the coarsest scale) and lets one chip of a scale learn each box.
    """

    size: int
    stride: tuple[float, float] = (0.11, 0.115)
    jitter: tuple[float, float] = (1.0, 1.0)
    negatives: int = 2
    min_proposals: tuple[int, int] = (25, 10)
    focus_chips: int = 0
    focus_sides: tuple[float, float] = (5.0, 64.0)
    bounds: Literal["both", "official"] = "both"


@dataclass(frozen=True)
class ImageBoxes:
    """What chips are laid around: image ``size`` (height, width); boxes [N, 4]; crowd [N] bool;
    proposals [P, 4] of a first detector, None where they were not extracted.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    crowd: NDArray[np.bool_]
    proposals: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Level:
    """One scale of one image as drawn for this epoch."""

    index: int
    scale: Scale
    change: float
    factor: float
    grid: Grid


def image_chips(
    rng: np.random.Generator, image: ImageBoxes, scales: tuple[Scale, ...], rule: CoverRule
) -> list[ChipWindow]:
    """The chips of one image in one epoch: all positive ones, some focus and negative ones.

    Every box in the valid range of a scale that a window of its grid can hold lies whole in a
    positive chip of that scale. Images without boxes give negative chips: mined where there are
    proposals, else anywhere.
    """
    positive: list[ChipWindow] = []
    focus: list[ChipWindow] = []
    negative: list[ChipWindow] = []
    for index, scale in enumerate(scales):
        level = _draw_level(rng, image.size, index, scale, rule)
        members = np.flatnonzero(creates_chips(image, level.scale, level.change, level.factor))
        chips = _cover(rng, image, level, image.boxes[members], rule, "positive")
        if index + 1 < len(scales) and rule.focus_chips:
            hidden = _hidden(image, level, chips, rule)
            focus += _cover(rng, image, level, image.boxes[hidden], rule, "focus")
        if image.proposals is not None:
            negative += _mined(rng, image, level, chips, rule, index + 1 == len(scales))
        positive += _owned(image, level, chips) if rule.bounds == "official" else chips
    if image.proposals is None and not len(image.boxes):
        negative = [_anywhere(rng, image, scales, rule) for _ in range(rule.negatives)]
    if rule.bounds == "official":
        focus, negative = ([replace(c, owned=()) for c in chips] for chips in (focus, negative))
    some = _some(rng, focus, rule.focus_chips) + _some(rng, negative, rule.negatives)
    return positive + some


def creates_chips(
    image: ImageBoxes, scale: Scale, change: float, factor: float
) -> NDArray[np.bool_]:
    """Which boxes [N] a chip of ``scale`` is laid for, resized by ``change`` to ``factor``."""
    large = box_side(image.boxes) * factor >= MIN_SIDE
    return scale.valid(image.boxes * change) & ~image.crowd & large


def _draw_level(
    rng: np.random.Generator, size: tuple[int, int], index: int, scale: Scale, rule: CoverRule
) -> _Level:
    change = float(np.exp(rng.uniform(*np.log(rule.jitter))))
    nominal = scale.factor_for(*size)
    span = max(1, round(rule.size / (nominal * change)))
    factor = rule.size / span  # exact for whole px, as the chip will be cut
    change = factor / nominal
    stride = rng.uniform(*rule.stride) * span
    return _Level(index, scale, change, factor, make_grid(size, span, stride))


def _cover(
    rng: np.random.Generator,
    image: ImageBoxes,
    level: _Level,
    boxes: NDArray[np.float32],
    rule: CoverRule,
    kind: Kind,
) -> list[ChipWindow]:
    if not len(boxes):
        return []
    corners, _ = greedy_cover(rng, level.grid, boxes)
    return [_window(rng, image, level, (int(x), int(y)), rule, kind) for x, y in corners]


def _window(
    rng: np.random.Generator,
    image: ImageBoxes,
    level: _Level,
    corner: tuple[int, int],
    rule: CoverRule,
    kind: Kind,
) -> ChipWindow:
    """The chip at ``corner``; a side shorter than the chip lies anywhere in its padding."""
    height, width = image.size
    x0, y0 = corner
    if rule.bounds == "both":
        spare_x, spare_y = max(0, level.grid.span - width), max(0, level.grid.span - height)
        x0, y0 = x0 - int(rng.integers(spare_x + 1)), y0 - int(rng.integers(spare_y + 1))
    return ChipWindow(level.index, level.factor, x0, y0, rule.size, kind)


def _hidden(
    image: ImageBoxes, level: _Level, chips: list[ChipWindow], rule: CoverRule
) -> NDArray[np.int64]:
    """Boxes of FocusPixel size at this scale that no chip shows whole."""
    low, high = rule.focus_sides
    side = box_side(image.boxes) * level.factor
    wanted = np.flatnonzero((side > low) & (side < high) & ~image.crowd)
    if not chips:
        return wanted
    windows = np.array([chip.box for chip in chips])[None]
    box = image.boxes[wanted][:, None]
    inside = (box[..., :2] >= windows[..., :2]) & (box[..., 2:] <= windows[..., 2:])
    return wanted[~np.any(np.all(inside, axis=-1), axis=1)]


def _mined(
    rng: np.random.Generator,
    image: ImageBoxes,
    level: _Level,
    chips: list[ChipWindow],
    rule: CoverRule,
    finest: bool,
) -> list[ChipWindow]:
    """Windows over proposals of this scale's size that no positive chip touches (SNIPER §3.2)."""
    assert image.proposals is not None
    mine = image.proposals[level.scale.valid(image.proposals * level.change)]
    if chips:
        windows = np.array([chip.box for chip in chips], np.float32)
        mine = mine[~(intersection_area(mine, windows) > 0).any(1)]
    least = rule.min_proposals[0 if finest else 1]
    if len(mine) <= least:
        return []
    corners, held = greedy_cover(rng, level.grid, mine)
    first = held.argmax(0)[held.any(0)]
    enough = np.flatnonzero(np.bincount(first, minlength=len(corners)) > least)
    found = [(int(x), int(y)) for x, y in corners[enough]]
    return [_window(rng, image, level, corner, rule, "negative") for corner in found]


def _anywhere(
    rng: np.random.Generator, image: ImageBoxes, scales: tuple[Scale, ...], rule: CoverRule
) -> ChipWindow:
    index = int(rng.integers(len(scales)))
    level = _draw_level(rng, image.size, index, scales[index], rule)
    corner = (int(rng.choice(level.grid.xs)), int(rng.choice(level.grid.ys)))
    return _window(rng, image, level, corner, rule, "negative")


def _some(rng: np.random.Generator, chips: list[ChipWindow], most: int) -> list[ChipWindow]:
    if len(chips) <= most:
        return chips
    return [chips[i] for i in np.sort(rng.choice(len(chips), most, replace=False))]


def _owned(image: ImageBoxes, level: _Level, chips: list[ChipWindow]) -> list[ChipWindow]:
    """Give each box of the scale to the chip that shows most of it (the first among equals)."""
    if not chips:
        return []
    scale = level.scale
    low, high = scale.valid_range
    upper, lower = replace(scale, valid_range=(-1, high)), replace(scale, valid_range=(low, -1))
    loose = lower if level.index == 0 else upper
    members = np.flatnonzero(loose.valid(image.boxes * level.change) & ~image.crowd)
    windows = np.array([chip.box for chip in chips], np.float32)
    shown = intersection_area(image.boxes[members], windows)
    owner = np.where(shown.max(1, initial=0.0) > 0, shown.argmax(1), -1)
    return [
        replace(chip, owned=tuple(int(i) for i in members[owner == number]))
        for number, chip in enumerate(chips)
    ]


def boxes_in_window(
    window: ChipWindow,
    boxes: NDArray,
    labels: NDArray,
    crowd: NDArray,
    range_px: tuple[float, float],
    min_visible: float = 0.5,
) -> ChipBoxes:
    """Boxes (original px) of an image as a training chip sees them.

    Valid: not crowd, at least ``min_visible`` of the area inside the chip, clipped side at least
    `MIN_SIDE` chip px, and the whole size in chip px above ``range_px[0]`` and up to
    ``range_px[1]`` (the scale's valid range at its nominal factor). A window that owns boxes
    learns those, whatever their size and share, down to `MIN_SIDE`.
    """
    factor = np.float32(window.size / window.span)
    shift = np.array([window.x0, window.y0] * 2, np.float32)
    scaled = (boxes.astype(np.float32) - shift) * factor
    bounds = (0.0, 0.0, float(window.size), float(window.size))
    share = visible_share(scaled, bounds)
    own = np.zeros(len(boxes), bool)
    own[list(window.owned or ())] = True
    meets = share > 0
    scaled, share, crowd_in, own = scaled[meets], share[meets], crowd[meets], own[meets]
    clipped = np.clip(scaled, 0, window.size).astype(np.float32)
    if window.owned is None:
        side = box_side(scaled)
        valid = (side > range_px[0]) & (side <= range_px[1]) & (share >= min_visible)
    else:
        valid = own
    valid = valid & (box_side(clipped) >= MIN_SIDE) & ~crowd_in
    return ChipBoxes(clipped, scaled, labels[meets].astype(np.int32), valid, ~valid, crowd_in)


class ChipConfig(Section):
    """SNIPER training chips."""

    size: Side = Field(512, ge=64, multiple_of=32, description="chip side, network px")
    stride: tuple[float, float] = Field(
        (0.11, 0.115), description="step of the candidates, share of the side (56 to 59 of 512)"
    )
    jitter: tuple[float, float] = Field((1.0, 1.0), description="bounds of the scale change")
    negatives: Count = Field(2, ge=0, description="most negative chips an image and epoch")
    min_proposals: tuple[int, int] = Field(
        (25, 10), description="a mined chip holds more proposals: at the finest, at other scales"
    )
    focus_chips: Count = Field(
        1,
        ge=0,
        description="most chips an image and epoch around objects too small for a "
        "scale that no positive chip shows, for the FocusPixels",
    )
    bounds: Literal["both", "official"] = Field(
        "both", description="official: one bound a scale and one chip a box, as SNIPER's code"
    )
    flips: Literal["none", "horizontal", "all"] = Field(
        "horizontal", description="all: with quarter turns, for views from above"
    )
    colour: float = Field(0.0, ge=0, le=1, description="strength of colour changes")

    @model_validator(mode="after")
    def _bounds(self) -> ChipConfig:
        low, high = self.jitter
        if not 0 < low <= high:
            raise ValueError(f"jitter needs 0 < low <= high; found {low:g} to {high:g}")
        low, high = self.stride
        if not 0 < low <= high <= 1:
            raise ValueError(f"stride needs 0 < low <= high <= 1; found {low:g} to {high:g}")
        if min(self.min_proposals) < 0:
            raise ValueError("min_proposals must be 0 or more")
        return self

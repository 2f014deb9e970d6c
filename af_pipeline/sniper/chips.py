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

from af_pipeline.config import Count, Side, rule
from af_pipeline.core.boxes import box_side, intersection_area
from af_pipeline.core.focus import FocusRule
from af_pipeline.core.scales import Scale
from af_pipeline.sniper.cover import Grid, greedy_cover, make_grid

MIN_SIDE = 10.0  # chip px: a smaller object gives no loss (the official code made it background)
Kind = Literal["positive", "focus", "negative"]


@rule
class SniperRule:
    """How training chips are laid, and changed once they are cut."""

    size: Side = Field(default=512, ge=64, multiple_of=32, description="chip side, network px")
    stride: tuple[float, float] = Field(
        default=(0.11, 0.115),
        description="step of the candidates, share of the side (56 to 59 of 512); drawn anew "
        "each time",
    )
    jitter: tuple[float, float] = Field(
        default=(1.0, 1.0), description="bounds of the scale change"
    )
    negatives: Count = Field(default=2, ge=0, description="most negative chips an image and epoch")
    min_proposals: tuple[int, int] = Field(
        default=(25, 10),
        description="a mined chip holds more proposals: at the finest, at other scales",
    )
    focus_chips: Count = Field(
        default=1,
        ge=0,
        description="most chips an image and epoch around objects too small for a "
        "scale that no positive chip shows, for the FocusPixels",
    )
    bounds: Literal["both", "official"] = Field(
        default="both",
        description="both: what lies inside the valid range is learned; official, as SNIPER's "
        "code: the upper bound alone is tested (the lower at the coarsest scale) and one chip of a "
        "scale learns each box",
    )
    flips: Literal["none", "horizontal", "all"] = Field(
        default="horizontal",
        description="all: with quarter turns, for views from above",
    )
    colour: float = Field(default=0.0, ge=0, le=1, description="strength of colour changes")

    @model_validator(mode="after")
    def _bounds(self) -> SniperRule:
        low, high = self.jitter
        if not 0 < low <= high:
            raise ValueError(f"jitter needs 0 < low <= high; found {low:g} to {high:g}")
        low, high = self.stride
        if not 0 < low <= high <= 1:
            raise ValueError(f"stride needs 0 < low <= high <= 1; found {low:g} to {high:g}")
        if min(self.min_proposals) < 0:
            raise ValueError("min_proposals must be 0 or more")
        return self


@dataclass(frozen=True)
class ChipMaking:
    """What chips follow from: the scales, coarse to fine, and the rules of chips and labels."""

    scales: tuple[Scale, ...]
    chips: SniperRule
    focus: FocusRule


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
class ImageBoxes:
    """What chips are laid around: image ``size`` (height, width); boxes [N, 4]; crowd [N] bool;
    proposals [P, 4] of a first detector, None where they were not extracted.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    crowd: NDArray[np.bool_]
    proposals: NDArray[np.float32] | None = None


def image_chips(
    rng: np.random.Generator, image: ImageBoxes, making: ChipMaking
) -> list[ChipWindow]:
    """The chips of one image in one epoch: all positive ones, some focus and negative ones.

    Every box in the valid range of a scale that a window of its grid can hold lies whole in a
    positive chip of that scale. Images without boxes give negative chips: mined where there are
    proposals, else anywhere.
    """
    scales, chips = making.scales, making.chips
    positive: list[ChipWindow] = []
    focus: list[ChipWindow] = []
    negative: list[ChipWindow] = []
    for index in range(len(scales)):
        level = _Level(rng, image, making, index)
        covering = level.cover(image.boxes[level.creating()], "positive")
        if index + 1 < len(scales) and chips.focus_chips:
            focus += level.cover(image.boxes[level.hidden(covering)], "focus")
        if image.proposals is not None:
            negative += level.mined(image.proposals, covering)
        positive += level.owned(covering) if chips.bounds == "official" else covering
    if image.proposals is None and not len(image.boxes):
        for _ in range(chips.negatives):
            negative.append(_Level(rng, image, making, int(rng.integers(len(scales)))).anywhere())
    if chips.bounds == "official":
        focus, negative = ([replace(c, owned=()) for c in kind] for kind in (focus, negative))
    some = _some(rng, focus, chips.focus_chips) + _some(rng, negative, chips.negatives)
    return positive + some


def creates_chips(
    image: ImageBoxes, scale: Scale, change: float, factor: float
) -> NDArray[np.bool_]:
    """Which boxes [N] a chip of ``scale`` is laid for, resized by ``change`` to ``factor``."""
    large = box_side(image.boxes) * factor >= MIN_SIDE
    return scale.valid(image.boxes * change) & ~image.crowd & large


class _Level:
    """One scale of one image as drawn for this epoch: its resize and its grid of candidates."""

    def __init__(
        self, rng: np.random.Generator, image: ImageBoxes, making: ChipMaking, index: int
    ) -> None:
        chips = self.chips = making.chips
        self.rng, self.image, self.making, self.index = rng, image, making, index
        self.scale = making.scales[index]
        change = float(np.exp(rng.uniform(*np.log(chips.jitter))))
        nominal = self.scale.factor_for(*image.size)
        span = max(1, round(chips.size / (nominal * change)))
        self.factor = chips.size / span  # exact for whole px, as the chip will be cut
        self.change = self.factor / nominal
        self.grid: Grid = make_grid(image.size, span, rng.uniform(*chips.stride) * span)

    def creating(self) -> NDArray[np.bool_]:
        """Which boxes [N] chips are laid for."""
        return creates_chips(self.image, self.scale, self.change, self.factor)

    def cover(self, boxes: NDArray[np.float32], kind: Kind) -> list[ChipWindow]:
        """Chips that hold all the boxes that can be held."""
        if not len(boxes):
            return []
        corners, _ = greedy_cover(self.rng, self.grid, boxes)
        return [self.window(corner, kind) for corner in corners.tolist()]

    def window(self, corner: tuple[int, int], kind: Kind) -> ChipWindow:
        """The chip at ``corner``; a side shorter than the chip lies anywhere in its padding."""
        x0, y0 = corner
        if self.chips.bounds == "both":
            height, width = self.image.size
            spare_x, spare_y = max(0, self.grid.span - width), max(0, self.grid.span - height)
            x0 -= int(self.rng.integers(spare_x + 1))
            y0 -= int(self.rng.integers(spare_y + 1))
        return ChipWindow(self.index, self.factor, x0, y0, self.chips.size, kind)

    def hidden(self, chips: list[ChipWindow]) -> NDArray[np.int64]:
        """Boxes of FocusPixel size at this scale that no chip shows whole."""
        focus, image = self.making.focus, self.image
        side = box_side(image.boxes) * self.factor
        small = (side > focus.ignore_below) & (side < focus.focus_below)
        wanted = np.flatnonzero(small & ~image.crowd)
        windows = np.array([chip.box for chip in chips]).reshape(1, -1, 4)
        box = image.boxes[wanted][:, None]
        inside = (box[..., :2] >= windows[..., :2]) & (box[..., 2:] <= windows[..., 2:])
        return wanted[~np.any(np.all(inside, axis=-1), axis=1)]

    def mined(self, proposals: NDArray[np.float32], chips: list[ChipWindow]) -> list[ChipWindow]:
        """Windows over proposals of this scale's size that no positive chip touches (§3.2)."""
        mine = proposals[self.scale.valid(proposals * self.change)]
        mine = mine[~(intersection_area(mine, _boxes(chips)) > 0).any(1)]
        finest = self.index + 1 == len(self.making.scales)
        least = self.chips.min_proposals[0 if finest else 1]
        if len(mine) <= least:
            return []
        corners, held = greedy_cover(self.rng, self.grid, mine)
        first = held.argmax(0)[held.any(0)]
        enough = np.flatnonzero(np.bincount(first, minlength=len(corners)) > least)
        return [self.window(corner, "negative") for corner in corners[enough].tolist()]

    def anywhere(self) -> ChipWindow:
        """A negative chip of an image without boxes."""
        corner = int(self.rng.choice(self.grid.xs)), int(self.rng.choice(self.grid.ys))
        return self.window(corner, "negative")

    def owned(self, chips: list[ChipWindow]) -> list[ChipWindow]:
        """Give each box of the scale to the chip that shows most of it (the first of equals)."""
        if not chips:
            return []
        low, high = self.scale.valid_range
        bound = (low, -1.0) if self.index == 0 else (-1.0, high)
        loose = replace(self.scale, valid_range=bound).valid(self.image.boxes * self.change)
        members = np.flatnonzero(loose & ~self.image.crowd)
        shown = intersection_area(self.image.boxes[members], _boxes(chips))
        owner = np.where(shown.max(1, initial=0.0) > 0, shown.argmax(1), -1)
        return [
            replace(chip, owned=tuple(members[owner == number].tolist()))
            for number, chip in enumerate(chips)
        ]


def _boxes(chips: list[ChipWindow]) -> NDArray[np.float32]:
    return np.array([chip.box for chip in chips], np.float32).reshape(-1, 4)


def _some(rng: np.random.Generator, chips: list[ChipWindow], most: int) -> list[ChipWindow]:
    if len(chips) <= most:
        return chips
    return [chips[i] for i in np.sort(rng.choice(len(chips), most, replace=False))]

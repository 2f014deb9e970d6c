"""Which scales, focus limits and anchors a data set asks for, from its boxes alone.

Frame: boxes [N, 4] half-open, original px; size: square root of the area, as SNIP's ranges.
Measured here: counts, quantiles, pixels, the share that FocusPixels and FocusChips made from the
ground truth cover, anchor recall. Rules of thumb, no experiment behind them: the comfort range,
factors of {1, 1.5} x 2^k an octave apart, the overlap of the ranges, 95% as "the boxes". The
factors are constant, never ``min_side``/``max_side``: valid ranges are original px, and where
images vary in size a resolution rule would turn one range into another network size per image.
Sources: SNIPER (NeurIPS 2018) ranges and chips; AutoFocus (ICCV 2019) §3.1 focus limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_side
from af_pipeline.core.focus import FocusRule
from af_pipeline.core.scales import Scale
from af_pipeline.settings.suggest.anchors import Anchors, anchor_recall, make_anchors, neat
from af_pipeline.settings.suggest.areas import (
    FACTOR_CAP,
    Areas,
    OtherPyramid,
    areas_of,
    other_pyramids,
)
from af_pipeline.settings.suggest.statistics import (
    IMAGES_LOOKED_AT,
    QUANTILES,
    DatasetStatistics,
    evenly,
)
from af_pipeline.sniper.chips import MIN_SIDE

MAX_SCALES = 4
OVERLAP = 1.3  # upper bound of a scale / lower bound of the next coarser; SNIPER: 1.25 and 2.5
UNSURE = 1.4  # ignore_until / focus_below; AutoFocus: 90 / 64
IGNORE_BELOW = 5.0  # network px, AutoFocus §3.1: smaller boxes give no focus loss
JITTER_LOW = 0.75  # what the training chips' scale change may make of a box
HOPELESS = 4.0  # network px, half a cell of the finest stride
CHIP_STRIDE = 0.11  # of a chip's side, SNIPER's grid: 56 of 512 px; the rest fits wherever it lies
WORTH = 0.9  # one more scale must bring the pixels below this share of what they were
BOXES_LOOKED_AT = 50_000  # for anchors; evenly spaced


@dataclass(frozen=True)
class ScaleUse:
    """What one scale would meet.

    Attributes:
        scale: factor and valid range (original px).
        boxes: boxes in the valid range. too_large: those whose longer side is more than a
            chip less its stride, so that they fit no training chip.
        megapixels: network MP of the scale, mean per image.
        focus_cells: share of its 16 px cells that ground truth FocusPixels cover, dilated 3 x 3.
        focus_chips: share of it inside the FocusChips of a faultless focus map (Algorithm 1,
            `CHIP_RULE`): what the next finer scale looks at. Both 0 at the finest scale.
    """

    scale: Scale
    boxes: int
    too_large: int
    megapixels: float
    focus_cells: float
    focus_chips: float


@dataclass(frozen=True)
class Suggestion:
    """A pyramid coarse to fine and what it would cost.

    Attributes:
        scales: coarse to fine. focus: label limits, network px.
        anchors: for two-stage detectors; anchor_recall: share of the boxes, at each scale that
            answers for them, with a centred anchor of IoU 0.5; other_recall: of the anchors given.
        pyramid_mp: network MP per image, every scale whole. cells_mp: only the focus cells of
            the finer scales (a bound nothing reaches). chips_mp: their FocusChips.
        others: a scale more at either end, and a scale less.
        images_looked_at: images that the areas were measured on.
        warnings: in words.
    """

    scales: tuple[ScaleUse, ...]
    focus: FocusRule
    anchors: Anchors
    anchor_recall: float
    other_recall: float | None
    pyramid_mp: float
    cells_mp: float
    chips_mp: float
    chip_size: int
    others: tuple[OtherPyramid, ...]
    images_looked_at: int
    warnings: tuple[str, ...]


def suggest(
    statistics: DatasetStatistics,
    chip_size: int = 320,
    comfort: tuple[float, float] = (24.0, 96.0),
    anchor_count: int = 7,
    other: Anchors | None = None,
) -> Suggestion:
    """A pyramid of 1 to 4 scales for the boxes that are not crowd.

    The finest factor brings 95% of the boxes to ``comfort[0]`` network px or more (cap 4). Each
    coarser scale has half the factor. There are as many as it takes until 95% fit a chip and,
    as long as 95% of the boxes stay noticeable (`IGNORE_BELOW`, even after the chips' jitter),
    lie below ``comfort[1]``; one more where it saves a tenth of the pixels, by FocusChips cut
    from the ground truth. Boxes within one octave (1% to 99%) get one scale.

    A scale answers up to ``comfort[1]`` network px; the next coarser one from 1 / `OVERLAP` of
    that, so every size has a scale. What a scale answers for is focus at all coarser ones.

    Args:
        chip_size: side of a training chip, network px.
        comfort: object sizes a detector of strides 8 to 32 handles well, network px; a rule of
            thumb, on which everything else depends.
        anchor_count: anchor sizes at most; fewer where rounding makes them equal.
        other: anchors to compare with, the ones in use.

    Raises:
        ValueError: no boxes, or ``comfort`` spans less than 2 x `OVERLAP`.
    """
    low, high = comfort
    if chip_size < 1 or anchor_count < 1:
        raise ValueError("chip_size and anchor_count must be 1 or more")
    if low <= 0 or high < 2 * OVERLAP * low:
        raise ValueError(f"comfort must span a factor of {2 * OVERLAP:g}; found {low:g}, {high:g}")
    own = statistics.boxes[~statistics.crowd]
    if not len(own):
        raise ValueError("the data set has no boxes (crowd aside): nothing to suggest from")
    single = statistics.side[-1] <= 2 * statistics.side[0]
    chain, needed = _chain(statistics, _fits(chip_size), comfort, single)
    focus = _focus_rule(chain, high)
    longer = [2 * chain[0], *chain]
    measured = areas_of(statistics, longer, focus)
    areas = measured.part(1, len(longer))
    count = 1 if single else _scale_count(areas, needed)
    scales = _valid_ranges(chain[:count], high)
    shapes = _shapes(own, scales)
    anchors = make_anchors(shapes, anchor_count)
    uses = _uses(statistics, scales, areas, chip_size)
    used = [areas.cascade(count, shares) for shares in (areas.cells, areas.chips)]
    return Suggestion(
        scales=uses,
        focus=focus,
        anchors=anchors,
        anchor_recall=anchor_recall(shapes, anchors),
        other_recall=anchor_recall(shapes, other) if other else None,
        pyramid_mp=sum(areas.megapixels[:count]),
        cells_mp=used[0],
        chips_mp=used[1],
        chip_size=chip_size,
        others=other_pyramids(longer, measured, count),
        images_looked_at=len(evenly(len(statistics.sizes), IMAGES_LOOKED_AT)),
        warnings=tuple(_warnings(statistics, uses, areas, chain, chip_size, comfort)),
    )


def _neat_factor(factor: float, up: bool) -> float:
    """The factor of {1, 1.5} x 2^k at or above ``factor``, or nearest to it; at most the cap."""
    octave = math.floor(math.log2(factor))
    ladder = [step * 2.0**k for k in (octave - 1, octave, octave + 1) for step in (1, 1.5)]
    above = [one for one in ladder if one >= factor]
    nearest = min(ladder, key=lambda one: abs(math.log(one / factor)))
    return min(FACTOR_CAP, above[0] if up else nearest)


def _fits(chip_size: int) -> float:
    return chip_size * (1 - CHIP_STRIDE)


def _chain(
    statistics: DatasetStatistics, fits: float, comfort: tuple[float, float], single: bool
) -> tuple[list[float], int]:
    """Factors fine to coarse, as many as may be of use, and how many are needed at least."""
    small, middle, large = (statistics.side[QUANTILES.index(q)] for q in (0.05, 0.5, 0.95))
    if single:
        finest = _neat_factor(math.sqrt(comfort[0] * comfort[1]) / middle, up=False)
    else:
        finest = _neat_factor(comfort[0] / small, up=True)
    chain = [finest / 2**k for k in range(MAX_SCALES)]
    noticed = sum(small * factor * JITTER_LOW >= IGNORE_BELOW for factor in chain[1:]) + 1
    fitting = sum(large * factor > fits for factor in chain[:-1]) + 1
    comfortable = sum(large * factor > comfort[1] for factor in chain[:-1]) + 1
    needed = max(fitting, min(comfortable, noticed))
    return chain[: max(needed, noticed)], needed


def _scale_count(areas: Areas, needed: int) -> int:
    """How many scales of the chain to take: more than needed only where it pays."""
    best = needed
    for count in range(needed + 1, len(areas.megapixels) + 1):
        if areas.cascade(count, areas.chips) < WORTH * areas.cascade(best, areas.chips):
            best = count
    return best


def _valid_ranges(chain: list[float], high: float) -> tuple[Scale, ...]:
    """Scales coarse to fine for the factors fine to coarse; the outermost bounds open."""
    bounds = [neat(high / factor) for factor in chain[:-1]]
    uppers = [*bounds, -1.0]
    lowers = [-1.0, *(neat(bound / OVERLAP) for bound in bounds)]
    scales = [
        Scale(factor=factor, valid_range=(lower, upper))
        for factor, lower, upper in zip(chain, lowers, uppers, strict=True)
    ]
    return tuple(reversed(scales))


def _focus_rule(chain: list[float], high: float) -> FocusRule:
    """Limits above whatever a finer scale answers for, as every coarser scale sees it."""
    seen = [neat(high / fine) * fine / 2 for fine in chain]
    below = float(math.floor(max(seen)) + 1)
    return FocusRule(min(IGNORE_BELOW, below / 2), below, float(math.ceil(below * UNSURE)))


def _uses(
    statistics: DatasetStatistics, scales: tuple[Scale, ...], areas: Areas, chip_size: int
) -> tuple[ScaleUse, ...]:
    counted = ~statistics.crowd
    boxes, sizes = statistics.boxes[counted], statistics.sizes[statistics.image[counted]]
    uses = []
    for number, scale in enumerate(scales):
        own, place = scale.valid(boxes), len(scales) - 1 - number
        large = own & _fits_no_chip(boxes, sizes, scale.factor_for(1, 1), chip_size)
        cells, chips = (areas.cells[place], areas.chips[place]) if place else (0.0, 0.0)
        counts = int(own.sum()), int(large.sum())
        uses.append(ScaleUse(scale, *counts, areas.megapixels[place], cells, chips))
    return tuple(uses)


def _fits_no_chip(
    boxes: NDArray, sizes: NDArray, factor: float, chip_size: int
) -> NDArray[np.bool_]:
    """Which boxes [N, 4] in images [N, 2] (original px) no chip of the grid is sure to hold."""
    sides = (boxes[:, 2:] - boxes[:, :2]) * factor
    inside_one = sizes[:, ::-1] * factor <= chip_size  # one chip spans the image
    return ((sides > _fits(chip_size)) & ~inside_one).any(1)


def _held_by_no_chip(
    statistics: DatasetStatistics, uses: tuple[ScaleUse, ...], chip_size: int
) -> int:
    """Boxes that no chip is sure to hold at any scale that answers for them."""
    counted = ~statistics.crowd
    boxes, sizes = statistics.boxes[counted], statistics.sizes[statistics.image[counted]]
    held = np.zeros(len(boxes), bool)
    for scale in (use.scale for use in uses):
        factor = scale.factor_for(1, 1)
        held |= scale.valid(boxes) & ~_fits_no_chip(boxes, sizes, factor, chip_size)
    return int((~held).sum())


def _shapes(boxes: NDArray, scales: tuple[Scale, ...]) -> NDArray[np.float64]:
    """Width and height [K, 2], network px, of the boxes at each scale that answers for them."""
    width_height = boxes[:, 2:] - boxes[:, :2]
    seen = [width_height[scale.valid(boxes)] * scale.factor_for(1, 1) for scale in scales]
    every = np.concatenate(seen)
    return every[evenly(len(every), BOXES_LOOKED_AT)]


def _warnings(
    statistics: DatasetStatistics,
    uses: tuple[ScaleUse, ...],
    areas: Areas,
    chain: list[float],
    chip_size: int,
    comfort: tuple[float, float],
) -> Iterator[str]:
    yield from _warn_pixels(statistics, uses, areas, chain)
    yield from _warn_sizes(statistics, uses, chain, chip_size, comfort)
    yield from _warn_images(statistics)


def _warn_pixels(
    statistics: DatasetStatistics, uses: tuple[ScaleUse, ...], areas: Areas, chain: list[float]
) -> Iterator[str]:
    if len(uses) == 1:
        octave = statistics.side[-1] <= 2 * statistics.side[0]
        why = "all boxes lie within one octave" if octave else "coarser ones save nothing"
        yield f"a single scale is enough ({why}): there is no pyramid for autofocus to save on"
        costs = [areas.cascade(i + 1, areas.chips) for i in range(len(chain))]
        best = int(np.argmin(costs))
        if costs[best] < WORTH * costs[0]:
            yield (
                f"objects are sparse: coarser scales down to factor {chain[best]:g}, only to find "
                f"where to look, would take {costs[best]:.3g} MP an image instead of {costs[0]:.3g}"
            )
    saved = 1 - areas.cascade(len(uses), areas.chips) / sum(areas.megapixels[: len(uses)])
    if statistics.covered > 0.5 or (len(uses) > 1 and saved < 0.2):
        yield (
            f"boxes cover {statistics.covered:.0%} of the pixels, so most of each image is looked "
            f"at closely anyway: autofocus saves {saved:.0%} of the pyramid's pixels at best"
        )


def _warn_sizes(
    statistics: DatasetStatistics,
    uses: tuple[ScaleUse, ...],
    chain: list[float],
    chip_size: int,
    comfort: tuple[float, float],
) -> Iterator[str]:
    side = box_side(statistics.boxes[~statistics.crowd])
    finest, coarsest = chain[0], uses[0].scale.factor_for(1, 1)
    small = statistics.side[QUANTILES.index(0.05)] * finest
    if small < comfort[0] and finest == FACTOR_CAP:
        yield (
            f"the smallest 5% of the boxes have {small:.3g} network px or less at factor "
            f"{finest:g}; more enlargement adds no detail: take larger images"
        )
    if tiny := int((side * finest < HOPELESS).sum()):
        yield f"boxes below {HOPELESS:g} px at the finest scale, hardly findable: {tiny}"
    unlearned = int((side * finest < MIN_SIDE).sum())
    if unlearned > tiny:
        yield f"boxes below {MIN_SIDE:g} px at the finest scale, not learned: {unlearned}"
    unseen = int((side * coarsest < IGNORE_BELOW).sum())
    if unseen and len(uses) > 1:
        yield (
            f"boxes below {IGNORE_BELOW:g} px at the coarsest scale, which train no FocusPixel "
            f"there and may never be looked at more closely: {unseen}"
        )
    if lost := _held_by_no_chip(statistics, uses, chip_size):
        yield f"boxes that fit no training chip: {lost}; raise chips.size or add a coarser scale"


def _warn_images(statistics: DatasetStatistics) -> Iterator[str]:
    areas = statistics.sizes.prod(1)
    ratio = math.sqrt(areas.max() / areas.min())
    if ratio <= 4:
        return
    counted = ~statistics.crowd
    side = box_side(statistics.boxes[counted])
    image = np.sqrt(areas[statistics.image[counted]])
    absolute, relative = np.log2(side).std(), np.log2(side / image).std()
    yield f"image sizes vary by {ratio:.2g}x: the factors keep one network size per original size"
    if relative < 0.8 * absolute:
        yield (
            f"boxes grow with their images (spread {relative:.2g} octaves relative to the image, "
            f"{absolute:.2g} in px): resizing the images to one size would narrow the sizes"
        )

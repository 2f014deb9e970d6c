"""Boxes as float arrays [N, 4] of x0, y0, x1, y1, half-open: width is x1 - x0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


def empty_boxes() -> Boxes:
    """No boxes: float32 [0, 4]."""
    return np.zeros((0, 4), np.float32)


def box_area(boxes: NDArray) -> NDArray:
    """Areas [N] of boxes [N, 4]; an inside-out box has area 0."""
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return sides[:, 0] * sides[:, 1]


def box_side(boxes: NDArray) -> NDArray:
    """Square root of the area [N]: the size that SNIP's valid ranges compare."""
    return np.sqrt(box_area(boxes))


def clip_boxes(boxes: NDArray, bounds: tuple[float, float, float, float]) -> NDArray:
    """Boxes [N, 4] cut to ``bounds`` (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = bounds
    return np.clip(boxes, [x0, y0, x0, y0], [x1, y1, x1, y1]).astype(boxes.dtype)


def box_union(boxes: NDArray, group: NDArray[np.int64], groups: int) -> NDArray:
    """The box [G, 4] around all boxes [N, 4] of each group; ``group`` [N] in [0, ``groups``)."""
    whole = np.tile(np.array([np.inf, np.inf, -np.inf, -np.inf]), (groups, 1))
    np.minimum.at(whole[:, :2], group, boxes[:, :2])
    np.maximum.at(whole[:, 2:], group, boxes[:, 2:])
    return whole


def intersection_area(boxes_a: NDArray, boxes_b: NDArray) -> NDArray:
    """Pairwise intersection areas [N, M] of boxes [N, 4] and [M, 4]."""
    low = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    high = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    return sides[..., 0] * sides[..., 1]


def iou_matrix(boxes_a: NDArray, boxes_b: NDArray) -> NDArray:
    """Pairwise intersection over union [N, M]; 0 where both areas are 0."""
    inter = intersection_area(boxes_a, boxes_b)
    union = box_area(boxes_a)[:, None] + box_area(boxes_b)[None] - inter
    share = np.zeros(inter.shape, np.result_type(inter, np.float32))
    return np.divide(inter, union, out=share, where=union > 0)


def visible_share(boxes: NDArray, bounds: tuple[float, float, float, float]) -> NDArray:
    """Share [N] of each box's area that lies inside ``bounds``; 0 for an empty box."""
    area = box_area(boxes)
    inside = box_area(clip_boxes(boxes, bounds))
    share = np.zeros(area.shape, np.result_type(area, np.float32))
    return np.divide(inside, area, out=share, where=area > 0)

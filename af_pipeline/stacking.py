"""Focus stacking: border rule, valid ranges and suppression over all scales of an image.

Source: AutoFocus (ICCV 2019) §3.3; soft-NMS: Bodla et al., ICCV 2017, eq. 2 (Gaussian).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from af_pipeline.boxes import iou_matrix


@dataclass(frozen=True)
class StackRule:
    """method "soft" (Gaussian, ``sigma``) or "hard" (``iou``); lowest score and number kept."""

    method: str = "soft"
    sigma: float = 0.55
    iou: float = 0.5
    min_score: float = 0.01
    max_detections: int = 1000
    class_agnostic: bool = False


def border_keep(
    boxes: NDArray, size: tuple[int, int], inner: tuple[bool, bool, bool, bool], tolerance: float
) -> NDArray[np.bool_]:
    """Which boxes [N, 4] (network px of a crop) were not cut by an inner edge -> bool [N].

    ``size`` (height, width) of the crop; ``inner`` says for left, top, right, bottom whether
    that edge lies inside the image; a box within ``tolerance`` px of such an edge is dropped,
    since the object may go on beyond it.
    """
    height, width = size
    distance = np.stack([boxes[:, 0], boxes[:, 1], width - boxes[:, 2], height - boxes[:, 3]], 1)
    return ~((distance < tolerance) & np.array(inner)).any(1)


def suppress(
    boxes: NDArray, scores: NDArray, labels: NDArray, rule: StackRule
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Soft or plain NMS per class (or over all) -> kept indices and their final scores.

    boxes [N, 4], scores [N], labels [N]. The result is sorted by falling score, at most
    ``rule.max_detections``, none below ``rule.min_score``. Memory is O(N): boxes are swept along
    x, so a pick meets only those that can overlap it.
    """
    if rule.method not in ("soft", "hard"):
        raise ValueError(f"method {rule.method!r} is unknown: use 'soft' or 'hard'")
    groups = np.zeros(len(labels), np.int64) if rule.class_agnostic else labels
    kept, final = [], []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        index, score = _suppress_group(boxes[members], scores[members], rule)
        kept.append(members[index])
        final.append(score)
    if not kept:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    indices, values = np.concatenate(kept), np.concatenate(final)
    order = np.lexsort((indices, -values))[: rule.max_detections]
    return indices[order], values[order].astype(np.float32)


def _suppress_group(
    boxes: NDArray, scores: NDArray, rule: StackRule
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Greedy picks of one class: the best box left lowers (or removes) those it overlaps.

    Scores only fall, so a stale heap entry is an upper bound: it is pushed back with the
    current score when it comes up (lazy greedy).
    """
    by_x = np.argsort(boxes[:, 0], kind="stable")
    box, score = boxes[by_x].astype(np.float64), scores[by_x].astype(np.float64)
    widest = float((box[:, 2] - box[:, 0]).max(initial=0.0))
    left, alive = box[:, 0], score >= rule.min_score
    heap = [(-score[i], int(by_x[i]), int(i)) for i in np.flatnonzero(alive)]
    heapq.heapify(heap)
    kept: list[int] = []
    values: list[float] = []
    while heap and len(kept) < rule.max_detections:
        negative, original, i = heapq.heappop(heap)
        if not alive[i]:
            continue
        if -negative > score[i]:
            heapq.heappush(heap, (-score[i], original, i))
            continue
        alive[i] = False
        kept.append(original)
        values.append(float(score[i]))
        low, high = np.searchsorted(left, [left[i] - widest, box[i, 2]])
        near = low + np.flatnonzero(alive[low:high])
        if len(near):
            overlap = iou_matrix(box[i : i + 1], box[near])[0]
            share = _decay(overlap, rule)
            score[near] *= share
            alive[near] = (score[near] >= rule.min_score) & (share > 0)
    return np.array(kept, np.int64), np.array(values)


def _decay(overlap: NDArray[np.float64], rule: StackRule) -> NDArray[np.float64]:
    if rule.method == "hard":
        return (overlap <= rule.iou).astype(np.float64)
    return np.exp(-(overlap**2) / rule.sigma)

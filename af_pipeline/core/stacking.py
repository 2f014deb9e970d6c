"""Focus stacking: border rule, valid ranges and suppression over all scales of an image.

Source: AutoFocus (ICCV 2019) §3.3; soft-NMS: Bodla et al., ICCV 2017, eq. 2 (Gaussian).
"""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from af_pipeline.config import Count, rule
from af_pipeline.core.boxes import box_area, iou_matrix

PAIRS_PER_BOX = 32  # that may overlap; more are not listed at once: memory stays O(N)


@rule
class StackRule:
    """Focus stacking: how the detections of all scales become one list.

    `suppress` leaves the number to its caller, who counts what is cut off.
    """

    method: Literal["soft", "hard"] = Field(
        default="soft", description="Gaussian soft-NMS or plain NMS"
    )
    sigma: float = Field(default=0.55, gt=0, description="soft-NMS width (AutoFocus: 0.55)")
    iou: float = Field(default=0.5, gt=0, le=1, description="plain NMS: overlap that suppresses")
    min_score: float = Field(default=0.01, ge=0, le=1, description="lowest score written")
    max_detections: Count = Field(
        default=5000, ge=1, description="kept per image; images/ counts the others as dropped_image"
    )
    class_agnostic: bool = Field(default=False, description="suppress across classes")
    border: float = Field(
        default=4, ge=0, description="a box this near an inner chip edge is dropped, network px"
    )
    valid_ranges: bool = Field(
        default=True, description="drop what lies outside its scale's valid range"
    )


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

    boxes [N, 4], scores [N], labels [N]. The result is sorted by falling score, none is below
    ``rule.min_score``. Memory is O(N): the pairs of boxes that overlap are listed where there are
    at most `PAIRS_PER_BOX` a box, else boxes are swept along x, pick by pick.
    """
    alive = np.flatnonzero(scores >= rule.min_score)
    box, score = boxes[alive].astype(np.float64), scores[alive].astype(np.float64)
    groups = np.zeros(len(alive), np.int64) if rule.class_agnostic else labels[alive]
    pairs = _near_pairs(box, groups, PAIRS_PER_BOX * len(alive))
    if pairs is not None:
        final = _suppress_pairs(box, score, pairs, rule)
    else:
        final = np.zeros(len(alive))
        for group in np.unique(groups):
            own = np.flatnonzero(groups == group)
            final[own] = _suppress_group(box[own], score[own], rule)
    kept = np.flatnonzero(final > -1)
    order = kept[np.lexsort((kept, -final[kept]))]
    return alive[order], final[order].astype(np.float32)


def _near_pairs(
    boxes: NDArray[np.float64], groups: NDArray, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Pairs of indices of boxes [N, 4] of one group that may overlap; None: more than ``limit``.

    Boxes lie in the horizontal strips that they meet, sorted by their left edges; in a strip each
    is paired with those that begin before it ends.
    """
    if not len(boxes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    x0, y0, x1, y1 = (boxes - boxes[:, [0, 1, 0, 1]].min(0)).T
    strip = max(2 * float((y1 - y0).mean()), 1e-3)
    first, last = (y0 // strip).astype(np.int64), (y1 // strip).astype(np.int64)
    count = np.maximum(last - first, 0) + 1
    owner = np.repeat(np.arange(len(boxes)), count)
    number = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    _, group = np.unique(groups, return_inverse=True)
    bucket = (group[owner] * (int(last.max()) + 1) + number) * (float(x1.max()) + 1.0)
    order = np.argsort(bucket + x0[owner], kind="stable")
    owner, number, bucket = owner[order], number[order], bucket[order]
    ends = np.searchsorted(bucket + x0[owner], bucket + np.maximum(x0, x1)[owner])
    count = np.maximum(ends - np.arange(1, len(owner) + 1), 0)
    if count.sum() > limit:
        return None
    one = np.repeat(np.arange(len(owner)), count)
    other = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(count) - count, count)
    a, b = owner[one], owner[other]
    # Two boxes that share several strips are a pair in the first of these.
    near = (np.maximum(first[a], first[b]) == number[one]) & (y0[a] < y1[b]) & (y0[b] < y1[a])
    return a[near], b[near]


def _suppress_pairs(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    rule: StackRule,
) -> NDArray[np.float64]:
    """Final scores [N], -1 of what was suppressed; ``pairs`` as of `_near_pairs`.

    A box that is better than all it overlaps is picked before these whatever happens elsewhere,
    since scores only fall: so all such boxes are picked at once, round by round.
    """
    share = _decay(_pair_iou(boxes, *pairs), rule)
    lowers = share < 1
    one, other = (np.concatenate([pairs[i][lowers], pairs[1 - i][lowers]]) for i in (0, 1))
    share = np.concatenate([share[lowers]] * 2)
    score, final = scores.copy(), np.full(len(scores), -1.0)
    alive = np.ones(len(scores), bool)
    while alive.any():
        better = (score[one] > score[other]) | ((score[one] == score[other]) & (one < other))
        picked = alive.copy()
        picked[other[better]] = False
        final[picked] = score[picked]
        hit = np.flatnonzero(picked[one])
        hit = hit[np.lexsort((one[hit], -score[one[hit]]))]  # the order in which single picks come
        np.multiply.at(score, other[hit], share[hit])
        alive &= ~picked & (score >= rule.min_score)
        alive[other[hit][share[hit] == 0]] = False
        left = alive[one] & alive[other]
        one, other, share = one[left], other[left], share[left]
    return final


def _pair_iou(boxes: NDArray, one: NDArray, other: NDArray) -> NDArray[np.float64]:
    """IoU [P] of pairs of boxes [N, 4]; 0 where both areas are 0."""
    low = np.maximum(boxes[one, :2], boxes[other, :2])
    high = np.minimum(boxes[one, 2:], boxes[other, 2:])
    inter = np.clip(high - low, 0, None).prod(1)
    area = box_area(boxes)
    union = area[one] + area[other] - inter
    return np.divide(inter, union, out=np.zeros(len(inter)), where=union > 0)


def _suppress_group(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], rule: StackRule
) -> NDArray[np.float64]:
    """`_suppress_pairs` of one class, one pick after the other: the best box left comes first.

    Scores only fall, so a stale heap entry is an upper bound: it is pushed back with the
    current score when it comes up (lazy greedy).
    """
    by_x = np.argsort(boxes[:, 0], kind="stable")
    box, score = boxes[by_x], scores[by_x]
    widest = float((box[:, 2] - box[:, 0]).max(initial=0.0))
    left, alive = box[:, 0], np.ones(len(box), bool)
    final = np.full(len(box), -1.0)
    heap = list(zip((-score).tolist(), by_x.tolist(), range(len(box)), strict=True))
    heapq.heapify(heap)
    while heap:
        negative, original, i = heapq.heappop(heap)
        if not alive[i]:
            continue
        if -negative > score[i]:
            heapq.heappush(heap, (-float(score[i]), original, i))
            continue
        alive[i] = False
        final[original] = score[i]
        low, high = np.searchsorted(left, [left[i] - widest, box[i, 2]])
        near = low + np.flatnonzero(alive[low:high])
        if len(near):
            share = _decay(iou_matrix(box[i : i + 1], box[near])[0], rule)
            score[near] *= share
            alive[near] = (score[near] >= rule.min_score) & (share > 0)
    return final


def _decay(overlap: NDArray[np.float64], rule: StackRule) -> NDArray[np.float64]:
    if rule.method == "hard":
        return (overlap <= rule.iou).astype(np.float64)
    return np.exp(-(overlap**2) / rule.sigma)

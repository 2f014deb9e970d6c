"""PASCAL VOC's average precision, and how often a detector cries wolf.

The matching is the VOC devkit's: detections of a class by falling score, each meets the object of
its image and class that it overlaps most; from the IoU threshold up it is a hit the first time an
object is met, false any further time, and neither where that object is difficult. Boxes are half-
open, so that areas are those of the devkit, whose corners are inclusive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_area, intersection_area, iou_matrix
from af_pipeline.core.text_table import text_table
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.evaluation.coco import (
    Inputs,
    check_inputs,
    known_mean,
    score_cell,
)

HIT, FALSE, NEITHER = 1, 0, -1
_PAIRS = 1 << 20  # pairs of boxes compared at once: bounds the memory of an image with many

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Objects:
    """N boxes of many images.

    Attributes:
        image: int [N], any number for each image.
        label: int [N], any number for each class.
        boxes: float [N, 4], (x0, y0, x1, y1) in px of the original image, half-open.
    """

    image: Ints
    label: Ints
    boxes: Floats


@dataclass(frozen=True)
class VocScores:
    """Average precision of one class, in [0, 1]; None where it has no object."""

    ap11: float | None  # VOC 2007: mean of the precision at 11 recalls
    ap: float | None  # VOC 2010 and later: area under the monotone precision-recall curve


@dataclass(frozen=True)
class VocEvaluation:
    """VOC scores of one set of detections; `overall` is the mean of the classes with a value."""

    overall: VocScores
    per_class: dict[str, VocScores]
    iou: float
    fp_score: float
    false_positives_per_image: float  # of score >= fp_score; see false_positives

    def to_json(self) -> dict[str, Any]:
        """The average precisions as plain dicts and numbers, ready for `json.dump`."""
        scores = {name: asdict(scores) for name, scores in self.per_class.items()}
        return {"iou": self.iou, "overall": asdict(self.overall), "per_class": scores}

    def table(self) -> str:
        """One aligned text row a class, then the mean; '-' is 'no ground truth'."""
        rows = [[name, *_cells(scores)] for name, scores in self.per_class.items()]
        header = ["VOC", f"11-point@{self.iou:g}", f"all-point@{self.iou:g}"]
        return text_table([header, *rows, ["mean", *_cells(self.overall)]])


def evaluate_voc(
    truth: AnnotatedDataset,
    detections: pa.Table | Mapping[str, Any],
    iou: float = 0.5,
    fp_score: float = 0.3,
) -> VocEvaluation:
    """Score detections by VOC's rules.

    Both as for :func:`af_pipeline.evaluation.coco.evaluate_detections`; crowds are what VOC calls
    difficult. Detections of classes that the ground truth does not have are left out. False
    positives are counted over all images of the ground truth.

    Raises ValueError as `evaluate_detections` does, and for an `iou` that is not in (0, 1].
    """
    return score_voc(check_inputs(truth, detections), iou, fp_score)


def score_voc(inputs: Inputs, iou: float = 0.5, fp_score: float = 0.3) -> VocEvaluation:
    """`evaluate_voc` of what was checked before."""
    names, crowd = inputs.truth.class_names, inputs.truth.crowd
    truth, found = both_sides(inputs)
    scores = inputs.detections["score"].to_numpy()
    outcome = match_detections(found, scores, truth, crowd, iou)
    per_class = {
        name: _class_scores(outcome, scores, found.label == label, truth.label == label, crowd)
        for label, name in enumerate(names)
    }
    false = false_positives(found, outcome, truth, crowd, iou) & (scores >= fp_score)
    return VocEvaluation(
        overall=VocScores(
            known_mean(s.ap11 for s in per_class.values()),
            known_mean(s.ap for s in per_class.values()),
        ),
        per_class=per_class,
        iou=iou,
        fp_score=fp_score,
        false_positives_per_image=float(false.sum()) / len(inputs.truth.image_ids),
    )


def match_detections(
    found: Objects, scores: Floats, truth: Objects, difficult: Bools, iou: float = 0.5
) -> NDArray[np.int8]:
    """What each of N detections is: HIT, FALSE or NEITHER, int8 [N].

    Args:
        found: the detections, in any order; of equal scores the earlier one goes first.
        scores: [N].
        truth: M objects.
        difficult: [M], objects that are neither to be found nor false when found.
        iou: a detection meets an object from this overlap up, in (0, 1].

    Raises:
        ValueError: `iou` is not in that range.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou is {iou}: it must lie in (0, 1]")
    best, overlap = _most_overlapped(found, truth)
    met = overlap >= iou
    outcome = np.full(len(scores), FALSE, np.int8)
    if not met.any():
        return outcome
    outcome[met] = np.where(difficult[best[met]], NEITHER, FALSE)
    order = np.argsort(-scores, kind="stable")
    order = order[met[order] & (outcome[order] != NEITHER)]
    first = np.unique(best[order], return_index=True)[1]
    outcome[order[first]] = HIT
    return outcome


def false_positives(
    found: Objects, outcome: NDArray[np.int8], truth: Objects, crowd: Bools, iou: float = 0.5
) -> Bools:
    """Which detections are false positives, bool [N].

    These are the FALSE ones, doubles of an object that was found included, but not those that lie
    in a crowd of their class with an `iou` share of their own area (COCO's rule for crowds).
    """
    group = Objects(truth.image[crowd], truth.label[crowd], truth.boxes[crowd])
    false = outcome == FALSE
    for own, others in by_image(found, group):
        same = found.label[own][:, None] == group.label[others][None]
        inside = intersection_area(found.boxes[own], group.boxes[others])
        covered = inside >= iou * box_area(found.boxes[own])[:, None]
        false[own] &= ~(same & covered & (inside > 0)).any(axis=1)
    return np.asarray(false, np.bool_)


def precision_recall(outcome: NDArray[np.int8], scores: Floats) -> tuple[Ints, Floats]:
    """Hits so far (int) and precision, each [K], down the K detections that are not NEITHER."""
    order = np.argsort(-scores, kind="stable")
    hit = outcome[order][outcome[order] != NEITHER] == HIT
    hits = np.cumsum(hit, dtype=np.int64)
    return hits, hits / np.arange(1, len(hits) + 1)


def eleven_point_ap(hits: Ints, precision: Floats, objects: int) -> float:
    """Mean of the best precision at recalls of at least 0, 0.1, ..., 1.

    `hits` and `precision` as of :func:`precision_recall`, `objects` at least 1.
    """
    # Compared as integers: in floats 3 of 10 objects would miss the recall 0.3.
    best = [precision[10 * hits >= tenth * objects].max(initial=0.0) for tenth in range(11)]
    return float(np.mean(best))


def all_point_ap(hits: Ints, precision: Floats, objects: int) -> float:
    """Area under the precision-recall curve made monotone; arguments as above."""
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(hits, prepend=0)
    return float((gained * monotone).sum() / objects)


def _class_scores(
    outcome: NDArray[np.int8], scores: Floats, found: Bools, stated: Bools, crowd: Bools
) -> VocScores:
    objects = int((stated & ~crowd).sum())
    if objects == 0:
        return VocScores(None, None)
    hits, precision = precision_recall(outcome[found], scores[found])
    return VocScores(
        eleven_point_ap(hits, precision, objects), all_point_ap(hits, precision, objects)
    )


def _most_overlapped(found: Objects, truth: Objects) -> tuple[Ints, Floats]:
    """For each detection [N] the object of its image and class with the largest IoU, and that."""
    best, overlap = np.zeros(len(found.image), np.int64), np.zeros(len(found.image))
    for own, others in by_image(found, truth):
        same = found.label[own][:, None] == truth.label[others][None]
        share = np.where(same, iou_matrix(found.boxes[own], truth.boxes[others]), 0.0)
        place = share.argmax(axis=1)
        best[own] = others[place]
        overlap[own] = share[np.arange(len(own)), place]
    return best, overlap


def by_image(found: Objects, truth: Objects) -> Iterator[tuple[Ints, Ints]]:
    """Rows of detections and of objects that share an image; detections in blocks if many."""
    theirs = np.argsort(truth.image, kind="stable")
    mine = np.argsort(found.image, kind="stable")
    images = np.intersect1d(found.image, truth.image)
    spans = zip(_spans(found.image[mine], images), _spans(truth.image[theirs], images), strict=True)
    for (start, end), (first, last) in spans:
        others = theirs[first:last]
        step = max(1, _PAIRS // len(others))
        for low in range(start, end, step):
            yield mine[low : min(low + step, end)], others


def _spans(ordered: Ints, values: Ints) -> list[tuple[int, int]]:
    """Where each value starts and ends in an ordered array."""
    bounds = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return list(zip(*(bound.tolist() for bound in bounds), strict=True))


def both_sides(inputs: Inputs) -> tuple[Objects, Objects]:
    """All boxes of the ground truth, and the detections."""
    truth = inputs.truth
    start = truth.boxes[:, :2].astype(np.float64)
    boxes = np.concatenate([start, start + truth.sides], axis=1)
    stated = Objects(truth.image, truth.labels.astype(np.int64), boxes)
    return stated, Objects(inputs.image, inputs.label, inputs.boxes)


def _cells(scores: VocScores) -> list[str]:
    return [score_cell(scores.ap11), score_cell(scores.ap)]

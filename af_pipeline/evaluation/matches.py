"""COCOeval's matches as flat arrays, and AP from them for any weighting of the images.

COCOeval matches detections and objects image by image; only its accumulation needs them all. So
one matching serves every resample of the images, and every "what if" about single detections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.evaluation.coco import Inputs

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's, to the bit: Params.recThrs

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Matches:
    """What N detections are at T IoU thresholds, all object sizes; I images, K classes.

    Detections beyond ``max_dets`` of their image and class are not among the N. Order: by class,
    in it by falling score, as COCOeval accumulates. Images and classes are numbered by their
    place in the ground truth.

    Attributes:
        row: int [N], row in `Inputs.detections`.
        image: int [N].
        label: int [N].
        score: float [N].
        met: int [T, N], the box matched, by its place in the ground truth; -1: none.
        hit: bool [T, N], matched to an object that counts.
        ignored: bool [T, N], neither hit nor false: matched to a crowd region.
        objects: int [I, K], objects that count, by image and class.
        thresholds: float [T], IoU.
    """

    row: Ints
    image: Ints
    label: Ints
    score: Floats
    met: Ints
    hit: Bools
    ignored: Bools
    objects: Ints
    thresholds: Floats

    def at(self, iou: float) -> int:
        """Index of an IoU threshold; ValueError if it was not asked for."""
        (index,) = np.nonzero(np.isclose(self.thresholds, iou))
        if not len(index):
            raise ValueError(f"the matching has no IoU threshold {iou:g}")
        return int(index[0])


def matches_of(inputs: Inputs, coco_eval: Any) -> Matches:
    """The matches of an evaluated COCOeval that `run_coco` made from these inputs."""
    truth = inputs.truth
    thresholds = np.asarray(coco_eval.params.iouThrs, np.float64)
    objects = np.zeros((len(truth.image_ids), len(truth.class_names)), np.int64)
    np.add.at(objects, (truth.image[~truth.crowd], truth.labels[~truth.crowd]), 1)
    parts = list(_of_all_sizes(coco_eval))
    counts = [len(part["dtIds"]) for part in parts]

    def joined(name: str) -> NDArray:
        empty = np.zeros((len(thresholds), 0))
        return np.concatenate([empty, *(part[name] for part in parts)], axis=1)

    score = np.array([score for part in parts for score in part["dtScores"]], np.float64)
    label = np.repeat(np.array([part["category_id"] for part in parts], np.int64), counts)
    order = np.lexsort((-score, label))  # stable, as COCOeval's merge sort
    met = joined("dtMatches").astype(np.int64)[:, order] - 1
    ignored = joined("dtIgnore").astype(np.bool_)[:, order]
    row = np.array([number for part in parts for number in part["dtIds"]], np.int64) - 1
    return Matches(
        row=row[order],
        image=inputs.image[row[order]],
        label=label[order],
        score=score[order],
        met=met,
        hit=(met >= 0) & ~ignored,
        ignored=ignored,
        objects=objects,
        thresholds=thresholds,
    )


def _of_all_sizes(coco_eval: Any) -> Iterator[dict[str, Any]]:
    """COCOeval's results of an image and class each, without its ranges of object size."""
    params = coco_eval.params
    images, areas = len(params.imgIds), len(params.areaRng)
    for number in range(len(params.catIds)):
        first = number * areas * images  # the first range is that of all sizes
        yield from filter(None, coco_eval.evalImgs[first : first + images])


@dataclass(frozen=True, eq=False)
class _Curve:
    """Detections of one class at one threshold that are not ignored, by falling score."""

    image: Ints  # [n]
    hits: Ints  # places of the hits among them


class Accumulator:
    """COCO's interpolated precision of `Matches` for weighted images, made ready once.

    A weight is how often an image counts: 1 for each image is COCOeval's own result, the counts
    of a bootstrap resample that of a ground truth in which images stand repeatedly, but
    for the order of detections with equal scores in one image and class.
    """

    def __init__(self, matches: Matches) -> None:
        self.objects = matches.objects
        self.thresholds = matches.thresholds
        self.curves: list[list[_Curve]] = []
        for label in range(matches.objects.shape[1]):
            own = slice(*np.searchsorted(matches.label, [label, label + 1]).tolist())
            curves = []
            for hit, ignored in zip(matches.hit[:, own], matches.ignored[:, own], strict=True):
                kept = np.flatnonzero(~ignored)
                curves.append(_Curve(matches.image[own][kept], np.flatnonzero(hit[kept])))
            self.curves.append(curves)

    def precision(self, weights: Ints) -> Floats:
        """Precision [T, 101, K] at `RECALLS`; nan for classes without objects.

        ``weights``: int [I], from 0 up.
        """
        objects = weights @ self.objects
        out = np.full((len(self.thresholds), len(RECALLS), len(objects)), np.nan)
        for label, curves in enumerate(self.curves):
            if objects[label]:
                for place, curve in enumerate(curves):
                    out[place, :, label] = _weighted(curve, weights, int(objects[label]))
        return out

    def scores(self, weights: Ints) -> dict[str, float]:
        """AP and AP50 in [0, 1], mean over the classes with objects; nan without any."""
        precision = self.precision(weights)
        return {
            "AP": _mean_over_classes(precision),
            "AP50": _mean_over_classes(precision[np.isclose(self.thresholds, 0.5)]),
        }


def interpolated_precision(hit: Bools, objects: int) -> Floats:
    """COCO's precision [101] of detections by falling score, bool [n], of ``objects`` >= 1."""
    total = np.arange(1, len(hit) + 1)
    found = np.flatnonzero(hit)
    return _interpolated(np.arange(1, len(found) + 1), total[found], objects)


def _weighted(curve: _Curve, weights: Ints, objects: int) -> Floats:
    counts = weights[curve.image]
    total = np.cumsum(counts)
    return _interpolated(np.cumsum(counts[curve.hits]), total[curve.hits], objects)


def _interpolated(hits: Ints, total: Ints, objects: int) -> Floats:
    """Precision [101] from the hits and the detections so far at every hit [h].

    Looking at hits only changes nothing: recall rises nowhere else, and there precision peaks.
    """
    if not len(hits):
        return np.zeros(len(RECALLS))
    precision = hits / (total + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(hits / objects, RECALLS, side="left")
    return np.append(best, 0.0)[place]


def _mean_over_classes(precision: Floats) -> float:
    """Mean over thresholds and recalls [t, 101, K], then over classes that are not nan."""
    classes = precision.mean(axis=(0, 1))
    known = classes[~np.isnan(classes)]
    return float(known.mean()) if len(known) else float("nan")

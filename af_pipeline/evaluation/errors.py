"""What went wrong: one outcome for every object, one kind for every detection, and their price.

In the spirit of TIDE (Bolya et al., ECCV 2020), with what only this pipeline knows: where it
looked. Matching is COCO's at IoU 0.5; detections count from ``score`` up, and as COCO counts,
``max_dets`` an image and class. The first line that holds decides.

An object (crowd regions are none) is

    found         matched by a detection
    image         its image failed or was not indexed
    class         a false detection of another class has IoU >= 0.5 with it
    localisation  a false detection of its class has IoU in [0.1, 0.5) with it
    range         its size lies in the valid range of no scale that the run looked at
    no_chip       no chip of a scale whose range holds it covers it whole; the coarsest scale is
                  one chip, the whole image
    border        chips of such a scale cover it, but each has an inner edge nearer than the
                  border tolerance, so that the pipeline drops a box there
    seam          a chip of such a scale shows it, but in tiles of which none shows it whole
    no_detection  it was looked at, and nothing was detected

Without the chips of the run the last five are one, ``missed``. The size and place are those of
the object's own box; the pipeline goes by those of the detected box, which differ a little.

A detection is

    true          matched to an object
    ignored       matched to a crowd region: neither right nor wrong
    duplicate     IoU >= 0.5 with an object of its class, which another detection found
    class         IoU >= 0.5 with an object of another class
    localisation  IoU in [0.1, 0.5) with an object of its class
    both          IoU in [0.1, 0.5) with an object of another class
    background    none of these

A price is what AP50 gains if one kind is put right, TIDE's oracles: duplicate, both and background
detections go; class and localisation ones become hits of the object they overlap most, of these
the best one of an object, in place of a lower-scored hit, and the others go; objects of a kind that
no detection of any score hits are not asked for. A class all of whose objects went keeps its AP.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from af_pipeline.evaluation.coco import Inputs
from af_pipeline.evaluation.coverage import CAUSES, Looked, farthest
from af_pipeline.evaluation.matches import Matches, interpolated_precision
from af_pipeline.evaluation.voc import Objects, both_sides, by_image

OBJECT_KINDS = ("found", "image", "class", "localisation", *CAUSES, "missed")
DETECTION_KINDS = ("true", "ignored", "duplicate", "class", "localisation", "both", "background")
MATCH_IOU, NEAR_IOU = 0.5, 0.1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Side:
    """The N objects, or the N detections, and what was found out about them.

    Attributes:
        items: images and classes by their place in the ground truth.
        kind: int [N], index into ``kinds``.
        kinds: their names.
        iou: float [N], with the box that decided the kind, else with the one overlapped most.
        other: int [N], class of that box; -1: none overlaps.
        score: float [N]; None for objects.
    """

    items: Objects
    kind: Ints
    kinds: tuple[str, ...]
    iou: Floats
    other: Ints
    score: Floats | None = None

    def counts(self, classes: int) -> Ints:
        """Number of each kind in each class, int [classes, kinds]."""
        out = np.zeros((classes, len(self.kinds)), np.int64)
        np.add.at(out, (self.items.label, self.kind), 1)
        return out


@dataclass(frozen=True, eq=False)
class Breakdown:
    """The errors of one set of detections; see the module.

    Attributes:
        score: detections count from here up.
        images: image_ids, in the order of the ground truth.
        classes: class names, in that order.
        objects: outcomes of all that count.
        detections: kinds of those from ``score`` up.
        covered: int [K], objects that a chip of a scale for their size covers whole; None: chips
            are not known.
        ap50: float [K], of detections of all scores; nan for classes without objects.
        gains: (side, kind) -> float [K], what ``ap50`` gains by putting that kind right.
    """

    score: float
    images: list[str]
    classes: list[str]
    objects: Side
    detections: Side
    covered: Ints | None
    ap50: Floats
    gains: dict[tuple[str, str], Floats]


@dataclass(frozen=True, eq=False)
class _Nearest:
    """For each of n boxes the IoU with one of the other side, and its place; -1: none."""

    iou: Floats
    place: Ints

    @classmethod
    def none(cls, number: int) -> _Nearest:
        return cls(np.zeros(number), np.full(number, -1, np.int64))

    def meet(self, own: Ints, others: Ints, iou: Floats) -> None:
        """Take in the IoU [own, others] of some boxes with some of the other side."""
        best = iou.argmax(axis=1)
        value = iou[np.arange(len(own)), best]
        better = value > self.iou[own]
        self.iou[own[better]] = value[better]
        self.place[own[better]] = others[best[better]]


@dataclass(frozen=True, eq=False)
class _Overlaps:
    """Nearest boxes of the same and of another class: objects as the detections meet them, and
    false detections as the objects do."""

    found_same: _Nearest
    found_other: _Nearest
    truth_same: _Nearest
    truth_other: _Nearest


def break_down(
    inputs: Inputs,
    matches: Matches,
    indexed: Collection[str],
    looked: Looked | None,
    score: float = 0.3,
) -> Breakdown:
    """Every outcome, kind and price.

    Args:
        inputs: ground truth and detections.
        matches: theirs, with the IoU threshold 0.5 among others.
        indexed: image_ids that the run looked at without failing.
        looked: where; None: not known.
        score: detections count from here up.
    """
    images, classes = list(inputs.truth.image_ids), list(inputs.truth.class_names)
    everything, detected = both_sides(inputs)
    crowd = inputs.truth.crowd
    truth = _select(everything, ~crowd)
    place = np.where(crowd, -1, np.cumsum(~crowd) - 1)  # annotation -> object
    found = _select(detected, matches.row)
    at = matches.at(MATCH_IOU)
    hit, ignored = matches.hit[at], matches.ignored[at]
    match = np.where(hit, place[matches.met[at]], -1)  # the object hit, -1: none
    counted = matches.score >= score
    stated = np.concatenate([inputs.truth.boxes[:, :2], inputs.truth.sides], axis=1)
    near = _overlaps(found, truth, stated[~crowd], counted, counted & ~hit & ~ignored)
    taken = np.zeros(len(truth.image), np.bool_)
    taken[match[counted & hit]] = True
    absent = ~np.isin(truth.image, [n for n, name in enumerate(images) if name in indexed])
    reached = None if looked is None else _reached(truth, images, looked)
    objects = _object_side(truth, found, near, taken, absent, reached)
    kind = _detection_kinds(near, hit, ignored)
    never = np.ones(len(truth.image), np.bool_)
    never[match[match >= 0]] = False
    target = {"class": near.found_other.place, "localisation": near.found_same.place}
    start = _Outcomes(
        label=found.label,
        score=matches.score,
        hit=hit,
        kept=~ignored,
        kind=np.where(counted, kind, -1),
        match=match,
        target=np.select([kind == DETECTION_KINDS.index(name) for name in target],
                         list(target.values()), -1),
        truth=truth.label,
        missed=np.where(never, objects.kind, -1),
        objects=matches.objects.sum(0),
    )  # fmt: skip
    before = _ap50(start)
    covered = None
    if reached is not None:
        inside = reached >= CAUSES.index("border")
        covered = np.bincount(truth.label[inside], minlength=len(classes))
    gains = {}
    for side, name, fix in _fixes(looked is not None):
        after = _ap50(fix(start, name))
        gains[side, name] = np.where(np.isnan(after), before, after) - before
    return Breakdown(
        score=score,
        images=images,
        classes=classes,
        objects=objects,
        detections=_detection_side(found, truth, near, kind, matches.score, counted),
        covered=covered,
        ap50=before,
        gains=gains,
    )


def _select(items: Objects, keep: NDArray) -> Objects:
    return Objects(items.image[keep], items.label[keep], items.boxes[keep])


def _overlaps(
    found: Objects, truth: Objects, stated: Floats, counted: Bools, false: Bools
) -> _Overlaps:
    """Of ``counted`` detections; of these, objects meet the ``false`` ones only.

    ``stated``: boxes of the objects as the ground truth has them, x, y, width, height. IoU is
    COCO's own, so that what it matched and what is compared here agree to the bit.
    """
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    boxes = np.concatenate([found.boxes[:, :2], sides], axis=1)
    numbers = (len(found.image), len(found.image), len(truth.image), len(truth.image))
    near = _Overlaps(*map(_Nearest.none, numbers))
    for rows, others in by_image(found, truth):
        own = rows[counted[rows]]
        if not len(own):
            continue
        iou = coco_mask.iou(boxes[own], stated[others], np.zeros(len(others), np.uint8))
        same = found.label[own][:, None] == truth.label[others][None]
        near.found_same.meet(own, others, np.where(same, iou, 0.0))
        near.found_other.meet(own, others, np.where(same, 0.0, iou))
        wrong = false[own]
        if wrong.any():
            iou, same = iou[wrong].T, same[wrong].T
            near.truth_same.meet(others, own[wrong], np.where(same, iou, 0.0))
            near.truth_other.meet(others, own[wrong], np.where(same, 0.0, iou))
    return near


def _reached(truth: Objects, images: list[str], looked: Looked) -> Ints:
    """`farthest` of every object, int [M]; 0 in images that were not looked at."""
    out = np.zeros(len(truth.image), np.int64)
    order = np.argsort(truth.image, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(truth.image[order])) + 1):
        if len(own) and images[truth.image[own[0]]] in looked.sizes:
            out[own] = farthest(truth.boxes[own], images[truth.image[own[0]]], looked)
    return out


def _object_side(
    truth: Objects,
    found: Objects,
    near: _Overlaps,
    taken: Bools,
    absent: Bools,
    reached: Ints | None,
) -> Side:
    same, other = near.truth_same, near.truth_other
    rules = {
        "found": taken,
        "image": absent,
        "class": other.iou >= MATCH_IOU,
        "localisation": same.iou >= NEAR_IOU,
    }
    first_cause = OBJECT_KINDS.index(CAUSES[0])
    cause = OBJECT_KINDS.index("missed") if reached is None else reached + first_cause
    kind = np.select(list(rules.values()), _places(OBJECT_KINDS, rules), cause)
    by_same = kind == OBJECT_KINDS.index("localisation")
    nearest = (kind == OBJECT_KINDS.index("class")) | (~by_same & (other.iou > same.iou))
    return Side(truth, kind, OBJECT_KINDS, *_nearer(same, other, nearest, found.label))


def _detection_kinds(near: _Overlaps, hit: Bools, ignored: Bools) -> Ints:
    same, other = near.found_same.iou, near.found_other.iou
    rules = {
        "true": hit,
        "ignored": ignored,
        "duplicate": same >= MATCH_IOU,
        "class": other >= MATCH_IOU,
        "localisation": same >= NEAR_IOU,
        "both": other >= NEAR_IOU,
    }
    background = DETECTION_KINDS.index("background")
    return np.select(list(rules.values()), _places(DETECTION_KINDS, rules), background)


def _places(kinds: tuple[str, ...], names: Iterable[str]) -> list[int]:
    return [kinds.index(name) for name in names]


def _detection_side(
    found: Objects, truth: Objects, near: _Overlaps, kind: Ints, score: Floats, counted: Bools
) -> Side:
    same, other = near.found_same, near.found_other
    by_other = np.isin(kind, _places(DETECTION_KINDS, ["class", "both"]))
    background = kind == DETECTION_KINDS.index("background")
    nearest = by_other | (background & (other.iou > same.iou))
    iou, label = _nearer(same, other, nearest, truth.label)
    own = _select(found, counted)
    return Side(own, kind[counted], DETECTION_KINDS, iou[counted], label[counted], score[counted])


def _nearer(same: _Nearest, other: _Nearest, use: Bools, labels: Ints) -> tuple[Floats, Ints]:
    """IoU and class of the box of ``other`` where ``use`` holds, else of that of ``same``."""
    iou, place = np.where(use, other.iou, same.iou), np.where(use, other.place, same.place)
    label = np.full(len(place), -1, np.int64)
    label[place >= 0] = labels[place[place >= 0]]
    return iou, label


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """N detections as AP50 sees them, the M objects, and how many of each class [K] are asked for.

    ``kind``: index into `DETECTION_KINDS`; -1: below the score. ``match``: the object hit,
    ``target``: the one that a detection put right would hit; -1: none. ``truth``: classes of the
    objects; ``missed``: index into `OBJECT_KINDS` of those that no detection hits, else -1.
    """

    label: Ints
    score: Floats
    hit: Bools
    kept: Bools
    kind: Ints
    match: Ints
    target: Ints
    truth: Ints
    missed: Ints
    objects: Ints

    def of_kind(self, kind: str) -> Bools:
        """Which detections are of a kind."""
        return np.asarray(self.kind == DETECTION_KINDS.index(kind), np.bool_)


def _ap50(table: _Outcomes) -> Floats:
    """AP50 of each class, float [K]; nan without objects."""
    out = np.full(len(table.objects), np.nan)
    order = np.argsort(-table.score, kind="stable")
    for label in np.flatnonzero(table.objects > 0):
        own = order[(table.label[order] == label) & table.kept[order]]
        out[label] = interpolated_precision(table.hit[own], int(table.objects[label])).mean()
    return out


Fix = Callable[[_Outcomes, str], _Outcomes]


def _fixes(causes_known: bool) -> Iterator[tuple[str, str, Fix]]:
    """Side, kind, and what puts it right."""
    for kind in ("image", *(CAUSES if causes_known else ("missed",))):
        yield "objects", kind, _forget
    for kind in ("duplicate", "class", "localisation", "both", "background"):
        yield "detections", kind, _correct if kind in ("class", "localisation") else _remove


def _forget(table: _Outcomes, kind: str) -> _Outcomes:
    """Objects of a kind that no detection hits are not asked for."""
    gone = table.truth[table.missed == OBJECT_KINDS.index(kind)]
    fewer = table.objects - np.bincount(gone, minlength=len(table.objects))
    return replace(table, objects=fewer)


def _remove(table: _Outcomes, kind: str) -> _Outcomes:
    """Detections of a kind go."""
    return replace(table, kept=table.kept & ~table.of_kind(kind))


def _correct(table: _Outcomes, kind: str) -> _Outcomes:
    """The best of a kind hits each target, in place of a lower-scored hit; the others go."""
    label, hit, kept = table.label.copy(), table.hit.copy(), table.kept.copy()
    holder = np.full(len(table.truth), -1, np.int64)
    hits = np.flatnonzero(table.match >= 0)
    holder[table.match[hits]] = hits
    own = np.flatnonzero(table.of_kind(kind))
    for row in own[np.argsort(-table.score[own], kind="stable")].tolist():
        target = int(table.target[row])
        rival = int(holder[target])
        if rival >= 0 and table.score[rival] >= table.score[row]:
            kept[row] = False
            continue
        if rival >= 0:
            kept[rival] = False
        hit[row], label[row], holder[target] = True, table.truth[target], row
    return replace(table, label=label, hit=hit, kept=kept)

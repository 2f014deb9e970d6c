"""voc_ap: the devkit's rules by hand, and against the plainest implementation of them."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.evaluation import voc
from af_pipeline.evaluation.voc import (
    FALSE,
    HIT,
    NEITHER,
    Objects,
    all_point_ap,
    eleven_point_ap,
    evaluate_voc,
    false_positives,
    match_detections,
    precision_recall,
)
from tests.helpers.truth import Json, ground_truth

Thing = tuple[int, int, tuple[float, float, float, float]]  # image, class, box


def objects(*things: Thing) -> Objects:
    return Objects(
        np.array([image for image, _, _ in things], np.int64),
        np.array([label for _, label, _ in things], np.int64),
        np.array([box for _, _, box in things], np.float64).reshape(-1, 4),
    )


def outcome_of(
    found: list[Thing], scores: list[float], truth: list[Thing], difficult: list[bool]
) -> list[int]:
    flags = np.array(difficult, np.bool_)
    return match_detections(objects(*found), np.array(scores), objects(*truth), flags).tolist()


A, B = (0.0, 0.0, 10.0, 10.0), (8.0, 0.0, 18.0, 10.0)


def test_the_better_score_takes_the_object_whatever_the_order() -> None:
    close = (0.0, 0.0, 10.0, 9.0)
    assert outcome_of([(1, 0, A), (1, 0, close)], [0.3, 0.8], [(1, 0, A)], [False]) == [FALSE, HIT]


def test_equal_scores_keep_their_order() -> None:
    assert outcome_of([(1, 0, A)] * 3, [0.5] * 3, [(1, 0, A)], [False]) == [HIT, FALSE, FALSE]


def test_a_taken_object_is_not_replaced_by_the_next_best() -> None:
    near = (3.0, 0.0, 13.0, 10.0)  # overlaps A by 7/13, the third box by 7/13 too
    third = (6.0, 0.0, 16.0, 10.0)
    truth: list[Thing] = [(1, 0, A), (1, 0, third)]
    assert outcome_of([(1, 0, A), (1, 0, near)], [0.9, 0.8], truth, [False] * 2) == [HIT, FALSE]


def test_other_images_and_classes_do_not_meet() -> None:
    found: list[Thing] = [(1, 0, A), (2, 0, A), (1, 1, A)]
    assert outcome_of(found, [0.9] * 3, [(2, 0, A)], [False]) == [FALSE, HIT, FALSE]


def test_difficult_objects_are_neither_hit_nor_false() -> None:
    found: list[Thing] = [(1, 0, A), (1, 0, A), (1, 0, B)]
    truth: list[Thing] = [(1, 0, A), (1, 0, B)]
    assert outcome_of(found, [0.9, 0.8, 0.7], truth, [True, False]) == [NEITHER, NEITHER, HIT]


def test_the_threshold_itself_is_a_match() -> None:
    half: Thing = (1, 0, (0.0, 0.0, 10.0, 5.0))
    assert outcome_of([half], [0.9], [(1, 0, A)], [False]) == [HIT]
    less: Thing = (1, 0, (0.0, 0.0, 10.0, 4.99))
    assert outcome_of([less], [0.9], [(1, 0, A)], [False]) == [FALSE]


def test_boxes_without_area_and_inside_out_meet_nothing() -> None:
    found: list[Thing] = [(1, 0, (5.0, 5.0, 5.0, 5.0)), (1, 0, (10.0, 10.0, 0.0, 0.0))]
    assert outcome_of(found, [0.9, 0.8], [(1, 0, A)], [False]) == [FALSE, FALSE]


def test_nothing_found_and_nothing_there() -> None:
    assert outcome_of([], [], [(1, 0, A)], [False]) == []
    assert outcome_of([(1, 0, A)], [0.5], [], []) == [FALSE]


def curve(outcome: list[int]) -> tuple[Any, Any]:
    falling = np.linspace(1, 0.1, len(outcome)) if outcome else np.zeros(0)
    return precision_recall(np.array(outcome, np.int8), falling)


@pytest.mark.parametrize(
    ("outcome", "count", "eleven", "every"),
    [
        ([], 2, 0.0, 0.0),
        ([FALSE], 2, 0.0, 0.0),
        ([HIT], 1, 1.0, 1.0),
        ([HIT, FALSE, FALSE], 1, 1.0, 1.0),
        ([FALSE, HIT], 1, 0.5, 0.5),
        ([NEITHER, HIT, NEITHER], 1, 1.0, 1.0),
        ([HIT], 2, 6 / 11, 0.5),  # recalls 0 to 0.5 reached
        ([HIT, FALSE, HIT], 2, (6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3),
        ([FALSE, HIT, HIT, HIT], 4, 8 * 0.75 / 11, 0.75 * 0.75),  # precision made monotone
        ([HIT] * 3, 10, 4 / 11, 0.3),  # recall 0.3 counts, whatever 3 * 0.1 is in floats
        ([HIT] * 7, 10, 8 / 11, 0.7),
    ],
)
def test_average_precision_by_hand(
    outcome: list[int], count: int, eleven: float, every: float
) -> None:
    assert eleven_point_ap(*curve(outcome), count) == pytest.approx(eleven)
    assert all_point_ap(*curve(outcome), count) == pytest.approx(every)


# The plainest implementation: loops over everything, exact fractions of small integers.


def naive_iou(a: tuple[int, ...], b: tuple[int, ...]) -> Fraction:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return Fraction(0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return Fraction(width * height, sum(areas) - width * height)


def naive_match(found: list, truth: list) -> list[tuple[int, bool]]:
    """(index, hit) of the detections that count, best score first."""
    counted, taken = [], set()
    for index in sorted(range(len(found)), key=lambda i: -found[i][3]):
        image, label, box, _ = found[index]
        best, best_iou = None, Fraction(0)
        for place, (other_image, other_label, other, _) in enumerate(truth):
            if (image, label) == (other_image, other_label) and naive_iou(box, other) > best_iou:
                best, best_iou = place, naive_iou(box, other)
        if best is None or best_iou < Fraction(1, 2):
            counted.append((index, False))
        elif not truth[best][3]:
            counted.append((index, best not in taken))
            taken.add(best)
    return counted


def naive_ap(hits: list[bool], count: int) -> tuple[float, float]:
    points = []
    for rank in range(1, len(hits) + 1):
        good = sum(hits[:rank])
        points.append((Fraction(good, count), Fraction(good, rank)))

    def best(recall: Fraction) -> Fraction:
        return max((p for r, p in points if r >= recall), default=Fraction(0))

    eleven = sum(best(Fraction(tenth, 10)) for tenth in range(11)) / 11
    steps = sorted({Fraction(0), *(r for r, _ in points)})
    area = sum(
        ((high - low) * best(high) for low, high in itertools.pairwise(steps)),
        Fraction(0),
    )
    return float(eleven), float(area)


def boxes() -> st.SearchStrategy[tuple[int, int, int, int]]:
    side = st.integers(1, 4)
    return st.tuples(st.integers(0, 3), st.integers(0, 3), side, side).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    )


def things(last: st.SearchStrategy) -> st.SearchStrategy[list]:
    return st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), boxes(), last), max_size=14)


@settings(max_examples=200, deadline=None)
@given(found=things(st.sampled_from([0.1, 0.3, 0.5, 0.9])), truth=things(st.booleans()))
def test_parity_with_the_plainest_implementation(found: list, truth: list) -> None:
    detections, scores = objects(*(f[:3] for f in found)), np.array([f[3] for f in found])
    stated, difficult = objects(*(t[:3] for t in truth)), np.array([t[3] for t in truth], bool)
    outcome = match_detections(detections, scores, stated, difficult)
    expected = np.full(len(found), NEITHER)
    for index, hit in (counted := naive_match(found, truth)):
        expected[index] = HIT if hit else FALSE
    assert outcome.tolist() == expected.tolist()
    for label in (0, 1):
        count = sum(t[1] == label and not t[3] for t in truth)
        own = detections.label == label
        if count:
            found_hits = [hit for index, hit in counted if found[index][1] == label]
            eleven, every = naive_ap(found_hits, count)
            points = precision_recall(outcome[own], scores[own])
            assert eleven_point_ap(*points, count) == pytest.approx(eleven, abs=1e-12)
            assert all_point_ap(*points, count) == pytest.approx(every, abs=1e-12)


def test_images_with_many_boxes_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (60, 2))
    every = np.concatenate([corners, corners + 10], axis=1)
    found = Objects(np.zeros(60, np.int64), rng.integers(0, 2, 60), every)
    truth = Objects(found.image[:30], found.label[:30], every[:30] + 1)
    args = (found, rng.random(60), truth, rng.random(30) < 0.3)
    whole = match_detections(*args)
    assert set(whole.tolist()) == {HIT, FALSE, NEITHER}
    monkeypatch.setattr(voc, "_PAIRS", 7)
    np.testing.assert_array_equal(match_detections(*args), whole)


def test_false_positives_leave_out_what_lies_in_a_crowd() -> None:
    crowd = (100.0, 100.0, 200.0, 200.0)
    found = objects(
        (1, 0, (110.0, 110.0, 120.0, 120.0)),  # inside
        (1, 0, (95.0, 150.0, 105.0, 160.0)),  # half inside
        (1, 0, (94.0, 150.0, 104.0, 160.0)),  # less
        (1, 1, (110.0, 110.0, 120.0, 120.0)),  # another class
        (2, 0, (110.0, 110.0, 120.0, 120.0)),  # another image
        (1, 0, (300.0, 300.0, 300.0, 300.0)),  # no area, far away
    )
    truth, flags = objects((1, 0, A), (1, 0, crowd)), np.array([False, True])
    outcome = match_detections(found, np.full(6, 0.9), truth, flags)
    assert outcome.tolist() == [FALSE] * 6
    false = false_positives(found, outcome, truth, flags)
    assert false.tolist() == [False, False, True, True, True, True]


def document() -> Json:
    def thing(number: int, image: int, category: int, bbox: list[float], crowd: int = 0) -> Json:
        keys = {"id": number, "image_id": image, "category_id": category}
        return {**keys, "bbox": bbox, "iscrowd": crowd}

    return {
        "images": [{"id": 30 - n, "file_name": f"{n}.jpg"} for n in range(4)],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 5, "name": "x"}],
        "annotations": [
            thing(1, 30, 9, [0, 0, 10, 10]),
            thing(2, 29, 9, [0, 0, 10, 10]),
            thing(3, 28, 4, [0, 0, 10, 10]),
            thing(4, 28, 5, [0, 0, 10, 10], 1),
        ],
    }


def detection(image: str, label: str, score: float, box: Any = A) -> Json:
    corners = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
    return {"image_id": image, "label": label, "score": score, **corners}


DETECTIONS = pa.Table.from_pylist(
    [
        detection("2.jpg", "dog", 0.2, B),
        detection("0.jpg", "cat", 0.9),
        detection("0.jpg", "cat", 0.8),
        detection("2.jpg", "dog", 0.6),
        detection("2.jpg", "x", 0.6),
        detection("3.jpg", "zebra", 0.99),
        detection("3.jpg", "cat", 0.3),
    ]
)


def test_ground_truth_and_table() -> None:
    scores = evaluate_voc(ground_truth(document()), DETECTIONS)
    cat, dog, other = (scores.per_class[name] for name in ("cat", "dog", "x"))
    assert (cat.ap11, cat.ap) == (pytest.approx(6 / 11), pytest.approx(0.5))
    assert (dog.ap11, dog.ap) == (1.0, 1.0)
    assert (other.ap11, other.ap) == (None, None)
    assert scores.overall.ap == pytest.approx(0.75)
    assert scores.false_positives_per_image == 2 / 4  # the second cat and the one in image 3
    assert (
        evaluate_voc(ground_truth(document()), DETECTIONS, fp_score=0.31).false_positives_per_image
        == 1 / 4
    )
    arrays = {name: DETECTIONS[name].to_numpy() for name in DETECTIONS.column_names}
    assert evaluate_voc(ground_truth(document()), arrays) == scores


def test_json_and_table() -> None:
    scores = evaluate_voc(ground_truth(document()), DETECTIONS)
    plain = json.loads(json.dumps(scores.to_json()))
    assert plain["iou"] == 0.5
    assert plain["overall"]["ap"] == pytest.approx(0.75)
    assert plain["per_class"]["x"] == {"ap11": None, "ap": None}
    lines = scores.table().splitlines()
    assert lines[0].split() == ["VOC", "11-point@0.5", "all-point@0.5"]
    assert lines[-1].split() == ["mean", "0.773", "0.750"]
    assert lines[3].split() == ["x", "-", "-"]


def test_without_detections() -> None:
    scores = evaluate_voc(
        ground_truth(document()), pa.table({n: pa.nulls(0) for n in DETECTIONS.column_names})
    )
    assert scores.overall.ap == scores.overall.ap11 == 0.0
    assert scores.false_positives_per_image == 0.0


def test_the_threshold_can_be_chosen() -> None:
    narrow = pa.Table.from_pylist([detection("2.jpg", "dog", 0.6, (0, 0, 10, 6))])
    assert evaluate_voc(ground_truth(document()), narrow).per_class["dog"].ap == 1.0
    assert evaluate_voc(ground_truth(document()), narrow, iou=0.7).per_class["dog"].ap == 0.0


@pytest.mark.parametrize("iou", [0.0, 1.1, float("nan")])
def test_impossible_thresholds(iou: float) -> None:
    with pytest.raises(ValueError, match="iou is"):
        evaluate_voc(ground_truth(document()), DETECTIONS, iou=iou)

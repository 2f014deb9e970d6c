"""AP from stored matches is COCOeval's, for the images as they are and for any resample."""

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.evaluation.coco import check_inputs, evaluate_detections, run_coco
from af_pipeline.evaluation.matches import RECALLS, Accumulator, Matches, matches_of
from tests.helpers.truth import Json, annotation, detection, ground_truth, made_up, table_of


def matched(truth: Json, detections: pa.Table, max_dets: int = 300) -> tuple[Matches, Any]:
    inputs = check_inputs(ground_truth(truth), detections)
    coco_eval = run_coco(inputs, max_dets)
    return matches_of(inputs, coco_eval), coco_eval


def with_objects(seed: int) -> tuple[Json, pa.Table]:
    """`made_up` with coarse scores, so that many are equal, and one object at least."""
    truth, detections = made_up(seed)
    truth["annotations"].append(annotation(10_000, 0, 0, [5, 5, 40, 40]))
    scores = np.round(detections["score"].to_numpy() * 8) / 8
    return truth, detections.set_column(2, "score", pa.array(scores))


def repeated(truth: Json, detections: pa.Table, weights: list[int]) -> tuple[Json, pa.Table]:
    """The same with image i there ``weights[i]`` times, copies in the order of the ids."""
    images, annotations, tables = [], [], []
    for image, weight in zip(truth["images"], weights, strict=True):
        rows = detections.to_pylist()
        for copy_number in range(weight):
            new_id, name = image["id"] * 10 + copy_number, f"{copy_number}/{image['file_name']}"
            images.append({"id": new_id, "file_name": name})
            own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            annotations += [{**copy.deepcopy(a), "image_id": new_id} for a in own]
            tables += [{**r, "image_id": name} for r in rows if r["image_id"] == image["file_name"]]
    return {**truth, "images": images, "annotations": annotations}, table_of(tables)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), max_dets=st.sampled_from([1, 3, 300]))
def test_the_images_as_they_are_give_cocoeval_to_the_bit(seed: int, max_dets: int) -> None:
    truth, detections = with_objects(seed)
    matches, coco_eval = matched(truth, detections, max_dets)
    precision = Accumulator(matches).precision(np.ones(len(matches.objects), np.int64))
    expected = coco_eval.eval["precision"][..., 0, 0]
    assert np.array_equal(RECALLS, coco_eval.params.recThrs)
    assert np.array_equal(np.nan_to_num(precision, nan=-1.0), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), draw=st.integers(0, 10_000))
def test_weights_are_repeated_images(seed: int, draw: int) -> None:
    truth, detections = with_objects(seed)
    # Scores that occur in every image, in none twice: there the order of equals would count.
    names = detections["image_id"].to_pylist()
    ranks = [names[:place].count(name) * 7 % 64 / 64 for place, name in enumerate(names)]
    detections = detections.set_column(2, "score", pa.array(ranks))
    number = len(truth["images"])
    rng = np.random.default_rng(draw)
    weights = np.bincount(rng.integers(0, number, number), minlength=number)
    again, found = repeated(truth, detections, weights.tolist())
    scores = Accumulator(matched(truth, detections)[0]).scores(weights)
    if not again["annotations"] or all(a["iscrowd"] for a in again["annotations"]):
        assert np.isnan(scores["AP"])
        return
    expected = evaluate_detections(ground_truth(again), found).overall
    assert scores == pytest.approx({name: expected[name] for name in ("AP", "AP50")}, abs=1e-12)


def test_rows_and_matches_lead_back_to_the_inputs() -> None:
    truth, _ = made_up(3, images=2, classes=2)
    truth["annotations"] = [
        annotation(7, 1, 1, [10, 10, 20, 20]),
        annotation(0, 0, 0, [10, 10, 20, 20]),
        annotation(9, 0, 1, [100, 100, 50, 50], crowd=1),
    ]
    rows = [
        detection(0, 0, 0.2, [10, 10, 30, 30]),
        detection(0, 0, 0.9, [300, 300, 310, 310]),
        detection(0, 1, 0.5, [100, 100, 120, 120]),
        detection(1, 1, 0.7, [10, 10, 30, 30]),
    ]
    matches, _ = matched(truth, table_of(rows))
    at = matches.at(0.5)
    assert matches.row.tolist() == [1, 0, 3, 2]
    assert matches.label.tolist() == [0, 0, 1, 1]
    assert matches.image.tolist() == [0, 0, 1, 0]
    assert matches.met[at].tolist() == [-1, 0, 2, 1]  # boxes come image by image
    assert matches.hit[at].tolist() == [False, True, True, False]
    assert matches.ignored[at].tolist() == [False, False, False, True]
    assert matches.objects.tolist() == [[1, 0], [0, 1]]


def test_no_detections_at_all() -> None:
    truth, detections = with_objects(1)
    matches, _ = matched(truth, detections.slice(0, 0))
    scores = Accumulator(matches).scores(np.ones(len(matches.objects), np.int64))
    assert scores == {"AP": 0.0, "AP50": 0.0}


def test_an_unknown_threshold_is_refused() -> None:
    matches, _ = matched(*with_objects(1))
    with pytest.raises(ValueError, match=r"no IoU threshold 0\.3"):
        matches.at(0.3)

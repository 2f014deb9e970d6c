"""Parity of the COCO summary with pycocotools' own, and the edges of its input."""

import copy
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from af_pipeline.evaluation.coco import SCORE_NAMES, evaluate_detections, pixel_summary

Json = dict[str, Any]


def made_up(seed: int, images: int = 6, classes: int = 3) -> tuple[Json, pa.Table]:
    """Random objects of all sizes, some of them crowds, and noisy, missed and false detections."""
    rng = np.random.default_rng(seed)
    annotations: list[Json] = []
    rows: list[Json] = []
    for image in range(images):
        for _ in range(rng.integers(0, 12)):
            x, y = rng.uniform(0, 500, 2)
            w, h = rng.choice([12, 50, 180]) * rng.uniform(0.6, 1.6, 2)
            label = int(rng.integers(0, classes))
            crowd = int(rng.random() < 0.1)
            annotations.append(annotation(len(annotations) + 1, image, label, [x, y, w, h], crowd))
            for _ in range(rng.integers(0, 3)):
                noise = rng.normal(0, 0.08, 4) * [w, h, w, h]
                box = np.array([x, y, x + w, y + h]) + noise
                label = label if rng.random() < 0.9 else int(rng.integers(0, classes))
                rows.append(detection(image, label, float(rng.random()), box))
    truth = {
        # Ids in another order than the names: nothing may rely on it.
        "images": [{"id": 100 - i, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": 7 * c + 1, "name": f"c{c}"} for c in range(classes)],
        "annotations": annotations,
    }
    return truth, table_of(rows)


def annotation(number: int, image: int, label: int, box: list[float], crowd: int = 0) -> Json:
    return {
        "id": number,
        "image_id": 100 - image,
        "category_id": 7 * label + 1,
        "bbox": [float(v) for v in box],
        "area": float(box[2] * box[3]),
        "iscrowd": crowd,
    }


def detection(image: int, label: int, score: float, box: Any) -> Json:
    corners = dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
    return {"image_id": f"{image}.jpg", "label": f"c{label}", "score": score, **corners}


def table_of(rows: list[Json]) -> pa.Table:
    names = pa.schema([("image_id", pa.string()), ("label", pa.string())])
    numbers = pa.schema([(name, pa.float64()) for name in ("score", "x0", "y0", "x1", "y1")])
    return pa.Table.from_pylist(rows, schema=pa.schema([*names, *numbers]))


def perfect(truth: Json) -> pa.Table:
    rows = []
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        if not a["iscrowd"]:
            image, label = 100 - a["image_id"], (a["category_id"] - 1) // 7
            rows.append(detection(image, label, 0.9, [x, y, x + w, y + h]))
    return table_of(rows)


def reference_stats(truth: Json, detections: pa.Table) -> list[float]:
    """The twelve numbers of plain pycocotools, with its own loading of results."""
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    results = [
        {
            "image_id": ids[d["image_id"]],
            "category_id": 7 * int(d["label"][1:]) + 1,
            "bbox": [d["x0"], d["y0"], d["x1"] - d["x0"], d["y1"] - d["y0"]],
            "score": d["score"],
        }
        for d in detections.to_pylist()
    ]
    coco_eval = COCOeval(coco, coco.loadRes(results), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return [float(value) for value in coco_eval.stats]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_parity_with_pycocotools(seed: int) -> None:
    truth, detections = made_up(seed)
    if not truth["annotations"] or not detections.num_rows:
        return
    stats = reference_stats(truth, detections)
    for max_dets, place in ((1, 6), (10, 7), (100, 8)):
        recall = evaluate_detections(truth, detections, max_dets=max_dets).overall["AR"]
        assert (-1.0 if recall is None else recall) == pytest.approx(stats[place], abs=1e-9)
    overall = evaluate_detections(truth, detections, max_dets=100).overall
    for name, expected in zip(SCORE_NAMES, stats[:6], strict=False):
        value = overall[name]
        assert (-1.0 if value is None else value) == pytest.approx(expected, abs=1e-9), name


def test_perfect_detections_score_one() -> None:
    truth, _ = made_up(1)
    scores = evaluate_detections(truth, perfect(truth)).overall
    assert scores == {name: pytest.approx(1.0) for name in SCORE_NAMES}


def test_no_detections_score_zero() -> None:
    truth, detections = made_up(1)
    evaluation = evaluate_detections(truth, detections.slice(0, 0))
    assert evaluation.overall == dict.fromkeys(SCORE_NAMES, 0.0)
    assert sum(evaluation.num_detections.values()) == 0


def test_annotation_id_zero_is_an_object_like_any_other() -> None:
    truth, _ = made_up(1)
    for number, entry in enumerate(truth["annotations"]):
        entry["id"] = number  # plain COCOeval would take the first match for a miss
    assert evaluate_detections(truth, perfect(truth)).overall["AP"] == pytest.approx(1.0)


def test_crowds_are_neither_missed_nor_false() -> None:
    crowd = annotation(2, 0, 0, [200, 200, 100, 100], crowd=1)
    truth, _ = made_up(3, images=1, classes=1)
    truth["annotations"] = [annotation(1, 0, 0, [10, 10, 50, 50]), crowd]
    inside = [detection(0, 0, 0.99, [210 + i, 210, 240 + i, 240]) for i in range(5)]
    detections = table_of([*inside, detection(0, 0, 0.5, [10, 10, 60, 60])])
    evaluation = evaluate_detections(truth, detections)
    assert evaluation.overall["AP"] == pytest.approx(1.0)
    assert evaluation.num_ground_truth == {"c0": 1}


def test_classes_and_sizes_without_objects_are_none_and_not_averaged() -> None:
    truth, _ = made_up(3, images=1, classes=2)
    truth["annotations"] = [annotation(1, 0, 0, [10, 10, 20, 20])]
    evaluation = evaluate_detections(truth, perfect(truth))
    assert evaluation.per_class["c1"] == dict.fromkeys(SCORE_NAMES)
    assert evaluation.overall["APS"] == pytest.approx(1.0)
    assert evaluation.overall["APL"] is None


def test_max_dets_beyond_100_are_counted() -> None:
    truth, _ = made_up(3, images=1, classes=1)
    boxes = [[20.0 * (i % 20), 20.0 * (i // 20), 10.0, 10.0] for i in range(200)]
    truth["annotations"] = [annotation(i + 1, 0, 0, box) for i, box in enumerate(boxes)]
    assert evaluate_detections(truth, perfect(truth)).overall["AR"] == pytest.approx(1.0)
    assert evaluate_detections(truth, perfect(truth), 100).overall["AR"] == pytest.approx(0.5)


def test_thresholds_can_be_chosen() -> None:
    truth, detections = made_up(5)
    both = evaluate_detections(truth, detections)
    one = evaluate_detections(truth, detections, iou_thresholds=[0.5])
    assert one.overall["AP"] == pytest.approx(both.overall["AP50"])
    assert one.overall["AP75"] is None


def test_unmatched_labels_are_counted_and_do_not_change_the_scores() -> None:
    truth, detections = made_up(2)
    stray = detection(0, 0, 0.99, [0, 0, 9, 9]) | {"label": "zebra"}
    evaluation = evaluate_detections(truth, pa.concat_tables([detections, table_of([stray] * 3)]))
    assert evaluation.unmatched_labels == {"zebra": 3}
    assert evaluation.overall == evaluate_detections(truth, detections).overall


def test_arrays_and_float32_tables_are_accepted_and_inputs_stay_unchanged() -> None:
    truth, detections = made_up(4)
    before = copy.deepcopy(truth)
    narrow = detections.set_column(2, "score", detections["score"].cast(pa.float32()))
    arrays = {name: detections[name].to_numpy() for name in detections.column_names}
    expected = evaluate_detections(truth, detections).overall
    assert evaluate_detections(truth, arrays).overall == expected
    assert evaluate_detections(truth, narrow).overall["AP"] == pytest.approx(expected["AP"])
    assert truth == before


def test_missing_area_and_iscrowd_are_filled() -> None:
    truth, detections = made_up(6)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    bare = copy.deepcopy(truth)
    for entry in bare["annotations"]:
        del entry["area"], entry["iscrowd"]
    expected = evaluate_detections(truth, detections).overall
    assert evaluate_detections(bare, detections).overall == pytest.approx(expected)


def test_detections_of_unknown_images_are_refused_by_name() -> None:
    truth, detections = made_up(2)
    stray = detection(0, 0, 0.5, [0, 0, 9, 9]) | {"image_id": "other/far.jpg"}
    with pytest.raises(ValueError, match=r"1 images .*other/far\.jpg.*file_name"):
        evaluate_detections(truth, pa.concat_tables([detections, table_of([stray])]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, "no 'annotations'"),
        ({"categories": None}, "no 'categories'"),
        ({"images": [{"id": 100}]}, "in 'images' without 'file_name'"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 8, "name": "a"}]}, "more than once: a"),
        ({"annotations": [{"bbox": [1, 2, 3]}]}, r"must be \[x, y, w, h\]"),
        ({"annotations": [{"bbox": [1, 2, 3, 4], "image_id": 5}]}, "image_id 5, which is not"),
    ],
)
def test_malformed_ground_truth_is_named(change: Json, message: str) -> None:
    truth, detections = made_up(2)
    with pytest.raises(ValueError, match=message):
        evaluate_detections(truth | change, detections)


def test_numbers_that_are_not_finite_are_refused() -> None:
    truth, _ = made_up(2)
    with pytest.raises(ValueError, match="'score' that are not finite"):
        evaluate_detections(truth, table_of([detection(0, 0, float("nan"), [0, 0, 9, 9])]))


def test_missing_columns_are_named() -> None:
    truth, detections = made_up(2)
    with pytest.raises(ValueError, match="lack the columns label, x1"):
        evaluate_detections(truth, detections.drop_columns(["label", "x1"]))


def test_nothing_is_printed_and_json_and_table_hold_the_scores(
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth, detections = made_up(2)
    evaluation = evaluate_detections(truth, detections)
    assert capsys.readouterr().out == ""
    plain = json.loads(json.dumps(evaluation.to_json()))
    assert plain["per_class"]["c1"]["AP50"] == evaluation.per_class["c1"]["AP50"]
    lines = evaluation.table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].split()[:2] == ["all", f"{evaluation.overall['AP']:.3f}"]


def test_pixel_summary() -> None:
    images = pa.table(
        {
            "status": ["ok", "ok", "error"],
            "pixels_processed": pa.array([100, 300, None], pa.int64()),
            "pixels_pyramid": pa.array([1000, 1000, None], pa.int64()),
        }
    )
    assert pixel_summary(images) == {
        "images": 3,
        "errors": 1,
        "mean_pixels_processed": 200.0,
        "mean_pixels_pyramid": 1000.0,
        "pyramid_over_processed": 5.0,
        "share_processed": 0.2,
        "paper_unit_px": pytest.approx(200**0.5),
    }


def test_pixel_summary_of_no_images() -> None:
    empty = pa.table({n: pa.nulls(0) for n in ("status", "pixels_processed", "pixels_pyramid")})
    summary = pixel_summary(empty)
    assert (summary["images"], summary["errors"], summary["share_processed"]) == (0, 0, None)

"""Parity of the COCO summary with pycocotools' own, and the edges of its input."""

import copy
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from af_pipeline.evaluation.coco import SCORE_NAMES, evaluate_detections, pixel_summary
from tests.helpers.truth import (
    Json,
    annotation,
    detection,
    ground_truth,
    made_up,
    perfect,
    table_of,
)


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
        recall = evaluate_detections(ground_truth(truth), detections, max_dets=max_dets).overall[
            "AR"
        ]
        assert (-1.0 if recall is None else recall) == pytest.approx(stats[place], abs=1e-9)
    overall = evaluate_detections(ground_truth(truth), detections, max_dets=100).overall
    for name, expected in zip(SCORE_NAMES, stats[:6], strict=False):
        value = overall[name]
        assert (-1.0 if value is None else value) == pytest.approx(expected, abs=1e-9), name


def test_perfect_detections_score_one() -> None:
    truth, _ = made_up(1)
    scores = evaluate_detections(ground_truth(truth), perfect(truth)).overall
    assert scores == {name: pytest.approx(1.0) for name in SCORE_NAMES}


def test_no_detections_score_zero() -> None:
    truth, detections = made_up(1)
    evaluation = evaluate_detections(ground_truth(truth), detections.slice(0, 0))
    assert evaluation.overall == dict.fromkeys(SCORE_NAMES, 0.0)
    assert sum(evaluation.num_detections.values()) == 0


def test_annotation_id_zero_is_an_object_like_any_other() -> None:
    truth, _ = made_up(1)
    for number, entry in enumerate(truth["annotations"]):
        entry["id"] = number  # plain COCOeval would take the first match for a miss
    assert evaluate_detections(ground_truth(truth), perfect(truth)).overall["AP"] == pytest.approx(
        1.0
    )


def test_crowds_are_neither_missed_nor_false() -> None:
    crowd = annotation(2, 0, 0, [200, 200, 100, 100], crowd=1)
    truth, _ = made_up(3, images=1, classes=1)
    truth["annotations"] = [annotation(1, 0, 0, [10, 10, 50, 50]), crowd]
    inside = [detection(0, 0, 0.99, [210 + i, 210, 240 + i, 240]) for i in range(5)]
    detections = table_of([*inside, detection(0, 0, 0.5, [10, 10, 60, 60])])
    evaluation = evaluate_detections(ground_truth(truth), detections)
    assert evaluation.overall["AP"] == pytest.approx(1.0)
    assert evaluation.num_ground_truth == {"c0": 1}


def test_classes_and_sizes_without_objects_are_none_and_not_averaged() -> None:
    truth, _ = made_up(3, images=1, classes=2)
    truth["annotations"] = [annotation(1, 0, 0, [10, 10, 20, 20])]
    evaluation = evaluate_detections(ground_truth(truth), perfect(truth))
    assert evaluation.per_class["c1"] == dict.fromkeys(SCORE_NAMES)
    assert evaluation.overall["APS"] == pytest.approx(1.0)
    assert evaluation.overall["APL"] is None


def test_max_dets_beyond_100_are_counted() -> None:
    truth, _ = made_up(3, images=1, classes=1)
    boxes = [[20.0 * (i % 20), 20.0 * (i // 20), 10.0, 10.0] for i in range(200)]
    truth["annotations"] = [annotation(i + 1, 0, 0, box) for i, box in enumerate(boxes)]
    assert evaluate_detections(ground_truth(truth), perfect(truth)).overall["AR"] == pytest.approx(
        1.0
    )
    assert evaluate_detections(ground_truth(truth), perfect(truth), 100).overall[
        "AR"
    ] == pytest.approx(0.5)


def test_thresholds_can_be_chosen() -> None:
    truth, detections = made_up(5)
    both = evaluate_detections(ground_truth(truth), detections)
    one = evaluate_detections(ground_truth(truth), detections, iou_thresholds=[0.5])
    assert one.overall["AP"] == pytest.approx(both.overall["AP50"])
    assert one.overall["AP75"] is None


def test_unmatched_labels_are_counted_and_do_not_change_the_scores() -> None:
    truth, detections = made_up(2)
    stray = detection(0, 0, 0.99, [0, 0, 9, 9]) | {"label": "zebra"}
    evaluation = evaluate_detections(
        ground_truth(truth), pa.concat_tables([detections, table_of([stray] * 3)])
    )
    assert evaluation.unmatched_labels == {"zebra": 3}
    assert evaluation.overall == evaluate_detections(ground_truth(truth), detections).overall


def test_arrays_and_float32_tables_are_accepted_and_inputs_stay_unchanged() -> None:
    truth, detections = made_up(4)
    before = copy.deepcopy(truth)
    narrow = detections.set_column(2, "score", detections["score"].cast(pa.float32()))
    arrays = {name: detections[name].to_numpy() for name in detections.column_names}
    expected = evaluate_detections(ground_truth(truth), detections).overall
    assert evaluate_detections(ground_truth(truth), arrays).overall == expected
    assert evaluate_detections(ground_truth(truth), narrow).overall["AP"] == pytest.approx(
        expected["AP"]
    )
    assert truth == before


def test_missing_area_and_iscrowd_are_filled() -> None:
    truth, detections = made_up(6)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    bare = copy.deepcopy(truth)
    for entry in bare["annotations"]:
        del entry["area"], entry["iscrowd"]
    expected = evaluate_detections(ground_truth(truth), detections).overall
    assert evaluate_detections(ground_truth(bare), detections).overall == pytest.approx(expected)


def test_detections_of_unknown_images_are_refused_by_name() -> None:
    truth, detections = made_up(2)
    stray = detection(0, 0, 0.5, [0, 0, 9, 9]) | {"image_id": "other/far.jpg"}
    with pytest.raises(ValueError, match=r"1 images .*other/far\.jpg.*file_name"):
        evaluate_detections(ground_truth(truth), pa.concat_tables([detections, table_of([stray])]))


def test_ground_truth_without_a_box_is_refused() -> None:
    truth, detections = made_up(2)
    with pytest.raises(ValueError, match=r"no annotations to score against.*export\.py"):
        evaluate_detections(ground_truth(truth | {"annotations": []}), detections)


def test_images_of_equal_scores_count_in_the_order_of_their_ids() -> None:
    truth, _ = made_up(1, images=2, classes=1)
    truth["annotations"] = [annotation(n + 1, n, 0, [0, 0, 40, 40]) for n in range(2)]
    rows = [detection(0, 0, 0.5, [0, 0, 40, 40]), detection(1, 0, 0.5, [90, 0, 99, 9])]
    assert reference_stats(truth, table_of(rows))[1] == pytest.approx(51 / 2 / 101)
    overall = evaluate_detections(ground_truth(truth), table_of(rows)).overall
    assert overall["AP50"] == pytest.approx(51 / 2 / 101)


def test_numbers_that_are_not_finite_are_refused() -> None:
    truth, _ = made_up(2)
    with pytest.raises(ValueError, match="'score' that are not finite"):
        evaluate_detections(
            ground_truth(truth), table_of([detection(0, 0, float("nan"), [0, 0, 9, 9])])
        )


def test_missing_columns_are_named() -> None:
    truth, detections = made_up(2)
    with pytest.raises(ValueError, match="lack the columns label, x1"):
        evaluate_detections(ground_truth(truth), detections.drop_columns(["label", "x1"]))


def test_nothing_is_printed_and_json_and_table_hold_the_scores(
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth, detections = made_up(2)
    evaluation = evaluate_detections(ground_truth(truth), detections)
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

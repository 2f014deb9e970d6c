"""Every outcome and kind by hand, their prices, and that each thing gets exactly one."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.scales import Scale
from af_pipeline.evaluation.coco import check_inputs, run_coco, summarise
from af_pipeline.evaluation.coverage import CAUSES, Looked
from af_pipeline.evaluation.errors import DETECTION_KINDS, OBJECT_KINDS, Breakdown, Side, break_down
from af_pipeline.evaluation.matches import matches_of
from af_pipeline.evaluation.tables import ERRORS, error_rows, errors_json, errors_text
from tests.helpers.fakes import make_plan
from tests.helpers.truth import Json, annotation, detection, ground_truth, made_up, table_of

SCALES = (Scale(0.5, valid_range=(50.0, -1)), Scale(2.0, valid_range=(5.0, 60.0)))
CHIPS = {"0.jpg": np.array([[1, 100, 100, 300, 300]])}
# image, class, box, outcome
OBJECTS: list[tuple[int, int, list[float], str]] = [
    (0, 0, [120, 120, 150, 150], "found"),
    (0, 0, [200, 120, 230, 150], "class"),
    (0, 0, [120, 200, 150, 230], "localisation"),
    (0, 1, [250, 250, 253, 253], "range"),
    (0, 0, [400, 400, 430, 430], "no_chip"),
    (0, 0, [101, 250, 131, 280], "border"),
    (0, 0, [250, 200, 280, 230], "no_detection"),
    (0, 1, [400, 800, 1100, 860], "seam"),
    (1, 1, [10, 10, 40, 40], "image"),
]
CROWD = [600.0, 600.0, 800.0, 800.0]
# class, score, box, kind
FOUND: list[tuple[int, float, list[float], str]] = [
    (0, 0.9, [120, 120, 150, 150], "true"),
    (0, 0.7, [121, 120, 151, 150], "duplicate"),
    (1, 0.8, [200, 120, 230, 150], "class"),
    (0, 0.75, [135, 200, 165, 230], "localisation"),
    (1, 0.5, [265, 200, 295, 230], "both"),
    (0, 0.6, [500, 100, 520, 120], "background"),
    (0, 0.65, [650, 650, 680, 680], "ignored"),
    (0, 0.2, [700, 100, 720, 120], ""),  # below the score
]


def truth_of(objects: list[tuple[int, int, list[float]]], images: int = 2) -> Json:
    """COCO json content with boxes given by their corners."""
    truth, _ = made_up(1, images=images, classes=2)
    boxes = [[x0, y0, x1 - x0, y1 - y0] for _, _, (x0, y0, x1, y1) in objects]
    truth["annotations"] = [
        annotation(n, image, label, box)
        for n, ((image, label, _), box) in enumerate(zip(objects, boxes, strict=True))
    ]
    return truth


def scene() -> tuple[Json, pa.Table]:
    truth = truth_of([(image, label, box) for image, label, box, _ in OBJECTS])
    x0, y0, x1, y1 = CROWD
    truth["annotations"].append(annotation(99, 0, 0, [x0, y0, x1 - x0, y1 - y0], crowd=1))
    return truth, table_of([detection(0, label, score, box) for label, score, box, _ in FOUND])


def explain(
    truth: Json, detections: pa.Table, looked: Looked | None = None, **options: Any
) -> Breakdown:
    inputs = check_inputs(ground_truth(truth), detections)
    matches = matches_of(inputs, run_coco(inputs, options.pop("max_dets", 300)))
    indexed = options.pop("indexed", list(inputs.truth.image_ids))
    return break_down(inputs, matches, indexed, looked, **options)


def explained_scene(**options: Any) -> Breakdown:
    looked = Looked(make_plan(scales=SCALES), {"0.jpg": (1000, 2200)}, CHIPS)
    return explain(*scene(), looked=looked, indexed=["0.jpg"], **options)


def kinds(side: Side) -> dict[tuple[float, ...], str]:
    return {
        tuple(map(float, box)): side.kinds[kind]
        for box, kind in zip(side.items.boxes.tolist(), side.kind, strict=True)
    }


def overall(side: Side) -> dict[str, int]:
    counts = side.counts(2).sum(0).tolist()
    return {kind: n for kind, n in zip(side.kinds, counts, strict=True) if n}


def test_every_outcome_of_an_object() -> None:
    objects = explained_scene().objects
    assert kinds(objects) == {tuple(map(float, box)): kind for _, _, box, kind in OBJECTS}
    assert {kind for _, _, _, kind in OBJECTS} == set(OBJECT_KINDS) - {"missed"}


def test_every_kind_of_a_detection() -> None:
    found = explained_scene()
    expected = {tuple(map(float, box)): kind for _, _, box, kind in FOUND if kind}
    assert kinds(found.detections) == expected
    assert set(expected.values()) == set(DETECTION_KINDS)
    assert found.covered is not None
    assert found.covered.tolist() == [5, 1]  # border and what is found counts, no_chip does not


def test_boxes_that_decided() -> None:
    found = explained_scene()
    for side, expected in (
        (found.objects, {"class": (1.0, 1), "localisation": (1 / 3, 0), "range": (0.0, -1)}),
        (found.detections, {"class": (1.0, 0), "both": (1 / 3, 0), "background": (0.0, -1)}),
    ):
        for kind, (iou, other) in expected.items():
            (place,) = np.flatnonzero(side.kind == side.kinds.index(kind))
            assert side.iou[place] == pytest.approx(iou)
            assert side.other[place] == other


def test_without_chips_causes_are_not_told_apart() -> None:
    found = explain(*scene(), indexed=["0.jpg"])
    counts = overall(found.objects)
    assert counts == {"found": 1, "image": 1, "class": 1, "localisation": 1, "missed": 5}
    assert found.covered is None
    assert ("objects", "missed") in found.gains
    assert not any(("objects", cause) in found.gains for cause in CAUSES)


def test_a_higher_score_leaves_weaker_detections_out() -> None:
    found = explained_scene(score=0.72)
    assert overall(found.detections) == {"true": 1, "class": 1, "localisation": 1}
    none = explained_scene(score=0.95)
    assert "found" not in overall(none.objects)
    assert none.detections.counts(2).sum() == 0


def test_hits_of_a_neighbour_are_no_evidence() -> None:
    # Two cars side by side, one found: its box overlaps the other car too.
    truth = truth_of([(0, 0, [0, 0, 40, 40]), (0, 0, [30, 0, 70, 40])])
    found = explain(truth, table_of([detection(0, 0, 0.9, [0, 0, 40, 40])]))
    assert overall(found.objects) == {"found": 1, "missed": 1}


def test_detections_in_a_crowd_are_no_evidence() -> None:
    truth = truth_of([(0, 0, [0, 0, 40, 40])])
    truth["annotations"].append(annotation(9, 0, 0, [15, 0, 300, 40], crowd=1))
    found = explain(truth, table_of([detection(0, 0, 0.9, [20, 0, 60, 40])]))
    assert overall(found.objects) == {"missed": 1}
    assert overall(found.detections) == {"ignored": 1}


def test_detections_beyond_max_dets_are_none() -> None:
    truth = truth_of([(0, 0, [0, 0, 40, 40])])
    rows = [detection(0, 0, 0.9 - n / 100, [100.0 * n, 0, 100 * n + 40, 40]) for n in range(4)]
    assert explain(truth, table_of(rows), max_dets=2).detections.counts(2).sum() == 2


ONE, TWO = [0.0, 0.0, 40.0, 40.0], [100.0, 0.0, 140.0, 40.0]
FAR, ASIDE = [500.0, 0.0, 540.0, 40.0], [20.0, 0.0, 60.0, 40.0]  # ASIDE: IoU 1/3 with ONE
HALF = 51 / 101  # COCO's AP of one of two objects


@pytest.mark.parametrize(
    ("objects", "rows", "key", "before", "after"),
    [
        # A false detection between two hits goes.
        (
            [(0, ONE), (0, TWO)],
            [(0, 0.9, ONE), (0, 0.8, FAR), (0, 0.7, TWO)],
            "background",
            (51 + 50 * 2 / 3) / 101,
            1.0,
        ),
        (
            [(0, ONE), (0, TWO)],
            [(0, 0.9, ONE), (0, 0.8, ONE), (0, 0.7, TWO)],
            "duplicate",
            (51 + 50 * 2 / 3) / 101,
            1.0,
        ),
        ([(0, ONE)], [(0, 0.9, ASIDE)], "localisation", 0.0, 1.0),
        # The better placed box takes the object over from a hit with a lower score.
        ([(0, ONE)], [(0, 0.9, ASIDE), (0, 0.5, ONE)], "localisation", 0.5, 1.0),
        # An object already found by a higher score: the badly placed box goes.
        (
            [(0, ONE), (0, TWO)],
            [(0, 0.9, ONE), (0, 0.8, ASIDE), (0, 0.7, TWO)],
            "localisation",
            (51 + 50 * 2 / 3) / 101,
            1.0,
        ),
        # Of two badly placed boxes of an object one becomes the hit, the other goes.
        ([(0, ONE)], [(0, 0.9, ASIDE), (0, 0.8, ASIDE)], "localisation", 0.0, 1.0),
        # Another object stays missed: nothing is found twice in its place.
        (
            [(0, ONE), (0, TWO)],
            [(0, 0.9, ASIDE), (0, 0.5, ONE)],
            "localisation",
            HALF / 2,
            HALF,
        ),
        ([(0, ONE), (0, TWO)], [(0, 0.9, ASIDE), (0, 0.8, ASIDE)], "localisation", 0.0, HALF),
        # Classes a and b: b's box on a's object costs both.
        (
            [(0, ONE), (1, TWO)],
            [(1, 0.9, ONE), (1, 0.5, TWO)],
            "class",
            (0.0 + 0.5) / 2,
            1.0,
        ),
        ([(0, ONE)], [(0, 0.9, ONE), (1, 0.8, ASIDE)], "both", 1.0, 1.0),
        ([(0, ONE), (0, TWO)], [(0, 0.9, ONE)], "missed", HALF, 1.0),
        # A detection below the score hits it: AP counts it as found already.
        ([(0, ONE), (0, TWO)], [(0, 0.9, ONE), (0, 0.1, TWO)], "missed", 1.0, 1.0),
        ([(0, ONE), (0, TWO)], [(0, 0.9, FAR), (0, 0.1, TWO)], "missed", HALF / 2, 0.5),
        # Nothing left to find: the class keeps its AP.
        ([(0, ONE)], [(0, 0.9, FAR)], "missed", 0.0, 0.0),
    ],
)
def test_prices(objects: Any, rows: Any, key: str, before: float, after: float) -> None:
    truth = truth_of([(0, label, box) for label, box in objects])
    table = table_of([detection(0, label, score, box) for label, score, box in rows])
    found = explain(truth, table)
    side = "objects" if key == "missed" else "detections"
    assert np.nanmean(found.ap50) == pytest.approx(before)
    assert np.nanmean(found.ap50 + found.gains[side, key]) == pytest.approx(after)


def random_looked(seed: int, images: int) -> Looked:
    rng = np.random.default_rng(seed)
    chips = {}
    for image in range(images):
        corner, side = rng.integers(0, 400, (3, 2)), rng.integers(50, 300, (3, 2))
        chips[f"{image}.jpg"] = np.concatenate([np.ones((3, 1)), corner, corner + side], 1)
    sizes = dict.fromkeys(chips, (700, 700))
    return Looked(make_plan(scales=SCALES), sizes, {k: v.astype(int) for k, v in chips.items()})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    score=st.sampled_from([0.0, 0.3, 0.8]),
    known=st.booleans(),
    max_dets=st.sampled_from([2, 300]),
)
def test_each_gets_exactly_one(seed: int, score: float, known: bool, max_dets: int) -> None:
    truth, detections = made_up(seed)
    truth["annotations"].append(annotation(10_000, 0, 0, [5, 5, 40, 40]))
    inputs = check_inputs(ground_truth(truth), detections)
    coco_eval = run_coco(inputs, max_dets)
    coco, matches = summarise(inputs, coco_eval), matches_of(inputs, coco_eval)
    looked = random_looked(seed, 6) if known else None
    found = break_down(inputs, matches, [f"{n}.jpg" for n in range(5)], looked, score)
    objects, own = overall_all(found.objects), overall_all(found.detections)
    assert sum(objects.values()) == sum(coco.num_ground_truth.values())
    assert sum(own.values()) == int((matches.score >= score).sum())
    assert objects["found"] == own["true"]
    assert (objects["missed"] == 0) if known else sum(objects[c] for c in CAUSES) == 0
    per_class = found.objects.counts(3).sum(1).tolist()
    assert per_class == list(coco.num_ground_truth.values())
    assert np.nanmean(found.ap50) == pytest.approx(coco.overall["AP50"])
    assert all((gain[~np.isnan(gain)] >= -1e-12).all() for gain in found.gains.values())
    if found.covered is not None:
        assert (found.covered <= found.objects.counts(3).sum(1)).all()
        assert found.covered.sum() >= objects["border"] + objects["no_detection"]


def overall_all(side: Side) -> dict[str, int]:
    counts = side.counts(3).sum(0).tolist()
    return dict(zip(side.kinds, counts, strict=True))


def test_a_run_that_looks_everywhere_misses_for_no_chip_of_its_own() -> None:
    truth, detections = made_up(8)
    sizes = {f"{n}.jpg": (900, 900) for n in range(6)}
    looked = Looked(make_plan(scales=(Scale(0.5),)), sizes, {})
    found = explain(truth, detections, looked)
    counts = overall_all(found.objects)
    assert counts["range"] == counts["no_chip"] == counts["border"] == 0
    assert found.covered is not None
    assert found.covered.sum() == sum(counts.values())


def test_ids_may_be_strings_and_all_objects_crowds() -> None:
    truth, detections = scene()
    expected = overall(explain(truth, detections).objects)
    for entry, key in [(i, "id") for i in truth["images"]] + [
        (a, "image_id") for a in truth["annotations"]
    ]:
        entry[key] = f"image-{entry[key]}"
    assert overall(explain(truth, detections).objects) == expected
    for entry in truth["annotations"]:
        entry["iscrowd"] = 1
    found = explain(truth, detections)
    assert overall(found.objects) == {}
    assert overall(found.detections) == {"ignored": 4, "background": 3}
    assert np.isnan(found.ap50).all()


# As text, json and rows


@pytest.fixture(params=[True, False], ids=["chips", "no chips"])
def found(request: pytest.FixtureRequest) -> Breakdown:
    return explained_scene() if request.param else explain(*scene(), indexed=["0.jpg"])


def test_json_is_strict_and_sums_up(found: Breakdown) -> None:
    plain = json.loads(json.dumps(errors_json(found), allow_nan=False))
    assert sum(plain["objects"]["overall"].values()) == len(OBJECTS)
    for side in ("objects", "detections"):
        for kind, number in plain[side]["overall"].items():
            assert number == sum(each[kind] for each in plain[side]["per_class"].values())
    causes_known = found.covered is not None
    assert ("no_chip" in plain["objects"]["overall"]) == causes_known
    assert ("missed" in plain["AP50_gained"]["objects"]) != causes_known
    assert (plain["objects_in_chips"] is None) != causes_known


def test_rows_are_the_errors_and_no_more(found: Breakdown) -> None:
    rows, plain = error_rows(found), errors_json(found)
    assert rows.schema == ERRORS
    for side, fine in (("object", {"found"}), ("detection", {"true", "ignored"})):
        own = rows.filter(pc.equal(rows["side"], side))
        counts = {row["values"]: row["counts"] for row in own["kind"].value_counts().to_pylist()}
        expected = plain[f"{side}s"]["overall"].items()
        assert counts == {kind: n for kind, n in expected if n and kind not in fine}
        assert own["score"].null_count == (own.num_rows if side == "object" else 0)


def test_a_row(found: Breakdown) -> None:
    (row,) = [r for r in error_rows(found).to_pylist() if r["kind"] == "both"]
    corners = {"x0": 265.0, "y0": 200.0, "x1": 295.0, "y1": 230.0}
    assert row == {
        "image_id": "0.jpg",
        "side": "detection",
        "kind": "both",
        "label": "c1",
        "score": 0.5,
        **corners,
        "iou": pytest.approx(1 / 3),
        "other_label": "c0",
    }


def test_text_has_a_row_a_class_and_a_price_a_kind(found: Breakdown) -> None:
    text = errors_text(found)
    lines = text.splitlines()
    assert lines[0] == "objects, by detections at score >= 0.3"
    assert sum(line.startswith(("c0 ", "c1 ")) for line in lines) == 4
    assert sum(line.split()[:1] == ["background"] for line in lines) == 1
    assert ("no_chip" in text) == (found.covered is not None)
    assert lines[-1].split()[:4] == ["AP50", "as", "it", "is"]

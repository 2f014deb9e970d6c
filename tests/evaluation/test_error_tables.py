"""The error breakdown as text, json and rows: nothing lost on the way."""

import json

import pyarrow.compute as pc
import pytest

from af_pipeline.evaluation.errors import Breakdown
from af_pipeline.evaluation.tables import ERRORS, error_rows, errors_json, errors_text
from tests.evaluation.test_errors import OBJECTS, explain, explained_scene, scene


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

"""The error breakdown of jobs/evaluate.py, with and without the chips of a run."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.helpers.evaluating import evaluate, write_table

# A run of mode autofocus on one image of 200 x 400 px, with the parts of its config that are read.
CONFIG = {
    "mode": "autofocus",
    "pyramid": [
        {"factor": 0.5, "valid_range": [60, -1]},
        {"factor": 2.0, "valid_range": [-1, 70]},
    ],
    "stack": {"border": 4.0, "valid_ranges": True, "unheard": 1},
    "tiles": {"scale": -1},
    "lanes": {"sides": [256, 512, 1024]},
    "focus": "of another version",
}


@pytest.fixture
def focused(out: Path, truth: Path) -> Path:
    """The car of a.jpg is found; another lies in no chip, a third at a chip's border."""
    boxes = [[10, 10, 50, 50], [200, 100, 50, 50], [101, 11, 40, 40]]
    content = json.loads(truth.read_text())
    content["annotations"] = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)
    ]
    content["images"] = content["images"][:1]
    truth.write_text(json.dumps(content))
    spent = {"status": "ok", "pixels_processed": 100, "pixels_pyramid": 400}
    write_table(out / "images", [{"image_id": "a.jpg", "height": 200, "width": 400, **spent}])
    chips = [(0, 0, 80, 80), (100, 0, 180, 80)]
    rows = [dict(zip(("x0", "y0", "x1", "y1"), chip, strict=True)) for chip in chips]
    write_table(out / "chips", [{"image_id": "a.jpg", "scale": 1, **row} for row in rows])
    (out / "run.json").write_text(json.dumps({"config": CONFIG}))
    return out


def errors_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())["errors"]


def counts_of(out: Path, side: str) -> dict[str, int]:
    return {kind: n for kind, n in errors_of(out)[side]["overall"].items() if n}


def test_error_breakdown(focused: Path, truth: Path) -> None:
    done = evaluate(focused, truth)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "no_chip" in done.stdout
    assert counts_of(focused, "objects") == {"found": 1, "no_chip": 1, "border": 1}
    assert counts_of(focused, "detections") == {"true": 1}
    errors = errors_of(focused)
    assert errors["score"] == 0.3
    assert errors["chips_unknown"] is None
    assert errors["objects_in_chips"] == {
        "overall": pytest.approx(2 / 3),
        "per_class": {"car": pytest.approx(2 / 3)},
    }
    assert errors["AP50_gained"]["objects"]["no_chip"]["overall"] == pytest.approx(
        (51 - 34) / 101, abs=1e-9
    )
    query = f"SELECT kind, x0, score FROM '{focused}/errors.parquet' ORDER BY x0"
    assert duckdb.sql(query).fetchall() == [("border", 101.0, None), ("no_chip", 200.0, None)]


def test_error_score(focused: Path, truth: Path) -> None:
    assert evaluate(focused, truth, "--error-score", "0.01").returncode == 0
    assert counts_of(focused, "detections") == {"true": 1, "duplicate": 1}
    assert evaluate(focused, truth, "--error-score", "0.95").returncode == 0
    assert counts_of(focused, "objects") == {"no_chip": 1, "border": 1, "no_detection": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("no chips", "the run wrote no chips (output.chips=false)"),
        ("no config", "run.json has no config"),
        ("odd config", "pyramid"),
        ("incomplete", "there is no run.json"),
    ],
)
def test_where_chips_are_not_known_causes_are_left_out(
    focused: Path, truth: Path, change: str, reason: str
) -> None:
    options = ["--allow-incomplete"]
    if change == "no chips":
        (focused / "chips" / "part-0.parquet").unlink()
        (focused / "chips").rmdir()
    elif change == "incomplete":
        (focused / "run.json").unlink()
    else:
        config = {"config": {**CONFIG, "pyramid": []}} if change == "odd config" else {}
        (focused / "run.json").write_text(json.dumps(config))
    done = evaluate(focused, truth, *options)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert reason in done.stderr
    assert reason in errors_of(focused)["chips_unknown"]
    assert errors_of(focused)["objects_in_chips"] is None
    assert counts_of(focused, "objects") == {"found": 1, "missed": 2}
    assert "no_chip" not in done.stdout


def test_a_run_without_a_chip_has_an_empty_table(focused: Path, truth: Path) -> None:
    empty = pq.read_table(focused / "chips" / "part-0.parquet").slice(0, 0)
    pq.write_table(empty, focused / "chips" / "part-0.parquet")
    assert evaluate(focused, truth).returncode == 0
    assert counts_of(focused, "objects") == {"found": 1, "no_chip": 2}


@pytest.mark.parametrize(
    ("mode", "outcome"),
    # The fixture's chips, read as the mode's: in tiles the ranges are open, so scale 0 looked
    # at everything; whole has scale 0 alone.
    [("pyramid", "no_chip"), ("tiles", "no_detection"), ("whole", "no_detection")],
)
def test_valid_ranges_of_the_mode(focused: Path, truth: Path, mode: str, outcome: str) -> None:
    (focused / "run.json").write_text(json.dumps({"config": {**CONFIG, "mode": mode}}))
    assert evaluate(focused, truth).returncode == 0
    assert outcome in counts_of(focused, "objects")
    assert ("no_chip" in counts_of(focused, "objects")) == (outcome == "no_chip")


def test_images_that_failed(focused: Path, truth: Path) -> None:
    rows = pq.read_table(focused / "images").to_pylist()
    write_table(focused / "images", [{**rows[0], "status": "error", "height": 0, "width": 0}])
    write_table(focused / "detections", [])
    (focused / "detections" / "part-0.parquet").unlink()
    assert evaluate(focused, truth).returncode == 0
    assert counts_of(focused, "objects") == {"image": 3}

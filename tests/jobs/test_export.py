"""jobs/export.py as a user meets it: each format, with and without ground truth."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from af_pipeline.commands.export import main
from af_pipeline.core.schema import DETECTIONS
from af_pipeline.exports.coco import COCO_CATEGORIES
from tests.helpers.evaluating import BOX, evaluate, write_table

CORNERS = [10.0, 10.0, 50.0, 50.0]  # of BOX, as COCO has it


def export(out: Path | str, form: str, target: Path | str, *options: str) -> int:
    return main(["--detections", str(out), "--format", form, "--output", str(target), *options])


def test_csv_has_the_columns_of_the_run(out: Path, tmp_path: Path) -> None:
    rows = [
        {"image_id": name, "label": "car, red", "label_id": 3, "score": score, "scale": 1, **BOX}
        for name, score in (('a "b".jpg', 0.9), ("c.jpg", 0.05))
    ]
    table = pa.Table.from_pylist(rows, DETECTIONS)
    pq.write_table(table, out / "detections/part-0.parquet")
    assert export(out, "csv", "memory://export/d.csv", "--min-score", "0.1") == 0
    with fsspec.open("memory://export/d.csv", "rb") as file:
        read = csv.read_csv(file)
    assert read.column_names == DETECTIONS.names
    assert read.cast(DETECTIONS).equals(table.slice(0, 1))


def test_coco_results_score_the_same_there(out: Path, truth: Path, tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    assert export(out, "coco", target, "--ground-truth", str(truth)) == 0
    written = json.loads(target.read_text())
    assert written[0] == {"image_id": 1, "category_id": 1, "bbox": CORNERS, "score": 0.9}
    assert len(written) == 2
    content = json.loads(truth.read_text())
    for entry in content["annotations"]:
        entry |= {"area": 2500, "iscrowd": 0}
    truth.write_text(json.dumps(content))
    coco = COCO(str(truth))
    coco_eval = COCOeval(coco, coco.loadRes(str(target)), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    assert evaluate(out, truth).returncode == 0
    expected = json.loads((out / "metrics.json").read_text())["overall"]
    assert coco_eval.stats[0] == pytest.approx(expected["AP"])


def test_coco_without_ground_truth_numbers_what_is_there(out: Path, tmp_path: Path) -> None:
    rows = [{"image_id": n, "status": "ok"} for n in ("b.jpg", "a.jpg")]
    write_table(out / "images", rows)
    assert export(out, "coco", tmp_path / "all.json", "--min-score", "0.5") == 0
    assert json.loads((tmp_path / "all.json").read_text()) == {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": CORNERS, "score": 0.9}],
    }


TEST_DEV = {  # as image_info_test-dev2017.json, without the licenses
    "info": {"description": "COCO 2017 Dataset"},
    "images": [
        {"license": 3, "file_name": "a.jpg", "height": 480, "width": 640, "id": 397133},
        {"license": 1, "file_name": "b.jpg", "height": 480, "width": 640, "id": 2},
    ],
    "categories": [{"supercategory": "vehicle", "id": 3, "name": "car"}],
}


@pytest.mark.parametrize("left_out", [(), ("categories",)])
@pytest.mark.parametrize("annotations", [{}, {"annotations": []}])
def test_a_test_set(
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    left_out: tuple[str, ...],
    annotations: dict[str, Any],
) -> None:
    info = tmp_path / "info.json"
    content = {key: value for key, value in TEST_DEV.items() if key not in left_out}
    info.write_text(json.dumps(content | annotations))
    found = {"label": "car", "score": 0.5, **BOX}
    rows = pq.read_table(out / "detections").to_pylist()
    strays = [{"image_id": "z.jpg", **found}, {"image_id": "b.jpg", **found, "label": "zebroid"}]
    write_table(out / "detections", [*rows, *strays, {"image_id": "b.jpg", **found}])
    target = tmp_path / "results.json"
    assert export(out, "coco", target, "--ground-truth", str(info), "--min-score", "0.1") == 0
    assert json.loads(target.read_text()) == [
        {"image_id": 397133, "category_id": 3, "bbox": CORNERS, "score": 0.9},
        {"image_id": 2, "category_id": 3, "bbox": CORNERS, "score": 0.5},
    ]
    said = capsys.readouterr()
    assert "2 detections of 2 images written" in said.out
    assert "1 images that the json does not list were left out: z.jpg" in said.err
    assert "1 classes without a category were left out: zebroid" in said.err
    info.write_text(json.dumps(TEST_DEV))
    COCO(str(info)).loadRes(str(target))  # as the server does


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"images": []}, "lists no image"),
        ({"images": None}, "no list 'images'"),
        ({"images": [{"file_name": "a.jpg"}]}, "has no 'id'"),
        ({"images": TEST_DEV["images"] * 2}, "used twice"),
        ({"images": [{"file_name": "c.jpg", "id": 1}]}, "the run has 'a.jpg', the json 'c.jpg'"),
        ({"categories": [{"name": "bus", "id": 1}]}, "the run has 'car', the json 'bus'"),
    ],
)
def test_what_cannot_be_exported(
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    hint: str,
) -> None:
    info = tmp_path / "info.json"
    info.write_text(json.dumps({**TEST_DEV, **change}))
    assert export(out, "coco", tmp_path / "x.json", "--ground-truth", str(info)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert hint in error
    assert not (tmp_path / "x.json").exists()


def test_incomplete_runs_need_a_flag(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "run.json").unlink()
    assert export(out, "coco", out / "x.json") == 2
    assert "--allow-incomplete" in capsys.readouterr().err
    assert export(out, "coco", out / "x.json", "--allow-incomplete") == 0


def test_cocos_own_categories() -> None:
    ids = {category["name"]: category["id"] for category in COCO_CATEGORIES}
    assert len(ids) == len(COCO_CATEGORIES) == 80
    known = {"person": 1, "stop sign": 13, "backpack": 27, "wine glass": 46, "dining table": 67}
    known |= {"toilet": 70, "tv": 72, "book": 84, "toothbrush": 90}
    assert {name: ids[name] for name in known} == known

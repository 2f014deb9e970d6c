"""jobs/evaluate.py as a user meets it: its table, its file, and one clear line per bad input."""

import json
import string
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from af_pipeline.commands.evaluate import main
from tests.helpers.evaluating import BOX, assert_refused, evaluate, write_table


def test_prints_the_table_and_writes_metrics_json(out: Path, truth: Path) -> None:
    done = evaluate(out, truth)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:2] == ["class", "AP"]
    assert "pyramid_over_processed" in done.stdout
    assert "1 ground-truth images were not indexed (objects missed): b.jpg" in done.stderr
    written = json.loads((out / "metrics.json").read_text())
    assert written["overall"]["AR"] == pytest.approx(0.5)
    assert written["pixels"]["pyramid_over_processed"] == 4.0
    assert written["missing_images"] == ["b.jpg"]
    assert written["num_detections"] == {"car": 2}


def test_voc_scores_and_false_positives(out: Path, truth: Path) -> None:
    found = {"image_id": "a.jpg", "label": "car", **BOX}
    rows = [{**found, "score": 0.9}, {**found, "score": 0.4}, {**found, "score": 0.2}]
    write_table(out / "detections", rows)
    done = evaluate(out, truth)
    assert done.returncode == 0, done.stderr
    assert "11-point@0.5" in done.stdout
    assert "false positives per image at score >= 0.3: 0.500" in done.stdout
    written = json.loads((out / "metrics.json").read_text())
    assert written["voc"]["overall"] == {"ap11": pytest.approx(6 / 11), "ap": pytest.approx(0.5)}
    assert written["voc"]["per_class"]["car"] == written["voc"]["overall"]
    assert written["false_positives_per_image"] == {"score": 0.3, "value": 0.5}
    options = ("--fp-score", "0.1", "--min-score", "0.15", "--voc-iou", "0.75")
    assert evaluate(out, truth, *options).returncode == 0
    written = json.loads((out / "metrics.json").read_text())
    assert written["voc"]["iou"] == 0.75
    assert written["false_positives_per_image"] == {"score": 0.15, "value": 1.0}


def voc_set(root: Path) -> Path:
    """A VOC image set of a.jpg with the car of `truth` and one box without area."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    boxes = [(11, 11, 60, 60), (5, 5, 5, 5)]
    things = "".join(
        f"<object><name>car</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    size = "<size><width>100</width><height>100</height></size>"
    (root / "Annotations/a.xml").write_text(f"<annotation>{size}{things}</annotation>")
    (root / "JPEGImages/a.jpg").write_bytes(b"x")
    (root / "ImageSets/Main/test.txt").write_text("a\n")
    return root / "ImageSets/Main/test.txt"


def test_ground_truth_from_voc(out: Path, tmp_path: Path) -> None:
    path = voc_set(tmp_path / "VOC")
    assert_refused(evaluate(out, path), "a.xml: object 2 'car' has the box (5, 5, 5, 5)")
    done = evaluate(out, path, "--on-broken", "drop")
    assert done.returncode == 0, done.stderr
    assert "1 broken ground-truth boxes were left out" in done.stderr
    written = json.loads((out / "metrics.json").read_text())
    assert written["overall"]["AP"] == pytest.approx(1.0)
    assert written["voc"]["overall"]["ap"] == 1.0
    assert written["num_ground_truth"] == {"car": 1}


def test_ground_truth_from_parquet(out: Path, tmp_path: Path) -> None:
    row = {"image": "a.jpg", "label": "car", **BOX, "width": 100, "height": 100}
    write_table(tmp_path / "truth", [row])
    done = evaluate(out, tmp_path / "truth")
    assert done.returncode == 0, done.stderr
    written = json.loads((out / "metrics.json").read_text())
    assert written["overall"]["AP"] == pytest.approx(1.0)


def test_ground_truth_of_no_known_kind(out: Path, tmp_path: Path) -> None:
    assert_refused(evaluate(out, tmp_path / "truth.toml"), "give a COCO .json, a VOC image set")


def test_min_score_and_output(out: Path, truth: Path, tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    done = evaluate(out, truth, "--min-score", "0.5", "--output", str(target), "--max-dets", "7")
    assert done.returncode == 0, done.stderr
    written = json.loads(target.read_text())
    assert written["num_detections"] == {"car": 1}
    assert written["max_dets"] == 7
    assert not (out / "metrics.json").exists()
    assert not (out / "errors.parquet").exists()
    assert (tmp_path / "errors.parquet").exists()


def test_incomplete_runs_need_a_flag(out: Path, truth: Path) -> None:
    (out / "run.json").unlink()
    refused = evaluate(out, truth)
    assert_refused(refused, "--allow-incomplete")
    assert evaluate(out, truth, "--allow-incomplete").returncode == 0


def test_detected_classes_without_ground_truth_are_reported(out: Path, truth: Path) -> None:
    write_table(out / "detections", [{"image_id": "a.jpg", "label": "zebra", "score": 0.9, **BOX}])
    done = evaluate(out, truth)
    assert done.returncode == 0
    assert "without a ground-truth category: zebra" in done.stderr


def test_a_class_name_is_one_cell(out: Path, truth: Path) -> None:
    plain, odd = evaluate(out, truth).stdout, "a\nb\x1b[31m\u202e"
    truth.write_text(truth.read_text().replace('"car"', json.dumps(odd)))
    done = evaluate(out, truth)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(plain.splitlines())
    assert "a?b?[31m?" in done.stdout
    assert set(done.stdout) <= set(string.printable) - {"\x1b"}


def test_run_without_a_single_detection(out: Path, truth: Path) -> None:
    (out / "detections" / "part-0.parquet").unlink()
    assert evaluate(out, truth).returncode == 0
    assert json.loads((out / "metrics.json").read_text())["overall"]["AP"] == 0.0


def with_bbox(bbox: str, image_id: str = "1", name: str = '"car"') -> str:
    annotation = f'{{"id": 1, "image_id": {image_id}, "category_id": 1, "bbox": {bbox}}}'
    return (
        f'{{"images": [{{"id": {image_id}, "file_name": "a.jpg"}}], '
        f'"categories": [{{"id": 1, "name": {name}}}], "annotations": [{annotation}]}}'
    )


def test_missing_output_directory(tmp_path: Path, truth: Path) -> None:
    assert_refused(evaluate(tmp_path / "nowhere", truth), "give the output of a jobs/index.py run")


def test_directory_that_is_no_run(out: Path, truth: Path) -> None:
    (out / "detections" / "part-0.parquet").unlink()
    (out / "detections").rmdir()
    assert_refused(evaluate(out, truth), "no 'detections' folder")


def test_broken_part_file(out: Path, truth: Path) -> None:
    (out / "detections" / "part-0.parquet").write_bytes(b"not parquet")
    assert_refused(evaluate(out, truth), "part-0.parquet")


def test_columns_of_another_type(out: Path, truth: Path) -> None:
    write_table(out / "detections", [{"image_id": "a.jpg", "label": "car", "score": [1.0], **BOX}])
    assert_refused(evaluate(out, truth), "list")


def test_numbers_that_are_none(out: Path, truth: Path) -> None:
    done = evaluate(out, truth, "--error-score", "nan")
    assert done.returncode == 2
    assert "--error-score" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected an object"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}',
            "no list 'categories'",
        ),
        ('{"images": [1], "annotations": [1], "categories": [1]}', "is not an object"),
        (with_bbox("[1, 2, NaN, 4]"), "which is not finite"),
        (with_bbox("[1, 2, -3, 4]"), "below 0"),
        (with_bbox('[1, 2, 3, 4], "area": "x"'), "the area 'x'"),
        (with_bbox("[1, 2, 3, 4]", image_id="[1]"), "id is [1]"),
        (with_bbox("[1, 2, 3, 4]", name="7"), "name is 7"),
    ],
)
def test_unusable_ground_truth(out: Path, truth: Path, content: str, hint: str) -> None:
    truth.write_text(content)
    assert_refused(evaluate(out, truth), hint)


def test_detections_of_other_images(out: Path, truth: Path) -> None:
    write_table(out / "detections", [{"image_id": "z.jpg", "label": "car", "score": 0.9, **BOX}])
    assert_refused(evaluate(out, truth), "z.jpg")


def test_scores_of_every_class_and_size(out: Path, truth: Path) -> None:
    sides = {"small": 20, "medium": 60, "large": 120}
    content = json.loads(truth.read_text())
    content["categories"] = [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}]
    boxes = [
        (label, [150.0 * place, 200.0 * label, side, side])
        for label in (1, 2)
        for place, side in enumerate(sides.values())
    ]
    content["annotations"] = [
        {"id": n, "image_id": 1, "category_id": label, "bbox": box}
        for n, (label, box) in enumerate(boxes)
    ]
    truth.write_text(json.dumps(content))
    rows = []
    for label, (x, y, w, h) in boxes:
        if label == 1 or w < 100:  # the large bus is not found
            corners = {"x0": x, "y0": y, "x1": x + w, "y1": y + h}
            name = content["categories"][label - 1]["name"]
            rows.append({"image_id": "a.jpg", "label": name, "score": 0.9, **corners})
    write_table(out / "detections", rows)
    assert evaluate(out, truth).returncode == 0
    written = json.loads((out / "metrics.json").read_text())
    sizes = ("APS", "APM", "APL")
    car, bus = (written["per_class"][name] for name in ("car", "bus"))
    assert [car[size] for size in sizes] == pytest.approx([1, 1, 1])
    assert [bus[size] for size in sizes] == pytest.approx([1, 1, 0])
    assert [written["overall"][size] for size in sizes] == pytest.approx([1, 1, 0.5])
    assert bus["AP50"] == pytest.approx(67 / 101)
    assert written["overall"]["AP50"] == pytest.approx((1 + 67 / 101) / 2)
    assert written["voc"]["per_class"]["bus"]["ap"] == pytest.approx(2 / 3)


def test_other_file_systems(out: Path, truth: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(out), "/evaluate/out", recursive=True)
    command = ["--detections", "memory://evaluate/out", "--ground-truth", str(truth)]
    assert main(command) == 0
    assert json.loads(memory.cat("/evaluate/out/metrics.json"))["errors"]["score"] == 0.3
    with memory.open("/evaluate/out/errors.parquet") as file:
        kinds = pq.read_table(file)["kind"].to_pylist()
    assert kinds == ["image"]


def test_impossible_max_dets(out: Path, truth: Path) -> None:
    assert_refused(evaluate(out, truth, "--max-dets", "0"), "at least 1")

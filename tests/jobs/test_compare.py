"""jobs/compare.py as a user meets it: its table, its file, and one clear line per bad input."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.commands.compare import main

BOX = {"x0": 10.0, "y0": 10.0, "x1": 60.0, "y1": 60.0}
FAR = {"x0": 110.0, "y0": 10.0, "x1": 160.0, "y1": 60.0}


def write_run(out: Path, rows: list[dict[str, Any]], pixels: int, images: int = 4) -> str:
    spent = {"status": "ok", "pixels_processed": pixels, "pixels_pyramid": 400}
    listed = [{"image_id": f"{n}.jpg", **spent} for n in range(images)]
    for name, content in (("detections", rows), ("images", listed)):
        (out / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(content), out / name / "part-0.parquet")
    (out / "run.json").write_text("{}")
    return str(out)


def found(image: int, box: dict[str, float], score: float = 0.9) -> dict[str, Any]:
    return {"image_id": f"{image}.jpg", "label": "car", "score": score, **box}


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    every = [found(n, BOX, 0.9 - n / 10) for n in range(4)]
    false = [found(n, FAR, 0.8) for n in range(2)]
    return [
        write_run(tmp_path / "good", every, 100),
        write_run(tmp_path / "worse", [*every[:2], *false], 50),
        write_run(tmp_path / "short", every[:3], 25, images=3),
    ]


@pytest.fixture
def truth(tmp_path: Path) -> str:
    path = tmp_path / "truth.json"
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(4)],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 50, 50]} for n in range(4)
        ],
    }
    path.write_text(json.dumps(content))
    return str(path)


def compare(runs: list[str], truth: str, *options: str) -> int:
    return main(["--detections", *runs, "--ground-truth", truth, *options])


def test_table_and_json(
    runs: list[str], truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "comparison.json"
    assert compare(runs, truth, "--output", str(target), "--resamples", "200") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:3] == ["run", "AP", "AP50"]
    assert lines[2].split()[:2] == [runs[0], "1.000"]
    assert f"{runs[2]}: 1 ground-truth images were not indexed" in printed.err
    written = json.loads(target.read_text())
    good, worse, short = written["runs"]
    assert written["bootstrap"] == {"resamples": 200, "seed": 0, "level": 0.95}
    assert [run["pixels_of_first"] for run in written["runs"]] == [1.0, 0.5, 0.25]
    assert good["scores"]["AP"] == {"value": pytest.approx(1), "low": 1.0, "high": 1.0}
    assert good["differences"]["AP"]["value"] == 0
    difference = worse["differences"]["AP50"]
    assert difference["low"] < difference["value"] < 0
    assert worse["false_positives_per_image"] == {"score": 0.3, "value": 0.5}
    # Objects of an image that a run lacks are missed, as when it is scored alone.
    assert short["missing_images"] == ["3.jpg"]
    assert short["scores"]["AP50"]["value"] == pytest.approx(76 / 101)


def test_the_same_command_gives_the_same_numbers(
    runs: list[str], truth: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in ("0", "0", "1"):
        assert compare(runs, truth, "--resamples", "30", "--seed", seed) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_runs_on_any_file_system(runs: list[str], truth: str) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(runs[0], "/compare/good", recursive=True)
    target = "memory://compare/comparison.json"
    command = [runs[0], "memory://compare/good"]
    assert compare(command, truth, "--resamples", "5", "--output", target) == 0
    assert json.loads(memory.cat(target))["runs"][1]["differences"]["AP"]["value"] == 0


def refused(capsys: pytest.CaptureFixture[str], code: int, hint: str) -> None:
    error = capsys.readouterr().err
    assert code == 2
    assert len(error.splitlines()) == 1, error
    assert error.startswith("compare: ")
    assert hint in error


def test_bad_input(
    runs: list[str], truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, compare(runs[:1], truth), "two runs or more")
    refused(capsys, compare([runs[0]] * 2, truth), "each once")
    refused(capsys, compare(runs[:2], truth, "--resamples", "0"), "resamples is 0")
    refused(capsys, compare(runs[:2], truth, "--seed", "-1"), "seed is -1")
    refused(capsys, compare([runs[0], str(tmp_path / "no")], truth), "is not a directory")
    refused(capsys, compare(runs[:2], str(tmp_path / "no.json")), "no.json")
    output = f"{truth}/below-a-file.json"
    assert compare(runs[:2], truth, "--resamples", "2", "--output", output) == 2
    (Path(runs[1]) / "run.json").unlink()
    capsys.readouterr()
    refused(capsys, compare(runs[:2], truth), "--allow-incomplete")
    assert compare(runs[:2], truth, "--resamples", "2", "--allow-incomplete") == 0

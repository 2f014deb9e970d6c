"""jobs/tune.py on drawn scenes with the committed detector: from images to settings and report."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from af_pipeline.config import load_config
from af_pipeline.models.info import checkpoint_hash
from af_pipeline.settings.guarantee import check_guarantee
from af_pipeline.settings.index import IndexConfig
from examples.aerial_scenes.scenes import write_dataset
from jobs.tune import main

CONFIG = "configs/index/aerial.yaml"
SEARCH = ["--thresholds", "0.2,0.5", "--dilations", "1", "--contexts", "8", "--min-sizes", "64"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scenes"), 4, 7, ((416, 640), (384, 512)))


def run(output: Path, *more: str) -> int:
    return main(["--config", CONFIG, "--output", str(output), "--confirm", "2", *SEARCH, *more])


def times(out: Path) -> dict[Path, int]:
    """When what was looked at was written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("[rc]*[sm]/*")}


@pytest.mark.slow
def test_with_ground_truth(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    limits = ["--max-loss", "1", "--max-lost", "1"]
    assert run(out, "--ground-truth", str(scenes), *limits) == 0
    said = capsys.readouterr().out
    assert "Chosen: " in said
    config = load_config(IndexConfig, out / "config.yaml")
    content = json.loads((out / "tune.json").read_text())
    points = {f"{one['method']} {one['setting']}".strip(): one for one in content["points"]}
    assert {"pyramid", "whole", "two scales", "tiles", "autofocus as configured"} <= points.keys()
    (chosen,) = [one for one in points.values() if one["chosen"]]
    assert [step.threshold for step in config.focus.steps] == [
        rule["threshold"] for rule in chosen["rules"]
    ]
    real = [one for one in points.values() if one["method"] == "autofocus"]
    assert chosen["pixels"] == min(one["pixels"] for one in real)
    assert points["pyramid"]["recall"] == 1
    assert points["whole"]["pixels"] < chosen["pixels"] < points["pyramid"]["pixels"]
    assert "as configured" in {one["name"] for one in content["oracle"]}
    assert all(one["share"] > 0 for one in content["oracle"])
    report = out / "report"
    for name in ("bound", "recall", "points", "shares"):
        assert pq.read_table(report / f"{name}.parquet").num_rows > 0
    for name in ("bound", "recall", "accuracy_pixels", "accuracy_seconds"):
        assert (report / f"{name}.png").stat().st_size > 10_000
    assert "Table 1" in (report / "index.html").read_text()
    # the same command again goes on: everything is there, nothing is looked at
    made = times(out)
    assert run(out, "--ground-truth", str(scenes), *limits) == 0
    assert times(out) == made
    assert json.loads((out / "tune.json").read_text())["points"] == content["points"]
    # half a line at the end of the trials, as a kill leaves it
    trials = out / "trials.jsonl"
    trials.write_text(trials.read_text()[:-40])
    assert run(out, "--ground-truth", str(scenes), *limits) == 0
    assert json.loads((out / "tune.json").read_text())["points"] == content["points"]


@pytest.mark.slow
def test_without_ground_truth_and_with_a_guarantee(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = ["--set", f"source.uri={scenes.parent / 'images'}"]
    asked = ["--max-lost", "1", "--alpha", "0.7", "--delta", "0.4", "--calibration", "2"]
    assert run(out, *source, "--sample", "2", *asked) == 0
    config = load_config(IndexConfig, out / "config.yaml")
    assert config.guarantee is not None
    assert (config.guarantee.alpha, config.guarantee.images) == (0.7, 2)
    check_guarantee(config, checkpoint_hash(config.checkpoint))
    assert not (out / "report" / "bound.png").exists()
    content = json.loads((out / "tune.json").read_text())
    assert any("With probability 0.6" in note for note in content["notes"])
    assert {one["AP"] for one in content["points"]} == {None}


@pytest.mark.slow
def test_too_few_images_for_a_guarantee(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--set", f"source.uri={scenes.parent / 'images'}", "--max-lost", "1"]
    asked = ["--alpha", "0.1", "--delta", "0.1", "--calibration", "2", "--sample", "2"]
    assert run(tmp_path / "out", *source, *asked) == 1
    assert "takes 29 or more" in capsys.readouterr().out
    assert load_config(IndexConfig, tmp_path / "out" / "config.yaml").guarantee is None


def test_bad_input_is_told(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a") == 2
    assert "give --ground-truth FILE or --set source.uri=SOURCE" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    assert run(tmp_path / "b", "--ground-truth", str(scenes)) == 2
    assert "is not empty and holds no tuning" in capsys.readouterr().err
    bad = tmp_path / "images"
    bad.mkdir()
    (bad / "a.jpg").write_bytes(b"nothing")
    assert run(tmp_path / "c", "--set", f"source.uri={bad}") == 2
    assert "no image can be read: a.jpg" in capsys.readouterr().err
    one = ["--set", "pyramid=[{factor: 1}]", "--set", "focus.steps=[]", "--ground-truth", "x.json"]
    assert run(tmp_path / "d", *one) == 2
    assert "two scales or more" in capsys.readouterr().err


@pytest.mark.slow
def test_other_images_are_refused(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(scenes.parent / "images", images)
    source = ["--set", f"source.uri={images}", "--max-lost", "1", "--sample", "1"]
    assert run(tmp_path / "out", *source) == 0
    assert run(tmp_path / "out", *source, "--seed", "5") == 2
    assert "holds a tuning of other images or settings" in capsys.readouterr().err

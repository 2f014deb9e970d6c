"""jobs/tune.py on drawn scenes with the committed detector: from images to settings and report."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from af_pipeline.commands.tune import main
from af_pipeline.config import load_config
from af_pipeline.models.info import checkpoint_hash
from af_pipeline.settings.guarantee import check_guarantee
from af_pipeline.settings.index import IndexConfig
from examples.aerial_scenes.scenes import write_dataset

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
    assert {"pyramid", "whole", "fewer scales 1", "tiles"} < points.keys()
    assert "autofocus as configured" in points
    (chosen,) = [one for one in points.values() if one["chosen"]]
    assert (chosen["method"], config.mode) == ("whole", "whole")  # without limits the cheapest
    assert points["pyramid"]["recall"] == 1
    real = [one["pixels"] for one in points.values() if one["method"] == "autofocus"]
    assert chosen["pixels"] < min(real) < max(real) < points["pyramid"]["pixels"]
    assert any("AutoFocus does not pay here" in note for note in content["notes"])
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
def test_without_ground_truth_and_with_a_guarantee(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    source = ["--set", f"source.uri={scenes.parent / 'images'}", "--max-lost", "1"]
    source += ["--sample", "2", "--calibration", "2"]
    assert run(out, *source, "--alpha", "0.7", "--delta", "0.4") == 0
    config = load_config(IndexConfig, out / "config.yaml")
    assert config.guarantee is not None
    assert (config.guarantee.alpha, config.guarantee.images) == (0.7, 2)
    check_guarantee(config, checkpoint_hash(config.checkpoint))
    assert not (out / "report" / "bound.png").exists()
    content = json.loads((out / "tune.json").read_text())
    assert any("With probability 0.6" in note for note in content["notes"])
    assert {one["AP"] for one in content["points"]} == {None}
    # the same images are too few for another promise
    assert run(out, *source, "--alpha", "0.1", "--delta", "0.1") == 1
    assert "takes 29 or more" in capsys.readouterr().out
    assert load_config(IndexConfig, out / "config.yaml").guarantee is None
    # other images in the same folder
    assert run(out, *source, "--alpha", "0.1", "--seed", "5") == 2
    assert "holds a tuning with other settings" in capsys.readouterr().err


def test_bad_input_is_told(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("full", "images"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"nothing")
    one_scale = ["--set", "pyramid=[{factor: 1}]", "--set", "focus.steps=[]"]
    cases = {
        "a": ([], "give --ground-truth FILE or --set source.uri=SOURCE"),
        "full": (["--ground-truth", str(scenes)], "is not empty and holds no tuning"),
        "c": (["--set", f"source.uri={tmp_path / 'images'}"], "no image can be read: a.jpg"),
        "d": ([*one_scale, "--ground-truth", "x.json"], "two scales or more"),
        "e": (["--max-lost", "few"], "--max-lost: Input should be a valid number"),
        "f": (["--alpha", "1"], "--alpha: Input should be less than 1"),
        "g": (["--thresholds", "0.1,2"], "--thresholds: Input should be less than or equal to 1"),
        "i": (["--on-broken", "mend"], "--on-broken: Input should be 'fail' or 'drop'"),
        "h": (["--sample", "0"], "--sample: Input should be greater than or equal to 1"),
    }
    for name, (arguments, message) in cases.items():
        assert run(tmp_path / name, *arguments) == 2
        assert message in capsys.readouterr().err

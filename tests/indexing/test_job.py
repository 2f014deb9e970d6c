"""`jobs/index.py` as a user meets it: exit codes, the summary, one clear line where it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from af_pipeline.commands.index import main
from af_pipeline.models.checkpoint import build_detector, save_checkpoint
from af_pipeline.models.info import CheckpointInfo
from tests.helpers.planted import (
    CLASS_NAMES,
    SMALL,
    TINY,
    index_config,
    picture,
    save,
    table,
    write_tiny_checkpoint,
)
from tests.helpers.said import own_lines

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


Job = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of random weights, a config, three pictures and a file that is none."""
    root = tmp_path_factory.mktemp("job")
    write_tiny_checkpoint(root / "tiny.safetensors")
    for tag in range(3):
        save(root / f"images/{tag}.png", picture(tag, [SMALL])[240:, 240:])
    (root / "images/text.jpg").write_text("I am no picture\n")
    (root / "empty").mkdir()
    tree = index_config(root / "images", root / "out", mode="whole").model_dump(mode="json")
    tree["checkpoint"] = str(root / "tiny.safetensors")
    (root / "index.yaml").write_text(yaml.safe_dump(tree))
    return root


@pytest.fixture
def job(folder: Path) -> Job:
    def run(*sets: str) -> int:
        arguments = ["--config", str(folder / "index.yaml")]
        return main([*arguments, *(part for one in sets for part in ("--set", one))])

    return run


def test_errors_below_and_above_the_limit(
    folder: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job("max_error_rate=0.3") == 0
    text = capsys.readouterr().out
    assert "images      4 (1 errors, 0 done before)" in text
    assert "error       text.jpg: not an image" in text
    assert f"output      {folder / 'out'}" in text
    content = json.loads((folder / "out/run.json").read_text())
    assert content["class_names"] == list(CLASS_NAMES)
    assert len(content["checkpoint_hash"]) == 16
    assert set(table(folder / "out", "detections")["label"].to_pylist()) <= set(CLASS_NAMES)
    sizes = table(folder / "out", "images")["width"].to_pylist()
    assert sorted(sizes) == [0, 400, 400, 400]

    assert job("max_error_rate=0.2") == 1
    said = capsys.readouterr()
    assert "images      4 (1 errors, 4 done before)" in said.out
    error = own_lines(said.err)
    assert error.startswith("error: 1 of 4 images failed, more than max_error_rate=0.2 allows")


REFUSED = {
    "modus=whole": "unknown key 'modus'; did you mean 'mode'?",
    "source.uri={root}/nowhere": "there is nothing at {root}/nowhere",
    "source.uri={root}/empty": "no image found under {root}/empty",
    "source.uri={root}/index.yaml": "is nothing that lists images: give a folder of images",
    "checkpoint={root}/none.safetensors": "none.safetensors does not exist: set checkpoint=",
    "checkpoint={root}/index.yaml": "has no index.json beside it",
    "output.uri=s3://bucket/run[1]": "holds one of * ? [: choose another output.uri",
    "output.uri=": "no output: give --set output.uri=DIRECTORY",
    "output.uri={root}/images": "is not empty and holds no run: choose another output.uri",
    "device=cuda": "device=cuda, but torch sees no GPU here",
    "ray.pools=[{{num_cpus: 100}}]": "the cluster has 4: lower ray.pools.N.num_cpus",
}


@pytest.mark.parametrize("change", REFUSED)
def test_unusable_input_is_one_line(
    folder: Path, job: Job, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    if change == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    fresh = folder / "never"
    before = {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    sets = [change.format(root=folder)]
    if not change.startswith("output.uri"):
        sets.append(f"output.uri={fresh}")
    assert job(*sets) == 2
    error = own_lines(capsys.readouterr().err)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert REFUSED[change].format(root=folder) in error
    assert not fresh.exists()
    assert {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()} == before


def test_weights_that_do_not_fit_are_one_line(
    folder: Path, job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = build_detector(TINY | {"channels": 8}, len(CLASS_NAMES))
    info = CheckpointInfo(TINY, CLASS_NAMES, {})
    save_checkpoint(tmp_path / "odd.safetensors", other.state_dict(), info)
    assert job(f"checkpoint={tmp_path / 'odd.safetensors'}", f"output.uri={tmp_path}/out") == 2
    error = own_lines(capsys.readouterr().err)
    assert error.startswith(f"error: {tmp_path / 'odd.safetensors'} does not fit its json's model")
    assert error.count("\n") == 1
    assert len(error) < 1000
    assert not np.any([path.name == "out" for path in tmp_path.iterdir()])


def test_a_dry_run_says_what_would_be_done(
    folder: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(folder / "index.yaml"), "--dry-run"]
    assert main([*arguments, "--set", f"output.uri={folder}/dry", "--set", "mode=pyramid"]) == 0
    said = capsys.readouterr().out
    assert "source      4 images" in said
    assert "plan        pyramid, fused, 2 images a block" in said
    assert "sample      4 images, 1 errors, 0.10 MP each" in said
    assert "error       text.jpg: not an image" in said
    # Three pictures of 400 x 240 px at factors 0.5, 1 and 2; tiles of the largest overlap.
    assert "pool        Cascade: 1 actor, 4 threads" in said
    assert "scale 0   1.0 chips, 0.02 MP an image" in said
    assert "scale 1   1.0 chips, 0.10 MP an image" in said
    assert "of the full pyramid's 0.50 MP" in said
    assert "time        about" in said
    assert not (folder / "dry").exists()

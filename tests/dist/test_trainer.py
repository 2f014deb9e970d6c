"""Training on a real Ray Train: checkpoints, metrics, going on where a run stopped."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from af_pipeline.data.synthetic import CLASS_NAMES
from af_pipeline.model.checkpoint import load_detector
from jobs.train import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def job(folder: Path, *sets: str) -> int:
    tree = {
        "data": {"synthetic_scenes": 2, "synthetic_share": 1},
        "model": {"width": 0.25, "channels": 16, "head_depth": 0},
        "pyramid": [{"factor": 0.5, "valid_range": [40, -1]}, {"factor": 1.0}],
        "chips": {"size": 64},
        "optim": {"steps": 6, "global_batch": 2, "warmup_steps": 2, "bf16": False},
        "run": {
            "output": str(folder),
            "name": "tiny",
            "threads": 1,
            "log_every": 1,
            "checkpoint_every": 3,
        },
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(tree))
    return main(["--config", str(path), *(part for one in sets for part in ("--set", one))])


def steps(folder: Path) -> list[int]:
    lines = (folder / "tiny/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert all(record["total"] > 0 and record["chips_per_s"] > 0 for record in records)
    return [int(record["step"]) for record in records]


def test_a_run_and_its_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(tmp_path) == 0
    weights = tmp_path / "tiny/tiny.safetensors"
    assert f"checkpoint: {weights}" in capsys.readouterr().out
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    first, info = load_detector(weights)
    assert info.class_names == CLASS_NAMES
    assert info.training["step"] == 6
    assert info.training["config"]["optim"]["steps"] == 6
    boxes, focus = first(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    assert (len(boxes), focus.shape) == (1, (1, 4, 4))

    assert job(tmp_path, "optim.steps=9") == 0
    # Steps 1 to 6 are not done again: the state of the last checkpoint is gone on with.
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    second, info = load_detector(weights)
    assert info.training["step"] == 9
    changed = [
        not torch.equal(old, new)
        for old, new in zip(first.parameters(), second.parameters(), strict=True)
    ]
    assert any(changed)


def test_unusable_data_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change, reason in (
        ("data.synthetic_share=0", "error: no training images: set data.train"),
        ("classes=[cat]", "error: synthetic scenes have the classes"),
        ("data.train={}/none.json", "error: there is nothing at"),
        ("optim.speed=3", "unknown key 'optim.speed'"),
    ):
        assert job(tmp_path, change.format(tmp_path)) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
    assert not (tmp_path / "tiny").exists()

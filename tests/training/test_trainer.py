"""Training on a real Ray Train: checkpoints, metrics, validation, workers, going on."""

import json
from pathlib import Path

import pytest
import torch

from af_pipeline.commands.train import main
from af_pipeline.models.checkpoint import load_detector
from af_pipeline.models.info import load_info
from tests.helpers.said import own_lines
from tests.helpers.training import CLASS_NAMES, annotations, job, losses, records, steps

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def test_a_run_and_its_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = annotations(tmp_path / "one"), annotations(tmp_path / "two")
    parts = f"data.train=[{{uri: {one}, share: 0.75}}, {{uri: {two}, share: 0.25}}]"
    assert job(tmp_path, parts) == 0
    weights = tmp_path / "tiny/tiny.safetensors"
    output = capsys.readouterr().out
    assert f"checkpoint: {weights}" in output
    assert f"chips an epoch of {one} (" in output
    assert f"chips an epoch of {two} (" in output
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    for record in records(tmp_path):
        assert {"class", "box", "focus", "total", "grad_norm", "lr", "chips_per_s"} <= set(record)
    assert list((tmp_path / "tiny/tensorboard").iterdir())
    first, info = load_detector(weights)
    assert info.class_names == CLASS_NAMES
    assert info.training["step"] == 6
    assert info.training["config"]["optim"]["steps"] == 6
    shares = [(part["uri"], part["share"]) for part in info.training["config"]["data"]["train"]]
    assert shares == [("val.json", 0.75), ("val.json", 0.25)]
    boxes, focus = first(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    assert (len(boxes), focus.shape) == (1, (1, 4, 4))

    assert job(tmp_path, parts, "optim.steps=9") == 0
    # Steps 1 to 6 are not done again: the state of the last checkpoint is gone on with.
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    second, info = load_detector(weights)
    assert info.training["step"] == 9

    assert job(tmp_path, parts, "optim.steps=12", "optim.lr=0.1", "chips.size=96") == 2
    error = own_lines(capsys.readouterr().err)
    assert "chips.size: 64 there, 96 now; config.optim.lr: 0.002 there, 0.1 now" in error
    changed = [
        not torch.equal(old, new)
        for old, new in zip(first.parameters(), second.parameters(), strict=True)
    ]
    assert any(changed)


def test_two_workers_see_what_one_sees(tmp_path: Path) -> None:
    """The first loss is of the same weights on the same chips, however they are shared out.

    Batch norms see half a batch each, so they are frozen here.
    """
    frozen = ("model.norm=frozen_bn", "optim.steps=2", "optim.global_batch=4")
    assert job(tmp_path, *frozen, "run.name=one") == 0
    assert job(tmp_path, *frozen, "run.name=two", "run.workers=2") == 0
    one, two = records(tmp_path, "one"), records(tmp_path, "two")
    assert len(one) == len(two) == 2
    # Each worker divides by its own cells and objects: the means are near, not equal.
    assert two[0]["focus"] == pytest.approx(one[0]["focus"], rel=0.05)


@pytest.mark.soak
def test_two_stages_on_two_workers(tmp_path: Path) -> None:
    """DDP waits for a gradient of every parameter: chips without objects must give one too."""
    sets = ("model.kind=faster_rcnn", "run.workers=2", "optim.steps=3", "optim.lr=0.0001")
    assert job(tmp_path, *sets, "chips.negatives=2") == 0
    assert {"rpn_class", "rpn_box", "class", "box", "focus"} <= records(tmp_path)[-1].keys()
    assert steps(tmp_path) == [1, 2, 3]
    detector, info = load_detector(tmp_path / "tiny/tiny.safetensors")
    assert info.model["kind"] == "faster_rcnn"
    assert detector.loss_names[0] == "rpn_class"


def test_validation_keeps_the_best(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    val = annotations(tmp_path / "data")
    sets = (
        f"data.val={val}",
        "validation.every=3",
        f"validation.index={tmp_path / 'index.yaml'}",
        "run.workers=2",
    )
    assert job(tmp_path, *sets) == 0
    lines = (tmp_path / "tiny/metrics.jsonl").read_text().splitlines()
    scored = [json.loads(line) for line in lines if "val_AP" in line]
    assert [record["step"] for record in scored] == [3, 6]
    assert all(0 <= record["val_AP"] <= record["val_AP50"] <= 1 for record in scored)
    best = max(scored, key=lambda record: (record["val_AP"], -record["step"]))
    info = load_info(tmp_path / "tiny/tiny.safetensors")
    assert info.training["step"] == best["step"]
    assert info.training["val_AP"] == pytest.approx(best["val_AP"], abs=1e-5)
    assert len(losses(tmp_path)) == 6


def test_unusable_data_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = annotations(tmp_path / "data")
    index = f"validation.index={tmp_path / 'index.yaml'}"
    judged = [f"data.val={data}", "validation.every=3", index]
    for changes, reason in (
        (["data.train=[]"], "error: no training images: name their annotations"),
        (["classes=[cat]"], "bright"),
        ([f"data.train={tmp_path}/none.json"], "error: "),
        (["data.proposals=nowhere"], "data.proposals="),
        (["model.weights=nowhere.pth"], "nowhere.pth"),
        (["optim.speed=3"], "unknown key 'optim.speed'"),
        (["validation.every=3"], "validation.every needs data.val"),
        ([f"data.val={data}"], "data.val is used with validation.every"),
        (["run.workers=99", "optim.global_batch=99"], "the cluster has 4: lower run.workers"),
        ([*judged, f"data.val_images={tmp_path}"], "data.val_images"),
    ):
        assert job(tmp_path, *changes) == 2, changes
        error = own_lines(capsys.readouterr().err)
        assert reason in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "tiny").exists()


@pytest.mark.soak
def test_broken_images_are_told_or_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One is cut off and one goes missing: found before the first step, or while training."""
    data = annotations(tmp_path / "data", count=4)
    cut = tmp_path / "data/images/1.png"
    cut.write_bytes(cut.read_bytes()[:3000])
    (tmp_path / "data/images/2.png").unlink()
    sets = (f"data.train={data}", "run.max_failures=0")
    assert job(tmp_path, *sets) == 2
    error = own_lines(capfd.readouterr().err)
    assert error.count("\n") == 1
    assert "2 problems: " in error
    assert "1.png: truncated PNG" in error
    assert "2.png" in error
    assert not (tmp_path / "tiny").exists()

    assert job(tmp_path, *sets, "data.check_images=0") == 1
    error = own_lines(capfd.readouterr().err)
    assert "error: training failed: " in error
    assert ".png" in error
    assert "(or set data.on_broken=drop)" in error

    drop = ("data.on_broken=drop", "run.name=dropped", "run.workers=2")
    assert job(tmp_path, *sets, *drop) == 0
    assert steps(tmp_path, "dropped") == [1, 2, 3, 4, 5, 6]
    said = capfd.readouterr()
    assert "images of data.train: decoded 4 of 4 images, 2 of them left out" in said.out
    assert "left out, " in said.out + said.err  # by the worker that came upon it


def test_check_needs_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = annotations(tmp_path / "data", count=14)
    for number in range(13):
        (tmp_path / f"data/images/{number}.png").write_bytes(b"x")
    look = ["--check", "--set", f"data.train={data}"]
    assert main(look) == 2
    said = capsys.readouterr()
    assert all(f"/{number}.png: not an image" in said.out for number in range(13))
    error = own_lines(said.err)
    assert error.startswith("error: images of data.train (data.on_broken=drop leaves such out)")
    assert error.count("\n") == 1
    assert main([*look, "--set", "data.on_broken=drop"]) == 0
    assert "decoded 14 of 14 images, 13 of them left out" in capsys.readouterr().out
    assert main(["--check"]) == 2
    assert "no training images" in capsys.readouterr().err

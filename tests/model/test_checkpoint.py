"""Checkpoints: what was saved is what is loaded; what is unfit says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from af_pipeline.model.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    build_detector,
    checkpoint_hash,
    info_path,
    load_detector,
    load_info,
    save_checkpoint,
)
from af_pipeline.model.detector import AutoFocusDetector

MODEL = {"backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head_depth": 1}
NAMES = ("car", "truck")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("template") / "deep" / "er" / "model.v2.safetensors"
    state = build_detector(MODEL, len(NAMES)).state_dict()
    save_checkpoint(path, state, CheckpointInfo(MODEL | {"extra": 1}, NAMES, {"step": 7}))
    return path


@pytest.fixture
def saved(template: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    shutil.copytree(template.parent, tmp_path / "run")
    return tmp_path / "run" / template.name


def change(path: Path, edit: Callable[[dict], object]) -> None:
    info = json.loads(info_path(path).read_text())
    edit(info)
    info_path(path).write_text(json.dumps(info))


def test_load_gives_what_was_saved(saved: Path) -> None:
    torch.manual_seed(0)
    original = build_detector(MODEL, len(NAMES)).eval()
    loaded, info = load_detector(saved)
    assert isinstance(original, AutoFocusDetector)
    assert isinstance(loaded, AutoFocusDetector)
    assert not loaded.training
    assert info.class_names == NAMES
    assert info.training == {"step": 7}
    assert loaded.num_classes == 2
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    batch = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    a, b = original.raw(batch), loaded.raw(batch)
    for name in ("class_logits", "boxes", "focus"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-4, rtol=1e-4)
    again, _ = load_detector(saved)
    assert torch.equal(again.raw(batch).boxes, b.boxes)


def test_saving_leaves_two_files(saved: Path) -> None:
    assert sorted(p.name for p in saved.parent.iterdir()) == [
        "model.v2.json",
        "model.v2.safetensors",
    ]
    save_checkpoint(saved, load_file(saved), load_info(saved))
    assert len(list(saved.parent.iterdir())) == 2


def test_the_hash_tells_weights_and_json_apart(saved: Path) -> None:
    first = checkpoint_hash(saved)
    assert len(first) == 16
    assert checkpoint_hash(saved) == first
    change(saved, lambda info: info.update(class_names=["bus", "truck"]))
    assert checkpoint_hash(saved) != first


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist.*train"):
        load_detector(tmp_path / "nowhere.safetensors")


def test_a_missing_json(saved: Path) -> None:
    info_path(saved).unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.v2\.json beside it"):
        load_detector(saved)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda info: info.update(schema_version=99), "schema version 99, this code reads 1"),
        (lambda info: info.pop("schema_version"), "schema version None"),
        (lambda info: info.pop("class_names"), "lacks a list class_names"),
        (lambda info: info["model"].pop("width"), r"lacks model\.width"),
        (lambda info: info.update(model=None), "lacks an object model"),
        (lambda info: info.update(class_names="car"), "lacks a list class_names"),
        (lambda info: info["class_names"].append("bus"), "does not fit its json's model"),
        (lambda info: info["model"].update(width=0.5), "does not fit its json's model"),
        (lambda info: info["model"].update(backbone="vgg"), "unknown backbone 'vgg'"),
        (lambda info: info["model"].update(width="wide"), "has an unfit model"),
        (lambda info: info["model"].update(kind="yolo"), "unfit model: unknown kind 'yolo'"),
        (lambda info: info["model"].update(norm="ln"), "unfit model: unknown norm 'ln'"),
        (lambda info: info["model"].update(kind="faster_rcnn"), "does not fit its json's model"),
    ],
)
def test_an_unfit_json(saved: Path, edit: Callable[[dict], object], part: str) -> None:
    change(saved, edit)
    with pytest.raises(CheckpointError, match=part) as caught:
        load_detector(saved)
    assert "model.v2" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "null", "\xff"])
def test_a_json_that_is_none(saved: Path, text: str) -> None:
    info_path(saved).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model\.v2\.json"):
        load_detector(saved)


@pytest.mark.parametrize("size", [0, 4, 1000, -1000])
def test_truncated_weights(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.v2\.safetensors is not a safetensors file"):
        load_detector(saved)


def test_weights_of_another_network(saved: Path) -> None:
    save_file({"weight": torch.zeros(3)}, saved)
    with pytest.raises(CheckpointError, match="does not fit its json's model"):
        load_detector(saved)


def test_jsons_from_before_there_were_kinds(saved: Path) -> None:
    """They lack the newer keys and have one more; the detector is the dense one."""
    change(saved, lambda info: info["model"].update(backbone_weights=None))
    detector, info = load_detector(saved)
    assert isinstance(detector, AutoFocusDetector)
    assert set(info.model) == {*MODEL, "extra", "backbone_weights"}


def test_the_committed_detector_loads() -> None:
    path = Path(__file__).parents[2] / "checkpoints" / "aerial_tiny.safetensors"
    detector, info = load_detector(path)
    assert isinstance(detector, AutoFocusDetector)
    assert detector.num_classes == len(info.class_names) == 5
    assert detector.loss_names == ("class", "box", "focus")
    for name, value in load_file(path).items():
        assert torch.equal(detector.state_dict()[name], value), name

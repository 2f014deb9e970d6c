"""Starting from a checkpoint of the project's own."""

from pathlib import Path

import pytest
import torch

from af_pipeline.models.checkpoint import build_detector, save_checkpoint
from af_pipeline.models.detector import Detector
from af_pipeline.models.info import CheckpointInfo
from af_pipeline.models.weights import PretrainedError, start_from

MODEL = {"backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head_depth": 0}


def saved(folder: Path) -> tuple[Detector, str]:
    detector = build_detector(MODEL, 2)
    path = folder / "first.safetensors"
    save_checkpoint(path, detector.state_dict(), CheckpointInfo(MODEL, ("a", "b"), {}))
    return detector, str(path)


def test_the_same_detector_takes_everything(tmp_path: Path) -> None:
    first, path = saved(tmp_path)
    second = build_detector(MODEL, 2)
    report = start_from(second, path)
    assert not report.left_out
    assert not report.initialised
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_other_classes_take_all_but_the_last_layer(tmp_path: Path) -> None:
    first, path = saved(tmp_path)
    second = build_detector(MODEL, 3)
    report = start_from(second, path)
    assert set(report.initialised) == {"head.class_logits.weight", "head.class_logits.bias"}
    assert torch.equal(first.fpn.state_dict()["inner_blocks.0.0.weight"],
                       second.fpn.state_dict()["inner_blocks.0.0.weight"])  # fmt: skip


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    second = build_detector(MODEL | {"width": 0.5}, 2)
    before = {name: value.clone() for name, value in second.state_dict().items()}
    with pytest.raises(PretrainedError, match=r"first\.safetensors has another backbone"):
        start_from(second, path)
    assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())

"""Folded batch norms compute what the detector computed."""

import pytest
import torch
from torch import nn

from af_pipeline.models.checkpoint import build_detector
from af_pipeline.models.dense import AutoFocusDetector
from af_pipeline.models.detector import Detector
from af_pipeline.models.fold import folded
from af_pipeline.models.rcnn import FasterRCNN
from tests.helpers.chips import chips, close, sizes

NORMS = ("BatchNorm2d", "FrozenBatchNorm2d")
MODELS = [
    {"kind": kind, "backbone": backbone, "neck": neck, "norm": norm}
    for kind, neck in (("dense", "fpn"), ("faster_rcnn", "fpn"), ("faster_rcnn", "dilated"))
    for backbone in ("mobilenet_v2", "resnet50")
    for norm in ("bn", "frozen_bn")
]


def trained_a_little(model: dict) -> Detector:
    """A small detector whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    width = 0.25 if model["backbone"] == "mobilenet_v2" else 1.0
    size = {"width": width, "channels": 16, "head_depth": 2, "anchor_sizes": [16, 32, 64]}
    detector = build_detector(size | model, 3).eval()
    with torch.no_grad():
        for module in detector.modules():
            if type(module).__name__ in NORMS:
                module.running_mean.normal_(std=0.1)  # type: ignore[operator,union-attr]
                module.running_var.uniform_(0.8, 1.2)  # type: ignore[operator,union-attr]
                module.weight.uniform_(0.4, 0.6)  # type: ignore[operator,union-attr]
                module.bias.normal_(std=0.1)  # type: ignore[operator,union-attr]
    return detector


@pytest.mark.parametrize("model", MODELS, ids=lambda m: "-".join(m.values()))
def test_folding_changes_no_output_and_leaves_the_original_alone(model: dict) -> None:
    detector = trained_a_little(model)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    other = folded(detector)
    assert type(other) is type(detector)
    assert not {type(module).__name__ for module in other.modules()} & set(NORMS)
    batch = chips(2, 96, 64)
    with torch.inference_mode():
        if isinstance(detector, AutoFocusDetector) and isinstance(other, AutoFocusDetector):
            plain, quick = vars(detector.raw(batch)), vars(other.raw(batch))
        elif isinstance(detector, FasterRCNN) and isinstance(other, FasterRCNN):
            plain, quick = everything(detector, batch), everything(other, batch)
    for name, value in plain.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(quick[name] / scale, value / scale, atol=1e-4, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def everything(detector: FasterRCNN, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What both stages compute, the second of fixed boxes."""
    maps = detector.features(batch)
    rpn = detector.rpn(maps.rpn, batch)
    boxes = [torch.tensor([[4.0, 4, 40, 40], [10, 20, 60, 90]])] * 2
    logits, deltas = detector.roi_heads(maps.roi, boxes, (96, 64))
    focus = detector.focus_head(maps.focus)
    return {**vars(rpn), "logits": logits, "moved": deltas, "focus": focus}


def test_group_norms_stay() -> None:
    detector = trained_a_little(MODELS[0] | {"norm": "gn"})
    count = sum(isinstance(m, nn.GroupNorm) for m in detector.modules())
    other = folded(detector)
    assert sum(isinstance(m, nn.GroupNorm) for m in other.modules()) == count > 0
    batch, whole = chips(1, 64, 64), sizes((64, 64))
    close(detector(batch, whole)[0][0], other(batch, whole)[0][0])

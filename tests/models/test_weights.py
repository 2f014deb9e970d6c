"""Starting weights: what fits goes where it belongs, what does not says why. No network."""

import re
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet50
from torchvision.models.detection import (
    FasterRCNN as TorchvisionFasterRCNN,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from af_pipeline.models import weights as module
from af_pipeline.models.checkpoint import build_detector, save_checkpoint
from af_pipeline.models.detector import Detector
from af_pipeline.models.info import CheckpointInfo
from af_pipeline.models.weights import PretrainedError, read_weights, start_from

State = dict[str, Tensor]
MOBILE = {"backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head_depth": 1}
RESNET = {"backbone": "resnet50", "width": 1.0, "channels": 16, "head_depth": 1}
TWO_STAGES = {"kind": "faster_rcnn", "anchor_sizes": [64, 128, 256]}


def shaken(model: nn.Module) -> State:
    """The state dict of a model with no entry left as it was made."""
    made = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=made) + 0.5 if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def mobile() -> State:
    return shaken(mobilenet_v2(weights=None, width_mult=0.25))


@pytest.fixture(scope="module")
def resnet() -> State:
    return shaken(resnet50(weights=None, num_classes=10))


def torchvision_detector(channels: int, classes: int, second: bool = False) -> State:
    """fasterrcnn_resnet50_fpn, or the second version, with FPNs of ``channels``."""
    body = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=nn.BatchNorm2d if second else FrozenBatchNorm2d,
    )
    body.out_channels = channels
    body.fpn = FeaturePyramidNetwork(
        [256, 512, 1024, 2048],
        channels,
        body.fpn.extra_blocks,
        nn.BatchNorm2d if second else None,
    )
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    parts = {}
    if second:
        parts["rpn_head"] = RPNHead(channels, 3, conv_depth=2)
        parts["box_head"] = FastRCNNConvFCHead((channels, 7, 7), [channels], [1024], nn.BatchNorm2d)
    made = TorchvisionFasterRCNN(body, classes + 1, rpn_anchor_generator=anchors, **parts)
    return shaken(made)


@pytest.fixture(scope="module")
def detector_state() -> State:
    return torchvision_detector(16, 3)


def file_of(state: State, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def build(*parts: dict, classes: int = 3) -> Detector:
    merged: dict = {}
    for part in parts:
        merged |= part
    return build_detector(merged, classes)


# ---- classifiers


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", [{}, TWO_STAGES | {"neck": "dilated"}])
def test_a_mobilenet_classifier(kind: dict, suffix: str, mobile: State, tmp_path: Path) -> None:
    detector = build(MOBILE, kind)
    report = start_from(detector, file_of(mobile, tmp_path / f"m{suffix}"))
    own = detector.state_dict()
    for name in report.used:
        assert torch.equal(own["backbone.blocks." + name.removeprefix("features.")], mobile[name])
    assert all(n.startswith(("classifier.", "features.17", "features.18")) for n in report.left_out)
    assert "classifier.1.weight" in report.left_out
    assert len(report.used) + len(report.left_out) == sum("tracked" not in n for n in mobile)
    assert report.initialised
    assert not any(name.startswith("backbone.") for name in report.initialised)
    if not kind:
        classifier = mobilenet_v2(weights=None, width_mult=0.25).eval()
        classifier.load_state_dict(mobile)
        images = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            maps, wanted = detector.eval().backbone(images), classifier.features[:17](images)
        assert torch.equal(maps["32"], wanted)


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
@pytest.mark.parametrize("neck", ["fpn", "dilated"])
def test_a_resnet_classifier(neck: str, norm: str, resnet: State, tmp_path: Path) -> None:
    detector = build(RESNET, TWO_STAGES, {"neck": neck, "norm": norm})
    report = start_from(detector, file_of(resnet, tmp_path / "r.pth"))
    own = detector.state_dict()
    assert report.left_out == ("fc.weight", "fc.bias")
    assert len(report.used) == 53 * 5  # 53 convolutions, each with a norm of four entries
    assert all(torch.equal(own[f"backbone.{name}"], resnet[name]) for name in report.used)
    frozen = {n.split(".")[1] for n, p in detector.named_parameters() if not p.requires_grad}
    assert frozen == ({"conv1", "layer1"} if norm == "frozen_bn" else set())
    text = str(report)
    assert "265 entries used; left out: fc (2); of the detector still random: " in text
    assert "roi_heads.box_head (4)" in text


def test_frozen_weights_serve_batch_norms(resnet: State, tmp_path: Path) -> None:
    frozen = {name: value for name, value in resnet.items() if "tracked" not in name}
    detector = build(RESNET)
    report = start_from(detector, file_of(frozen, tmp_path / "r.safetensors"))
    assert len(report.used) == 53 * 5
    assert torch.equal(detector.state_dict()["backbone.bn1.running_var"], resnet["bn1.running_var"])


def test_group_norms_want_weights_of_their_own(resnet: State, tmp_path: Path) -> None:
    path = file_of(resnet, tmp_path / "r.pth")
    detector = build(RESNET, {"norm": "gn"})
    with pytest.raises(PretrainedError, match="trained with batch norms: use norm=bn or norm=fro"):
        start_from(detector, path)
    group = shaken(resnet50(weights=None, norm_layer=partial(nn.GroupNorm, 32)))
    report = start_from(detector, file_of(group, tmp_path / "g.pth"))
    assert len(report.used) == 53 * 3


# ---- detectors


def old_names(state: State) -> State:
    """As in the published COCO_V1, from before torchvision 0.14."""
    pattern = re.compile(r"(_blocks\.\d|rpn\.head\.conv)(?:\.0)+\.(weight|bias)$")
    return {pattern.sub(r"\1.\2", name): value for name, value in state.items()}


@pytest.mark.parametrize("old", [False, True])
def test_a_torchvision_detector_fills_every_part(
    old: bool, detector_state: State, tmp_path: Path
) -> None:
    state = old_names(detector_state) if old else detector_state
    assert ("rpn.head.conv.weight" in state) == old
    detector = build(RESNET, TWO_STAGES, {"norm": "frozen_bn"})
    report = start_from(detector, file_of(state, tmp_path / "d.pth"))
    assert {name.split(".")[0] for name in report.initialised} == {"focus_head"}
    # their finest level has no place here
    assert {name.rsplit(".", 2)[0] for name in report.left_out} == {
        "backbone.fpn.inner_blocks.0",
        "backbone.fpn.layer_blocks.0",
    }
    own, new = detector.state_dict(), detector_state
    for ours, theirs in {
        "backbone.layer4.2.bn3.running_mean": "backbone.body.layer4.2.bn3.running_mean",
        "neck.fpn.inner_blocks.0.0.weight": "backbone.fpn.inner_blocks.1.0.weight",
        "neck.fpn.layer_blocks.2.0.bias": "backbone.fpn.layer_blocks.3.0.bias",
        "rpn.head.conv.0.0.weight": "rpn.head.conv.0.0.weight",
        "rpn.head.cls_logits.2.weight": "rpn.head.cls_logits.weight",
        "rpn.head.bbox_pred.0.bias": "rpn.head.bbox_pred.bias",
        "roi_heads.box_head.fc7.weight": "roi_heads.box_head.fc7.weight",
        "roi_heads.box_predictor.bbox_pred.weight": "roi_heads.box_predictor.bbox_pred.weight",
    }.items():
        assert torch.equal(own[ours], new[theirs]), ours


def test_a_torchvision_detector_fills_the_dense_one_up_to_the_fpn(
    detector_state: State, tmp_path: Path
) -> None:
    detector = build(RESNET)
    report = start_from(detector, file_of(detector_state, tmp_path / "d.pth"))
    assert {name.split(".")[0] for name in report.initialised} == {"head", "focus_head"}
    assert torch.equal(
        detector.state_dict()["fpn.inner_blocks.0.0.weight"],
        detector_state["backbone.fpn.inner_blocks.1.0.weight"],
    )


@pytest.mark.parametrize(
    ("change", "classes", "random"),
    [
        ({}, 5, {"roi_heads.box_predictor"}),
        ({"anchor_sizes": [16, 32, 64, 128, 256]}, 3, {"rpn.head"}),
        (
            {"channels": 8},
            3,
            {"neck.fpn", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"},
        ),
        (
            {"neck": "dilated"},
            3,
            {"neck.reduce", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"},
        ),
    ],
)
def test_parts_that_do_not_fit_stay_random(
    change: dict, classes: int, random: set, detector_state: State, tmp_path: Path
) -> None:
    detector = build(RESNET, TWO_STAGES, change, classes=classes)
    report = start_from(detector, file_of(detector_state, tmp_path / "d.safetensors"))
    heads = {".".join(name.split(".")[:2]) for name in report.initialised}
    assert {head for head in heads if not head.startswith("focus_head")} == random


def test_of_the_second_version_only_the_body_fits(tmp_path: Path) -> None:
    """Its pyramid has norms, its RPN is deeper, its box head convolves."""
    state = torchvision_detector(16, 3, second=True)
    detector = build(RESNET, TWO_STAGES)
    report = start_from(detector, file_of(state, tmp_path / "d.pth"))
    assert all(name.startswith("backbone.body.") for name in report.used)
    assert len(report.used) == 53 * 5


# ---- what cannot be used


def refused(detector: Detector, weights: str, match: str) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with pytest.raises(PretrainedError, match=match):
        start_from(detector, weights)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_bodies_that_do_not_fit_are_refused(
    mobile: State, resnet: State, detector_state: State, tmp_path: Path
) -> None:
    small, large = build(MOBILE), build(RESNET)
    of_mobile = file_of(mobile, tmp_path / "m.pth")
    of_resnet = file_of(resnet, tmp_path / "r.pth")
    shapes = r"has shape \(8, 3, 3, 3\), the backbone wants \(16, 3, 3, 3\): .* same .* width"
    wide = build(MOBILE | {"width": 0.5})
    refused(wide, of_mobile, r"weight 'features\.0\.0\.weight' of .* " + shapes)
    refused(large, of_mobile, "lack 265 entries of the body.*expected those of resnet50")
    refused(small, of_resnet, "lack .* entries of the body.*expected those of mobilenet_v2")
    refused(small, file_of(detector_state, tmp_path / "d.pth"), "expected those of mobilenet_v2")
    part = {name: value for name, value in resnet.items() if not name.startswith("layer4.2.")}
    refused(large, file_of(part, tmp_path / "p.pth"), r"lack 15 .* 'layer4\.2\.conv1")
    more = resnet | {"layer3.6.conv1.weight": torch.zeros(1)}
    refused(large, file_of(more, tmp_path / "s.pth"), r"surplus 1 .* 'layer3\.6\.conv1")
    other = file_of({"a.weight": torch.zeros(1)}, tmp_path / "a.pth")
    refused(large, other, r"neither a torchvision classifier .* first names are a\.weight")


class Dangerous:
    def __reduce__(self) -> tuple:
        return (print, ("run",))


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = build(MOBILE)
    refused(detector, str(tmp_path / "none.pth"), r"none\.pth do not exist")
    for name in ("bad.pth", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        refused(detector, str(tmp_path / name), "holds no weights that can be read")
    torch.save({"features.0.0.weight": Dangerous()}, tmp_path / "evil.pth")
    refused(detector, str(tmp_path / "evil.pth"), "holds no weights that can be read")
    assert capsys.readouterr().out == ""
    torch.save({"model": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "script.pth")
    assert read_weights(str(tmp_path / "script.pth"), "mobilenet_v2").keys() == {"a"}
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    refused(detector, str(tmp_path / "list.pth"), r"holds no state dict: save model\.state_dict")


# ---- names


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> State:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    refused(
        build(RESNET),
        "IMAGENET1K_V2",
        r"cannot download torchvision's ResNet50_Weights\.IMAGENET1K_V2 .*not known.*: fetch "
        r".*resnet50-\w+\.pth where .*, and give the path of the file as model\.weights",
    )
    refused(build(RESNET), "COCO_V1", r"FasterRCNN_ResNet50_FPN_Weights\.COCO_V1 ")


def test_weights_by_name(mobile: State, resnet: State, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, **options: object) -> State:
        asked.append((url, options["check_hash"], options["weights_only"]))
        return mobile if "mobilenet" in url else resnet

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    assert start_from(build(MOBILE), "IMAGENET1K_V1").used
    assert start_from(build(RESNET), "ResNet50_Weights.IMAGENET1K_V1").used
    members = ("MobileNet_V2_Weights.IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1")
    assert asked == [(module.get_weight(member).url, True, True) for member in members]


def test_names_that_are_none() -> None:
    neither = r"are neither a file \(\.safetensors, \.pth, \.pt\) nor .* for mobilenet_v2"
    refused(build(MOBILE), "COCO_V1", neither + ", .* members of MobileNet_V2_Weights")
    refused(build(MOBILE), "No_Weights.V1", "weights 'No_Weights.V1' are neither")


# ---- checkpoints of the project's own


def test_a_checkpoint_of_ones_own(tmp_path: Path) -> None:
    """The same detector takes all, one of other classes all but the last layer."""
    first, path = build(MOBILE, classes=2), tmp_path / "first.safetensors"
    save_checkpoint(path, first.state_dict(), CheckpointInfo(MOBILE, ("a", "b"), {}))
    last = {"head.class_logits.weight", "head.class_logits.bias"}
    for classes, random in ((2, set()), (3, last)):
        second = build(MOBILE, classes=classes)
        report = start_from(second, str(path))
        assert set(report.initialised) == set(report.left_out) == random
        own = second.state_dict()
        for name, value in first.state_dict().items():
            assert name in random or torch.equal(value, own[name]), name
    other = build(MOBILE | {"width": 0.5}, classes=2)
    refused(other, str(path), r"first\.safetensors has another backbone")

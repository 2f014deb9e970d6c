"""Backbones: strides, dilation, norms, and what is not trained."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from af_pipeline.models.backbones import build_backbone, group_norm

PLAIN = {"mobilenet_v2": [8, 24, 40], "resnet50": [512, 1024, 2048], "resnet101": None}


def width_of(name: str) -> float:
    return 0.25 if name == "mobilenet_v2" else 1.0


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_maps_have_their_strides_and_channels(name: str, dilated: bool) -> None:
    backbone = build_backbone(name, width_of(name), "bn", dilated).eval()
    with torch.inference_mode():
        maps = backbone(torch.rand(1, 3, 64, 96))
    strides = {"16": 16, "16b": 16} if dilated else {"8": 8, "16": 16, "32": 32}
    assert {key: (64 // x.shape[2], 96 // x.shape[3]) for key, x in maps.items()} == {
        key: (stride, stride) for key, stride in strides.items()
    }
    assert [x.shape[1] for x in maps.values()] == backbone.out_channels
    assert backbone.out_channels == PLAIN[name][-len(strides) :]  # type: ignore[index]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_a_dilated_backbone_computes_the_same_and_more(name: str) -> None:
    """With the same weights, every second of its cells is what the strided stage gives."""
    torch.manual_seed(0)
    plain = build_backbone(name, width_of(name)).eval()
    dilated = build_backbone(name, width_of(name), "bn", True).eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        a, b = plain(images), dilated(images)
    assert torch.equal(a["16"], b["16"])
    scale = float(a["32"].abs().max())
    torch.testing.assert_close(a["32"] / scale, b["16b"][..., ::2, ::2] / scale)
    assert float((b["16b"][..., 1::2, 1::2] - b["16b"][..., ::2, ::2]).abs().max()) > scale / 100


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("bn", nn.BatchNorm2d), ("frozen_bn", FrozenBatchNorm2d), ("gn", nn.GroupNorm)],
)
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_norms(name: str, norm: str, kind: type[nn.Module]) -> None:
    backbone = build_backbone(name, width_of(name), norm)
    kinds = {type(m) for m in backbone.modules() if "Norm2d" in type(m).__name__} | {
        type(m) for m in backbone.modules() if isinstance(m, nn.GroupNorm)
    }
    assert kinds == {kind}


def test_frozen_batch_norm_freezes_the_stem_of_a_resnet() -> None:
    names = {
        n
        for n, p in build_backbone("resnet50", 1, "frozen_bn").named_parameters()
        if not p.requires_grad
    }
    assert names
    assert {name.split(".")[0] for name in names} == {"conv1", "layer1"}
    for norm in ("bn", "gn"):
        assert all(p.requires_grad for p in build_backbone("resnet50", 1, norm).parameters())


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (7, 1), (8, 4), (24, 12), (40, 20), (64, 32), (144, 24), (2048, 32)],
)
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'vgg'; known: mobilenet_v2, resnet50"):
        build_backbone("vgg", 1.0)
    with pytest.raises(ValueError, match="unknown norm 'ln'; known: bn, frozen_bn, gn"):
        build_backbone("resnet50", 1.0, "ln")
    with pytest.raises(ValueError, match="width multiplies mobilenet_v2 only, not resnet50"):
        build_backbone("resnet50", 0.5)

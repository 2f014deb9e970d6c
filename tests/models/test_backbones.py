"""Backbones: strides, dilation, norms, and what is not trained."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from af_pipeline.models.backbones import build_backbone, group_norm

CHANNELS = {"mobilenet_v2": [8, 24, 40], "resnet50": [512, 1024, 2048]}
WIDTH = {"mobilenet_v2": 0.25, "resnet50": 1.0}


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_and_dilation(name: str) -> None:
    """With the same weights, every second dilated cell is what the strided stage gives."""
    torch.manual_seed(0)
    plain = build_backbone(name, WIDTH[name]).eval()
    dilated = build_backbone(name, WIDTH[name], "bn", True).eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        a, b = plain(images), dilated(images)
    strides = ({"8": 8, "16": 16, "32": 32}, {"16": 16, "16b": 16})
    for backbone, maps, wanted in zip((plain, dilated), (a, b), strides, strict=True):
        assert {key: (64 // x.shape[2], 96 // x.shape[3]) for key, x in maps.items()} == {
            key: (stride, stride) for key, stride in wanted.items()
        }
        assert [x.shape[1] for x in maps.values()] == backbone.out_channels
        assert backbone.out_channels == CHANNELS[name][-len(wanted) :]
    assert torch.equal(a["16"], b["16"])
    scale = float(a["32"].abs().max())
    torch.testing.assert_close(a["32"] / scale, b["16b"][..., ::2, ::2] / scale)
    assert float((b["16b"][..., 1::2, 1::2] - b["16b"][..., ::2, ::2]).abs().max()) > scale / 100


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("bn", nn.BatchNorm2d), ("frozen_bn", FrozenBatchNorm2d), ("gn", nn.GroupNorm)],
)
@pytest.mark.parametrize("name", CHANNELS)
def test_norms(name: str, norm: str, kind: type[nn.Module]) -> None:
    """Frozen batch norms freeze the stem of a ResNet too."""
    backbone = build_backbone(name, WIDTH[name], norm)
    assert {type(m) for m in backbone.modules() if "Norm" in type(m).__name__} - {
        type(m) for m in backbone.modules() if "Conv" in type(m).__name__
    } == {kind}
    frozen = {n.split(".")[0] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == ({"conv1", "layer1"} if (name, norm) == ("resnet50", "frozen_bn") else set())


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (7, 1), (8, 4), (24, 12), (40, 20), (64, 32), (144, 24), (2048, 32)],
)
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_a_width_that_a_backbone_has_not() -> None:
    with pytest.raises(ValueError, match="width multiplies mobilenet_v2 only, not resnet50"):
        build_backbone("resnet50", 0.5)

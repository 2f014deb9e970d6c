"""The two-stage detector: shapes, padding, batches, and whether it can learn at all."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from af_pipeline.models.checkpoint import build_detector, load_detector, save_checkpoint
from af_pipeline.models.info import CheckpointInfo
from af_pipeline.models.rcnn import FasterRCNN
from tests.helpers.chips import Box, chips, close, missing_gradients, padded, sizes, targets, teach

CLASSES = 3
SMALL = {
    "kind": "faster_rcnn",
    "backbone": "mobilenet_v2",
    "width": 0.25,
    "channels": 16,
    "head_depth": 0,
    "anchor_sizes": [16, 32, 64],
}
NECKS = ["fpn", "dilated"]


def spread(detector: FasterRCNN) -> FasterRCNN:
    """Scores and boxes far apart, so that an untrained detector has much to select from."""
    with torch.no_grad():
        for module in detector.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the statistics are those of this batch
        detector.features(chips(4, 96, 96, seed=1))
        for conv in (*detector.rpn.head.cls_logits, *detector.rpn.head.bbox_pred):
            conv.weight.normal_(std=0.2)  # type: ignore[union-attr,operator]
        detector.roi_heads.box_predictor.cls_score.weight.normal_(std=0.3)
        detector.roi_heads.box_predictor.bbox_pred.weight.normal_(std=0.3)
    return detector.eval()


def build(neck: str) -> FasterRCNN:
    torch.manual_seed(0)
    made = build_detector(SMALL | {"neck": neck}, CLASSES)
    assert isinstance(made, FasterRCNN)
    return spread(made)


@pytest.fixture(scope="module", params=NECKS)
def detector(request: pytest.FixtureRequest) -> FasterRCNN:
    return build(request.param)


# ---- forward


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 64), (64, 160)])
def test_shapes(detector: FasterRCNN, height: int, width: int) -> None:
    batch, whole = chips(2, height, width), sizes((height, width), (height, width))
    outputs, focus = detector(batch, whole)
    assert focus.shape == (2, height // 16, width // 16)
    assert ((focus >= 0) & (focus <= 1)).all()
    assert not focus.requires_grad
    assert len(outputs) == 2
    for output in outputs:
        assert len(output.scores) > 0
        assert output.boxes.shape == (len(output.scores), 4)
        assert output.labels.dtype == torch.int64
        assert set(output.labels.tolist()) <= set(range(CLASSES))
        assert output.scores.tolist() == sorted(output.scores.tolist(), reverse=True)


def test_sides_must_be_multiples_of_32(detector: FasterRCNN) -> None:
    with pytest.raises(ValueError, match=r"batch is 100x64; pad .* multiples of 32"):
        detector(torch.zeros(1, 3, 100, 64, dtype=torch.uint8), sizes((100, 64)))


@pytest.mark.parametrize("size", [(96, 128), (70, 41), (33, 128), (5, 5), (1, 1)])
def test_answers_stay_inside_their_chip(detector: FasterRCNN, size: tuple[int, int]) -> None:
    batch = padded(chips(1, 96, 128)[..., : size[0], : size[1]], 96, 128)
    (found,), _ = detector(batch, sizes(size), min_score=0.0)
    (proposed,) = detector.proposals(batch, sizes(size))
    for output in (found, proposed):
        assert len(output.boxes)
        assert (output.boxes[:, :2] >= 0).all()
        assert (output.boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()
        assert (output.boxes[:, 2:] > output.boxes[:, :2]).all()


def test_anchors_in_the_padding_propose_nothing(detector: FasterRCNN) -> None:
    """However sure they are: their scores are raised above all others, and no box is theirs."""
    batch, own = padded(chips(1, 64, 64), 96, 128), sizes((64, 64))
    rpn = detector.rpn(detector.features(batch).rpn, batch)
    centres = (rpn.anchors[:, :2] + rpn.anchors[:, 2:]) / 2
    outside = (centres >= 64).any(1)
    assert 0 < int(outside.sum()) < len(outside)
    with torch.no_grad():
        rpn.objectness[0, outside] += 1000
    (proposed,) = detector.rpn.propose(rpn, own, 300)
    assert proposed.scores.max() == rpn.objectness[0, ~outside].sigmoid().max()
    (everywhere,) = detector.rpn.propose(rpn, sizes((96, 128)), 300)
    assert everywhere.scores.max() == 1


def test_selection_follows_its_arguments(detector: FasterRCNN) -> None:
    batch, whole = chips(1, 96, 96), sizes((96, 96))
    (every,), _ = detector(batch, whole, 0.0, 0.99, 10_000)
    least = float(every.scores[len(every.scores) // 2])
    (some,), _ = detector(batch, whole, least, 0.99, 10_000)
    assert (some.scores >= least).all()
    (few,), _ = detector(batch, whole, 0.0, 0.99, 5)
    assert torch.equal(few.scores, every.scores[:5])
    (apart,), _ = detector(batch, whole, 0.0, 0.3)
    for label in range(CLASSES):
        boxes = apart.boxes[apart.labels == label]
        assert box_iou(boxes, boxes).triu(1).max() <= 0.3 + 1e-6
    (none,), _ = detector(batch, whole, 1.1)
    assert none.boxes.shape == (0, 4)
    (proposed,) = detector.proposals(batch, whole, 9)
    assert len(proposed.boxes) == 9
    assert not proposed.labels.any()


def test_a_chip_alone_is_as_in_a_batch(detector: FasterRCNN) -> None:
    batch = chips(3, 96, 64)
    whole = sizes((96, 64), (90, 50), (60, 64))
    together, focus = detector(batch, whole, 0.3)
    proposed = detector.proposals(batch, whole, 50)
    for i in range(3):
        (alone,), own = detector(batch[i : i + 1], whole[i : i + 1], 0.3)
        assert len(alone.scores)
        close(alone, together[i])
        torch.testing.assert_close(own[0], focus[i], atol=1e-4, rtol=0)
        close(detector.proposals(batch[i : i + 1], whole[i : i + 1], 50)[0], proposed[i])


def test_the_heads_stay_in_fp32(detector: FasterRCNN) -> None:
    batch = chips(1, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        maps = detector.features(batch)
        rpn = detector.rpn(maps.rpn, batch)
        boxes = [torch.tensor([[0.0, 0, 20, 20]])]
        logits, deltas = detector.roi_heads(maps.roi, boxes, (64, 64))
        losses = detector.losses(batch, targets(64, [((8, 8, 40, 40), 1, True)]))
        (found,), _ = detector(batch, sizes((64, 64)))
    assert maps.rpn[0].dtype == torch.bfloat16
    assert {t.dtype for t in (rpn.objectness, rpn.deltas, rpn.anchors, logits, deltas)} == {
        torch.float32
    }
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert found.boxes.dtype == torch.float32


# ---- checkpoints


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "gn"])
def test_a_checkpoint_gives_the_same_detector(neck: str, norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SMALL | {"neck": neck, "norm": norm}
    saved = build_detector(model, 2).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, saved.state_dict(), CheckpointInfo(model, ("a", "b"), {}))
    loaded, info = load_detector(path)
    assert isinstance(loaded, FasterRCNN)
    assert info.model == model
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    batch, whole = chips(1, 64, 96), sizes((64, 96))
    (a,), (b,) = saved(batch, whole, 0.0)[0], loaded(batch, whole, 0.0)[0]
    assert len(a.scores)
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.scores, b.scores)


# ---- learning

SOME: list[tuple[Box, int, bool]] = [((8, 8, 40, 40), 1, True), ((20, 20, 60, 60), 2, False)]


def check_losses(detector: FasterRCNN, side: int = 64) -> None:
    """Finite losses and gradients everywhere: with boxes, without, and with no proposal at all."""
    detector.train()
    batch = chips(2, side, side)
    for wanted in (
        targets(side, SOME, []),
        targets(side, [], []),
        targets(side, [], [], limits=(1e6, math.inf)),
        targets(side, SOME[1:], SOME[1:]),
    ):
        losses = detector.losses(batch, wanted)
        assert tuple(losses) == detector.loss_names
        assert all(math.isfinite(float(value.detach())) for value in losses.values())
        assert all(value.ndim == 0 and value.requires_grad for value in losses.values())
        detector.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        assert missing_gradients(detector) == []


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "gn"])
@pytest.mark.parametrize("neck", NECKS)
def test_every_parameter_has_a_gradient(neck: str, norm: str) -> None:
    torch.manual_seed(0)
    check_losses(FasterRCNN(CLASSES, "mobilenet_v2", 0.25, 16, neck, norm, (16, 32, 64)))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "gn"])
@pytest.mark.parametrize("neck", NECKS)
def test_every_parameter_of_a_resnet_has_a_gradient(neck: str, norm: str) -> None:
    torch.manual_seed(0)
    made = FasterRCNN(CLASSES, "resnet50", 1.0, 16, neck, norm, (16, 32, 64))
    frozen = {n for n, p in made.named_parameters() if not p.requires_grad}
    assert bool(frozen) == (norm == "frozen_bn")
    check_losses(made)


@pytest.mark.slow
def test_resnet101() -> None:
    torch.manual_seed(0)
    check_losses(FasterRCNN(CLASSES, "resnet101", neck="dilated", channels=16))


@pytest.fixture(scope="module")
def taught() -> tuple[FasterRCNN, Tensor, Tensor]:
    """A small detector after 60 steps on one chip -> (detector, chip, the chip's boxes)."""
    torch.manual_seed(0)
    detector = FasterRCNN(CLASSES, "mobilenet_v2", 0.25, 32, anchor_sizes=(16, 32, 64))
    images, wanted = teach(detector, 60, 3e-3)
    return detector, images, wanted.boxes[0]


def test_one_chip_can_be_learned(taught: tuple[FasterRCNN, Tensor, Tensor]) -> None:
    detector, images, wanted = taught
    (found,), focus = detector(images, sizes((128, 128)), min_score=0.3)
    iou = box_iou(wanted, found.boxes)
    assert (iou.max(1).values > 0.7).all()
    assert found.labels[iou.argmax(1)].tolist() == [0, 2]
    assert float(focus.max()) > 0.6
    assert float(focus.min()) < 0.3
    (proposed,) = detector.proposals(images, sizes((128, 128)), 20)
    assert (box_iou(wanted, proposed.boxes).max(1).values > 0.6).all()


@pytest.mark.parametrize("canvas", [(128, 160), (256, 512)])
def test_padding_keeps_the_detections(
    taught: tuple[FasterRCNN, Tensor, Tensor], canvas: tuple[int, int]
) -> None:
    detector, images, wanted = taught
    (found,), _ = detector(padded(images, *canvas), sizes((128, 128)), min_score=0.3)
    iou, index = box_iou(wanted, found.boxes).max(1)
    assert (iou > 0.7).all()
    assert found.labels[index].tolist() == [0, 2]


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="unknown neck 'pan'; known: fpn, dilated"):
        build_detector(SMALL | {"neck": "pan"}, 2)
    with pytest.raises(ValueError, match="unknown kind 'yolo'; known: dense, faster_rcnn"):
        build_detector(SMALL | {"kind": "yolo"}, 2)
    with pytest.raises(ValueError, match="kind=dense takes neck=fpn, found neck=dilated"):
        build_detector(SMALL | {"kind": "dense", "neck": "dilated"}, 2)

"""The detectors: shapes, padding, batches, and whether they can learn at all."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from af_pipeline.models.backbones import BACKBONES
from af_pipeline.models.checkpoint import DETECTORS, build_detector
from af_pipeline.models.dense import DenseDetector
from af_pipeline.models.detector import Detector, Output, Selection
from af_pipeline.models.rcnn import FasterRCNN
from af_pipeline.settings.train import ModelConfig
from tests.helpers.chips import Box, chips, close, missing_gradients, padded, sizes, targets, teach

CLASSES = 3
SMALL = {"width": 0.25, "channels": 16, "head_depth": 1, "anchor_sizes": [16, 32, 64]}
KINDS = {
    "dense": {"kind": "dense"},
    "fpn": {"kind": "faster_rcnn"},
    "dilated": {"kind": "faster_rcnn", "neck": "dilated"},
}
EVERY = Selection(0.0, 0.99, 10_000)


def spread(detector: Detector) -> Detector:
    """Scores and boxes far apart, so that an untrained detector has much to select from."""
    with torch.no_grad():
        if isinstance(detector, DenseDetector):
            for conv in (detector.head.class_logits, detector.head.box_distances):
                conv.weight.normal_(std=0.2)
        elif isinstance(detector, FasterRCNN):
            for module in detector.train().modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None  # the statistics are those of this batch
            detector.features(chips(4, 96, 96, seed=1))
            for conv in (*detector.rpn.head.cls_logits, *detector.rpn.head.bbox_pred):
                conv.weight.normal_(std=0.2)
            detector.roi_heads.box_predictor.cls_score.weight.normal_(std=0.3)
            detector.roi_heads.box_predictor.bbox_pred.weight.normal_(std=0.3)
    return detector.eval()


@pytest.fixture(scope="module", params=KINDS)
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    return spread(build_detector(SMALL | KINDS[request.param], CLASSES))


def test_the_settings_name_what_can_be_built() -> None:
    for name, known in (("kind", DETECTORS), ("backbone", BACKBONES)):
        assert get_args(ModelConfig.model_fields[name].annotation) == tuple(known)


# ---- forward


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 64), (64, 160)])
def test_shapes(detector: Detector, height: int, width: int) -> None:
    outputs, focus = detector(chips(2, height, width), sizes(*[(height, width)] * 2))
    assert focus.shape == (2, height // 16, width // 16)
    assert ((focus >= 0) & (focus <= 1)).all()
    assert not focus.requires_grad
    assert len(outputs) == 2
    for output in outputs:
        assert len(output.scores) > 0
        assert output.boxes.shape == (len(output.scores), 4)
        assert not output.boxes.requires_grad
        assert output.labels.dtype == torch.int64
        assert set(output.labels.tolist()) <= set(range(CLASSES))
        assert output.scores.tolist() == sorted(output.scores.tolist(), reverse=True)


def test_points_are_cell_centres_and_lie_in_their_boxes() -> None:
    made = build_detector(SMALL, CLASSES)
    assert isinstance(made, DenseDetector)
    raw = made.raw(chips(1, 64, 96))
    assert raw.class_logits.shape == (1, 8 * 12 + 4 * 6 + 2 * 3, CLASSES)
    assert raw.points[[0, 1, 12, -1]].tolist() == [[4, 4], [12, 4], [4, 12], [80, 48]]
    assert (raw.boxes[0, :, :2] <= raw.points).all()
    assert (raw.boxes[0, :, 2:] >= raw.points).all()


@pytest.mark.parametrize(("height", "width"), [(100, 64), (64, 48)])
def test_sides_must_be_multiples_of_32(detector: Detector, height: int, width: int) -> None:
    batch = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"batch is {height}x{width}; pad .* multiples of 32"):
        detector(batch, sizes((height, width)))


@pytest.mark.parametrize("size", [(96, 128), (70, 41), (33, 128), (5, 5)])
def test_answers_stay_inside_their_chip(detector: Detector, size: tuple[int, int]) -> None:
    batch = padded(chips(1, 96, 128)[..., : size[0], : size[1]], 96, 128)
    (found,), _ = detector(batch, sizes(size), Selection(min_score=0.0))
    (proposed,) = detector.proposals(batch, sizes(size))
    for output in (found, proposed):
        assert len(output.boxes)
        assert (output.boxes[:, :2] >= 0).all()
        assert (output.boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()
        assert (output.boxes[:, 2:] > output.boxes[:, :2]).all()


def test_selection_follows_its_rule(detector: Detector) -> None:
    batch, whole = chips(1, 96, 96), sizes((96, 96))
    (every,), _ = detector(batch, whole, EVERY)
    least = float(every.scores[len(every.scores) // 2])
    (some,), _ = detector(batch, whole, replace(EVERY, min_score=least))
    assert (some.scores >= least).all()
    (few,), _ = detector(batch, whole, replace(EVERY, most=5))
    assert torch.equal(few.scores, every.scores[:5])
    assert (every.dropped, few.dropped > 0) == (0, True)
    (apart,), _ = detector(batch, whole, replace(EVERY, nms_iou=0.3))
    for label in range(CLASSES):
        boxes = apart.boxes[apart.labels == label]
        assert box_iou(boxes, boxes).triu(1).max() <= 0.3 + 1e-6
    (none,), _ = detector(batch, whole, Selection(min_score=1.1))
    assert none.boxes.shape == (0, 4)
    assert none.scores.shape == none.labels.shape == (0,)


def first(output: Output, count: int = 50) -> Output:
    """The best of an output; of those that hardly differ in score the order may."""
    return Output(output.boxes[:count], output.scores[:count], output.labels[:count])


def test_a_chip_alone_is_as_in_a_batch(detector: Detector) -> None:
    batch = chips(3, 96, 64)
    rule = Selection(min_score=0.005 if isinstance(detector, DenseDetector) else 0.3)
    whole = sizes((96, 64), (90, 50), (60, 64))
    together, focus = detector(batch, whole, rule)
    proposed = detector.proposals(batch, whole)
    for i in range(3):
        (alone,), own = detector(batch[i : i + 1], whole[i : i + 1], rule)
        assert len(alone.scores)
        close(alone, together[i])
        torch.testing.assert_close(own[0], focus[i], atol=1e-4, rtol=0)
        close(first(detector.proposals(batch[i : i + 1], whole[i : i + 1])[0]), first(proposed[i]))


def test_proposals_are_the_best_boxes_of_any_class(detector: Detector) -> None:
    batch = padded(chips(1, 96, 128)[..., :70, :41], 96, 128)
    (every,) = detector.proposals(batch, sizes((70, 41)))
    assert 20 < len(every.boxes) <= 300
    assert not every.labels.any()
    assert every.scores.tolist() == sorted(every.scores.tolist(), reverse=True)
    assert box_iou(every.boxes, every.boxes).triu(1).max() <= 0.7 + 1e-6
    if isinstance(detector, DenseDetector):
        raw = detector.raw(batch)
        own = (raw.points[:, 0] < 41) & (raw.points[:, 1] < 70)
        assert every.scores[0] == raw.class_logits[0, own].sigmoid().max()


@pytest.mark.parametrize("neck", ["fpn", "dilated"])
def test_the_two_stages_stay_in_fp32(neck: str) -> None:
    torch.manual_seed(0)
    made = build_detector(SMALL | KINDS[neck], CLASSES).eval()
    assert isinstance(made, FasterRCNN)
    batch, boxes = chips(1, 64, 64), [torch.tensor([[0.0, 0, 20, 20]])]
    with torch.autocast("cpu", torch.bfloat16):
        maps = made.features(batch)
        rpn = made.rpn(maps.rpn, batch)
        second = made.roi_heads(maps.roi, boxes, (64, 64))
        losses = made.losses(batch, targets(64, [((8, 8, 40, 40), 1, True)]))
        (found,), _ = made(batch, sizes((64, 64)))
    assert maps.rpn[0].dtype == torch.bfloat16
    exact = (*vars(rpn).values(), *second, *losses.values(), found.boxes)
    assert {value.dtype for value in exact} == {torch.float32}


# ---- learning

SOME: list[tuple[Box, int, bool]] = [((8, 8, 40, 40), 1, True), ((20, 20, 60, 60), 2, False)]
FULL: list[tuple[Box, int, bool]] = [((0, 0, 64, 64), 2, False)]
RESNETS = [("resnet50", norm) for norm in ("bn", "frozen_bn", "gn")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("backbone", "norm"),
    [
        *(("mobilenet_v2", norm) for norm in ("bn", "frozen_bn", "gn")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in RESNETS),
        pytest.param("resnet101", "bn", marks=pytest.mark.slow),
    ],
)
def test_every_parameter_has_a_gradient(kind: str, backbone: str, norm: str) -> None:
    """With boxes, without, with ignored ones alone, with no proposal at all, in a crowd."""
    torch.manual_seed(0)
    width = 0.25 if backbone == "mobilenet_v2" else 1.0
    model = SMALL | KINDS[kind] | {"backbone": backbone, "norm": norm, "width": width}
    made = build_detector(model, CLASSES).train()
    frozen = [name for name, p in made.named_parameters() if not p.requires_grad]
    assert bool(frozen) == (norm == "frozen_bn" and backbone != "mobilenet_v2")
    crowd = targets(64, FULL, FULL)
    for wanted in (
        targets(64, SOME, []),
        targets(64, [], []),
        targets(64, [], [], limits=(1e6, math.inf)),
        targets(64, SOME[1:], SOME[1:]),
        replace(crowd, crowd=crowd.ignored),
    ):
        losses = made.losses(chips(2, 64, 64), wanted)
        assert tuple(losses) == made.loss_names
        assert all(value.ndim == 0 and value.requires_grad for value in losses.values())
        assert all(math.isfinite(value.item()) for value in losses.values())
        made.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        assert missing_gradients(made) == []


@pytest.fixture(scope="module", params=["dense", "fpn"])
def taught(request: pytest.FixtureRequest) -> tuple[Detector, Tensor, Tensor]:
    """A small detector after 60 steps on one chip -> (detector, chip, the chip's boxes)."""
    torch.manual_seed(1)
    made = build_detector(SMALL | KINDS[request.param] | {"channels": 32}, CLASSES)
    images, wanted = teach(made, 60, 5e-3 if request.param == "dense" else 2e-3)
    return made, images, wanted.boxes[0]


SURE = Selection(min_score=0.3)


def test_one_chip_can_be_learned(taught: tuple[Detector, Tensor, Tensor]) -> None:
    detector, images, wanted = taught
    (found,), focus = detector(images, sizes((128, 128)), SURE)
    iou = box_iou(wanted, found.boxes)
    assert (iou.max(1).values > 0.7).all()
    assert found.labels[iou.argmax(1)].tolist() == [0, 2]
    assert float(focus.max()) > 0.6
    assert float(focus.min()) < 0.3
    (proposed,) = detector.proposals(images, sizes((128, 128)))
    assert (box_iou(wanted, proposed.boxes[:20]).max(1).values > 0.6).all()


@pytest.mark.parametrize("canvas", [(128, 160), (192, 192), (256, 512)])
def test_padding_keeps_the_detections(
    taught: tuple[Detector, Tensor, Tensor], canvas: tuple[int, int]
) -> None:
    """No statistic covers the canvas: only what borders on the grey can change, a little."""
    detector, images, wanted = taught
    (found,), _ = detector(padded(images, *canvas), sizes((128, 128)), SURE)
    iou, index = box_iou(wanted, found.boxes).max(1)
    assert (iou > 0.7).all()
    assert found.labels[index].tolist() == [0, 2]


def test_far_padding_changes_nothing(taught: tuple[Detector, Tensor, Tensor]) -> None:
    """Grey beyond the receptive field is not seen: a larger canvas gives the same numbers."""
    detector, images, _ = taught
    (near,), _ = detector(padded(images, 512, 512), sizes((128, 128)), SURE)
    (far,), _ = detector(padded(images, 768, 1024), sizes((128, 128)), SURE)
    close(near, far)

"""The detector: shapes, padding, batches, and whether it can learn at all."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from af_pipeline.models.dense import AutoFocusDetector
from tests.helpers.chips import chips, close, missing_gradients, padded, sizes, targets, teach

CLASSES = 3


@pytest.fixture(scope="module")
def detector() -> AutoFocusDetector:
    """Untrained, but with spread scores, so that there is much to select from."""
    torch.manual_seed(0)
    made = AutoFocusDetector(CLASSES, width=0.25, channels=16, head_depth=1)
    for conv in (made.head.class_logits, made.head.box_distances):
        torch.nn.init.normal_(conv.weight, std=0.2)
    return made.eval()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 64), (64, 160)])
def test_shapes(detector: AutoFocusDetector, height: int, width: int) -> None:
    batch = chips(2, height, width)
    raw = detector.raw(batch)
    anchors = sum((height // s) * (width // s) for s in (8, 16, 32))
    assert raw.class_logits.shape == (2, anchors, CLASSES)
    assert raw.boxes.shape == (2, anchors, 4)
    assert raw.points.shape == (anchors, 2)
    assert raw.focus.shape == (2, height // 16, width // 16)
    outputs, focus = detector(batch, sizes((height, width), (height, width)))
    assert len(outputs) == 2
    assert focus.shape == (2, height // 16, width // 16)
    assert ((focus >= 0) & (focus <= 1)).all()
    for output in outputs:
        assert output.boxes.shape == (len(output.scores), 4)
        assert output.labels.dtype == torch.int64
        assert len(output.scores) > 0


def test_points_are_cell_centres_and_lie_in_their_boxes(detector: AutoFocusDetector) -> None:
    raw = detector.raw(chips(1, 64, 96))
    assert raw.points[:2].tolist() == [[4, 4], [12, 4]]
    assert raw.points[12].tolist() == [4, 12]
    assert raw.points[-1].tolist() == [80, 48]
    assert (raw.boxes[0, :, :2] <= raw.points).all()
    assert (raw.boxes[0, :, 2:] >= raw.points).all()


@pytest.mark.parametrize(("height", "width"), [(100, 64), (64, 48)])
def test_sides_must_be_multiples_of_32(
    detector: AutoFocusDetector, height: int, width: int
) -> None:
    batch = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"batch is {height}x{width}; pad .* multiples of 32"):
        detector.raw(batch)


@pytest.mark.parametrize("size", [(96, 128), (70, 41), (33, 128), (5, 5)])
def test_detections_stay_inside_their_chip(
    detector: AutoFocusDetector, size: tuple[int, int]
) -> None:
    batch = padded(chips(1, 96, 128)[..., : size[0], : size[1]], 96, 128)
    (output,), _ = detector(batch, sizes(size), min_score=0.0)
    assert len(output.boxes)
    assert (output.boxes[:, :2] >= 0).all()
    assert (output.boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()
    assert (output.boxes[:, 2:] > output.boxes[:, :2]).all()


def test_selection_follows_its_arguments(detector: AutoFocusDetector) -> None:
    batch, whole = chips(1, 96, 96), sizes((96, 96))
    (every,), _ = detector(batch, whole, min_score=0.0, nms_iou=0.99)
    assert every.scores.tolist() == sorted(every.scores.tolist(), reverse=True)
    least = float(every.scores[len(every.scores) // 2])
    (some,), _ = detector(batch, whole, min_score=least, nms_iou=0.99)
    assert (some.scores >= least).all()
    (few,), _ = detector(batch, whole, min_score=0.0, nms_iou=0.99, max_detections=5)
    assert torch.equal(few.scores, every.scores[:5])
    assert (every.dropped, few.dropped > 0) == (0, True)
    (apart,), _ = detector(batch, whole, min_score=0.0, nms_iou=0.3)
    for label in range(CLASSES):
        boxes = apart.boxes[apart.labels == label]
        assert box_iou(boxes, boxes).triu(1).max() <= 0.3 + 1e-6
    (none,), _ = detector(batch, whole, min_score=1.1)
    assert none.boxes.shape == (0, 4)
    assert none.scores.shape == none.labels.shape == (0,)


def test_a_chip_alone_is_as_in_a_batch(detector: AutoFocusDetector) -> None:
    batch = chips(3, 96, 64)
    whole = sizes((96, 64), (90, 50), (60, 64))
    together, focus = detector(batch, whole, min_score=0.02)
    for i in range(3):
        (alone,), own = detector(batch[i : i + 1], whole[i : i + 1], min_score=0.02)
        close(alone, together[i])
        torch.testing.assert_close(own[0], focus[i], atol=1e-4, rtol=0)
    backwards, _ = detector(batch.flip(0), whole.flip(0), min_score=0.02)
    for one, other in zip(together, reversed(backwards), strict=True):
        close(one, other)


def test_inference_keeps_no_gradient(detector: AutoFocusDetector) -> None:
    outputs, focus = detector(chips(1, 32, 32), sizes((32, 32)))
    assert not focus.requires_grad
    assert not outputs[0].boxes.requires_grad


# ---- proposals


def test_proposals_are_the_best_boxes_of_any_class(detector: AutoFocusDetector) -> None:
    batch = padded(chips(1, 96, 128)[..., :70, :41], 96, 128)
    (every,) = detector.proposals(batch, sizes((70, 41)), 1000)
    assert len(every.boxes) > 20
    assert not every.labels.any()
    assert every.scores.tolist() == sorted(every.scores.tolist(), reverse=True)
    assert (every.boxes[:, :2] >= 0).all()
    assert (every.boxes[:, 2:] <= torch.tensor([41, 70])).all()
    assert box_iou(every.boxes, every.boxes).triu(1).max() <= 0.7 + 1e-6
    (few,) = detector.proposals(batch, sizes((70, 41)), 7)
    assert torch.equal(few.boxes, every.boxes[:7])
    assert torch.equal(few.scores, every.scores[:7])
    raw = detector.raw(batch)
    own = (raw.points[:, 0] < 41) & (raw.points[:, 1] < 70)
    assert every.scores[0] == raw.class_logits[0, own].sigmoid().max()


# ---- learning


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "gn"])
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet50"])
def test_every_parameter_has_a_gradient(backbone: str, norm: str) -> None:
    torch.manual_seed(0)
    width = 0.25 if backbone == "mobilenet_v2" else 1.0
    detector = AutoFocusDetector(CLASSES, backbone, width, 16, 1, norm).train()
    wanted = targets(64, [((8, 8, 40, 40), 1, True)], [((8, 8, 40, 40), 1, False)])
    for given in (wanted, targets(64, [], [])):
        losses = detector.losses(chips(2, 64, 64), given)
        assert tuple(losses) == detector.loss_names
        detector.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        assert missing_gradients(detector) == []


@pytest.fixture(scope="module")
def taught() -> tuple[AutoFocusDetector, Tensor, Tensor]:
    """A small detector after 60 steps on one chip -> (detector, chip, the chip's boxes)."""
    torch.manual_seed(0)
    detector = AutoFocusDetector(CLASSES, width=0.25, channels=32, head_depth=1)
    images, wanted = teach(detector, 60, 5e-3)
    return detector, images, wanted.boxes[0]


def test_one_chip_can_be_learned(taught: tuple[AutoFocusDetector, Tensor, Tensor]) -> None:
    detector, images, wanted = taught
    (found,), focus = detector(images, sizes((128, 128)), min_score=0.3)
    iou = box_iou(wanted, found.boxes)
    assert (iou.max(1).values > 0.7).all()
    best = found.labels[iou.argmax(1)]
    assert sorted(best.tolist()) == [0, 2]
    assert float(focus.max()) > 0.6
    assert float(focus.min()) < 0.3


@pytest.mark.parametrize("canvas", [(128, 160), (192, 192), (256, 512)])
def test_padding_keeps_the_detections(
    taught: tuple[AutoFocusDetector, Tensor, Tensor], canvas: tuple[int, int]
) -> None:
    """No statistic covers the canvas: only what borders on the grey can change, a little."""
    detector, images, wanted = taught
    (found,), focus = detector(padded(images, *canvas), sizes((128, 128)), min_score=0.3)
    iou, index = box_iou(wanted, found.boxes).max(1)
    assert (iou > 0.7).all()
    assert sorted(found.labels[index].tolist()) == [0, 2]
    assert focus.shape == (1, canvas[0] // 16, canvas[1] // 16)


def test_far_padding_changes_nothing(taught: tuple[AutoFocusDetector, Tensor, Tensor]) -> None:
    """Grey beyond the receptive field is not seen: a larger canvas gives the same numbers."""
    detector, images, _ = taught
    (near,), _ = detector(padded(images, 512, 512), sizes((128, 128)), min_score=0.3)
    (far,), _ = detector(padded(images, 768, 1024), sizes((128, 128)), min_score=0.3)
    close(near, far)

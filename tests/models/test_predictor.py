"""The torch predictor: padding, devices, answers that keep to their crop, folded norms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from af_pipeline.core.lanes import Lane, LaneConfig
from af_pipeline.core.scales import Scale
from af_pipeline.core.stacking import StackRule
from af_pipeline.models.checkpoint import build_detector, save_checkpoint
from af_pipeline.models.dense import DenseDetector
from af_pipeline.models.detector import Detector, Selection
from af_pipeline.models.info import CheckpointError, CheckpointInfo
from af_pipeline.models.open import open_detector
from af_pipeline.models.predictor import (
    DeviceError,
    PredictorOptions,
    TorchPredictor,
    folded,
    pad_batch,
    pick_device,
    use_bf16,
)
from af_pipeline.models.rcnn import FasterRCNN
from af_pipeline.settings.index import IndexConfig
from af_pipeline.sniper.sample import PAD_VALUE
from tests.helpers.chips import chips, close, sizes

LANE = Lane(160, 192)
CPU = torch.device("cpu")
MODEL = {"backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head_depth": 1}


def crops(*shapes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in shapes]


@pytest.fixture(scope="module")
def detector() -> DenseDetector:
    """Untrained, but with spread scores, so that there is much to find."""
    torch.manual_seed(0)
    made = build_detector(MODEL, 3)
    assert isinstance(made, DenseDetector)
    for conv in (made.head.class_logits, made.head.box_distances):
        torch.nn.init.normal_(conv.weight, std=0.2)
    return made.eval()


# ---- padding


def test_a_batch_is_padded_grey_to_the_right_and_below() -> None:
    given = crops((40, 70), (33, 20), (1, 1))
    batch = pad_batch(given, None)
    assert batch.shape == (3, 64, 96, 3)
    assert batch.dtype == np.uint8
    for canvas, crop in zip(batch, given, strict=True):
        height, width = crop.shape[:2]
        np.testing.assert_array_equal(canvas[:height, :width], crop)
        assert (canvas[height:] == PAD_VALUE).all()
        assert (canvas[:, width:] == PAD_VALUE).all()


def test_the_canvas_is_a_multiple_of_32() -> None:
    assert pad_batch(crops((64, 96)), None).shape == (1, 64, 96, 3)
    assert pad_batch(crops((65, 96)), None).shape == (1, 96, 96, 3)
    assert pad_batch(crops((10, 10)), (128, 160)).shape == (1, 128, 160, 3)
    assert pad_batch(crops((10, 10)), (100, 160)).shape == (1, 128, 160, 3)


# ---- devices


def test_devices() -> None:
    there = torch.cuda.is_available()
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if there else "cpu")
    if not there:
        with pytest.raises(DeviceError, match="device=cuda, but torch sees no GPU here: use"):
            pick_device("cuda")
    for device in (CPU, torch.device("cuda")):
        assert use_bf16(True, device)
        assert not use_bf16(False, device)


def test_bf16_where_the_cpu_has_it() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists() or "flags" not in info.read_text():
        pytest.skip("no list of this CPU's instructions")
    flags = set(info.read_text().split())
    assert use_bf16("auto", CPU) == bool(flags & {"avx512_bf16", "amx_tile"})


# ---- predictions


def answering(detector: Detector, **options: Any) -> TorchPredictor:
    return TorchPredictor(detector, CPU, options=PredictorOptions(**{"bf16": False} | options))


@pytest.mark.parametrize("pad_to_lane", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_prediction_fits_its_crop(detector: DenseDetector, pad_to_lane: bool, bf16: bool) -> None:
    given = crops((160, 192), (90, 41), (33, 130), (1, 1))
    every = Selection(min_score=0.0)
    answers = answering(detector, bf16=bf16, pad_to_lane=pad_to_lane, selection=every)(given, LANE)
    assert len(answers) == len(given)
    for crop, answer in zip(given, answers, strict=True):
        height, width = crop.shape[:2]
        count = len(answer.boxes)
        assert (count > 0) == (min(height, width) > 4)  # no point lies in less
        assert answer.boxes.shape == (count, 4)
        assert answer.scores.shape == answer.labels.shape == (count,)
        assert answer.boxes.dtype == answer.scores.dtype == answer.focus.dtype == np.float32
        assert answer.labels.dtype == np.int32
        assert (answer.boxes[:, :2] >= 0).all()
        assert (answer.boxes[:, 2:] <= [width, height]).all()
        assert answer.focus.shape == (10, 12)
        assert ((answer.focus >= 0) & (answer.focus <= 1)).all()
        assert answer.padded == 160 * 192 - height * width


def test_padding_to_the_lane_changes_shapes_alone(detector: DenseDetector) -> None:
    """Of a crop alone: its own canvas is smaller, its answer covers the same cells."""
    (crop,) = crops((70, 50))
    (alone,) = answering(detector)([crop], LANE)
    (padded,) = answering(detector, pad_to_lane=True)([crop], LANE)
    assert alone.focus.shape == (6, 4)
    assert padded.focus.shape == (10, 12)
    assert alone.padded == 96 * 64 - 70 * 50
    assert padded.padded == 160 * 192 - 70 * 50
    for answer in (alone, padded):
        assert (answer.boxes[:, 2:] <= [50, 70]).all()
    np.testing.assert_allclose(padded.focus[:3, :2], alone.focus[:3, :2], atol=0.1)


MODELS = [
    {"kind": kind, "backbone": backbone, "neck": neck, "norm": norm}
    for kind, neck in (("dense", "fpn"), ("faster_rcnn", "fpn"), ("faster_rcnn", "dilated"))
    for backbone in ("mobilenet_v2", "resnet50")
    for norm in ("bn", "frozen_bn")
]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("model", [MODELS[0], MODELS[4], MODELS[8]])
def test_proposals_instead_of_detections(model: dict, bf16: bool) -> None:
    torch.manual_seed(0)
    detector = build_detector(MODEL | {"anchor_sizes": [16, 32, 64]} | model, 2).eval()
    given = crops((96, 128), (50, 41))
    answers = answering(detector, bf16=bf16, proposals=True, selection=Selection(1.1))(given, LANE)
    for crop, answer in zip(given, answers, strict=True):
        assert 0 < len(answer.boxes) <= 300
        assert not answer.labels.any()
        assert answer.labels.dtype == np.int32
        assert answer.boxes.dtype == answer.scores.dtype == np.float32
        assert (answer.boxes[:, 2:] <= [crop.shape[1], crop.shape[0]]).all()
        assert answer.focus.shape == (6, 8)
        assert not answer.focus.any()
    if not bf16:
        batch = torch.from_numpy(pad_batch(given, None)).permute(0, 3, 1, 2)
        first = folded(detector).proposals(batch, torch.tensor([[96, 128], [50, 41]]))[0]
        np.testing.assert_array_equal(answers[0].boxes, first.boxes.numpy())
    for answer in answering(detector, bf16=bf16)(given, LANE):
        assert answer.focus.any()


def test_a_predictor_from_a_config(detector: DenseDetector, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, detector.state_dict(), CheckpointInfo(MODEL, ("a", "b", "c"), {}))
    config = IndexConfig(
        pyramid=(Scale(factor=1.0),),
        mode="whole",
        checkpoint=str(path),
        device="cpu",
        bf16=False,
        detector_score=0.0,
        detector_nms=0.3,
        detector_max=30,
        stack=StackRule(min_score=0.0),
        lanes=LaneConfig(pad=True),
    )
    loaded = open_detector(config).predictor()
    assert loaded.class_names == ("a", "b", "c")
    wanted = answering(detector, pad_to_lane=True, selection=Selection(0.0, 0.3, 30))
    assert wanted.options == loaded.options
    given = crops((64, 96))
    (one,), (two,) = loaded(given, LANE), wanted(given, LANE)
    assert len(one.scores) == 30
    assert one.dropped > 0
    assert one.padded == LANE.pixels - 64 * 96
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
    np.testing.assert_allclose(one.focus, two.focus, atol=1e-4)
    stacked = config.model_copy(update={"stack": StackRule(min_score=0.2)})
    assert open_detector(stacked).predictor().options.selection.min_score == 0.2
    proposing = open_detector(config.model_copy(update={"finds": "proposals"})).predictor()
    assert (proposing(given, LANE)[0].labels == 0).all()
    assert proposing.class_names == ("object",)
    missing = config.model_copy(update={"checkpoint": str(tmp_path / "none.safetensors")})
    with pytest.raises(CheckpointError, match="does not exist"):
        open_detector(missing)


@pytest.mark.parametrize("threads", [2, 3])
def test_forwards_side_by_side(detector: DenseDetector, threads: int) -> None:
    """One core each, the same answers to the last bit; torch here keeps its threads."""
    before = torch.get_num_threads()
    alone = answering(detector)
    options = PredictorOptions(bf16=False)
    beside = TorchPredictor(detector, CPU, options=options, threads=threads)
    assert alone.spread is map
    batches = [crops((side, 160)) for side in range(20, 161, 10)]
    list(beside.spread(beside, batches[:1], [LANE]))
    assert set(beside.spread(lambda _: torch.get_num_threads(), range(20))) == {1}
    assert torch.get_num_threads() == before
    torch.set_num_threads(1)
    try:
        wanted = [alone(batch, LANE) for batch in batches]
    finally:
        torch.set_num_threads(before)
    found = list(beside.spread(beside, batches, [LANE] * len(batches)))
    for (one,), (two,) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.boxes, two.boxes)
        np.testing.assert_array_equal(one.scores, two.scores)
        np.testing.assert_array_equal(one.focus, two.focus)


# ---- folding

NORMS = ("BatchNorm2d", "FrozenBatchNorm2d")


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
        if isinstance(detector, DenseDetector) and isinstance(other, DenseDetector):
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

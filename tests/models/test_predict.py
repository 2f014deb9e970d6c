"""The torch predictor: padding is grey, costs are counted, answers keep to their crop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from af_pipeline.core.lanes import Lane, LaneConfig
from af_pipeline.core.scales import Scale
from af_pipeline.core.stacking import StackRule
from af_pipeline.models.checkpoint import build_detector, load_detector, save_checkpoint
from af_pipeline.models.dense import AutoFocusDetector
from af_pipeline.models.info import CheckpointError, CheckpointInfo
from af_pipeline.models.predictor import (
    DeviceError,
    TorchPredictor,
    load_predictor,
    pad_batch,
    pick_device,
    use_bf16,
)
from af_pipeline.settings.index import IndexConfig
from af_pipeline.sniper.sample import PAD_VALUE

LANE = Lane(160, 192)
CPU = torch.device("cpu")
MODEL = {"backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head_depth": 1}


def crops(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def detector() -> AutoFocusDetector:
    """Untrained, but with spread scores, so that there is much to find."""
    torch.manual_seed(0)
    made = build_detector(MODEL, 3)
    assert isinstance(made, AutoFocusDetector)
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
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="device=cuda, but torch sees no GPU here: use"):
        pick_device("cuda")


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
@pytest.mark.parametrize("switch", [True, False])
def test_bf16_as_asked(switch: bool, device: torch.device) -> None:
    assert use_bf16(switch, device) is switch


def test_bf16_where_the_cpu_has_it() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists() or "flags" not in info.read_text():
        pytest.skip("no list of this CPU's instructions")
    flags = set(info.read_text().split())
    assert use_bf16("auto", CPU) == bool(flags & {"avx512_bf16", "amx_tile"})


# ---- predictions


@pytest.mark.parametrize("pad_to_lane", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_prediction_fits_its_crop(
    detector: AutoFocusDetector, pad_to_lane: bool, bf16: bool
) -> None:
    given = crops((160, 192), (90, 41), (33, 130), (1, 1))
    predictor = TorchPredictor(detector, CPU, bf16, pad_to_lane, min_score=0.0)
    answers = predictor(given, LANE)
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


def test_padding_to_the_lane_changes_shapes_alone(detector: AutoFocusDetector) -> None:
    """Of a crop alone: its own canvas is smaller, its answer covers the same cells."""
    (crop,) = crops((70, 50))
    (alone,) = TorchPredictor(detector, CPU, False)([crop], LANE)
    (padded,) = TorchPredictor(detector, CPU, False, pad_to_lane=True)([crop], LANE)
    assert alone.focus.shape == (6, 4)
    assert padded.focus.shape == (10, 12)
    assert alone.padded == 96 * 64 - 70 * 50
    assert padded.padded == 160 * 192 - 70 * 50
    for answer in (alone, padded):
        assert answer.focus[: -(-70 // 16), : -(-50 // 16)].shape == (5, 4)
        assert (answer.boxes[:, 2:] <= [50, 70]).all()
    np.testing.assert_allclose(padded.focus[:3, :2], alone.focus[:3, :2], atol=0.1)


def test_thresholds_reach_the_detector(detector: AutoFocusDetector) -> None:
    (crop,) = crops((96, 96))
    (every,) = TorchPredictor(detector, CPU, False, min_score=0.0, nms_iou=0.99)([crop], LANE)
    least = float(np.median(every.scores))
    (some,) = TorchPredictor(detector, CPU, False, min_score=least, nms_iou=0.99)([crop], LANE)
    assert 0 < len(some.scores) < len(every.scores)
    assert (some.scores >= least).all()
    (apart,) = TorchPredictor(detector, CPU, False, min_score=0.0, nms_iou=0.1)([crop], LANE)
    assert len(apart.scores) < len(every.scores)
    (none,) = TorchPredictor(detector, CPU, False, min_score=1.1)([crop], LANE)
    assert none.boxes.shape == (0, 4)


def test_proposals_instead_of_detections(detector: AutoFocusDetector) -> None:
    given = crops((96, 128), (50, 41))
    predictor = TorchPredictor(detector, CPU, False, proposals=True, min_score=1.1)
    wanted = TorchPredictor(detector, CPU, False).detector
    for crop, answer in zip(given, predictor(given, LANE), strict=True):
        assert 0 < len(answer.boxes) <= 300
        assert not answer.labels.any()
        assert answer.labels.dtype == np.int32
        assert (answer.boxes[:, 2:] <= [crop.shape[1], crop.shape[0]]).all()
        assert answer.focus.shape == (6, 8)
        assert not answer.focus.any()
    batch = torch.from_numpy(pad_batch(given, None)).permute(0, 3, 1, 2)
    first = wanted.proposals(batch, torch.tensor([[96, 128], [50, 41]]))[0]
    np.testing.assert_array_equal(predictor(given, LANE)[0].boxes, first.boxes.numpy())


@pytest.mark.parametrize("neck", ["fpn", "dilated"])
@pytest.mark.parametrize("bf16", [False, True])
def test_two_stages(neck: str, bf16: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODEL | {"kind": "faster_rcnn", "neck": neck, "anchor_sizes": [16, 32, 64]}
    path = tmp_path / "model.safetensors"
    state = build_detector(model, 2).state_dict()
    save_checkpoint(path, state, CheckpointInfo(model, ("a", "b"), {}))
    given = crops((96, 128), (50, 41))
    for proposals in (False, True):
        predictor = TorchPredictor(load_detector(path)[0], CPU, bf16, proposals=proposals)
        for crop, answer in zip(given, predictor(given, LANE), strict=True):
            assert len(answer.boxes)
            assert answer.boxes.dtype == answer.scores.dtype == np.float32
            assert (answer.boxes[:, 2:] <= [crop.shape[1], crop.shape[0]]).all()
            assert answer.focus.shape == (6, 8)


def test_a_predictor_from_a_config(detector: AutoFocusDetector, tmp_path: Path) -> None:
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
    loaded = load_predictor(config)
    options = {"min_score": 0.0, "nms_iou": 0.3, "max_detections": 30}
    wanted = TorchPredictor(detector, CPU, False, True, **options)
    given = crops((64, 96))
    (one,), (two,) = loaded(given, LANE), wanted(given, LANE)
    assert len(one.scores) == 30
    assert one.dropped > 0
    assert one.padded == LANE.pixels - 64 * 96
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
    np.testing.assert_allclose(one.focus, two.focus, atol=1e-4)
    proposing = load_predictor(config.model_copy(update={"finds": "proposals"}))
    assert (proposing(given, LANE)[0].labels == 0).all()
    missing = config.model_copy(update={"checkpoint": str(tmp_path / "none.safetensors")})
    with pytest.raises(CheckpointError, match="does not exist"):
        load_predictor(missing)


@pytest.mark.parametrize("threads", [2, 3])
def test_forwards_side_by_side(detector: AutoFocusDetector, threads: int) -> None:
    """One core each, the same answers to the last bit; torch here keeps its threads."""
    before = torch.get_num_threads()
    alone = TorchPredictor(detector, CPU, False)
    beside = TorchPredictor(detector, CPU, False, threads=threads)
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


def test_one_thread_is_a_plain_loop(detector: AutoFocusDetector) -> None:
    assert TorchPredictor(detector, CPU, False).spread is map

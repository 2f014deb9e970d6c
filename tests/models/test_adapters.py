"""ONNX files and functions under the cascade: small ones whose right answers are known."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

import af_pipeline
from af_pipeline.config import ConfigError
from af_pipeline.core.boxes import box_side
from af_pipeline.core.lanes import Lane
from af_pipeline.models.adapters.function import FunctionDetector
from af_pipeline.models.adapters.onnx import OnnxDetector
from af_pipeline.models.detector import Selection
from af_pipeline.models.foreign import ForeignPredictor
from af_pipeline.settings.detector import ForeignConfig
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import fit_lanes
from tests.helpers.onnx_models import bright_map, channel_means, listing, sized

UNIT = {"decoder": "text_map", "pad": 0, "mean": (0, 0, 0), "std": (255, 255, 255)}
CHOSEN = Selection(0.1, 0.5, 100)


def started(detector):
    """It as it reaches an actor: through pickle, then started."""
    sent = pickle.loads(pickle.dumps(detector))
    sent.start("cpu", 1)
    return sent


def opened(path, **config):
    return started(OnnxDetector(ForeignConfig(path=str(path), **config)))


def grown(x0, y0, x1, y1):
    """What a text map's decoder makes of a bright rectangle."""
    more = (x1 - x0) * (y1 - y0) * 1.5 / (2 * (x1 - x0 + y1 - y0))
    return [x0 - more, y0 - more, x1 + more, y1 + more]


def pictures(*rects, height=96, width=128):
    batch = np.full((len(rects), height, width, 3), 30, np.uint8)
    for one, (x0, y0, x1, y1) in zip(batch, rects, strict=True):
        one[y0:y1, x0:x1] = 204  # 0.8
    return batch


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["float", "float16", "uint8"])
@pytest.mark.parametrize("sides", [("h", "w"), (96, 128)])
@pytest.mark.parametrize("batch", [1, "n"])
def test_every_kind_of_input_finds_the_same(tmp_path, channels_last, kind, sides, batch):
    image = {"channels_last": channels_last, "kind": kind, "sides": sides, "batch": batch}
    detector = opened(bright_map(tmp_path / "m.onnx", **image), **UNIT)
    assert detector.shape == (None if sides == ("h", "w") else (96, 128))
    assert detector.class_names == ("text",)
    rects = [(16, 32, 40, 56), (80, 8, 104, 20), (8, 8, 20, 40)]
    for rect, (boxes, scores) in zip(rects, detector(pictures(*rects)), strict=True):
        assert boxes == pytest.approx(np.array([grown(*rect)]), rel=1e-5)
        assert scores == pytest.approx(np.array([[0.8]]), abs=1e-3)


@pytest.mark.parametrize(
    ("config", "means"),
    [
        ({"mean": (0, 0, 0), "std": (1, 1, 1)}, (10, 20, 40)),
        ({}, (10 / 255, 20 / 255, 40 / 255)),  # YOLOv8's own
        ({"colours": "bgr", "mean": (0, 0, 0), "std": (1, 1, 1)}, (40, 20, 10)),
        ({"colours": "bgr", "mean": (30, 10, 5), "std": (1, 2, 5)}, (10, 5, 1)),
        ({"mean": (5, 10, 30), "std": (5, 2, 1)}, (1, 5, 10)),
    ],
)
def test_channels_are_ordered_first_and_normalised_then(tmp_path, config, means):
    names = "{0: 'a', 1: 'b', 2: 'c'}"
    detector = opened(channel_means(tmp_path / "m.onnx", names=names), **config)
    assert detector.class_names == ("a", "b", "c")
    batch = np.full((2, 64, 96, 3), (10, 20, 40), np.uint8)
    batch[1] //= 2
    (boxes, scores), (_, halves) = detector(batch)
    assert boxes.tolist() == [[8, 16, 24, 48]]
    assert scores[0] == pytest.approx(np.array(means), rel=1e-5)
    assert not np.allclose(halves, scores)


def test_a_file_of_open_shapes_is_run_to_see_what_it_is(tmp_path):
    path = channel_means(tmp_path / "m.onnx", names="['a', 'b', 'c']", open_shape=True)
    assert opened(path).family_name == "yolov8"


LISTED = [[8, 16, 24, 48], [40, 40, 60, 44]]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("batch_axis", [True, False])
@pytest.mark.parametrize("layout", ["dets", "three", "six"])
def test_lists_with_and_without_a_batch_axis(tmp_path, layout, batch_axis, count):
    """A list of one box without a batch axis looks like a batch of one image."""
    boxes = np.array(LISTED[:count], np.float32).reshape(-1, 4)
    scores, labels = np.array([0.9, 0.4][:count]), np.array([1, 0][:count])
    answers = {
        "dets": {"dets": np.c_[boxes, scores], "labels": labels},
        "three": {"boxes": boxes, "labels": labels, "scores": scores},
        "six": {"out": np.c_[boxes, scores, labels]},
    }[layout]
    path = listing(tmp_path / "m.onnx", answers, batch_axis)
    decoder = "boxes" if layout == "six" else None
    detector = opened(path, decoder=decoder, class_names=("a", "b"))
    assert detector.suppresses
    for found, table in detector(pictures((0, 0, 1, 1), (0, 0, 1, 1))):
        assert found.tolist() == LISTED[:count]
        assert [(int(r.argmax()), round(float(r.max()), 3)) for r in table] == [
            (1, 0.9), (0, 0.4)
        ][:count]  # fmt: skip


def test_sizes_are_given_as_width_and_height(tmp_path):
    detector = opened(sized(tmp_path / "m.onnx"), class_names=("a", "b"))
    for boxes, scores in detector(np.zeros((2, 64, 96, 3), np.uint8)):
        assert boxes.tolist() == [[24, 32, 48, 64]]
        assert scores[0].tolist() == [0, pytest.approx(0.8)]


def test_a_prediction_holds_what_is_in_its_own_chip(tmp_path):
    """Not what lies in the padding; weak ones make the focus map only; overlaps of lists stay."""
    dets = [
        [8, 16, 24, 48, 0.9],
        [9, 16, 25, 48, 0.8],  # overlaps, and is left by the file's own NMS
        [40, 8, 60, 20, 0.05],
        [70, 10, 80, 20, 0.9],  # beside the smaller chip
        [50, 40, 100, 60, 0.7],  # reaches beyond it
    ]
    path = listing(tmp_path / "m.onnx", {"dets": dets, "labels": [0] * 5})
    config = ForeignConfig(path=path, class_names=("a",), focus_below=24)
    predict = ForeignPredictor(started(OnnxDetector(config)), config, CHOSEN)
    crops = [np.zeros((60, 64, 3), np.uint8), np.zeros((64, 96, 3), np.uint8)]
    small, large = predict(crops, Lane(96, 96))
    assert small.boxes.tolist() == [[8, 16, 24, 48], [9, 16, 25, 48], [50, 40, 64, 60]]
    assert len(large.boxes) == 4
    assert small.focus.shape == (4, 4)
    assert small.focus[0, 3] == pytest.approx(0.05)
    assert small.focus[1:3, 0:2] == pytest.approx(np.full((2, 2), 0.9))
    assert not small.focus[3, :2].any()
    assert (small.padded, large.padded) == (64 * 96 - 60 * 64, 0)
    least = replace(CHOSEN, min_score=0.75)
    assert len(ForeignPredictor(predict.detector, config, least)(crops, Lane(96, 96))[0].boxes) == 2


def test_a_score_bound_below_that_of_the_focus_map_counts(tmp_path):
    path = listing(tmp_path / "m.onnx", {"dets": [[8, 16, 24, 48, 0.003]], "labels": [0]})
    config = ForeignConfig(path=path, class_names=("a",))
    predict = ForeignPredictor(started(OnnxDetector(config)), config, Selection(0.001, 0.5, 9))
    assert len(predict([np.zeros((64, 64, 3), np.uint8)], Lane(64, 64))[0].boxes) == 1


def test_a_label_without_a_name_is_told(tmp_path):
    path = listing(tmp_path / "m.onnx", {"dets": [[8, 16, 24, 48, 0.9]], "labels": [1]})
    config = ForeignConfig(path=path, class_names=("a",))
    predict = ForeignPredictor(started(OnnxDetector(config)), config, CHOSEN)
    with pytest.raises(ValueError, match="label 1, and only 1 classes are named"):
        predict([np.zeros((64, 64, 3), np.uint8)], Lane(64, 64))


# ---- the whole way


@pytest.fixture(params=["dynamic", "fixed", "function"])
def recipe(request, tmp_path):
    detector = {"path": "tests.helpers.bright:load"}
    if request.param != "function":
        sides = ("h", "w") if request.param == "dynamic" else (256, 320)
        path = bright_map(tmp_path / "m.onnx", sides=sides)
        detector = {"path": path, **UNIT}
    config = {
        "detector": detector,
        "device": "cpu",
        "pyramid": [{"factor": 0.5}, {"factor": 1.0}],
        "focus": {"steps": [{"threshold": 0.1, "dilation": 3, "min_size": 64}]},
        "tiles": {"side": 256, "overlap": 64},
        "stack": {"method": "hard", "iou": 0.5, "min_score": 0.3},
    }
    place = tmp_path / "config.yaml"
    place.write_text(json.dumps(config))  # JSON is YAML too
    return request.param, place


@pytest.mark.parametrize("mode", ["whole", "pyramid", "tiles", "autofocus"])
def test_every_mode_finds_the_object_once(recipe, mode):
    image = np.full((600, 720, 3), 30, np.uint8)
    rect = (400, 240, 424, 264)
    image[rect[1] : rect[3], rect[0] : rect[2]] = 230
    kind, place = recipe
    model = af_pipeline.load(place, mode)
    found = model.detect(image)
    assert len(found) == 1
    middle = (found.boxes[0, :2] + found.boxes[0, 2:]) / 2
    assert middle == pytest.approx([412, 252], abs=1)
    side = 24 if kind == "function" else 42  # text regions grow back
    assert box_side(found.boxes)[0] == pytest.approx(side, abs=2)
    if mode == "autofocus":
        assert len(found.chips) == 1
        assert found.pixels_processed < 0.6 * found.pixels_pyramid
    assert (model.config.lanes.sides == (256,)) == (kind == "fixed")


# ---- lanes of a fixed input


@pytest.mark.parametrize(
    ("shape", "side", "overlap"),
    [((640, 640), 640, 128), ((480, 640), 480, 120), ((300, 300), 288, 72), ((100, 100), 96, 0)],
)
def test_a_fixed_input_gets_its_lanes(shape, side, overlap):
    config = IndexConfig(pyramid=[{"factor": 1.0}], mode="whole")
    lanes = fit_lanes(config, shape).lanes
    assert (lanes.sides, lanes.overlap, lanes.pad, lanes.fill) == ((side,), overlap, True, True)
    type(lanes).model_validate(lanes.model_dump())  # what a user could have written


def test_lanes_that_fit_stay_and_others_are_refused():
    given = {"sides": [128, 256], "overlap": 64}
    config = IndexConfig(pyramid=[{"factor": 1.0}], mode="whole", lanes=given)
    assert fit_lanes(config, None) is config
    assert fit_lanes(config, (256, 300)) is config
    with pytest.raises(ConfigError, match=r"go to 256: leave lanes\.sides out of the config"):
        fit_lanes(config, (250, 300))
    with pytest.raises(ConfigError, match="sides of 96 at least are needed"):
        fit_lanes(IndexConfig(pyramid=[{"factor": 1.0}], mode="whole"), (64, 640))


# ---- functions


def test_a_function_answers_as_it_does(tmp_path):
    detector = started(FunctionDetector(ForeignConfig(path="tests.helpers.bright:load")))
    assert detector.class_names == ("patch",)
    batch = pictures((16, 32, 40, 56), (80, 8, 104, 20))
    (boxes, scores), (other, _) = detector(batch)
    assert boxes.tolist() == [[16, 32, 40, 56]]
    assert other.tolist() == [[80, 8, 104, 20]]
    assert scores == pytest.approx(np.array([[0.9]]))

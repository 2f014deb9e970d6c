"""What is wrong with a detector of another maker is told in one line, before anything starts."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper

import af_pipeline
from af_pipeline.config import ConfigError
from af_pipeline.models.adapters.function import FunctionDetector
from af_pipeline.models.info import CheckpointError
from af_pipeline.settings.detector import ForeignConfig
from tests.helpers.onnx_models import bright_map, channel_means, listing

SSD = "ssdlite320_mobilenet_v3_large"
NAMES = "['a', 'b', 'c']"


def told(tmp_path, detector, **settings):
    """The line that `af_pipeline.load` refuses it with."""
    config = {"detector": detector, "device": "cpu", "mode": "whole", "pyramid": [{"factor": 1}]}
    place = tmp_path / "config.yaml"
    place.write_text(json.dumps(config | settings))
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        af_pipeline.load(place)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 700
    return said


# ---- ONNX


def two_images(path):
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 64, 64]) for name in "ab"
    ]
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 3, 64, 64])
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["o"])], "g", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
              path)  # fmt: skip


def shares(path):
    listing(path, {"boxes": [[0.1, 0.1, 0.5, 0.5]], "labels": [0], "scores": [0.9]})


ONNX = [
    ("missing", lambda path: None, {}, "cannot be read: No such file"),
    ("not ONNX", lambda path: path.write_bytes(b"no graph"), {}, "is not an ONNX file that runs"),
    ("unknown outputs", bright_map, {}, "set detector.decoder to one of yolox, "),
    ("wrong decoder", bright_map, {"decoder": "yolox"}, "does not look like yolox: expected one"),
    ("unknown decoder", bright_map, {"decoder": "yolo9"}, "detector.decoder"),
    ("two images", two_images, {}, "expected one image [batch, 3, height, width]"),
    ("batches of 4", lambda path: bright_map(path, batch=4), {}, "takes batches of 4 only"),
    ("no names", channel_means, {"decoder": "yolov8"}, "name its 3 classes: set detector.class_n"),
    ("no names of a list", lambda path: listing(path, {"dets": [[1, 1, 9, 9, 1]], "labels": [0]}),
     {}, "does not name its classes: set detector.class_names"),
    ("other names", channel_means, {"decoder": "yolov8", "class_names": ["a"]},
     "finds 3 classes, and 1 are named (a): set detector.class_names"),
    ("fewer names than the file's", lambda path: channel_means(path, names=NAMES),
     {"class_names": ["a", "b"]}, "finds 3 classes, and 2 are named"),
    ("boxes in shares", shares, {"class_names": ["a"]}, "lists boxes as shares of the image"),
    ("a width that is not run", lambda path: bright_map(path, sides=(64, "w")),
     {"decoder": "text_map", "multiple": 40}, "does not run on an input of 80x80 px"),
    ("std of 0", bright_map, {"std": [1, 0, 1]}, "std holds a 0"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "config", "says"), [one[1:] for one in ONNX],
                         ids=[one[0] for one in ONNX])  # fmt: skip
def test_onnx_files_that_cannot_be_used(tmp_path, write, config, says):
    path = tmp_path / "m.onnx"
    write(path)
    assert says in told(tmp_path, {"path": str(path), **config})


def test_lanes_beyond_a_fixed_input(tmp_path):
    path = bright_map(tmp_path / "m.onnx", sides=(256, 320))
    detector = {"path": path, "decoder": "text_map"}
    said = told(tmp_path, detector, lanes={"sides": [256, 512]})
    assert "takes inputs of 256x320 px only, and lanes.sides go to 512" in said
    assert "leave lanes.sides out of the config, or end them at 256" in said


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [
        ("onnxruntime", "m.onnx", "onnx"),
        ("transformers", "folder", "huggingface"),
        ("ultralytics", "m.pt", "ultralytics"),
    ],
)
def test_a_library_that_is_not_installed(tmp_path, monkeypatch, library, name, extra):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, library, None)  # its import raises ImportError
    said = told(tmp_path, {"path": str(tmp_path / name), "allow_pickle": True})
    assert f"pip install 'af_pipeline[{extra}]'" in said


# ---- pickles


class Mark:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("write", [
    lambda value, path: torch.save({"model": value}, path),
    lambda value, path: path.write_bytes(pickle.dumps(value)),
])  # fmt: skip
@pytest.mark.parametrize("name", ["m.pth", "m.pt"])
def test_code_in_weights_does_not_run(tmp_path, write, name):
    mark, path = tmp_path / "ran", tmp_path / name
    write(Mark(mark), path)
    more = {"constructor": SSD, "class_names": ["a"]} if name == "m.pth" else {}
    said = told(tmp_path, {"path": str(path), **more})
    assert ("no state dict" if name == "m.pth" else "detector.allow_pickle=true if you") in said
    assert not mark.exists()


# ---- torchvision


def state(path, classes=3):
    build = getattr(torchvision.models.detection, SSD)
    model = build(weights=None, weights_backbone=None, num_classes=classes)
    torch.save(model.state_dict(), path)


def other_state(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def list_of_numbers(path):
    torch.save([1, 2], path)


TORCHVISION = [
    ("missing", lambda path: None, {}, "cannot be read: No such file"),
    ("no constructor", state, {"constructor": ""}, "set detector.constructor="),
    ("unknown constructor", state, {"constructor": "yolo"}, "has no 'yolo'"),
    ("no constructor of a model", state, {"constructor": "FasterRCNN"}, "cannot be built with"),
    ("no function", state, {"constructor": "_utils"}, "has no '_utils'"),
    ("wrong argument", state, {"arguments": {"box_score_thresh": 0}}, "takes no box_score_thresh"),
    ("argument of another kind", state, {"arguments": {"norm_layer": 3}}, "cannot be built with"),
    ("number of classes", state, {"arguments": {"num_classes": 4}}, "leave it out"),
    ("no names", state, {"class_names": []}, "set detector.class_names"),
    ("more names", state, {"class_names": ["a", "b", "c"]}, "with 3 classes and the background"),
    ("another model", other_state, {}, "does not fit ssdlite320"),
    ("no state dict", list_of_numbers, {}, "does not fit ssdlite320"),
    ("no file of torch", lambda path: path.write_bytes(b"x"), {}, "is no state dict"),
]


@pytest.mark.parametrize(("write", "config", "says"), [one[1:] for one in TORCHVISION],
                         ids=[one[0] for one in TORCHVISION])  # fmt: skip
def test_torchvision_models_that_cannot_be_used(tmp_path, write, config, says):
    path = tmp_path / "m.pth"
    write(path)
    known = {"kind": "torchvision", "constructor": SSD, "class_names": ["a", "b"]}
    assert says in told(tmp_path, {"path": str(path), **known, **config})


# ---- Hugging Face


@pytest.mark.parametrize(
    ("files", "config"),
    [
        ({}, {}),
        ({"config.json": '{"model_type": "bert"}'}, {}),
        ({"config.json": '{"model_type": "yolos"}'}, {}),
        ({"config.json": '{"model_type": "yolos"}'}, {"prompts": ["cat"]}),
    ],
)
def test_folders_that_hold_no_detector(tmp_path, files, config):
    pytest.importorskip("transformers")
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    said = told(tmp_path, {"path": str(folder), **config})
    assert "is no detector that transformers can load" in said


def test_other_names_than_a_folder_has(tmp_path):
    hf = pytest.importorskip("transformers")
    config = hf.YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=[64, 96], num_detection_tokens=4, id2label={0: "a", 1: "b"},
    )  # fmt: skip
    hf.YolosForObjectDetection(config).save_pretrained(tmp_path / "m")
    hf.YolosImageProcessor().save_pretrained(tmp_path / "m")
    said = told(tmp_path, {"path": str(tmp_path / "m"), "class_names": ["a"]})
    assert "finds 2 classes, and 1 are named" in said


# ---- functions

MODULE = """
def raises(device): raise RuntimeError("no\\nmodel")
def nothing(device): return None
def nameless(device): return lambda batch: []
def one_name(device):
    def detect(batch): return ANSWER
    detect.class_names = "car"
    return detect
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A name that no other test imports."""
    name = f"detector_{abs(hash(str(tmp_path)))}"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("missing", "cannot be imported"),
        ("raises", "failed: RuntimeError"),
        ("nothing", "returns no function"),
        ("nameless", "without class_names: give it some, or set detector.class_names"),
    ],
)
def test_functions_that_cannot_be_used(tmp_path, module, function, says):
    assert says in told(tmp_path, {"path": f"{module}:{function}"})


@pytest.mark.parametrize("text", ["1 / 0", "import not_installed", "def ("])
def test_modules_that_cannot_be_imported(tmp_path, module, text):
    (tmp_path / f"{module}.py").write_text(text)
    assert "cannot be imported" in told(tmp_path, {"path": f"{module}:load"})
    assert "cannot be imported" in told(tmp_path, {"path": f"no_{module}:load"})


BOX, ONE, LABEL = np.zeros((1, 4)), np.ones(1), np.zeros(1, int)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "gave a NoneType to 1 images"),
        ([], "gave a list of 0 to 1 images"),
        ([(BOX, ONE, LABEL)] * 2, "gave a list of 2 to 1 images"),
        ([(BOX, ONE)], "gave a tuple of 2 for an image"),
        ([None], "gave a NoneType for an image"),
        ([(BOX, 0.5, LABEL)], "expected [n, 4], [n] and [n]"),
        ([(BOX[:, :3], ONE, LABEL)], "boxes (1, 3), scores (1,) and labels (1,): expected"),
        ([(BOX, ONE, np.zeros((1, 1)))], "expected [n, 4], [n] and [n]"),
        ([(BOX, ONE, LABEL + 1)], "gave labels 1 to 1, and there are 1 class_names"),
        ([(BOX, ONE, LABEL - 1)], "gave labels -1 to -1"),
    ],
)
def test_wrong_answers_of_a_function(tmp_path, module, answer, says):
    config = {"path": f"{module}:one_name"}
    detector = FunctionDetector(ForeignConfig(**config))
    assert detector.class_names == ("car",)
    detector.start("cpu", 1)
    sys.modules[module].ANSWER = answer
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is what counts)
        detector(np.zeros((1, 32, 32, 3), np.uint8))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a.onnx", "onnx"),
        ("m.pt", "ultralytics"),
        ("package.module:load", "callable"),
        ("folder/model/", "huggingface"),
        ("facebook/detr-resnet-50", "huggingface"),
    ],
)
def test_what_reads_it_follows_from_the_path(path, kind):
    assert ForeignConfig(path=path).reader == kind


def test_a_path_that_does_not_say_what_reads_it(tmp_path):
    said = told(tmp_path, {"path": "model.bin"})
    assert "set detector.kind to onnx, torchvision, huggingface, ultralytics or callable" in said

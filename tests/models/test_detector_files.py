"""Files of other makers, as they are published, on real photographs and their ground truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch import from_numpy
from torchvision.ops import box_iou

import af_pipeline
from tests.helpers.realdata import real_data

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "index"
PHOTO = "000000000785.jpg"  # a skier


def opened(tmp_path, file, config, **settings):
    """A model of a file, by a config of the repository or by a section of its own."""
    place = real_data("detectors") / file
    if not place.is_file():
        pytest.skip(f"{place} is not there")
    if isinstance(config, str):
        given = CONFIGS / config
        settings["detector__path"] = str(place)
    else:
        given = tmp_path / "config.yaml"
        whole = {"mode": "whole", "pyramid": [{"max_side": 640}]}
        given.write_text(json.dumps({"detector": {"path": str(place), **config}, **whole}))
    return af_pipeline.load(given, device="cpu", **settings)


def annotations(name, photo):
    """The photograph and what is known of it: COCO's annotations."""
    folder = real_data(name)
    known = json.loads((folder / "val.json").read_text())
    (number,) = (one["id"] for one in known["images"] if one["file_name"] == photo)
    own = [one for one in known["annotations"] if one["image_id"] == number]
    return folder / "images" / photo, own


def corners(own):
    boxes = np.array([one["bbox"] for one in own], np.float32)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def overlaps(found, boxes):
    return box_iou(from_numpy(np.asarray(boxes)), from_numpy(found)).numpy()


def family(model):
    return model.predict.detector.family_name


COCO = ["person", *(f"class {number}" for number in range(1, 80))]


@pytest.mark.parametrize(
    ("file", "config", "decoder", "shape"),
    [
        ("yolox_nano/yolox_nano.onnx", "coco_yolox.yaml", "yolox", (416,)),
        ("rtmdet_nano_person/end2end.onnx", "persons_rtmdet.yaml", "boxes", None),
        ("fastestdet/FastestDet.onnx", {"decoder": "fastestdet", "class_names": COCO},
         "fastestdet", (352,)),
    ],
)  # fmt: skip
def test_a_person_is_found(tmp_path, file, config, decoder, shape):
    model = opened(tmp_path, file, config)
    assert shape is None or model.config.lanes.sides == shape
    photo, own = annotations("keypoints", PHOTO)
    found = model.detect(photo)
    sure = (found.scores > 0.5) & (found.labels == 0)
    assert model.class_names[0] == "person"
    assert sure.sum() == len(own) == 1
    assert overlaps(found.boxes[sure], corners(own)).max() > 0.7
    assert family(model) == decoder


@pytest.mark.parametrize(
    ("file", "config", "decoder"),
    [
        ("yunet/yunet_n_dynamic.onnx", "faces_yunet.yaml", "yunet"),
        ("yunet/yunet_n_640_640.onnx", {"class_names": ["face"]}, "yunet"),
        ("ultraface/version-RFB-640.onnx", {"class_names": ["face"]}, "ssd"),
    ],
)
def test_a_face_is_found(tmp_path, file, config, decoder):
    """The surest is around the skier's nose, and no larger than half of the skier."""
    model = opened(tmp_path, file, config)
    photo, own = annotations("keypoints", PHOTO)
    found = model.detect(photo)
    x, y = own[0]["keypoints"][:2]
    x0, y0, x1, y1 = found.boxes[0]
    assert found.scores[0] > 0.6
    assert x0 < x < x1
    assert y0 < y < y1
    assert x1 - x0 < own[0]["bbox"][2] / 2
    assert (found.scores > 0.6).sum() == 1
    assert family(model) == decoder


def test_lines_of_a_receipt_are_found(tmp_path):
    model = opened(tmp_path, "ppocr_text/ch_PP-OCRv3_det_infer.onnx", "receipts_ppocr.yaml")
    photo, own = annotations("receipts", "011.jpg")
    found = model.detect(photo)
    assert model.class_names == ("text",)
    assert family(model) == "text_map"
    assert (overlaps(found.boxes, corners(own)).max(1) > 0.5).mean() > 0.9

"""coco: annotations arrive as written, and wrong ones are all named before anything runs."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from af_pipeline.data.access import SourceError
from af_pipeline.data.annotations.dataset import AnnotationError
from af_pipeline.data.sources.open import list_images
from tests.helpers.realdata import real_data
from tests.helpers.truth import load


def document() -> dict[str, Any]:
    return {
        "categories": [{"id": 7, "name": "truck"}, {"id": 3, "name": "car"}],
        "images": [
            {"id": 10, "file_name": "b.jpg", "width": 100, "height": 50},
            {"id": 11, "file_name": "sub/a.jpg", "width": 20, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 3, "bbox": [90, -5, 20, 70], "iscrowd": 1},
        ],
    }


def write(folder: Path, content: object) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(content))
    return path


def message(folder: Path, content: object) -> str:
    path = write(folder, content)
    with pytest.raises(AnnotationError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_boxes_labels_and_classes(tmp_path: Path) -> None:
    data = load(write(tmp_path, document()))
    assert data.class_names == ("car", "truck")
    assert data.category_ids == (3, 7)
    first, second = data.images
    assert (first.image_id, first.width, first.height) == ("b.jpg", 100, 50)
    assert first.uri == str(tmp_path / "b.jpg")
    np.testing.assert_array_equal(first.boxes, [[1, 2, 4.5, 6], [90, 0, 100, 50]])
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert second.image_id == "sub/a.jpg"
    assert second.boxes.shape == (0, 4)
    for image in data.images:
        assert image.boxes.dtype == np.float32
        assert image.labels.dtype == np.int32
        assert image.crowd.dtype == np.bool_
        assert len(image.boxes) == len(image.labels) == len(image.crowd)


def test_crowd_and_annotation_id_may_be_missing(tmp_path: Path) -> None:
    content = document()
    del content["annotations"][0]["iscrowd"], content["annotations"][0]["id"]
    assert load(write(tmp_path, content)).images[0].crowd.tolist() == [False, True]


def test_no_annotations_at_all(tmp_path: Path) -> None:
    data = load(write(tmp_path, {**document(), "annotations": []}))
    assert [len(image.boxes) for image in data.images] == [0, 0]


def test_image_ids_may_be_strings(tmp_path: Path) -> None:
    content = document()
    for entry in (content["images"][0], *content["annotations"]):
        entry["id" if "width" in entry else "image_id"] = "ten"
    assert len(load(write(tmp_path, content)).images[0].boxes) == 2


def test_images_are_found_like_in_a_listing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.jpg").touch()
    path = write(tmp_path, document())
    uris = [image.uri for image in load(path).images]
    assert uris == [str(tmp_path / "images" / name) for name in ("b.jpg", "sub/a.jpg")]
    uris = [image.uri for image in load(str(path), images="s3://bucket/x/").images]
    assert uris == ["s3://bucket/x/b.jpg", "s3://bucket/x/sub/a.jpg"]


BAD_BOXES = [
    ([1, 2, 0, 4], "not positive"),
    ([1, 2, 3, -4], "not positive"),
    ([float("nan"), 2, 3, 4], "not finite"),
    ([1, float("inf"), 3, 4], "not finite"),
    ([1, 2, 10**400, 4], "not finite"),
    ([1, 2, 3], "expected 4 numbers"),
    ([1, 2, 3, "4"], "expected 4 numbers"),
    ([1, 2, 3, True], "expected 4 numbers"),
    (None, "expected 4 numbers"),
    ([100, 2, 3, 4], "no area inside its image (100x50)"),
    ([-3, 2, 3, 4], "no area inside its image"),
    ([1, 50, 3, 4], "no area inside its image"),
    ([1, -9, 3, 4], "no area inside its image"),
    ([50, 2, 1e-9, 4], "no area inside its image"),
]


@pytest.mark.parametrize(("bbox", "problem"), BAD_BOXES)
def test_bad_boxes_are_named(tmp_path: Path, bbox: object, problem: str) -> None:
    content = document()
    content["annotations"][1]["bbox"] = bbox
    text = message(tmp_path, content)
    assert all(part in text for part in ("1 problem:", "annotation 2 has the bbox", problem))


BAD_ENTRIES = [
    ("annotations", 0, {"image_id": 99}, "annotation 1 belongs to the unknown image_id 99"),
    ("annotations", 0, {"category_id": 1}, "annotation 1 has the unknown category_id 1"),
    ("annotations", 0, {"category_id": "7"}, "annotation 1 category_id is '7'"),
    ("annotations", 0, {"image_id": [10]}, "annotation 1 image_id is [10]"),
    ("images", 1, {"id": 10}, "image 10 id is used twice"),
    ("images", 1, {"file_name": "b.jpg"}, "image 11 file_name 'b.jpg' is used twice"),
    ("images", 1, {"file_name": ""}, "image 11 file_name is ''"),
    ("images", 1, {"width": 0}, "image 11 has the size 0x30"),
    ("images", 1, {"width": 10**400}, "image 11 has the size 1000"),
    ("images", 1, {"height": 2.5}, "image 11 height is 2.5"),
    ("images", 1, {"width": True}, "image 11 width is True"),
    ("categories", 1, {"id": 7}, "category 7 id is used twice"),
    ("categories", 1, {"name": None}, "category 3 name is None"),
    ("categories", 1, {"id": None}, "category None id is None"),
]


@pytest.mark.parametrize(("section", "index", "change", "problem"), BAD_ENTRIES)
def test_bad_entries_are_named(
    tmp_path: Path, section: str, index: int, change: dict[str, Any], problem: str
) -> None:
    content = document()
    content[section][index].update(change)
    assert problem in message(tmp_path, content)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("annotations", "bbox"),
        ("images", "id"),
        ("images", "file_name"),
        ("images", "width"),
        ("images", "height"),
        ("categories", "id"),
        ("categories", "name"),
    ],
)
def test_missing_keys_are_named(tmp_path: Path, section: str, key: str) -> None:
    content = document()
    del content[section][0][key]
    assert f"has no '{key}'" in message(tmp_path, content)


@pytest.mark.parametrize("section", ["annotations", "images", "categories"])
def test_missing_sections_and_entries_of_another_kind(tmp_path: Path, section: str) -> None:
    content = document()
    content[section].append("x")
    assert "at position 2 is not an object" in message(tmp_path, content)
    content[section] = {}
    assert f"no list '{section}'" in message(tmp_path, content)
    del content[section]
    assert f"no list '{section}'" in message(tmp_path, content)


def test_all_problems_are_counted_ten_shown(tmp_path: Path) -> None:
    content = document()
    good = content["annotations"][0]
    for number in range(25):
        content["annotations"].append({**deepcopy(good), "id": 100 + number, "bbox": [0, 0, 0, 0]})
    content["images"][1]["width"] = -1
    text = message(tmp_path, content)
    assert "26 problems:" in text
    assert "... and 16 more" in text
    assert text.count("\n") == 11
    assert "image 11" in text
    assert "annotation 108" in text
    assert "annotation 109" not in text


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_files_that_are_no_coco(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(AnnotationError, match=r"x\.json"):
        load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"nothing at .*gone\.json"):
        load(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("folder", "name", "images", "boxes", "classes"),
    [
        ("aerial-cars", "train", 78, 1803, 5),
        ("aerial-cars", "val", 23, 906, 5),
        ("coco128", "val", 128, 898, 80),
        ("coco128", "val_masks", 100, 712, 80),
    ],
)
def test_real_files(folder: str, name: str, images: int, boxes: int, classes: int) -> None:
    path = real_data(folder) / f"{name}.json"
    data = load(path)
    assert len(data.images) == images
    assert sum(len(image.boxes) for image in data.images) == boxes
    assert len(data.class_names) == len(data.category_ids) == classes
    raw = json.loads(path.read_text())
    names = {entry["id"]: entry["name"] for entry in raw["categories"]}
    counts = dict.fromkeys(names.values(), 0)
    for entry in raw["annotations"]:
        counts[names[entry["category_id"]]] += 1
    labels = np.concatenate([image.labels for image in data.images])
    found = np.bincount(labels, minlength=classes).tolist()
    assert dict(zip(data.class_names, found, strict=True)) == counts
    for image in data.images:
        assert Path(image.uri).is_file()
        x1, y1, x2, y2 = image.boxes.T
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= image.width)).all()
        assert ((y1 >= 0) & (y1 < y2) & (y2 <= image.height)).all()


@pytest.mark.parametrize("name", ["https://u:geheim@h/x.jpg", "s3://AKIA:gehe/im@b/x.jpg"])
def test_file_names_with_secrets_are_refused(tmp_path: Path, name: str) -> None:
    content = document()
    content["images"][0]["file_name"] = name
    text = message(tmp_path, content)
    assert "image 10 has a file_name with a user or a secret" in text
    with pytest.raises(SourceError, match=r"images\[0\] has a file_name with a user") as caught:
        list_images(str(tmp_path / "x.json"))
    assert "gehe" not in text + str(caught.value)


def test_names_used_twice_are_shown_without_signatures(tmp_path: Path) -> None:
    content = document()
    for entry in content["images"]:
        entry["file_name"] = "https://h/x.jpg?sig=geheim"
    text = message(tmp_path, content)
    with pytest.raises(SourceError, match="twice") as caught:
        list_images(str(tmp_path / "x.json"))
    assert "https://h/x.jpg?..." in text
    assert "geheim" not in text + str(caught.value)

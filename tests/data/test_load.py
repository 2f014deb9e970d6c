"""load: any kind of annotations, several of them as one, and back to a COCO ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotationError
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.evaluation.coco import evaluate_detections
from tests.helpers.realdata import real_data


def coco(path: Path, name: str, *labels: str, categories: dict[int, str] | None = None) -> str:
    """A COCO file with one image and one box a label."""
    named = categories or {7 + n: label for n, label in enumerate(dict.fromkeys(labels))}
    ids = {label: number for number, label in named.items()}
    content = {
        "categories": [{"id": number, "name": label} for number, label in named.items()],
        "images": [{"id": 1, "file_name": name, "width": 100, "height": 50}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": ids[label], "bbox": [1 + n, 2, 30.5, 4]}
            for n, label in enumerate(labels)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def voc(root: Path, name: str, label: str) -> str:
    """A VOC folder with one image and one box."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    box = "<xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax>"
    thing = f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
    size = "<size><width>100</width><height>50</height></size>"
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{thing}</annotation>")
    (root / f"JPEGImages/{name}.jpg").write_bytes(b"x")
    (root / "ImageSets/Main/trainval.txt").write_text(name)
    return str(root / "ImageSets/Main/trainval.txt")


def parquet(path: Path, name: str, label: str, **more: Any) -> str:
    row = {"image": name, "label": label, "x0": 1.0, "y0": 2.0, "x1": 8.0, "y1": 9.0}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row | {"width": 100, "height": 50} | more]), path)
    return str(path)


def labels_of(data: AnnotatedDataset) -> list[list[str]]:
    return [[data.class_names[label] for label in image.labels] for image in data.images]


def test_each_kind_alone(tmp_path: Path) -> None:
    one = load_annotations([coco(tmp_path / "c.json", "a.jpg", "dog", "cat")])
    assert (one.class_names, one.category_ids) == (("dog", "cat"), (7, 8))
    two = load_annotations([voc(tmp_path / "VOC", "a", "cat")])
    assert (two.class_names, two.images[0].image_id) == (("cat",), "a.jpg")
    table = parquet(tmp_path / "t/x.parquet", "a.jpg", "cat")
    for path in (table, str(tmp_path / "t")):
        assert load_annotations([path]).images[0].uri == str(tmp_path / "t/a.jpg")


def test_merged_kinds_share_classes_by_name(tmp_path: Path) -> None:
    paths = [
        coco(tmp_path / "c.json", "a.jpg", "dog", "cat", "dog"),
        voc(tmp_path / "VOC", "b", "cat"),
        parquet(tmp_path / "x.parquet", "c.jpg", "bird"),
    ]
    data = load_annotations(paths)
    assert (data.class_names, data.category_ids) == (("dog", "cat", "bird"), (1, 2, 3))
    assert labels_of(data) == [["dog", "cat", "dog"], ["cat"], ["bird"]]
    assert [image.image_id for image in data.images] == ["a.jpg", "b.jpg", "c.jpg"]
    assert data.images[1].labels.dtype == np.int32
    ordered = load_annotations(paths, classes=("bird", "cat", "fish", "dog"))
    assert ordered.class_names == ("bird", "cat", "fish", "dog")
    assert labels_of(ordered) == labels_of(data)


def test_classes_for_one_coco_file_keep_its_ids(tmp_path: Path) -> None:
    path = coco(tmp_path / "c.json", "a.jpg", "dog", "cat")
    data = load_annotations([path], classes=("cat", "dog"))
    assert data.category_ids == (8, 7)
    assert labels_of(data) == [["dog", "cat"]]
    assert load_annotations([path], classes=("cat", "dog", "cow")).category_ids == (1, 2, 3)


def test_classes_never_leave_anything_out(tmp_path: Path) -> None:
    path = coco(tmp_path / "c.json", "a.jpg", "dog", "cat")
    with pytest.raises(AnnotationError, match=r"c\.json: 1 of its classes .*\(dog\): 'cat'"):
        load_annotations([path], classes=("dog",), on_broken="drop")


def test_classes_that_share_a_name_become_one_when_merged(tmp_path: Path) -> None:
    path = coco(tmp_path / "c.json", "a.jpg", "dog", categories={1: "dog", 2: "dog"})
    data = load_annotations([path, coco(tmp_path / "d.json", "b.jpg", "dog")])
    assert data.class_names == ("dog",)
    assert [image.labels.tolist() for image in data.images] == [[0], [0]]


def test_equal_image_ids_get_their_folder_in_front(tmp_path: Path) -> None:
    paths = [
        voc(tmp_path / "VOC2007", "a", "cat"),
        voc(tmp_path / "VOC2012", "a", "cat"),
        parquet(tmp_path / "more/x.parquet", "b.jpg", "cat"),
    ]
    data = load_annotations(paths)
    ids = [image.image_id for image in data.images]
    assert ids == ["VOC2007/a.jpg", "VOC2012/a.jpg", "more/b.jpg"]
    uris = [image.uri for image in data.images]
    assert uris[1] == str(tmp_path / "VOC2012/JPEGImages/a.jpg")


def test_the_same_image_in_two_files_is_an_error(tmp_path: Path) -> None:
    paths = [coco(tmp_path / f"{name}.json", "a.jpg", "dog") for name in ("train", "val")]
    folder = tmp_path.name
    with pytest.raises(AnnotationError, match=rf"'{folder}/a.jpg' is in .*train.json and in .*val"):
        load_annotations(paths)


@pytest.mark.parametrize("path", ["x.toml", "VOC/Main/x.txt", "gone", "memory://gone/x"])
def test_other_files_are_refused(path: str) -> None:
    with pytest.raises(AnnotationError, match=r"give a COCO \.json, a VOC image set.*parquet"):
        load_annotations([path])


def test_no_path_at_all() -> None:
    with pytest.raises(AnnotationError, match="name at least one"):
        load_annotations([])


def test_broken_boxes_of_all_files_are_noted(tmp_path: Path) -> None:
    paths = [
        parquet(tmp_path / "a/x.parquet", "a.jpg", "cat", x1=0.0),
        parquet(tmp_path / "b/y.parquet", "b.jpg", "cat", x0=None),
    ]
    with pytest.raises(AnnotationError, match=r"x\.parquet row 0"):
        load_annotations(paths)
    data = load_annotations(paths, on_broken="drop")
    assert [entry.split(": ")[0] for entry in data.dropped] == paths
    assert [len(image.boxes) for image in data.images] == [0, 0]


def test_broken_coco_annotations_can_be_dropped(tmp_path: Path) -> None:
    path = Path(coco(tmp_path / "c.json", "a.jpg", "dog", "cat"))
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    content["annotations"].append({"id": 9, "image_id": 5})
    path.write_text(json.dumps(content))
    data = load_annotations([str(path)], on_broken="drop")
    assert labels_of(data) == [["cat"]]
    assert data.dropped == (
        f"{path}: annotation 9 has no 'category_id'",
        f"{path}: annotation 0 has the bbox [1, 2, 0, 4], whose width or height is not positive",
    )
    content["images"][0]["width"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="1 problem:\n  image 1 has the size 0x50"):
        load_annotations([str(path)], on_broken="drop")


def test_real_voc_serves_the_evaluation() -> None:
    path = real_data("bccd") / "ImageSets/Main/trainval.txt"
    data = load_annotations([str(path)], on_broken="drop")
    rows = [
        {"image_id": image.image_id, "label": data.class_names[label], "score": 0.9}
        | dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        for image in data.images[:40]
        for box, label in zip(image.boxes.tolist(), image.labels.tolist(), strict=True)
    ]
    truth = data.with_images(data.images[:40])
    scores = evaluate_detections(truth, pa.Table.from_pylist(rows))
    assert scores.overall["AP"] == pytest.approx(1.0)
    assert list(scores.per_class) == ["Platelets", "RBC", "WBC"]


def test_two_sets_of_one_real_folder_do_not_overlap() -> None:
    folder = real_data("bccd") / "ImageSets/Main"
    data = load_annotations([str(folder / f"{n}.txt") for n in ("train", "val")], on_broken="drop")
    assert len(data.images) == 292
    with pytest.raises(AnnotationError, match=r"87 problems.*\n.* is in .* and in "):
        load_annotations([str(folder / f"{n}.txt") for n in ("trainval", "val")], on_broken="drop")

"""voc: the devkit's corners become half-open boxes, and every broken file is named."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest

from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotationError
from af_pipeline.data.annotations.voc import is_image_set, voc_root
from af_pipeline.data.sources.folder import list_directory
from af_pipeline.images.decode import encode_jpeg, encode_png
from tests.helpers.realdata import real_data
from tests.helpers.truth import load

SIZE = "<size><width>100</width><height>50</height><depth>3</depth></size>"


def thing(name: str, *box: object, more: str = "") -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def xml(*things: str, filename: str = "", size: str = SIZE) -> str:
    return f"<annotation><filename>{filename}</filename>{size}{''.join(things)}</annotation>"


class Kit:
    """A VOC folder in the making."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
            (root / folder).mkdir(parents=True)
        self.set = root / "ImageSets/Main/trainval.txt"

    def add(self, name: str, content: str | bytes, image: str | None = "") -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (self.root / "Annotations" / f"{name}.xml").write_bytes(data)
        if image is not None:
            (self.root / "JPEGImages" / (image or f"{name}.jpg")).write_bytes(b"x")
        self.set.write_text((self.set.read_text() if self.set.exists() else "") + f"{name}\n")

    def error(self, **options: object) -> str:
        with pytest.raises(AnnotationError) as caught:
            load(self.set, **options)  # type: ignore[arg-type]
        assert str(caught.value).startswith(str(self.set))
        return str(caught.value)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "VOC2007")


def names_of(data: AnnotatedDataset) -> list[str]:
    return [image.image_id for image in data.images]


def test_boxes_labels_and_classes(kit: Kit) -> None:
    difficult = thing("cat", 90, -4, 130, 60, more="<difficult>1</difficult>")
    kit.add("b", xml(thing("dog", 1, 2, 10, 20), difficult))
    kit.add("a", xml())
    data = load(kit.set)
    assert (data.class_names, data.category_ids) == (("cat", "dog"), (1, 2))
    first, second = data.images
    assert (first.image_id, first.width, first.height) == ("b.jpg", 100, 50)
    assert first.uri == str(kit.root / "JPEGImages" / "b.jpg")
    np.testing.assert_array_equal(first.boxes, [[0, 1, 10, 20], [89, 0, 100, 50]])
    assert (first.labels.tolist(), first.crowd.tolist()) == ([1, 0], [False, True])
    assert (second.image_id, second.boxes.shape) == ("a.jpg", (0, 4))
    types = (first.boxes.dtype, first.labels.dtype, first.crowd.dtype)
    assert types == (np.float32, np.int32, np.bool_)


def test_corners_may_be_fractions_and_zero(kit: Kit) -> None:
    kit.add("a", xml(thing("x", 0, 0, "2.5", " 3 "), thing("x", 7, 7, 7, 9)))
    np.testing.assert_array_equal(load(kit.set).images[0].boxes, [[0, 0, 2.5, 3], [6, 6, 7, 9]])


def test_only_the_object_itself_is_read_not_its_parts(kit: Kit) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    kit.add("a", xml(thing("person", 1, 1, 9, 9, more=part)))
    assert load(kit.set).class_names == ("person",)


def test_a_class_file_lists_all_its_names(kit: Kit) -> None:
    for name in ("a", "b", "c"):
        kit.add(name, xml())
    kit.set.write_text("a  1\n\nb -1\nc  0\n")
    assert names_of(load(kit.set)) == ["a.jpg", "b.jpg", "c.jpg"]


def test_names_may_hold_blanks(kit: Kit) -> None:
    for name in ("image 1", "image b"):
        kit.add(name, xml())
    assert names_of(load(kit.set)) == ["image 1.jpg", "image b.jpg"]


@pytest.mark.parametrize(
    ("filename", "files", "found"),
    [
        ("", ["a.png"], "a.png"),
        ("a.jpg", ["a.JPEG"], "a.JPEG"),
        ("other.jpg", ["other.jpg"], "other.jpg"),
        ("stale.jpg", ["a.jpg"], "a.jpg"),
        ("C:\\photos\\a.png", ["a.png"], "a.png"),
        ("a.png", ["a.jpg", "a.png"], "a.png"),
        ("sub/a.jpg", ["sub/a.jpg"], "sub/a.jpg"),
    ],
)
def test_image_files(kit: Kit, filename: str, files: list[str], found: str) -> None:
    (kit.root / "JPEGImages/sub").mkdir()
    for file in files:
        kit.add("a", xml(filename=filename), image=file)
    kit.set.write_text("a\n")
    assert names_of(load(kit.set)) == [found]


def test_an_image_file_in_doubt_is_an_error(kit: Kit) -> None:
    kit.add("a", xml(filename="b.jpg"), image="b.jpg")
    kit.add("b", xml())
    (kit.root / "JPEGImages/a.jpg").write_bytes(b"x")
    assert "a.xml could be of several images: a.jpg, b.jpg" in kit.error()
    (kit.root / "JPEGImages/a.jpg").unlink()
    assert "b.xml is of the image b.jpg, as Annotations/a.xml is" in kit.error()


@pytest.mark.parametrize("size", ["", SIZE.replace("100", "0"), SIZE.replace("50", "")])
def test_size_from_the_image_where_it_is_not_stated(kit: Kit, size: str) -> None:
    kit.add("a", xml(thing("x", 1, 1, 50, 50), size=size))
    assert "a.xml states no size, and its image has none: not an image" in kit.error()
    pixels = np.zeros((12, 34, 3), np.uint8)
    for encode in (encode_png, encode_jpeg):
        (kit.root / "JPEGImages/a.jpg").write_bytes(encode(pixels))
        image = load(kit.set).images[0]
        assert (image.width, image.height) == (34, 12)
        np.testing.assert_array_equal(image.boxes, [[0, 0, 34, 12]])


def test_given_classes_order_the_labels(kit: Kit) -> None:
    kit.add("a", xml(thing("dog", 1, 1, 9, 9), thing("cat", 1, 1, 9, 9)))
    data = load(kit.set, classes=("dog", "bird", "cat"))
    assert data.class_names == ("dog", "bird", "cat")
    assert data.images[0].labels.tolist() == [0, 2]
    text = kit.error(classes=("dog", "bird"), on_broken="drop")
    assert "1 of its classes are not in classes (dog, bird): 'cat'" in text
    assert "classes holds dog more than once" in kit.error(classes=("dog", "cat", "dog"))


BAD_BOXES = [
    (thing("RBC", 5, 6, 5, 6), "'RBC' has the box (5, 6, 5, 6), which is a single point"),
    (thing("RBC", 9, 6, 5, 8), "'RBC' has the box (9, 6, 5, 8), whose maximum lies before"),
    (thing("RBC", 101, 6, 120, 8), "no area inside its image (100x50)"),
    (thing("RBC", -9, 6, 0, 8), "no area inside its image"),
    (thing("RBC", 1, 6, "nan", 8), "which is not finite"),
    (thing("RBC", 1, 6, "1e999", 8), "which is not finite"),
    (thing("RBC", 1, 6, "ten", 8), "has the box (1, 6, ten, 8), expected 4 numbers"),
    ("<object><name>RBC</name></object>", "'RBC' lacks a bndbox with xmin"),
    (thing("RBC", 1, 2, 3, 4).replace("xmax", "max"), "'RBC' lacks a bndbox"),
    (thing("", 1, 2, 3, 4), "object 2 has no name"),
    (thing("RBC", 1, 2, 3, 4, more="<difficult>x</difficult>"), "difficult 'x', expected 0 or 1"),
]


@pytest.mark.parametrize(("broken", "problem"), BAD_BOXES)
def test_broken_objects_are_named_or_dropped(kit: Kit, broken: str, problem: str) -> None:
    kit.add("a", xml(thing("WBC", 1, 1, 9, 9), broken))
    text = kit.error()
    assert all(part in text for part in ("1 problem:", "Annotations/a.xml: object 2", problem))
    data = load(kit.set, on_broken="drop")
    assert len(data.images[0].boxes) == 1
    assert data.class_names == ("WBC",)
    assert len(data.dropped) == 1
    assert data.dropped[0].startswith(f"{kit.set}: Annotations/a.xml: object 2")
    assert problem in data.dropped[0]


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxxxxxx"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>'
BAD_FILES = [
    ("<annotation>", "cannot be read: no element found"),
    ("", "cannot be read: no element found"),
    ("<html/>", "is no VOC annotation: it holds <html>"),
    (BOMB, "declares XML entities"),
    (BOMB.encode("utf-16"), "declares XML entities"),
    (b"<?xml version='1.0' encoding='cp037'?>" + BOMB.encode("cp037"), "declares XML entities"),
    (b"<annotation>\xff</annotation>", "cannot be read: 'utf-8' codec"),
    (b"<?xml version='1.0' encoding='none'?><a/>", "cannot be read: unknown encoding"),
    (xml(size=SIZE.replace("100", "wide")), "has the size widex50, expected whole numbers"),
    (xml(size=SIZE.replace("100", "-1")), "has the size -1x50"),
    (xml(size=SIZE.replace("100", "9" * 9)), "has the size 999999999x50"),
]


@pytest.mark.parametrize(("content", "problem"), BAD_FILES)
@pytest.mark.parametrize("on_broken", ["fail", "drop"])
def test_broken_files_are_named(
    kit: Kit, content: str | bytes, problem: str, on_broken: str
) -> None:
    kit.add("a", content)
    assert f"Annotations/a.xml {problem}" in kit.error(on_broken=on_broken)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings(kit: Kit, encoding: str) -> None:
    head = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>"
    kit.add("a", (head + xml(thing("Blüte", 1, 1, 9, 9))).encode(encoding))
    assert load(kit.set).class_names == ("Blüte",)


def test_missing_files_are_all_named(kit: Kit) -> None:
    kit.add("a", xml(), image=None)
    kit.add("b", xml())
    (kit.root / "Annotations/b.xml").unlink()
    text = kit.error()
    assert "2 problems:" in text
    assert f"a.xml has no image: neither '' nor 'a' in {kit.root}/JPEGImages" in text
    assert "b.xml is missing" in text
    kit.set.write_text("a\n")
    missing = load(kit.set, on_broken="drop").images[0]
    assert (missing.image_id, missing.uri) == ("a.jpg", str(kit.root / "JPEGImages/a.jpg"))


@pytest.mark.parametrize("stated", ["/home/me/x.png", "../../x.png", r"C:\me\x.png"])
def test_a_missing_file_is_looked_for_nowhere_else(kit: Kit, stated: str) -> None:
    kit.add("b", xml())
    kit.add("a", xml(filename=stated), image=None)
    missing = load(kit.set, on_broken="drop").images[1]
    assert (missing.image_id, missing.uri) == ("x.png", str(kit.root / "JPEGImages/x.png"))


def test_names_twice_and_none_at_all(kit: Kit) -> None:
    kit.add("a", xml())
    kit.set.write_text("a\na\n")
    assert "lists 'a' twice" in kit.error()
    kit.set.write_text("\n \n")
    assert "lists no image" in kit.error()


def test_missing_set_and_missing_folder(kit: Kit) -> None:
    assert "there is nothing at" in kit.error()
    kit.add("a", xml(), image=None)
    (kit.root / "JPEGImages").rmdir()
    assert "there is nothing at" in kit.error()


def test_another_image_folder(kit: Kit, tmp_path: Path) -> None:
    kit.add("a", xml(), image=None)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"x")
    data = load(str(kit.set), images=str(tmp_path / "photos"))
    assert data.images[0].uri == str(tmp_path / "photos/a.jpg")


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/d/VOC2007/ImageSets/Main/test.txt", "/d/VOC2007"),
        ("VOC/ImageSets/test.txt", "VOC"),
        ("ImageSets/Main/test.txt", "."),
        ("/ImageSets/Main/test.txt", "/"),
        ("s3://b/ImageSets/VOC/ImageSets/Main/x.TXT", "s3://b/ImageSets/VOC"),
    ],
)
def test_root(path: str, root: str) -> None:
    assert is_image_set(path)
    assert voc_root(path) == root


@pytest.mark.parametrize("path", ["x.txt", "VOC/ImageSets.txt", "VOC/ImageSets/Main"])
def test_no_image_set(path: str) -> None:
    assert not is_image_set(path)
    with pytest.raises(AnnotationError, match="no annotation file"):
        load(path)


def test_unknown_way_with_broken_boxes(kit: Kit) -> None:
    kit.add("a", xml())
    with pytest.raises(ValueError, match="'fail' or 'drop'"):
        load(kit.set, on_broken="skip")  # type: ignore[arg-type]


BCCD = [
    ("train", 205, {"Platelets": 209, "RBC": 2381, "WBC": 214}, ["BloodImage_00343"]),
    ("val", 87, {"Platelets": 83, "RBC": 967, "WBC": 87}, ["BloodImage_00338"]),
    ("trainval", 292, {"Platelets": 292, "RBC": 3348, "WBC": 301}, ["00338", "00343"]),
    ("test", 72, {"Platelets": 69, "RBC": 805, "WBC": 71}, []),
]


@pytest.mark.parametrize(("name", "images", "boxes", "broken"), BCCD)
def test_real_files(name: str, images: int, boxes: dict[str, int], broken: list[str]) -> None:
    root = real_data("bccd")
    path = root / f"ImageSets/Main/{name}.txt"
    data = load(path, on_broken="drop")
    assert len(data.images) == images
    assert len(data.dropped) == len(broken)
    for line, part in zip(data.dropped, broken, strict=True):
        assert part in line
        assert "'RBC' has the box" in line
        assert "single point" in line
    if broken:
        with pytest.raises(AnnotationError, match="object"):
            load(path)
    labels = np.concatenate([image.labels for image in data.images])
    assert collections.Counter(data.class_names[label] for label in labels) == boxes
    listed = {image.image_id: image.uri for image in list_directory(str(root / "JPEGImages"))}
    for image in data.images:
        assert listed[image.image_id] == image.uri
        x0, y0, x1, y1 = image.boxes.T
        assert ((x0 >= 0) & (x0 < x1) & (x1 <= image.width)).all()
        assert ((y0 >= 0) & (y0 < y1) & (y1 <= image.height)).all()

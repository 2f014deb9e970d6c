"""yolo: shares of the image become px, and every broken line is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotationError
from af_pipeline.images.decode import encode_png
from tests.helpers.realdata import real_data
from tests.helpers.truth import load

WIDTH, HEIGHT = 200, 100


class Kit:
    """A YOLO data set in the making."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "data.yaml"
        self.data: dict = {"val": "images/val", "names": ["car", "bus"]}
        self.save()

    def save(self, **changes: object) -> Path:
        self.data |= changes
        self.file.write_text(yaml.safe_dump(self.data))
        return self.file

    def add(self, name: str, *lines: str | None, split: str = "val") -> None:
        """An image, and its label file unless the line is None."""
        place = self.root / "images" / split / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
        if lines != (None,):
            label = self.root / "labels" / split / f"{name}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(map(str, lines)))

    def error(self, **options: object) -> str:
        with pytest.raises(AnnotationError) as caught:
            load(self.file, **options)  # type: ignore[arg-type]
        assert str(self.root) in str(caught.value)
        return str(caught.value)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_boxes_labels_and_classes(kit: Kit) -> None:
    kit.add("b", "1 0.5 0.5 0.25 0.5", "", "0 0.95 0.95 0.2 0.2")
    kit.add("sub/a", None)
    kit.add("c", "0 0.1 0.1 0.3 0.2 0.2 0.6")  # a polygon of three points
    data = load(kit.file)
    assert (data.class_names, data.category_ids) == (("car", "bus"), (1, 2))
    first, polygon, empty = data.images
    assert (first.image_id, first.width, first.height) == ("b.png", WIDTH, HEIGHT)
    assert first.uri == str(kit.root / "images/val/b.png")
    np.testing.assert_allclose(first.boxes, [[75, 25, 125, 75], [170, 85, 200, 100]], rtol=1e-6)
    assert (first.labels.tolist(), first.crowd.tolist()) == ([1, 0], [False, False])
    np.testing.assert_allclose(polygon.boxes, [[20, 10, 60, 60]], rtol=1e-6)
    assert (empty.image_id, empty.boxes.shape) == ("sub/a.png", (0, 4))


def test_names_by_number_path_and_splits(kit: Kit) -> None:
    kit.add("a", "7 0.5 0.5 0.5 0.5")
    kit.add("b", "3 0.5 0.5 0.5 0.5", split="train")
    kit.save(names={7: "bus", 3: "car"}, train=["images/train"], path=str(kit.root))
    assert "holds train and val: say which split" in kit.error()
    for split, name, label in (("val", "a.png", "bus"), ("train", "b.png", "car")):
        data = load(f"{kit.file}#{split}")
        assert data.image_ids == (name,)
        assert data.class_names[data.labels[0]] == label
    assert load(f"{kit.file}#val", classes=("bus", "car")).labels.tolist() == [0]


def test_images_may_be_elsewhere(kit: Kit, tmp_path: Path) -> None:
    kit.add("a", "0 0.5 0.5 0.5 0.5")
    (kit.root / "images/val").rename(tmp_path / "photos")
    data = load(kit.file, images=str(tmp_path / "photos"))
    assert data.uris == (str(tmp_path / "photos/a.png"),)
    assert len(data.boxes) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5 0.5", "has 3 numbers, expected cx cy width height or a polygon"),
        ("0 0.5 0.5 0.5 0.5 0.5", "has 5 numbers"),
        ("0 0.5 0.5 0.5 x", "expected a class and numbers"),
        ("car 0.5 0.5 0.5 0.5", "expected a class and numbers"),
        ("2 0.5 0.5 0.5 0.5", "has the class 2, which names does not have"),
        ("0 100 50 20 20", "expected shares of the image, 0 to 1"),
        ("0 nan 0.5 0.5 0.5", "expected shares of the image"),
        ("0 0.5 0.5 0 0.5", "whose width or height is not positive"),
        ("0 1.005 0.5 0.005 0.5", "no area inside its image (200x100)"),
    ],
)
def test_broken_lines_are_named_or_dropped(kit: Kit, line: str, problem: str) -> None:
    kit.add("a", "1 0.5 0.5 0.5 0.5", line)
    text = kit.error()
    assert all(part in text for part in ("1 problem:", "labels/val/a.txt line 2", problem))
    data = load(kit.file, on_broken="drop")
    assert data.labels.tolist() == [1]
    assert problem in data.dropped[0]


def test_broken_files_are_named(kit: Kit) -> None:
    assert "there is nothing at" in kit.error()
    kit.add("a", None)
    assert "no image has a label file: looked for" in kit.error()
    kit.add("b", "0 0.5 0.5 0.5 0.5")
    (kit.root / "images/val/b.png").write_bytes(b"x")
    assert "images/val/b.png states no size, and its image has none" in kit.error()
    for names in ([], None, {"a": "b"}, [1], "car"):
        kit.save(names=names)
        assert "expected a list of names or number: name" in kit.error()
    kit.save(names=["a"], val=[1])
    assert "no folder of images for the split" in kit.error()
    kit.save(val=None)
    assert "holds no train, val or test" in kit.error()
    for text, problem in (("a: [", "is not valid YAML"), ("- a", "is no YOLO data file")):
        kit.file.write_text(text)
        assert problem in kit.error()
    kit.file.unlink()
    assert "there is nothing at" in kit.error()


def lines_of(data: AnnotatedDataset, place: int) -> list[str]:
    image = data.images[place]
    shares = image.boxes / np.tile([image.width, image.height], 2)
    middle, side = (shares[:, :2] + shares[:, 2:]) / 2, shares[:, 2:] - shares[:, :2]
    numbers = np.concatenate([middle, side], axis=1)
    pairs = zip(image.labels.tolist(), numbers.tolist(), strict=True)
    return [f"{label} {' '.join(f'{value:.6f}' for value in row)}" for label, row in pairs]


def test_a_real_set_is_the_one_that_voc_states(tmp_path: Path) -> None:
    stated = load(real_data("bccd") / "ImageSets/Main/test.txt")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for place, image_id in enumerate(stated.image_ids):
        (tmp_path / "images" / image_id).symlink_to(stated.uris[place])
        text = "\n".join(lines_of(stated, place))
        (tmp_path / "labels" / image_id).with_suffix(".txt").write_text(text)
    file = tmp_path / "bccd.yaml"
    file.write_text(yaml.safe_dump({"test": "images", "names": list(stated.class_names)}))
    data = load(file)
    assert data.image_ids == tuple(sorted(stated.image_ids))
    assert data.class_names == stated.class_names
    theirs = {image.image_id: image for image in stated.images}
    for image in data.images:
        other = theirs[image.image_id]
        assert (image.width, image.height) == (other.width, other.height)
        np.testing.assert_array_equal(image.labels, other.labels)
        np.testing.assert_allclose(image.boxes, other.boxes, atol=0.5)

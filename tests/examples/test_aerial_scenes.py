"""The synthetic scenes: repeatable, exactly labelled, sparse, and valid COCO on disk."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from examples.aerial_scenes.draw import View
from examples.aerial_scenes.scenes import CLASS_NAMES, Scene, render_scene, write_dataset
from examples.aerial_scenes.traffic import visible_box
from examples.aerial_scenes.vehicles import (
    BUS,
    CAR,
    CYCLIST,
    MINIBUS,
    TRUCK,
    alpha_box,
    vehicle_sprite,
)


def _view(car_length: float) -> View:
    ppm = car_length / 4.5
    return View(200, 200, ppm, 0.0, (ppm, 0.0), (0.0, 0.0), 0.5)


def _area(scene: Scene) -> float:
    return float(np.prod(scene.boxes[:, 2:] - scene.boxes[:, :2], axis=1).sum())


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, 512, 640) for seed in range(10)]


def test_same_seed_gives_same_bytes(scenes: list[Scene]) -> None:
    again = render_scene(3, 512, 640)
    assert again.image.tobytes() == scenes[3].image.tobytes()
    assert again.boxes.tobytes() == scenes[3].boxes.tobytes()
    assert again.labels.tobytes() == scenes[3].labels.tobytes()
    assert not np.array_equal(scenes[3].image, scenes[4].image)


def test_shapes_and_types(scenes: list[Scene]) -> None:
    for scene in scenes:
        count = len(scene.labels)
        assert scene.image.shape == (512, 640, 3)
        assert scene.image.dtype == np.uint8
        assert scene.boxes.shape == (count, 4)
        assert scene.boxes.dtype == np.float32
        assert scene.labels.shape == (count,)
        assert scene.labels.dtype == np.int32


def test_boxes_lie_inside_and_have_area(scenes: list[Scene]) -> None:
    for scene in scenes:
        x0, y0, x1, y1 = scene.boxes.T
        assert (x0 >= 0).all()
        assert (y0 >= 0).all()
        assert (x1 <= 640).all()
        assert (y1 <= 512).all()
        assert (x1 > x0).all()
        assert (y1 > y0).all()
        assert np.isin(scene.labels, np.arange(len(CLASS_NAMES))).all()


def test_every_class_appears(scenes: list[Scene]) -> None:
    found = set(np.concatenate([s.labels for s in scenes]).tolist())
    assert found == set(range(5))


def test_vehicles_cover_a_small_share(scenes: list[Scene]) -> None:
    shares = [_area(s) / (512 * 640) for s in scenes]
    assert 0.01 < float(np.mean(shares)) < 0.09
    assert max(shares) < 0.25


@pytest.mark.parametrize("label", [CAR, TRUCK, BUS, MINIBUS, CYCLIST])
def test_sprite_box_is_tight(label: int) -> None:
    rng = np.random.default_rng(label)
    centre = np.array([100.0, 100.0])
    sprite = vehicle_sprite(rng, label, centre, 0.6, _view(30.0))
    box = visible_box(sprite, np.zeros((200, 200), np.uint8))
    assert box is not None
    full = np.zeros((200, 200), np.uint8)
    x, y = sprite.origin
    full[y : y + sprite.alpha.shape[0], x : x + sprite.alpha.shape[1]] = sprite.alpha
    ys, xs = np.nonzero(full > 127)
    assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize(
    ("label", "low", "high"),
    [(CAR, 0.88, 1.14), (TRUCK, 1.4, 2.45), (BUS, 2.0, 3.1), (MINIBUS, 1.08, 1.56),
     (CYCLIST, 0.3, 0.5)],
)  # fmt: skip
@pytest.mark.parametrize("car_length", [14.0, 60.0])
def test_sprite_length_follows_the_scale(
    label: int, low: float, high: float, car_length: float
) -> None:
    rng = np.random.default_rng(7)
    centre = np.array([100.0, 100.0])
    for _ in range(10):
        sprite = vehicle_sprite(rng, label, centre, 0.0, _view(car_length))
        x0, y0, x1, y1 = alpha_box(sprite)
        assert low * car_length - 1.5 <= x1 - x0 <= high * car_length + 1.5
        assert x1 - x0 > y1 - y0 > 0


def test_sprite_colour_is_premultiplied() -> None:
    sprite = vehicle_sprite(np.random.default_rng(0), CAR, np.array([50.0, 50.0]), 0.3, _view(20))
    assert not sprite.rgb[sprite.alpha == 0].any()
    assert ((sprite.alpha > 0) & (sprite.alpha < 255)).any()  # smooth edges


def test_vehicle_leaving_the_frame_or_covered_is_refused() -> None:
    rng = np.random.default_rng(1)
    cover = np.zeros((200, 200), np.uint8)
    outside = vehicle_sprite(rng, CAR, np.array([-8.0, 100.0]), 0.0, _view(40.0))
    assert visible_box(outside, cover) is None
    partly = vehicle_sprite(rng, CAR, np.array([8.0, 100.0]), 0.0, _view(40.0))
    box = visible_box(partly, cover)
    assert box is not None
    assert box[0] == 0.0
    assert visible_box(partly, np.full_like(cover, 255)) is None


def test_car_length_is_respected() -> None:
    for length in (20.0, 60.0):
        scenes = [render_scene(seed, 512, 512, car_length=length) for seed in range(20, 23)]
        sizes = np.concatenate([(s.boxes[:, 2:] - s.boxes[:, :2])[s.labels == 0] for s in scenes])
        # A turned rectangle's box has a diagonal of 1.0 to 1.45 times the rectangle's length.
        diagonal = float(np.median(np.hypot(sizes[:, 0], sizes[:, 1])))
        assert 0.9 * length < diagonal < 1.6 * length


def test_dataset_is_valid_coco(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 3, 5, sizes=[(192, 256), (224, 224)])
    data = json.loads(path.read_text())
    assert path == tmp_path / "set" / "annotations.json"
    assert [c["name"] for c in data["categories"]] == list(CLASS_NAMES)
    assert [c["id"] for c in data["categories"]] == [1, 2, 3, 4, 5]
    by_id = {i["id"]: i for i in data["images"]}
    assert [i["file_name"] for i in data["images"]] == [f"scene_{k:05d}.jpg" for k in range(3)]
    for info in data["images"]:
        image = cv2.imread(str(tmp_path / "set" / "images" / info["file_name"]))
        assert image is not None
        assert image.shape == (info["height"], info["width"], 3)
    ids = [a["id"] for a in data["annotations"]]
    assert len(set(ids)) == len(ids)
    for note in data["annotations"]:
        x, y, w, h = note["bbox"]
        info = by_id[note["image_id"]]
        assert x >= 0
        assert y >= 0
        assert x + w <= info["width"]
        assert y + h <= info["height"]
        assert note["area"] == w * h > 0
        assert note["iscrowd"] == 0
        assert 1 <= note["category_id"] <= 5


def test_dataset_is_repeatable(tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "a", 1, 9, sizes=[(160, 160)])
    second = write_dataset(tmp_path / "b", 1, 9, sizes=[(160, 160)])
    assert first.read_bytes() == second.read_bytes()
    name = "images/scene_00000.jpg"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

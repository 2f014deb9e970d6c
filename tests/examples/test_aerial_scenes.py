"""Drawn scenes: repeatable, exactly labelled, sparse, and valid COCO on disk."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from af_pipeline.data.annotations.load import load_annotations
from examples.aerial_scenes.draw import View
from examples.aerial_scenes.scenes import CLASS_NAMES, Scene, render_scene
from examples.aerial_scenes.traffic import visible_box
from examples.aerial_scenes.vehicles import BUS, CAR, CYCLIST, MINIBUS, TRUCK, vehicle_sprite

ROOT = Path(__file__).parents[2]
# Lengths by class, in those of a car.
LENGTHS = {CAR: (0.88, 1.14), TRUCK: (1.4, 2.45), BUS: (2.0, 3.1), MINIBUS: (1.08, 1.56)}
LENGTHS |= {CYCLIST: (0.3, 0.5)}


def view(car_length: float) -> View:
    ppm = car_length / 4.5
    return View(200, 200, ppm, 0.0, (ppm, 0.0), (0.0, 0.0), 0.5)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, 512, 640) for seed in range(10)]


def test_scenes_follow_from_their_seed(scenes: list[Scene]) -> None:
    again = render_scene(3, 512, 640)
    for name in ("image", "boxes", "labels"):
        assert getattr(again, name).tobytes() == getattr(scenes[3], name).tobytes()
    assert not np.array_equal(scenes[3].image, scenes[4].image)


def test_boxes_lie_inside_and_cover_little(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert (scene.image.shape, scene.image.dtype) == ((512, 640, 3), np.uint8)
        assert (scene.boxes.dtype, scene.labels.dtype) == (np.float32, np.int32)
        assert scene.boxes.shape == (len(scene.labels), 4)
        assert (scene.boxes == scene.boxes.clip(0, (640, 512) * 2)).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
    shares = [float(np.prod(s.boxes[:, 2:] - s.boxes[:, :2], 1).sum()) / 512 / 640 for s in scenes]
    assert 0.01 < float(np.mean(shares)) < 0.09
    assert max(shares) < 0.25
    assert set(np.concatenate([s.labels for s in scenes]).tolist()) == set(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("label", LENGTHS)
def test_a_sprites_box_is_tight_and_as_long_as_its_class(label: int) -> None:
    rng = np.random.default_rng(label)
    for length, angle in ((14.0, 0.0), (30.0, 0.6), (60.0, 0.0)):
        sprite = vehicle_sprite(rng, label, np.array([100.0, 100.0]), angle, view(length))
        box = visible_box(sprite, np.zeros((200, 200), np.uint8))
        full, (x, y) = np.zeros((200, 200), np.uint8), sprite.origin
        left, top = max(0, -x), max(0, -y)
        part = sprite.alpha[top : 200 - y, left : 200 - x]
        full[y + top : y + sprite.alpha.shape[0], x + left : x + sprite.alpha.shape[1]] = part
        ys, xs = np.nonzero(full > 127)
        assert box is not None
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        if not angle:
            low, high = LENGTHS[label]
            assert low * length - 1.5 <= min(box[2] - box[0], 200) <= high * length + 1.5
        assert not sprite.rgb[sprite.alpha == 0].any()  # premultiplied


def test_vehicles_that_leave_the_frame_or_are_covered_are_refused() -> None:
    rng, cover = np.random.default_rng(1), np.zeros((200, 200), np.uint8)
    outside, partly = (
        vehicle_sprite(rng, CAR, np.array([x, 100.0]), 0.0, view(40.0)) for x in (-8.0, 8.0)
    )
    assert visible_box(outside, cover) is None
    box = visible_box(partly, cover)
    assert box is not None
    assert box[0] == 0.0
    assert visible_box(partly, np.full_like(cover, 255)) is None


def test_the_command_writes_a_data_set_to_train_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        command = [sys.executable, "-m", "examples.aerial_scenes", "--output", tmp_path / name]
        command += ["--count", "3", "--seed", "5", "--sizes", "192x256", "224x224"]
        subprocess.run(command, cwd=ROOT, check=True)
    path = tmp_path / "a/annotations.json"
    assert path.read_bytes() == (tmp_path / "b/annotations.json").read_bytes()
    data = load_annotations([str(path)])  # which checks the boxes
    assert data.class_names == CLASS_NAMES
    sizes = [(image.height, image.width) for image in data.images]
    assert sizes == [(192, 256), (224, 224), (192, 256)]
    for image, size in zip(data.images, sizes, strict=True):
        pixels = cv2.imread(image.uri)
        assert pixels is not None
        assert pixels.shape[:2] == size
    for note in json.loads(path.read_text())["annotations"]:
        assert note["area"] == note["bbox"][2] * note["bbox"][3] > 0

"""The stream of training chips: chip n is a function of n, whoever asks and in whatever order."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from af_pipeline.data import training
from af_pipeline.data.coco import AnnotatedDataset, AnnotatedImage
from af_pipeline.data.synthetic import Scene
from af_pipeline.data.training import ImageCache, SampleStream, class_weights
from af_pipeline.focus import FocusRule
from af_pipeline.samples import LabelledImage, Sample, SampleRule
from af_pipeline.scales import Scale
from af_pipeline.sniper import WindowRule

SIDE = 80
RULE = SampleRule((Scale(1.0), Scale(2.0)), FocusRule(), WindowRule(64, (0.9, 1.1), 0.2), 0.0)


def dataset(folder: Path, count: int = 7, declared: int = SIDE) -> AnnotatedDataset:
    """Images that are each of one grey, so that a chip tells which one it comes from."""
    images = []
    for k in range(count):
        path = folder / f"{k}.png"
        Image.fromarray(np.full((SIDE, SIDE, 3), 10 * k + 5, np.uint8)).save(path)
        boxes = np.array([[8 * k, 5, 8 * k + 20, 30], [30, 30, 60, 70]], np.float32)
        labels, crowd = np.array([k % 3, 2], np.int32), np.array([False, k == 0])
        args = (declared, SIDE, boxes, labels, crowd)
        images.append(AnnotatedImage(path.name, str(path), *args))
    return AnnotatedDataset(tuple(images), ("a", "b", "c"), (1, 2, 3))


def stream(data: AnnotatedDataset | None, seed: int = 0, **options: object) -> SampleStream:
    return SampleStream(data, RULE, np.ones(3), seed, **options)  # type: ignore[arg-type]


def image_of(sample: Sample) -> int:
    return int(sample.image[32, 32, 0]) // 10


def same(a: Sample, b: Sample) -> bool:
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.boxes.boxes, b.boxes.boxes)
        and np.array_equal(a.boxes.valid, b.boxes.valid)
        and np.array_equal(a.focus, b.focus)
        and a.window == b.window
    )


@pytest.fixture
def small_scenes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Quick stand-ins for rendered scenes; returns the seeds that were asked for."""
    asked: list[int] = []

    def render(seed: int) -> Scene:
        asked.append(seed)
        box = np.array([[10, 10, 40, 30]], np.float32)
        return Scene(np.full((SIDE, SIDE, 3), 250, np.uint8), box, np.array([1], np.int32))

    monkeypatch.setattr(training, "render_scene", render)
    return asked


def test_a_sample_is_a_function_of_its_number(tmp_path: Path, small_scenes: list[int]) -> None:
    data = dataset(tmp_path)
    one, two = (stream(data, synthetic=(4, 0.3)) for _ in range(2))
    forward = [one.sample(n) for n in range(30)]
    backward = {n: two.sample(n) for n in reversed(range(30))}
    assert all(same(forward[n], backward[n]) for n in range(30))
    tiny = stream(data, synthetic=(4, 0.3), cache_bytes=1)
    assert all(same(forward[n], tiny.sample(n)) for n in (3, 29, 3, 0))


def test_another_seed_gives_other_samples(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    one, two = stream(data, 0), stream(data, 1)
    assert sum(same(one.sample(n), two.sample(n)) for n in range(20)) < 3


def test_every_image_comes_once_an_epoch(tmp_path: Path) -> None:
    chips = stream(dataset(tmp_path))
    epochs = [[image_of(chips.sample(7 * e + p)) for p in range(7)] for e in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6


def test_an_image_looks_different_in_every_epoch(tmp_path: Path) -> None:
    chips = stream(dataset(tmp_path, count=1))
    windows = [chips.sample(epoch).window for epoch in range(12)]
    assert len(set(windows)) == 12


def test_share_of_synthetic_scenes(tmp_path: Path, small_scenes: list[int]) -> None:
    chips = stream(dataset(tmp_path), seed=2, synthetic=(4, 0.25))
    made = sum(image_of(chips.sample(n)) == 25 for n in range(400))
    assert 70 <= made <= 130
    assert sorted(small_scenes) == [200_006 + k for k in range(4)]  # each rendered once


def test_scenes_alone(small_scenes: list[int]) -> None:
    chips = stream(None, synthetic=(3, 1.0))
    assert {image_of(chips.sample(n)) for n in range(10)} == {25}
    for options in ({}, {"synthetic": (3, 0.5)}, {"synthetic": (0, 1.0)}):
        with pytest.raises(ValueError, match=r"no training images: set data\.train"):
            stream(None, **options)


def test_an_image_of_another_size_than_annotated(tmp_path: Path) -> None:
    chips = stream(dataset(tmp_path, count=1, declared=SIDE + 1))
    with pytest.raises(ValueError, match=r"0\.png is 80x80 px, its annotation says 81x80"):
        chips.sample(0)


def test_images_are_decoded_once_while_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = training.read_bytes
    monkeypatch.setattr(training, "read_bytes", lambda uri: read.append(uri) or whole(uri))
    chips = stream(dataset(tmp_path))
    for number in range(28):
        chips.sample(number)
    assert len(read) == 7


def held(side: int) -> LabelledImage:
    image = np.zeros((side, side, 3), np.uint8)
    return LabelledImage(
        image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    )


def test_the_cache_drops_the_least_recently_used() -> None:
    cache = ImageCache(3 * 300)
    for key in "abc":
        cache.put(key, held(10))
    assert cache.get("a") is not None
    cache.put("d", held(10))
    assert list(cache.held) == ["c", "a", "d"]
    assert cache.get("b") is None
    assert cache.size == 900
    cache.put("d", held(10))
    assert cache.size == 900
    cache.put("huge", held(100))  # larger than all: kept alone rather than decoded each time
    assert list(cache.held) == ["huge"]
    cache.put("e", held(10))
    assert list(cache.held) == ["e"]
    assert cache.size == 300


def test_class_weights(tmp_path: Path) -> None:
    data = dataset(tmp_path)  # labels 0: 3, 1: 2, 2: 9
    assert class_weights(None, 4, 0.5).tolist() == [1] * 4
    even = class_weights(data, 3, 1.0)
    assert even * [3, 2, 9] == pytest.approx([even[0] * 3] * 3)
    assert class_weights(data, 3, 0.0).tolist() == [1, 1, 1]
    unseen = class_weights(data, 4, 0.5)
    assert np.isfinite(unseen).all()
    assert (unseen > 0).all()

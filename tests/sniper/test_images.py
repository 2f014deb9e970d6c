"""Images to train on: broken ones are named or left out, boxes turn with them, proposals too."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from af_pipeline.core.focus import FocusRule
from af_pipeline.core.scales import Scale
from af_pipeline.core.schema import DETECTIONS
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage, AnnotationError
from af_pipeline.settings.train import DataConfig
from af_pipeline.sniper.chips import ChipMaking, SniperRule
from af_pipeline.sniper.images import (
    CORNERS,
    BrokenImageError,
    FileImages,
    Frame,
    ImageCache,
    check_images,
    load_proposals,
    open_image,
    read_image,
)
from af_pipeline.sniper.sample import LabelledImage, Sample
from af_pipeline.sniper.stream import ChipStream
from af_pipeline.training.data import check_data
from tests.helpers.annotated import BOX, annotated, data_of, picture


def stream(
    data: AnnotatedDataset, *scales: Scale, frame: Frame = "auto", drop: bool = False
) -> ChipStream:
    making = ChipMaking(scales or (Scale(1.0),), SniperRule(64, flips="none"), FocusRule())
    source = FileImages(data, ImageCache(10**7), frame=frame)
    return ChipStream((source,), (1.0,), making, 0, slots=4, drop_broken=drop)


def bright(pixels: NDArray[np.uint8], box: NDArray[Any]) -> tuple[float, float]:
    """Share of bright pixels inside a box, and outside."""
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    inside = np.zeros(pixels.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    shown = pixels[..., 0] > 127
    return float(shown[inside].mean()), float(shown[~inside].mean())


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_of_stored_pixels_are_turned_upright(tmp_path: Path, turn: int) -> None:
    path = picture(tmp_path, turn)
    # What pycocotools and torchvision show their users: the stored pixels, on which the box fits.
    assert bright(np.asarray(Image.open(path).convert("RGB")), np.array(BOX))[0] == 1
    frame: Frame = "auto" if turn in (1, 5, 6, 7, 8) else "stored"  # of others no size tells
    pixels, image, turned = open_image(annotated(path), frame)
    assert turned == turn
    assert pixels.shape[:2] == (image.height, image.width)
    assert bright(pixels, image.boxes[0]) == (1, 0)
    if turn != 1:  # and boxes of the upright picture stay as they are
        drawn = annotated(path, (image.width, image.height), image.boxes[0])
        again = open_image(drawn, "upright")
        assert again[2] == 1
        np.testing.assert_array_equal(again[1].boxes, drawn.boxes)
        assert bright(again[0], again[1].boxes[0]) == (1, 0)


@pytest.mark.parametrize("turn", range(1, 9))
def test_chips_of_turned_images_show_their_objects(tmp_path: Path, turn: int) -> None:
    data = data_of([annotated(picture(tmp_path, turn))], "a")
    chips = stream(data, Scale(1.0), Scale(2.0), Scale(max_side=128), frame="stored")
    refs = chips.image_refs(0, 0, 0) + chips.image_refs(0, 0, 1)
    assert {ref.window.scale for ref in refs} == {0, 1, 2}
    for ref in refs:
        sample = chips.sample(ref)
        for box, valid in zip(sample.boxes.boxes, sample.boxes.valid, strict=True):
            if valid:
                inside, outside = bright(sample.image, box)
                assert inside > 0.9
                assert outside < 0.05


def broken_set(folder: Path) -> AnnotatedDataset:
    """Six good images, and one of each kind that cannot be used."""
    good = [annotated(picture(folder, name=f"good{k}")) for k in range(6)]
    cut = picture(folder, name="cut")
    cut.write_bytes(cut.read_bytes()[:-20])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.jpg").touch()
    paths = [cut, folder / "gone.jpg", folder / "text.jpg", folder / "empty.jpg"]
    bad = [annotated(path) for path in paths]
    bad.append(annotated(picture(folder, name="larger"), (97, 64)))
    bad.append(annotated(picture(folder, 6, name="turned"), (97, 64)))
    return data_of([*good, *bad], "a")


REASONS = {
    "cut": "truncated JPEG",
    "gone": "nothing at",
    "text": "not an image of a known format",
    "empty": "empty file",
    "larger": "is 96x64 px, its annotation says 97x64",
    "turned": "is 64x96 px, its annotation says 97x64",
}


def test_a_check_names_all_broken_images_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = broken_set(tmp_path)
    found = check_images(data.images, "auto", decode=True)
    assert (found.looked_at, len(found.broken)) == (12, 6)
    for name, reason in REASONS.items():
        assert any(f"{name}.jpg" in line and reason in line for line in found.broken), name
    with pytest.raises(AnnotationError, match=r"drop leaves such out\): 6 problems:") as caught:
        check_data(data, DataConfig(), "images")
    assert all(f"{name}.jpg" in str(caught.value) for name in REASONS)
    for images in (data.images[6:], data.images[7:8]):
        with pytest.raises(AnnotationError, match="none of which can be used"):
            check_data(data_of(images, "a"), DataConfig(on_broken="drop"), "x")
    # Of a large set some images are looked at, or headers alone: what is cut shows in pixels only.
    decoded, headers = "decoded", "looked at the headers of"
    for most_px, looked_at, every, told in (
        (10**9, 2000, False, f"{decoded} 12 of 12 images, 6"),
        (12 * 96 * 64, 6, False, f"{decoded} 6 of 12 images, 3"),
        (12 * 96 * 64, 2000, False, f"{headers} 12 of 12 images, 5"),
        (12 * 96 * 64, 6, True, f"{decoded} 12 of 12 images, 6"),
    ):
        monkeypatch.setattr("af_pipeline.training.data.DECODED_PX", most_px)
        drop = DataConfig(on_broken="drop", check_images=looked_at)
        *lines, last = check_data(data, drop, "x", every)
        assert last == f"x: {told} of them left out"
        assert {line.partition(": ")[0] for line in lines} == {"left out"}
        assert len(lines) == int(told[-1])
    assert check_data(data, DataConfig(check_images=0), "images") == []


def test_turned_images_are_told(tmp_path: Path) -> None:
    square = (64, 64)
    images = [
        annotated(picture(tmp_path, 6, name="sideways")),
        annotated(picture(tmp_path, 3, name="upside")),
        annotated(picture(tmp_path, 6, square, name="square"), square),
        annotated(picture(tmp_path)),
    ]
    found = check_images(images, "auto", decode=False)
    assert (found.broken, found.turned, found.unsure) == ((), 1, 2)
    found = check_images(images, "stored", decode=True)
    assert (found.broken, found.turned, found.unsure) == ((), 3, 0)
    told = check_data(data_of(images, "a"), DataConfig(), "x")
    assert "1 images are turned by EXIF" in told[-2]
    assert told[-1].startswith("warning: x: 2 images")


def test_broken_images_are_left_out_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = broken_set(tmp_path)
    chips = stream(data, drop=True)
    opened: list[str] = []

    def open_and_note(image: AnnotatedImage, *how: Any) -> Any:
        opened.append(image.image_id)
        return open_image(image, *how)

    monkeypatch.setattr("af_pipeline.sniper.images.open_image", open_and_note)

    def made(chips: ChipStream, epoch: int) -> list[Sample]:
        return [chips.sample(ref) for n in range(12) for ref in chips.image_refs(0, n, epoch)]

    first = made(chips, 0)
    assert all((sample.image > 127).any() for sample in first)  # a chip of a good image each
    assert len(chips.left_out) == 6
    assert max(map(opened.count, opened)) == 1  # a broken one is not tried again
    assert len(caplog.messages) == 6
    assert any("gone.jpg" in text and "so far" in text for text in caplog.messages)
    (tmp_path / "good3.jpg").unlink()  # while training
    other = stream(data, drop=True)
    assert len(made(other, 1)) == len(made(chips, 1))
    assert len(other.left_out) == 7
    again = [sample.image.tobytes() for sample in made(stream(data, drop=True), 1)]
    assert again == [sample.image.tobytes() for sample in made(other, 1)]  # whoever asks


def test_without_drop_a_broken_image_is_one_clear_error(tmp_path: Path) -> None:
    chips = stream(broken_set(tmp_path))
    ref = chips.image_refs(0, 7, 0)[0]
    with pytest.raises(BrokenImageError, match=r"gone\.jpg: .*\(or set data\.on_broken=drop\)"):
        chips.sample(ref)


def test_a_set_that_is_all_broken_ends(tmp_path: Path) -> None:
    data = data_of(broken_set(tmp_path).images[6:], "a")
    chips = stream(data, drop=True)
    with pytest.raises(BrokenImageError, match="16 images in a row"):
        chips.sample(chips.image_refs(0, 0, 0)[0])


def test_reading_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no photograph")
    with pytest.raises(ValueError, match=r"broken\.jpg: "):
        read_image(str(tmp_path / "broken.jpg"))


# ---- the cache


def held(side: int) -> LabelledImage:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    return LabelledImage(np.zeros((side, side, 3), np.uint8), *nothing)


def test_the_cache_drops_the_least_recently_used() -> None:
    cache, made = ImageCache(3 * 300), []

    def fetch(key: str, side: int = 10) -> None:
        cache.fetch(key, lambda: made.append(key) or held(side))  # type: ignore[func-returns-value]

    # Larger than all: kept alone rather than decoded each time.
    for key, side, kept in (
        ("a", 10, "a"), ("b", 10, "ab"), ("c", 10, "abc"), ("a", 10, "bca"), ("d", 10, "cad"),
        ("d", 10, "cad"), ("h", 100, "h"), ("h", 100, "h"), ("e", 10, "e"),
    ):  # fmt: skip
        fetch(key, side)
        assert "".join(cache.held) == kept
    assert cache.size == 300
    assert made == list("abcdhe")


def test_threads_that_ask_for_one_image_share_what_the_first_makes() -> None:
    cache, begun, go_on = ImageCache(10**6), threading.Event(), threading.Event()
    found: list[object] = []

    def make() -> LabelledImage:
        begun.set()
        go_on.wait(10)
        return held(10)

    first = threading.Thread(target=lambda: found.append(cache.fetch("a", make)))
    first.start()
    begun.wait(10)
    second = threading.Thread(target=lambda: found.append(cache.fetch("a", lambda: held(9))))
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert found[0] is found[1]
    with pytest.raises(ZeroDivisionError):
        cache.fetch("b", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert list(cache.held) == ["a"]


# ---- proposals


def write(path: Path, ids: list[str], boxes: list[list[float]], kind: pa.DataType) -> None:
    corners = np.array(boxes, float).reshape(-1, 4)
    columns: dict[str, pa.Array] = {"image_id": pa.array(ids, pa.string())}
    columns |= {name: pa.array(corners[:, i], kind) for i, name in enumerate(CORNERS)}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_proposals_come_back_by_image_in_the_order_of_the_files(tmp_path: Path) -> None:
    folder, kind = tmp_path / "detections", pa.float32()
    boxes = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    write(folder / "0.parquet", ["b", "a", "b"], boxes, kind)
    write(folder / "1.parquet", ["c", "a"], [[0, 0, 1, 1], [0.5, 0, 2, 2]], kind)
    write(tmp_path / "own.parquet", ["x/1.jpg"], [[1, 2, 3, 4]], pa.int64())
    write(tmp_path / "none.parquet", [], [], kind)
    of_run = {field.name: "" if field.type == pa.string() else 0 for field in DETECTIONS}
    of_run |= {"image_id": "a.jpg", "x1": 4.0, "y1": 8.0}
    pq.write_table(pa.Table.from_pylist([of_run], DETECTIONS), tmp_path / "run.parquet")
    both = {"a": [boxes[1], [0.5, 0, 2, 2]], "b": [boxes[0], boxes[2]], "c": [[0, 0, 1, 1]]}
    for uri, wanted in (
        (str(folder), both),
        (f"file://{folder}", both),
        (str(tmp_path / "own.parquet"), {"x/1.jpg": [[1, 2, 3, 4]]}),
        (str(tmp_path / "run.parquet"), {"a.jpg": [[0, 0, 4, 8]]}),
        (str(tmp_path / "none.parquet"), {}),
    ):
        found = load_proposals(uri)
        assert {key: boxes.tolist() for key, boxes in found.items()} == wanted
        assert all(boxes.dtype == np.float32 for boxes in found.values())


@pytest.mark.parametrize("what", ["missing", "text", "columns"])
def test_what_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "some.parquet"
    if what == "text":
        path.write_text("x0,y0\n")
    if what == "columns":
        pq.write_table(pa.table({"image_id": ["a"], "x0": [1.0]}), path)
    with pytest.raises(ValueError, match=r"some\.parquet cannot be read .*jobs/mine\.py") as caught:
        load_proposals(str(path))
    assert "\n" not in str(caught.value)

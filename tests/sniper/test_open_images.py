"""Broken training images are named or left out; boxes of EXIF-turned ones are turned too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from af_pipeline.core.focus import FocusRule
from af_pipeline.core.scales import Scale
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage, AnnotationError
from af_pipeline.settings.train import DataConfig
from af_pipeline.sniper import open_images
from af_pipeline.sniper.chips import CoverRule
from af_pipeline.sniper.images import FileImages, ImageCache
from af_pipeline.sniper.open_images import BrokenImageError, Frame, check_images, open_image
from af_pipeline.sniper.sample import Sample, SampleRule
from af_pipeline.sniper.stream import ChipStream
from af_pipeline.training.data import check_data

BOX = (16, 40, 40, 52)  # in stored pixels, 96 wide and 64 high
SIZE = (96, 64)


def picture(folder: Path, turn: int = 1, size: tuple[int, int] = SIZE, name: str = "a") -> Path:
    """A dark JPEG whose stored pixels are bright in BOX alone; EXIF says how to turn them."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    path = folder / f"{name}.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return path


def annotated(path: Path, size: tuple[int, int] = SIZE, box: Any = BOX) -> AnnotatedImage:
    boxes, one = np.array([box], np.float32), np.zeros(1, np.int32)
    return AnnotatedImage(path.name, str(path), *size, boxes, one, one.astype(bool))


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
    data = AnnotatedDataset.of((annotated(picture(tmp_path, turn)),), ("a",), (1,))
    scales = (Scale(1.0), Scale(2.0), Scale(max_side=128))
    chips = stream(data, SampleRule(scales, FocusRule(), "none", 0.0), frame="stored")
    refs = chips.image_refs(0, 0, 0) + chips.image_refs(0, 0, 1)
    assert {ref.window.scale for ref in refs} == {0, 1, 2}
    for ref in refs:
        sample = chips.sample(ref)
        for box, valid in zip(sample.boxes.boxes, sample.boxes.valid, strict=True):
            if valid:
                inside, outside = bright(sample.image, box)
                assert inside > 0.9
                assert outside < 0.05


def stream(
    data: AnnotatedDataset, rule: SampleRule, frame: Frame = "auto", drop: bool = False
) -> ChipStream:
    source = FileImages(data, ImageCache(10**7), frame=frame)
    return ChipStream((source,), (1.0,), CoverRule(64), rule, 0, slots=4, drop_broken=drop)


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
    return AnnotatedDataset.of((*good, *bad), ("a",), (1,))


REASONS = {
    "cut": "truncated JPEG",
    "gone": "nothing at",
    "text": "not an image of a known format",
    "empty": "empty file",
    "larger": "is 96x64 px, its annotation says 97x64",
    "turned": "is 64x96 px, its annotation says 97x64",
}


def test_a_check_names_all_broken_images_at_once(tmp_path: Path) -> None:
    data = broken_set(tmp_path)
    found = check_images(data.images, "auto", decode=True)
    assert (found.looked_at, len(found.broken)) == (12, 6)
    for name, reason in REASONS.items():
        assert any(f"{name}.jpg" in line and reason in line for line in found.broken), name
    headers = check_images(data.images, "auto", decode=False)
    assert len(headers.broken) == 5  # what is cut shows in its pixels only
    assert not any("cut.jpg" in line for line in headers.broken)
    with pytest.raises(AnnotationError, match=r"drop leaves such out\): 6 problems:") as caught:
        check_data(data, DataConfig(), "images")
    assert all(f"{name}.jpg" in str(caught.value) for name in REASONS)
    told = check_data(data, DataConfig(on_broken="drop"), "images")
    assert told[-1] == "images: decoded 12 of 12 images, 6 of them left out"
    assert sum(line.startswith("left out: ") for line in told) == 6
    assert check_data(data, DataConfig(check_images=0), "images") == []
    for images in (data.images[6:], data.images[7:8]):
        with pytest.raises(AnnotationError, match="none of which can be used"):
            check_data(AnnotatedDataset.of(images, ("a",), (1,)), DataConfig(on_broken="drop"), "x")


def test_a_check_of_large_sets_looks_at_some_and_at_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = broken_set(tmp_path)
    monkeypatch.setattr("af_pipeline.training.data.DECODED_PX", 12 * 96 * 64)
    told = check_data(data, DataConfig(on_broken="drop", check_images=6), "x")
    assert told[-1] == "x: decoded 6 of 12 images, 3 of them left out"
    told = check_data(data, DataConfig(on_broken="drop"), "x")
    assert told[-1] == "x: looked at the headers of 12 of 12 images, 5 of them left out"
    told = check_data(data, DataConfig(on_broken="drop", check_images=6), "x", every=True)
    assert told[-1] == "x: decoded 12 of 12 images, 6 of them left out"


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
    told = check_data(AnnotatedDataset.of(tuple(images), ("a",), (1,)), DataConfig(), "x")
    assert "1 images are turned by EXIF" in told[-2]
    assert told[-1].startswith("warning: x: 2 images")


RULE = SampleRule((Scale(1.0),), FocusRule(), "none", 0.0)


def test_broken_images_are_left_out_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = broken_set(tmp_path)
    chips = stream(data, RULE, drop=True)
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
    other = stream(data, RULE, drop=True)
    assert len(made(other, 1)) == len(made(chips, 1))
    assert len(other.left_out) == 7
    again = [sample.image.tobytes() for sample in made(stream(data, RULE, drop=True), 1)]
    assert again == [sample.image.tobytes() for sample in made(other, 1)]  # whoever asks


def test_without_drop_a_broken_image_is_one_clear_error(tmp_path: Path) -> None:
    chips = stream(broken_set(tmp_path), RULE)
    ref = chips.image_refs(0, 7, 0)[0]
    with pytest.raises(BrokenImageError, match=r"gone\.jpg: .*\(or set data\.on_broken=drop\)"):
        chips.sample(ref)


def test_a_set_that_is_all_broken_ends(tmp_path: Path) -> None:
    data = AnnotatedDataset.of(broken_set(tmp_path).images[6:], ("a",), (1,))
    chips = stream(data, RULE, drop=True)
    with pytest.raises(BrokenImageError, match="16 images in a row"):
        chips.sample(chips.image_refs(0, 0, 0)[0])


def test_reading_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no photograph")
    with pytest.raises(ValueError, match=r"broken\.jpg: "):
        open_images.read_image(str(tmp_path / "broken.jpg"))

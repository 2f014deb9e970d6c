"""Pictures and page of a made-up run; the pictures are checked by colours at known places."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from af_pipeline.images.decode import decode_image
from af_pipeline.reporting.pictures import (
    SCALE_COLORS,
    distinct_color,
    draw_chips,
    draw_detections,
    write_pictures,
)
from tests.helpers.pictures import HOSTILE_NAMES, PAGE_TAGS

DETECTIONS = pa.schema(
    [
        ("image_id", pa.string()),
        ("label_id", pa.int32()),
        ("label", pa.string()),
        *[(name, pa.float32()) for name in ("score", "x0", "y0", "x1", "y1")],
        ("scale", pa.int8()),
    ]
)
CHIPS = pa.schema(
    [
        ("image_id", pa.string()),
        ("scale", pa.int8()),
        ("lane", pa.int16()),
        *[(name, pa.int32()) for name in ("x0", "y0", "x1", "y1")],
        ("focus", pa.float32()),
    ]
)
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("num_detections", pa.int32()),
        ("pixels_processed", pa.int64()),
        ("pixels_pyramid", pa.int64()),
    ]
)


def gray(height: int = 300, width: int = 400) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 200, np.uint8)


def write_table(out: Path, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    (out / name).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / name / "part-0.parquet")


def image_row(image_id: str, uri: str, **changes: Any) -> dict[str, Any]:
    row = {"image_id": image_id, "uri": uri, "width": 400, "height": 300, "status": "ok"}
    spent = {"num_detections": 1, "pixels_processed": 250_000, "pixels_pyramid": 1_000_000}
    return {**row, **spent, "error": "", **changes}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run over two good images (one without detections), a failed one and a vanished one."""
    out, photo = tmp_path / "out", tmp_path / "photo.png"
    cv2.imwrite(str(photo), gray())
    failed = {"status": "error", "error": "cannot decode <PNG>", "width": None, "height": None}
    write_table(
        out,
        "images",
        [
            image_row("a/<b>&'x.png", str(photo)),
            image_row("empty.png", str(photo), num_detections=0),
            image_row("failed.png", "nowhere.png", num_detections=0, **failed),
            image_row("gone.png", str(tmp_path / "gone.png")),
        ],
        IMAGES,
    )
    box = {"x0": 100, "y0": 100, "x1": 200, "y1": 200}
    one = {"image_id": "a/<b>&'x.png", "label_id": 1, "label": "truck", "scale": 1, **box}
    rows = [one | {"score": 0.9}, one | {"score": 0.1}]
    write_table(out, "detections", rows, DETECTIONS)
    chip = {"image_id": "a/<b>&'x.png", "scale": 1, "lane": 0, "focus": 0.5}
    write_table(out, "chips", [chip | {"x0": 50, "y0": 50, "x1": 250, "y1": 250}], CHIPS)
    run = {
        "config": {"mode": "autofocus", "pyramid": [{}, {}]},
        "class_names": ["car", "truck"],
        "totals": {"images": 4, "<script>": "</script>"},
    }
    (out / "run.json").write_text(json.dumps(run))
    return out


def near(image: NDArray[np.uint8], color: tuple[int, int, int], tolerance: int = 12) -> NDArray:
    """bool [H, W]: the pixels of about that colour."""
    return np.abs(image.astype(int) - np.array(color)).max(axis=2) <= tolerance


def test_detections_are_drawn_in_their_class_colours() -> None:
    image = gray()
    boxes = np.array([[10, 20, 60, 90], [200, 100, 300, 250]], np.float32)
    drawn = draw_detections(image, boxes, [0, 2], [0.5, 0.9], ["a", "b", "c"])
    assert drawn.image.shape == (300, 400, 3)
    seen = [near(drawn.image, distinct_color(label)).any() for label in range(3)]
    assert seen == [True, False, True]
    assert (image == 200).all(), "the input was drawn on"
    assert drawn.legend == ((distinct_color(0), "a: 1"), (distinct_color(2), "c: 1"))
    assert drawn.caption == "2 detections with score >= 0.3"
    assert len({distinct_color(i) for i in range(36)}) == 36
    none = draw_detections(image, np.zeros((0, 4)), [], [], [])
    assert (none.image == 200).all()
    assert none.legend == ()


def test_scores_are_written_only_on_few_boxes() -> None:
    """Above the box, where it is drawn on nothing else."""
    for count, written in ((25, True), (26, False)):
        boxes = np.tile([50, 60, 150, 160], (count, 1))
        drawn = draw_detections(gray(), boxes, [0] * count, [0.5] * count, ["a"])
        assert (drawn.image[30:56, 50:60] != 200).any() == written


def test_many_classes_are_summed_up() -> None:
    names = [str(label) for label in range(23)]
    drawn = draw_detections(gray(), np.zeros((23, 4)), range(23), [0.5] * 23, names)
    assert [text for _, text in drawn.legend][19:] == ["19: 1", "3 more classes: 3"]


def test_boxes_outside_the_image_do_not_fail() -> None:
    boxes = np.array([[-50, -50, 30, 30], [390, 290, 900, 900], [5, 5, 5, 5]])
    assert draw_detections(gray(), boxes, [0] * 3, [1.0] * 3, ["a"]).image.shape == (300, 400, 3)


def test_the_more_scales_looked_the_brighter() -> None:
    chips = np.array([[50, 50, 350, 250], [100, 100, 200, 200]])
    drawn = draw_chips(gray(), chips, [1, 2], num_scales=3)
    unseen, once, twice = (drawn.image[y, x, 0] for y, x in ((20, 20), (70, 300), (150, 150)))
    assert unseen < once < twice == 200
    assert near(drawn.image, SCALE_COLORS[1]).any()
    assert near(drawn.image, SCALE_COLORS[2]).any()
    assert [text for _, text in drawn.legend] == [
        "scale 0: whole image",
        "scale 1: 1 chip, 50.0% of the area",
        "scale 2: 1 chip, 8.3% of the area",
    ]
    alone = draw_chips(gray(), np.zeros((0, 4)), [], num_scales=1)
    assert (alone.image == 200).all(), "the coarse scale alone darkens nothing"


class Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.images: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed((folder / "index.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(unquote(str(dict(attrs)["src"])))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def decoded(path: Path) -> NDArray[np.uint8]:
    return decode_image(path.read_bytes())


def test_the_page_holds_pictures_totals_and_failures(out: Path, tmp_path: Path) -> None:
    paths = write_pictures(out, tmp_path / "pages")
    assert [path.name for path in paths] == ["001-_b_x-chips.jpg", "001-_b_x-detections.jpg"]
    chips, detections = map(decoded, paths)
    assert near(chips, SCALE_COLORS[1], 60).any()
    assert near(detections, distinct_color(1), 60).any()
    assert not near(detections, distinct_color(0), 60).any()
    page = Page(tmp_path / "pages")
    assert page.images == [path.name for path in paths]
    told = {"a/<b>&'x.png", "failed.png", "cannot decode <PNG>", "gone.png", "truck: 1", "<script>"}
    told |= {"1 detection with score >= 0.3", "FocusChips: what was looked at, by scale"}
    told |= {"mode autofocus, 400 × 300 px, 0.25 of 1.00 Mpx of the pyramid processed (25.0%)"}
    assert told <= set(page.texts)
    assert "script" not in page.tags


def test_boxes_follow_a_smaller_copy(out: Path, tmp_path: Path) -> None:
    _, path = write_pictures(out, tmp_path / "pages", max_side=200)
    small = decoded(path)
    assert small.shape == (150, 200, 3)
    columns = np.flatnonzero(near(small, distinct_color(1), 100).sum(axis=0) > 40)
    assert (columns.min(), columns.max()) == (pytest.approx(50, abs=3), pytest.approx(100, abs=3))


def test_a_run_without_chips_or_part_files(out: Path, tmp_path: Path) -> None:
    (out / "chips" / "part-0.parquet").unlink()
    assert len(write_pictures(out, tmp_path / "a")) == 2, "no chip is a finding too"
    (out / "chips").rmdir()
    (out / "run.json").unlink()
    (path,) = write_pictures(out, tmp_path / "b")
    assert near(decoded(path), distinct_color(0), 60).any(), "by place among the labels found"
    (out / "detections" / "part-0.parquet").unlink()
    assert len(write_pictures(out, tmp_path / "c")) == 1
    assert "0 detections with score >= 0.3" in Page(tmp_path / "c").texts


def test_unknown_images_and_folders_are_named(out: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no image 'nope\.png'"):
        write_pictures(out, tmp_path / "pages", ["nope.png"])
    with pytest.raises(FileNotFoundError, match=r"jobs/index\.py"):
        write_pictures(out / "nowhere", tmp_path / "pages")


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[1:20])
def test_a_name_is_text(tmp_path: Path, name: str) -> None:
    """Of a class, an image and an error: no markup, no path, no larger than a picture."""
    photo, out, target = tmp_path / "photo.png", tmp_path / "out", tmp_path / "pages"
    cv2.imwrite(str(photo), gray())
    bad = {"status": "error", "error": name, "width": None, "height": None, "num_detections": 0}
    rows = [image_row(f"{name}.png", str(photo)), image_row(f"{name}/bad", "x", **bad)]
    write_table(out, "images", rows, IMAGES)
    box = {"image_id": f"{name}.png", "x0": 9, "y0": 9, "x1": 99, "y1": 99, "score": 0.9}
    write_table(out, "detections", [{**box, "label": name, "label_id": 0, "scale": 0}], DETECTIONS)
    odd = "\ud800"  # json can say what no file can hold
    run = {"config": {"mode": name + odd}, "class_names": [odd, name], "totals": {name: name + odd}}
    (out / "run.json").write_text(json.dumps(run))
    (path,) = write_pictures(out, target)
    assert re.fullmatch(r"001-[A-Za-z0-9_-]{0,80}-detections\.jpg", path.name)
    assert sorted(target.iterdir()) == [path, target / "index.html"]
    page = Page(target)
    assert page.images == [path.name]
    assert page.tags <= PAGE_TAGS
    shown = "".join(page.texts)
    for letters in re.findall(r"[A-Za-z<>()]{3,}", name):
        assert letters in shown


def test_chosen_images_and_an_incomplete_run(out: Path, tmp_path: Path) -> None:
    (out / "run.json").unlink()
    paths = write_pictures(str(out), tmp_path / "pages", ["empty.png", "failed.png"])
    assert [path.name for path in paths] == ["001-empty-detections.jpg"]
    html = (tmp_path / "pages" / "index.html").read_text()
    assert "not complete" in html
    assert html.count("<td>failed.png</td>") == 1


def test_the_limit_spreads_over_the_images(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), gray(30, 40))
    names = [f"{i:02d}.png" for i in range(21)]
    write_table(tmp_path / "o", "images", [image_row(n, str(photo)) for n in names], IMAGES)
    write_table(tmp_path / "o", "detections", [], DETECTIONS)
    paths = write_pictures(tmp_path / "o", tmp_path / "pages", limit=3)
    assert [path.name for path in paths] == [
        f"00{n}-{i}-detections.jpg" for n, i in ((1, "00"), (2, "10"), (3, "20"))
    ]

"""Pictures and gallery of a made-up run; the layout is checked by colours at known places."""

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

from af_pipeline.images.decode import decode_image
from af_pipeline.reporting.canvas import Image, distinct_color, longest_side, text_width, wrap_text
from af_pipeline.reporting.pictures import (
    SCALE_COLORS,
    draw_chips,
    draw_detections,
    draw_ground_truth,
    picture_of_image,
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


def gray(height: int = 300, width: int = 400) -> Image:
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


def has_color(image: Image, color: tuple[int, int, int], tolerance: int = 12) -> bool:
    distance = np.abs(image.astype(int) - np.array(color)).max(axis=2)
    return bool((distance <= tolerance).any())


def test_detections_are_drawn_in_their_class_colours_between_strips() -> None:
    image = gray()
    boxes = np.array([[10, 20, 60, 90], [200, 100, 300, 250]], np.float32)
    drawn = draw_detections(image, boxes, [0, 2], [0.5, 0.9], ["a", "b", "c"], title="title")
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > 300
    assert drawn.shape[1:] == (400, 3)
    assert has_color(drawn, distinct_color(0))
    assert has_color(drawn, distinct_color(2))
    assert not has_color(drawn, distinct_color(1))
    assert (image == 200).all(), "the input was drawn on"


def test_scores_are_written_only_on_few_boxes() -> None:
    boxes, labels, scores = np.tile([50, 60, 150, 160], (3, 1)), [0] * 3, [0.5] * 3
    few = draw_detections(gray(), boxes, labels, scores, ["a"])
    many = draw_detections(gray(), boxes, labels, scores, ["a"], max_score_texts=2)
    assert few.shape == many.shape
    assert (few != many).any()


def test_no_detections_at_all() -> None:
    drawn = draw_detections(gray(), np.zeros((0, 4)), [], [], [])
    assert (drawn[:300] == 200).all()


def test_boxes_outside_the_image_do_not_fail() -> None:
    boxes = np.array([[-50, -50, 30, 30], [390, 290, 900, 900], [5, 5, 5, 5]])
    assert draw_detections(gray(), boxes, [0] * 3, [1.0] * 3, ["a"]).shape[1] == 400


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [([0], [], "1 boxes, 1 labels, 0 scores"), ([3], [0.5], "index the 1 class names")],
)
def test_inconsistent_detections_are_refused(
    labels: list[int], scores: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_detections(gray(), np.zeros((1, 4)), labels, scores, ["a"])


def test_class_colours_are_distinct() -> None:
    assert len({distinct_color(i) for i in range(36)}) == 36


def test_the_more_scales_looked_the_brighter() -> None:
    chips = np.array([[50, 50, 350, 250], [100, 100, 200, 200]])
    drawn = draw_chips(gray(), chips, [1, 2], num_scales=3)
    unseen, once, twice = drawn[20, 20, 0], drawn[70, 300, 0], drawn[150, 150, 0]
    assert unseen < once < twice == 200
    assert has_color(drawn[:300], SCALE_COLORS[1])
    assert has_color(drawn[:300], SCALE_COLORS[2])


def test_the_coarse_scale_alone_darkens_nothing() -> None:
    assert (draw_chips(gray(), np.zeros((0, 4)), [], num_scales=1)[:300] == 200).all()


def test_chips_of_unknown_scales_are_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 2\)"):
        draw_chips(gray(), np.zeros((1, 4)), [2], num_scales=2)
    with pytest.raises(ValueError, match="1 chips but 2 scales"):
        draw_chips(gray(), np.zeros((1, 4)), [1, 1], num_scales=2)


def test_ground_truth_is_dashed() -> None:
    edge = draw_ground_truth(gray(), np.array([[50, 60, 350, 200]]))[60, 55:345, 0]
    assert (edge > 240).any()
    assert (edge == 200).any()


def test_text_is_wrapped_to_the_width_and_long_words_are_cut() -> None:
    lines = wrap_text("some words " * 10 + "x" * 500, 12, 200)
    assert len(lines) > 3
    assert lines[-1].endswith("...")
    assert all(text_width(line, 12) <= 200 for line in lines)


def test_picture_shows_chips_and_detections_of_the_image(out: Path) -> None:
    picture = picture_of_image(out, "a/<b>&'x.png", gray())
    assert picture.shape[1] == 400, "landscape: panels below each other"
    assert has_color(picture, SCALE_COLORS[1])
    assert has_color(picture, distinct_color(1))
    assert not has_color(picture, distinct_color(0))


def test_portrait_panels_stand_side_by_side(out: Path) -> None:
    assert picture_of_image(out, "a/<b>&'x.png", gray(400, 300)).shape[1] > 600


def test_boxes_follow_a_resized_copy(out: Path) -> None:
    large = picture_of_image(out, "a/<b>&'x.png", gray(600, 800))
    mask = np.abs(large.astype(int) - np.array(distinct_color(1))).max(axis=2) <= 12
    columns = np.flatnonzero(mask.sum(axis=0) > 100)  # the upright edges of the box
    assert columns.min() == pytest.approx(200, abs=3)
    assert columns.max() == pytest.approx(400, abs=3)


def test_picture_without_a_chips_table_or_run_json(out: Path) -> None:
    (out / "chips" / "part-0.parquet").unlink()
    (out / "chips").rmdir()
    (out / "run.json").unlink()
    picture = picture_of_image(out, "a/<b>&'x.png", gray())
    assert picture.shape[0] < 2 * 300, "one panel"
    assert has_color(picture, distinct_color(0)), "colours by place among the labels found"


def test_tables_without_part_files_read_as_empty(out: Path) -> None:
    for name in ("detections", "chips"):
        (out / name / "part-0.parquet").unlink()
    assert picture_of_image(out, "a/<b>&'x.png", gray()).shape[1] == 400


def test_unknown_and_failed_images_are_named(out: Path) -> None:
    with pytest.raises(ValueError, match=r"no image 'nope\.png'"):
        picture_of_image(out, "nope.png", gray())
    with pytest.raises(ValueError, match="failed in the run: cannot decode"):
        picture_of_image(out, "failed.png", gray())
    with pytest.raises(FileNotFoundError, match=r"jobs/index\.py"):
        picture_of_image(out / "nowhere", "x", gray())


class Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(unquote(str(dict(attrs)["src"])))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_gallery_holds_the_pictures_the_totals_and_the_failures(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "pages"
    paths = write_pictures(out, target, max_side=1600)
    assert [path.name for path in paths] == ["001-_b_x.jpg"]
    picture = decode_image(paths[0].read_bytes())
    assert 700 <= longest_side(picture) < 2000
    page = Page((target / "index.html").read_text())
    assert page.images == ["001-_b_x.jpg"]
    assert {"a/<b>&'x.png", "failed.png", "cannot decode <PNG>", "gone.png"} <= set(page.texts)
    assert "<script>" in page.texts
    assert "script" not in page.tags


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
    (path,) = write_pictures(out, target, max_side=1600)
    assert re.fullmatch(r"001-[A-Za-z0-9_-]{0,80}\.jpg", path.name)
    assert sorted(target.iterdir()) == [path, target / "index.html"]
    assert longest_side(decode_image(path.read_bytes())) < 2500
    page = Page((target / "index.html").read_text(encoding="utf-8"))
    assert page.images == [path.name]
    assert page.tags <= PAGE_TAGS
    shown = "".join(page.texts)
    for letters in re.findall(r"[A-Za-z<>()]{3,}", name):
        assert letters in shown


def test_chosen_images_and_an_incomplete_run(out: Path, tmp_path: Path) -> None:
    (out / "run.json").unlink()
    paths = write_pictures(str(out), tmp_path / "pages", ["empty.png", "failed.png"])
    assert [path.name for path in paths] == ["001-empty.jpg"]
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
    assert [path.name for path in paths] == ["001-00.jpg", "002-10.jpg", "003-20.jpg"]

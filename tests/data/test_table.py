"""table: Parquet annotations are read, checked by column, and written as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotationError
from af_pipeline.data.annotations.parquet import write_table
from af_pipeline.images.decode import encode_png
from tests.helpers.realdata import real_data
from tests.helpers.truth import load

SIZE = {"width": 100, "height": 50}


def row(image: str | None, label: str | None = None, *box: float | None, **more: Any) -> dict:
    corners = dict(zip(("x0", "y0", "x1", "y1"), box or (None,) * 4, strict=True))
    return {"image": image, "label": label, **corners, **SIZE, **more}


def save(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def error(path: Path, **options: Any) -> str:
    with pytest.raises(AnnotationError) as caught:
        load(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_same(found: AnnotatedDataset, expected: AnnotatedDataset) -> None:
    assert found.class_names == expected.class_names
    assert len(found.images) == len(expected.images)
    for ours, theirs in zip(found.images, expected.images, strict=True):
        for name in ("image_id", "uri", "width", "height"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in ("boxes", "labels", "crowd"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other)


def test_boxes_labels_and_classes(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.parquet",
        row("b.jpg", "dog", 1, 2, 4.5, 6, crowd=False),
        row("sub/a.jpg"),
        row("b.jpg", "cat", 90, -5, 120, 70, crowd=True),
        row("c.jpg", "dog", 1, 1, 2, 2, crowd=None),
    )
    data = load(path)
    assert (data.class_names, data.category_ids) == (("cat", "dog"), (1, 2))
    first, second, third = data.images
    assert (first.image_id, first.width, first.height) == ("b.jpg", 100, 50)
    assert first.uri == str(tmp_path / "b.jpg")
    np.testing.assert_array_equal(first.boxes, [[1, 2, 4.5, 6], [90, 0, 100, 50]])
    assert (first.labels.tolist(), first.crowd.tolist()) == ([1, 0], [False, True])
    assert (second.image_id, second.boxes.shape) == ("sub/a.jpg", (0, 4))
    assert third.crowd.tolist() == [False]
    types = (first.boxes.dtype, first.labels.dtype, first.crowd.dtype)
    assert types == (np.float32, np.int32, np.bool_)


def test_without_any_box(tmp_path: Path) -> None:
    data = load(save(tmp_path / "x.parquet", row("a"), row("a"), row("b")))
    assert [image.boxes.shape for image in data.images] == [(0, 4)] * 2
    assert data.class_names == ()


def test_folder_of_files_with_images_beside(tmp_path: Path) -> None:
    folder = tmp_path / "x.parquet"  # as Spark calls its folders
    save(folder / "part-1.parquet", row("b", "x", 1, 1, 3, 3), row("a", "x", 2, 2, 3, 3))
    save(folder / "part-0.parquet", row("a", "x", 1, 1, 3, 3))
    (folder / "a").write_bytes(b"x")
    data = load(folder)
    assert [(image.uri, len(image.boxes)) for image in data.images] == [
        (str(folder / "a"), 2),
        (str(folder / "b"), 1),
    ]
    save(folder / "part-2.parquet", row("a", "x", 1, 1, 3, 3), row("b", "x", 9, 1, 3, 3))
    assert "part-2.parquet row 1 'x' has the box (9, 1, 3, 3)" in error(folder)


def test_where_images_are(tmp_path: Path) -> None:
    rows = [row("/abs/a.jpg"), row("s3://b/c.jpg"), row("d.jpg"), row("e.jpg", uri="s3://b/e")]
    path = save(tmp_path / "x.parquet", *({"uri": None, **r} for r in rows))
    uris = [image.uri for image in load(str(path)).images]
    assert uris == ["/abs/a.jpg", "s3://b/c.jpg", str(tmp_path / "d.jpg"), "s3://b/e"]
    uris = [image.uri for image in load(path, images="s3://other/").images]
    assert uris == ["/abs/a.jpg", "s3://b/c.jpg", "s3://other/d.jpg", "s3://other/e.jpg"]


def test_relative_paths_do_not_depend_on_the_folder_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "x.parquet", row("a.jpg"))
    monkeypatch.chdir(tmp_path)
    assert load("x.parquet").images[0].uri == str(tmp_path / "a.jpg")


def test_remote_files() -> None:
    place = "memory://table-test/set/x.parquet"
    system, path = fsspec.core.url_to_fs(place)
    with system.open(path, "wb") as file:
        pq.write_table(pa.Table.from_pylist([row("a.jpg", "x", 1, 1, 9, 9)]), file)
    for source in (place, "memory://table-test/set"):
        assert load(source).images[0].uri == "memory://table-test/set/a.jpg"


@pytest.mark.parametrize("sizes", [{}, {"width": None, "height": None}, {"width": 3}])
def test_size_from_the_image_where_it_is_not_stated(tmp_path: Path, sizes: dict) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((12, 34, 3), np.uint8)))
    bare = row("a.png", "x", 1, 1, 50, 50)
    del bare["width"], bare["height"]
    data = load(save(tmp_path / "x.parquet", bare | sizes))
    assert (data.images[0].width, data.images[0].height) == (34, 12)
    np.testing.assert_array_equal(data.images[0].boxes, [[1, 1, 34, 12]])
    path = save(tmp_path / "y.parquet", bare | sizes, (bare | sizes) | {"image": "gone.png"})
    assert "row 1 states no size, and its image has none: there is nothing at" in error(path)


def test_types_that_serve_as_well(tmp_path: Path) -> None:
    columns = {
        "image": pa.array(["a", "b", "a"]).dictionary_encode(),
        "label": pa.array(["x", "y", "x"], pa.large_string()),
        **{name: pa.array([n, n, n], pa.int16()) for n, name in enumerate(("x0", "y0"), 1)},
        **{name: pa.array([n, n, n], pa.float32()) for n, name in enumerate(("x1", "y1"), 5)},
        "crowd": pa.array([0, 1, 0], pa.int8()),
        "width": pa.array([9.0] * 3),
        "height": pa.array([9] * 3, pa.uint8()),
        "else": pa.array([{"a": 1}] * 3),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    data = load(tmp_path / "x.parquet")
    assert [len(image.boxes) for image in data.images] == [2, 1]
    assert data.images[1].crowd.tolist() == [True]


NAN, INF = float("nan"), float("inf")
BAD_BOXES = [
    (row("a", "x", 5, 6, 5, 8), "'x' has the box (5, 6, 5, 8), whose width or height is not"),
    (row("a", "x", 5, 6, 7, 4), "whose width or height is not positive"),
    (row("a", "x", NAN, 6, 7, 8), "which is not finite"),
    (row("a", "x", 5, 6, INF, 8), "which is not finite"),
    (row("a", "x", 100, 6, 120, 8), "which has no area inside its image (100x50)"),
    (row("a", "x", -9, 6, 0, 8), "no area inside its image"),
    (row("a", "x", 50, 6, 50 + 1e-9, 8), "no area inside its image"),
    (row("a", "x"), "'x' has a label or corners that are null, but not all"),
    (row("a", "x", 5, 6, None, 8), "null, but not all"),
    (row("a", None, 5, 6, 7, 8), "row 1 has a label or corners that are null"),
    (row("a", "", 5, 6, 7, 8), "row 1 has an empty label"),
]


@pytest.mark.parametrize(("broken", "problem"), BAD_BOXES)
def test_broken_boxes_are_named_or_dropped(tmp_path: Path, broken: dict, problem: str) -> None:
    path = save(tmp_path / "x.parquet", row("a", "good", 1, 1, 9, 9), broken)
    text = error(path)
    assert all(part in text for part in ("1 problem:", "x.parquet row 1", problem))
    data = load(path, on_broken="drop")
    assert [len(image.boxes) for image in data.images] == [1]
    assert data.class_names == ("good",)
    assert len(data.dropped) == 1
    assert problem in data.dropped[0]


BAD_IMAGES = [
    (row(None, "x", 5, 6, 7, 8), "row 1 has no image"),
    (row("", "x", 5, 6, 7, 8), "row 1 has no image"),
    (row("b", "x", 5, 6, 7, 8, width=0), "row 1 has the size 0x50"),
    (row("b", "x", 5, 6, 7, 8, height=1 << 25), "row 1 has the size 100x33554432"),
    (row("a", width=99), "row 1 has the size 99x50, an earlier row of its image 100x50"),
]


@pytest.mark.parametrize(("broken", "problem"), BAD_IMAGES)
@pytest.mark.parametrize("on_broken", ["fail", "drop"])
def test_broken_images_are_named(
    tmp_path: Path, broken: dict, problem: str, on_broken: str
) -> None:
    path = save(tmp_path / "x.parquet", row("a", "good", 1, 1, 9, 9), broken)
    assert problem in error(path, on_broken=on_broken)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": 3}, "the column label is int64, expected string"),
        ({"x0": "3"}, "the column x0 is string, expected double"),
        ({"width": 2.5}, "the column width is double"),
        ({"crowd": "no"}, "the column crowd is string, expected bool"),
    ],
)
def test_columns_of_another_type(tmp_path: Path, change: dict, problem: str) -> None:
    path = save(tmp_path / "x.parquet", row("a", "x", 1, 1, 9, 9) | change)
    assert f"x.parquet: {problem}" in error(path)


def test_unusable_files(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    assert "there is nothing at" in error(path)
    assert "no file that ends in .parquet" in error(tmp_path)
    path.write_bytes(b"not parquet")
    assert "cannot read" in error(path)
    pq.write_table(pa.table({"image": ["a"], "x0": [1.0]}), path)
    assert "x.parquet lacks the columns label, y0, x1, y1 (it has image, x0)" in error(path)
    pq.write_table(pa.Table.from_pylist([row("a", "x", 1, 1, 2, 2)]).slice(0, 0), path)
    assert "has no rows" in error(path)


def test_written_as_it_was_read(tmp_path: Path) -> None:
    rows = [row("b.jpg", "y", 1, 2, 4.5, 6, crowd=True), row("a.jpg"), row("c", "x", 3, 3, 9, 9)]
    data = load(save(tmp_path / "x.parquet", *rows))
    target = tmp_path / "deep/er/y.parquet"
    write_table(data, target)
    assert_same(load(target), data)


@pytest.mark.parametrize("name", ["aerial-cars", "bccd"])
def test_real_sets_survive_the_round_trip(name: str, tmp_path: Path) -> None:
    folder = real_data(name)
    data = load(folder / ("ImageSets/Main/test.txt" if name == "bccd" else "val.json"))
    write_table(data, tmp_path / "x.parquet")
    assert_same(load(tmp_path / "x.parquet", classes=data.class_names), data)

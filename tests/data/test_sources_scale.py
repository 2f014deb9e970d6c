"""Listings of many images hold few of them: a page of keys, or the names of one folder."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from af_pipeline.data.access import Storage
from af_pipeline.data.listing import File, Listing
from af_pipeline.data.manifest import SourceImage
from af_pipeline.data.sources.open import list_images
from tests.helpers.s3_server import endless_s3

MB = 1e6


def peak(images: Callable[[], Iterator[SourceImage]], count: int) -> int:
    """Most bytes that Python held while listing ``count`` images, beyond those before."""
    tracemalloc.start()
    try:
        assert sum(1 for _ in images()) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Pages:
    """A client whose paginator makes pages up: botocore itself is slow to trace."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_paginator(self, name: str) -> "Pages":
        assert name == "list_objects_v2"
        return self

    def paginate(self, **options: Any) -> Iterator[dict[str, Any]]:
        for start in range(0, self.count, 1000):
            keys = (f"photos/{n // 100:07d}/{n:07d}.jpg" for n in range(start, start + 1000))
            yield {"Contents": [{"Key": key, "ETag": "x" * 32} for key in keys]}


def test_s3_holds_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for count in (20_000, 60_000):
        monkeypatch.setattr("af_pipeline.data.s3.s3_client", lambda *a, c=count: Pages(c))
        peaks.append(peak(lambda: list_images("s3://b/photos"), count))
    assert peaks[1] < peaks[0] + 0.1 * MB
    assert peaks[1] < 3 * MB


def test_s3_pages_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with endless_s3(3_500) as url:
        images = list(list_images("s3://b/photos", storage=Storage(url)))
    ids = [image.image_id for image in images]
    assert len(ids) == 3_500
    assert ids == sorted(ids)
    assert images[-1].uri == "s3://b/photos/0000034/image-0003499.jpg"


def test_folders_hold_the_names_of_one(tmp_path: Path) -> None:
    def fill(root: Path, folders: int, files: int) -> str:
        for folder in range(folders):
            (root / f"{folder:03d}").mkdir(parents=True)
            for number in range(files):
                (root / f"{folder:03d}" / f"image-{number:06d}.jpg").touch()
        return str(root)

    few, many = fill(tmp_path / "few", 5, 400), fill(tmp_path / "many", 50, 400)
    flat = fill(tmp_path / "flat", 1, 20_000)
    small = peak(lambda: list_images(few), 2_000)
    assert peak(lambda: list_images(many), 20_000) < small + 0.1 * MB
    assert peak(lambda: list_images(flat), 20_000) < small + 20_000 * 150


def test_names_of_cameras_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """_DSC0001.JPG is no marker of Spark's: a .csv beside such images lists nothing."""
    for name in ("_DSC0001.JPG", "_DSC0002.JPG", "notes.csv"):
        (tmp_path / name).touch()
    ids = [image.image_id for image in list_images(str(tmp_path))]
    assert ids == ["_DSC0001.JPG", "_DSC0002.JPG"]
    taken: list[int] = []

    def files() -> Iterator[File]:
        for number in range(1000):
            taken.append(number)
            yield File(f"_DSC{number:04d}.JPG")

    monkeypatch.setattr(
        "af_pipeline.data.sources.folder.list_files", lambda *a: Listing("/x", files())
    )
    next(list_images("/x"))
    assert len(taken) == 1

"""Listings: which names of folders and patterns, in which order, in how much memory."""

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from af_pipeline.data.access import MissingSourceError, SourceError, Storage
from af_pipeline.data.listing import IMAGE_SUFFIXES, File, Listing, expand_braces, parse_pattern
from af_pipeline.data.manifest import SourceImage, local_version
from af_pipeline.data.sources.folder import list_directory
from af_pipeline.data.sources.open import list_images
from af_pipeline.data.storage import filesystem, read_bytes
from tests.helpers.odd_files import ids, touch
from tests.helpers.s3_server import Server, faulty_s3

NAMES = [
    "2024-01/cam1/a.tif",
    "2024-01/cam1/deep/b.tif",
    "2024-02/cam2/a.jpg",
    "2024-02/cam22/a.tif",
    "2024-02/cam2.jpg/c.tif",
    "2025-01/cam1/a.tif",
    "top.tif",
    ".hidden/cam1/a.tif",
    "2024-01/cam1/.a.tif",
    "2024-01/cam1/a.json",
]
PATTERNS = {
    "2024-*/cam?/*.tif": [NAMES[0]],
    "2024-*/cam?/*": [NAMES[0], NAMES[2]],
    "**/*.tif": [NAMES[0], NAMES[1], NAMES[4], NAMES[3], NAMES[5], NAMES[6]],
    "2024-0[12]/**": [NAMES[0], NAMES[1], NAMES[4], NAMES[2], NAMES[3]],
    "*.tif": [NAMES[6]],
    "{2024-01,2025-01}/cam1/*.tif": [NAMES[0], NAMES[5]],
    "2024-01/**/deep/*.tif": [NAMES[1]],
    "202{4..5}-01/cam1/a.tif": [NAMES[0], NAMES[5]],
}


# Folders


def test_directory_lists_all_images_in_order(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.png", "a.jpg", "a-b/x.jpg", "a/b/c.TIFF", "ä/ö.jpeg", "B.JPG"]
    names += ["a b#%.gif", "d.jpg/e.jpg", *(f"x/x{suffix}" for suffix in IMAGE_SUFFIXES)]
    touch(tmp_path, *names, "notes.txt", "a/labels.json", "jpg", "x.jpg.bak")
    touch(tmp_path, ".b.jpg", ".cache/c.jpg", "d/.e/f.jpg", "._a.jpg", ".jpg")  # hidden
    images = list(list_directory(str(tmp_path)))
    assert ids(images) == sorted(names)
    for image in images:
        assert image.uri == str(tmp_path / image.image_id)
        assert read_bytes(image.uri) == image.image_id.encode()
    assert ids(list_directory(str(tmp_path / ".cache"))) == ["c.jpg"]


def test_directory_spelled_differently_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "in" / "a.jpg"
    expected = [SourceImage("a.jpg", str(image), local_version(str(image)))]
    for root in ("in", "in/", "./in", "in/../in", f"{tmp_path}/in//", f"file://{tmp_path}/in"):
        assert list(list_directory(root)) == expected


def test_directory_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.jpg", "in/sub/a.jpg")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "file.jpg").symlink_to(tmp_path / "elsewhere" / "x.jpg")
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in" / "sub")
    found = ids(list_directory(str(tmp_path / "in")))
    assert found == ["file.jpg", "linked/back/a.jpg", "linked/x.jpg", "sub/a.jpg"]


def test_what_is_no_folder_of_images(tmp_path: Path) -> None:
    touch(tmp_path, "in/readme.txt", "in/.hidden/a.jpg", "a.jpg")
    with pytest.raises(MissingSourceError, match=r"nothing at .*/gone"):
        list_directory(str(tmp_path / "gone"))
    with pytest.raises(SourceError, match=rf"no image found under {tmp_path}.*\.jpg.*\.webp"):
        list(list_directory(str(tmp_path / "in")))
    with pytest.raises(SourceError, match="is a file"):
        list_directory(str(tmp_path / "a.jpg"))
    for function in (list_directory, read_bytes):
        with pytest.raises(SourceError, match="gopher://x"):
            function("gopher://x/y")


def test_directory_is_listed_lazily(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    images = list_directory(str(tmp_path))
    assert next(images).image_id == "a/1.jpg"
    touch(tmp_path, "b/2.jpg")
    assert ids(images) == ["b/1.jpg", "b/2.jpg"]


def test_folders_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are an error, not a gap; a link named like a picture becomes an error row."""
    plain, names = os.scandir, ["a.jpg"]

    class Guarded:
        def __init__(self, name: str) -> None:
            self.name = name

        def is_dir(self) -> bool:
            raise PermissionError(13, "Permission denied", self.name)

    class Folder:
        def __enter__(self) -> list[Any]:
            return [Guarded(name) for name in names]

        def __exit__(self, *_: object) -> None: ...

    def scandir(path: str) -> Any:
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return Folder() if path.endswith("/in") else plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    touch(tmp_path, "a.jpg", "b/c.jpg", "in/x")
    with pytest.raises(SourceError, match=r"no permission to read .*/b:"):
        list(list_directory(str(tmp_path)))
    assert ids(list_directory(f"{tmp_path}/in")) == ["a.jpg"]
    names[:] = ["folder"]
    with pytest.raises(SourceError, match="no permission"):
        list(list_directory(f"{tmp_path}/in"))


def test_folders_without_bottom(tmp_path: Path) -> None:
    (tmp_path / "in" / "/".join("a" * 250)).mkdir(parents=True)
    with pytest.raises(SourceError, match="lies more than 200 folders deep"):
        list(list_directory(f"{tmp_path}/in"))


# Patterns, here and on S3


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[Server, Storage]]:
    with faulty_s3() as server:
        storage = Storage(server.url, attempts=2, timeout_s=5)
        system, _ = filesystem("s3://photos", storage)
        system.makedir("photos")
        for name in (*NAMES, "2024-01/", "2024-01/cam1/x/", "odd//a.jpg", "odd/a.jpg"):
            system.call_s3("put_object", Bucket="photos", Key=f"in/{name}", Body=name.encode())
        yield server, storage


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(tmp_path: Path, s3: tuple[Server, Storage], pattern: str) -> None:
    local, (_, storage) = touch(tmp_path / "in", *NAMES), s3
    for root in (str(local), "s3://photos/in"):
        found = list(list_images(f"{root}/{pattern}", storage=storage))
        uris = [f"{root}/{name}" for name in PATTERNS[pattern]]
        assert [image.uri for image in found] == uris
        parsed = parse_pattern(f"{root}/{pattern}")
        assert parsed is not None
        assert [f"{parsed.root}/{image.image_id}" for image in found] == uris
        assert all(read_bytes(i.uri, storage) == i.uri[len(root) + 1 :].encode() for i in found)


def test_s3_folder_is_listed_as_the_local_one(
    tmp_path: Path, s3: tuple[Server, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From several pages, each one request."""
    monkeypatch.setattr("af_pipeline.data.s3._PAGE", 5)
    local, (server, storage) = touch(tmp_path / "in", *NAMES), s3
    server.script.requests.clear()
    remote = ids(list_images("s3://photos/in/", storage=storage))
    assert [i for i in remote if "odd" not in i] == ids(list_images(str(local)))
    assert [i for i in remote if "odd" in i] == ["odd//a.jpg", "odd/a.jpg"]
    assert server.script.requests == {"photos": 3}
    whole = list(list_images("s3://photos", storage=storage))
    assert ids(whole) == [f"in/{name}" for name in remote]
    assert read_bytes(whole[-2].uri, storage) == b"odd/a.jpg"


def test_remote_faults_are_told(s3: tuple[Server, Storage]) -> None:
    _, storage = s3
    for uri in ("s3://photos/gone", "s3://no-such-bucket/x", "s3://no-such-bucket"):
        with pytest.raises(MissingSourceError, match=f"nothing at {uri}"):
            list_images(uri, storage=storage)
    for uri, message in (
        ("s3://photos/in/2024-01/cam1/a.json.gz", "nothing at"),
        ("s3://photos/x*.jpg", r"no image found under s3://photos/x\*\.jpg"),
        ("s3://pho*/x.jpg", "the bucket must be named in full"),
    ):
        with pytest.raises(SourceError, match=message):
            list(list_images(uri, storage=storage))


def test_a_file_named_like_a_pattern_is_itself(tmp_path: Path) -> None:
    for folder in ("a[1]", "b{0..1}", "c*"):
        touch(tmp_path, f"{folder}/x.jpg")
        assert ids(list_images(str(tmp_path / folder))) == ["x.jpg"]


def test_folders_that_cannot_match_are_not_opened(tmp_path: Path) -> None:
    parsed = parse_pattern(f"{tmp_path}/2024-*/cam?/*.tif")
    assert parsed is not None
    assert all(map(parsed.leads, ("2024-01", "2024-01/cam1")))
    assert not any(map(parsed.leads, ("2025-01", "2024-01/cam22", "2024-01/cam1/deep")))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a{0..2}b", ["a0b", "a1b", "a2b"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{000..1}", ["000", "001"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{x}{}{a..c}", ["{x}{}{a..c}"]),
        ("{,a}", ["", "a"]),
    ],
)
def test_braces(text: str, names: list[str]) -> None:
    assert list(expand_braces(text)) == names


@given(st.text("ab{},.01/", max_size=20))
def test_braces_of_anything(text: str) -> None:
    names = list(expand_braces(text))
    assert names
    if "," not in text and ".." not in text:
        assert names == [text]


def test_patterns_that_are_refused() -> None:
    for text in ("{0..9999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(SourceError, match="names: 100000 are the most"):
            expand_braces(text)
    with pytest.raises(SourceError, match="no valid pattern"):
        parse_pattern("s3://b/a**b/*.jpg")


# Memory: a page of keys, or the names of one folder


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
    assert peaks[1] < peaks[0] + 0.1e6
    assert peaks[1] < 3e6


def test_folders_hold_the_names_of_one(tmp_path: Path) -> None:
    def fill(root: Path, folders: int, files: int) -> str:
        for folder in range(folders):
            (root / f"{folder:03d}").mkdir(parents=True)
            for number in range(files):
                (root / f"{folder:03d}" / f"image-{number:06d}.jpg").touch()
        return str(root)

    few, many = fill(tmp_path / "few", 5, 400), fill(tmp_path / "many", 25, 400)
    flat = fill(tmp_path / "flat", 1, 10_000)
    small = peak(lambda: list_images(few), 2_000)
    assert peak(lambda: list_images(many), 10_000) < small + 0.1e6
    assert peak(lambda: list_images(flat), 10_000) < small + 10_000 * 150


def test_names_of_cameras_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """_DSC0001.JPG is no marker of Spark's: a .csv beside such images lists nothing."""
    touch(tmp_path, "_DSC0001.JPG", "_DSC0002.JPG", "notes.csv")
    assert ids(list_images(str(tmp_path))) == ["_DSC0001.JPG", "_DSC0002.JPG"]
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

"""sources: what is listed, in which order, and what is said when nothing can be."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from af_pipeline.data.access import MissingSourceError, SourceError
from af_pipeline.data.annotations.dataset import locate_images
from af_pipeline.data.listing import IMAGE_SUFFIXES
from af_pipeline.data.manifest import SourceImage, local_version
from af_pipeline.data.sources.folder import list_directory
from af_pipeline.data.sources.open import list_images
from af_pipeline.data.storage import read_bytes, read_json
from tests.helpers.realdata import real_data


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def ids(images: Iterator[SourceImage]) -> list[str]:
    return [image.image_id for image in images]


def coco(folder: Path, *names: object, **extra: Any) -> str:
    path = folder / "some.json"
    entries = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": entries, **extra}))
    return str(path)


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder on a file system that is not the local one, standing for object storage."""
    name = f"memory://bucket-{uuid4().hex}"
    yield name
    fsspec.filesystem("memory").rm(name, recursive=True)


def put(uri: str, data: bytes = b"x") -> None:
    with fsspec.open(uri, "wb") as file:
        file.write(data)


# Folders


def test_directory_lists_all_images_in_order(tmp_path: Path) -> None:
    names = [
        "b.jpg",
        "a/z.png",
        "a.jpg",
        "a-b/x.jpg",
        "a/b/c.TIFF",
        "ä/ö.jpeg",
        "B.JPG",
        "a b#%.gif",
    ]
    touch(tmp_path, *names, "notes.txt", "a/labels.json", "jpg", "x.jpg.bak")
    images = list(list_directory(str(tmp_path)))
    assert [image.image_id for image in images] == sorted(names)
    for image in images:
        assert image.uri == str(tmp_path / image.image_id)
        assert read_bytes(image.uri) == image.image_id.encode()


def test_directory_takes_every_suffix(tmp_path: Path) -> None:
    touch(tmp_path, *(f"x{suffix}" for suffix in IMAGE_SUFFIXES))
    assert len(list(list_directory(str(tmp_path)))) == len(IMAGE_SUFFIXES)


def test_directory_leaves_hidden_names_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", ".cache/c.jpg", "d/.e/f.jpg", "._a.jpg", ".jpg")
    assert ids(list_directory(str(tmp_path))) == ["a.jpg"]


def test_hidden_root_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, ".data/a.jpg")
    assert ids(list_directory(str(tmp_path / ".data"))) == ["a.jpg"]


def test_directory_spelled_differently_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "in" / "a.jpg"
    expected = [SourceImage("a.jpg", str(image), local_version(str(image)))]
    for root in ("in", "in/", "./in", "in/../in", f"{tmp_path}/in//", f"file://{tmp_path}/in"):
        assert list(list_directory(root)) == expected


def test_folder_named_like_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg/b.jpg")
    assert ids(list_directory(str(tmp_path))) == ["a.jpg/b.jpg"]


def test_directory_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.jpg", "in/sub/a.jpg")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "file.jpg").symlink_to(tmp_path / "elsewhere" / "x.jpg")
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in" / "sub")
    found = ids(list_directory(str(tmp_path / "in")))
    assert found == ["file.jpg", "linked/back/a.jpg", "linked/x.jpg", "sub/a.jpg"]


def test_dangling_link_is_listed_and_fails_when_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    (image,) = list_directory(str(tmp_path))
    with pytest.raises(MissingSourceError):
        read_bytes(image.uri)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing at .*/gone"):
        list_directory(str(tmp_path / "gone"))


def test_directory_without_images_names_the_suffixes(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt", ".hidden/a.jpg")
    with pytest.raises(SourceError, match=rf"no image found under {tmp_path}.*\.jpg.*\.webp"):
        list(list_directory(str(tmp_path)))


def test_file_instead_of_directory(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match="is a file"):
        list_directory(str(tmp_path / "a.jpg"))


def test_directory_is_listed_lazily(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    images = list_directory(str(tmp_path))
    assert next(images).image_id == "a/1.jpg"
    touch(tmp_path, "b/2.jpg")
    assert ids(images) == ["b/1.jpg", "b/2.jpg"]


def test_unreadable_folder_is_an_error_not_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg")
    plain = os.scandir

    def guarded(path: str) -> Any:
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(SourceError, match=r"no permission to read .*/b:"):
        list(list_directory(str(tmp_path)))


def test_remote_directory(bucket: str) -> None:
    for name in ("b.jpg", "a/1.PNG", ".h/2.jpg", "a/.3.jpg", "a/4.txt"):
        put(f"{bucket}/{name}", name.encode())
    images = list(list_directory(bucket))
    assert [image.image_id for image in images] == ["a/1.PNG", "b.jpg"]
    place = bucket.removeprefix("memory://")
    assert all(image.uri.endswith(f"/{place}/{image.image_id}") for image in images)
    assert all(image.uri.startswith("memory://") for image in images)
    assert read_bytes(images[0].uri) == b"a/1.PNG"
    assert list(list_directory(bucket + "/")) == images


def test_unknown_protocol_is_named() -> None:
    for function in (list_directory, read_bytes):
        with pytest.raises(SourceError, match="gopher://x"):
            function("gopher://x/y")


# COCO


@pytest.mark.parametrize("folder", [".", "images"])
def test_coco_finds_the_images(tmp_path: Path, folder: str) -> None:
    touch(tmp_path / folder, "b.jpg", "sub/a.jpg")
    images = list(list_images(coco(tmp_path, "b.jpg", "sub/a.jpg")))
    assert [image.image_id for image in images] == ["b.jpg", "sub/a.jpg"]
    assert [read_bytes(image.uri) for image in images] == [b"b.jpg", b"sub/a.jpg"]


def test_coco_images_in_both_places(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "images/a.jpg", "images/b.jpg", "c.jpg")
    images = list(list_images(coco(tmp_path, "a.jpg", "b.jpg", "c.jpg")))
    expected = ["a.jpg", "images/b.jpg", "c.jpg"]
    assert [image.uri for image in images] == [str(tmp_path / name) for name in expected]


def test_coco_given_folder_is_not_doubted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "given/a.jpg")
    path = coco(tmp_path, "a.jpg", "gone.jpg")
    uris = [image.uri for image in list_images(path, str(tmp_path / "given/"))]
    assert uris == [str(tmp_path / "given" / name) for name in ("a.jpg", "gone.jpg")]


def test_coco_missing_files_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg")
    uris = [image.uri for image in list_images(coco(tmp_path, "a.jpg", "gone.jpg"))]
    assert uris == [str(tmp_path / "images" / name) for name in ("a.jpg", "gone.jpg")]
    uris = [image.uri for image in list_images(coco(tmp_path, "no.jpg", "gone.jpg"))]
    assert uris == [str(tmp_path / name) for name in ("no.jpg", "gone.jpg")]


def test_coco_absolute_names_and_urls_stay(tmp_path: Path) -> None:
    names = ["/data/a.jpg", "s3://bucket/b.jpg"]
    assert list(locate_images(names, str(tmp_path / "x.json"), "/images")) == names


def test_remote_coco(bucket: str) -> None:
    put(f"{bucket}/images/a.jpg")
    put(f"{bucket}/x.json", b'{"images": [{"file_name": "a.jpg"}]}')
    assert list(list_images(f"{bucket}/x.json")) == [SourceImage("a.jpg", f"{bucket}/images/a.jpg")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "JSON list"),
        ("{}", "no list 'images'"),
        ('{"images": {}}', "no list 'images'"),
        ('{"images": []}', "lists no image"),
        ('{"images": [{"id": 1}]}', r"images\[0\] has no file_name"),
        ('{"images": ["a.jpg"]}', r"images\[0\] has no file_name"),
        ('{"images": [{"file_name": "a"}, {"file_name": ""}]}', r"images\[1\] has no file_name"),
        ('{"images": [{"file_name": "a"}, {"file_name": "a"}]}', "'a' twice"),
    ],
)
def test_wrong_coco_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(SourceError, match=message) as caught:
        list_images(str(path))
    assert str(path) in str(caught.value)


def test_coco_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00\xd8\x80")
    with pytest.raises(SourceError, match="not valid JSON"):
        read_json(str(tmp_path / "x.json"))


# Dispatch and reading


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.jpg", "in/a.jpg")
    assert ids(list_images(str(tmp_path / "in"))) == ["a.jpg", "b.jpg"]
    path = coco(tmp_path / "in", "b.jpg")
    assert ids(list_images(path)) == ["b.jpg"]
    assert ids(list_images(path, str(tmp_path))) == ["b.jpg"]
    with pytest.raises(SourceError, match=r"goes with a COCO \.json"):
        list_images(str(tmp_path / "in"), str(tmp_path))


def test_missing_sources(tmp_path: Path) -> None:
    for name in ("gone", "gone.json"):
        with pytest.raises(MissingSourceError, match="nothing at"):
            list_images(str(tmp_path / name))


def test_twins_on_object_storage(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    put(f"{bucket}/a.jpg")
    system = type(fsspec.filesystem("memory"))
    plain = system.ls
    monkeypatch.setattr(system, "ls", lambda *a, **k: plain(*a, **k) * 2)
    with pytest.raises(SourceError, match=r"two images with the id 'a\.jpg'"):
        list(list_images(bucket))


def test_read_bytes_errors(tmp_path: Path, bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(str(tmp_path / "gone.jpg"))
    with pytest.raises(MissingSourceError, match=r"nothing at memory://.*/gone\.jpg: check"):
        read_bytes(f"{bucket[:-1]}/gone.jpg")
    with pytest.raises(SourceError, match="is a folder"):
        read_bytes(str(tmp_path))
    put(f"{bucket}/there")


def test_read_bytes_of_names_that_look_like_urls(tmp_path: Path) -> None:
    for name in ("a::b.jpg", "a:b.jpg", "a?b*[c].jpg", "~x.jpg", " a .jpg"):
        touch(tmp_path, name)
        assert read_bytes(str(tmp_path / name)) == name.encode()


def test_read_bytes_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg")

    def denied(path: str, *options: Any) -> int:  # chmod would not stop root
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(SourceError, match="no permission"):
        read_bytes(str(tmp_path / "a.jpg"))


# Real data


def test_real_sources() -> None:
    folder = real_data("aerial-cars")
    listed = list(list_images(str(folder)))
    assert len(listed) == 101
    for name, count in (("train", 78), ("val", 23)):
        images = list(list_images(str(folder / f"{name}.json")))
        assert len(images) == count
        assert {image.uri for image in images} <= {image.uri for image in listed}

"""Sources: what source.uri may be, what is listed of it, and what is said when nothing can be."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from af_pipeline.data.access import LOCAL, MissingSourceError, SourceError, Storage
from af_pipeline.data.annotations.dataset import locate_images
from af_pipeline.data.manifest import SourceImage
from af_pipeline.data.sources.folder import list_directory
from af_pipeline.data.sources.open import list_images, list_tables
from af_pipeline.data.storage import filesystem, read_bytes, read_json
from tests.helpers.odd_files import ids, pack, touch
from tests.helpers.realdata import real_data
from tests.helpers.s3_server import faulty_s3


def coco(folder: Path, *names: object) -> str:
    path = folder / "some.json"
    entries = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": entries}))
    return str(path)


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder on a file system that is not the local one, standing for object storage."""
    name = f"memory://bucket-{uuid4().hex}"
    with fsspec.open(f"{name}/there", "wb") as file:
        file.write(b"x")
    yield name
    fsspec.filesystem("memory").rm(name, recursive=True)


def put(uri: str, data: bytes = b"x") -> None:
    with fsspec.open(uri, "wb") as file:
        file.write(data)


# Kinds


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.jpg", "in/a.jpg", "x.zip")
    assert ids(list_images(str(tmp_path / "in"))) == ["a.jpg", "b.jpg"]
    path = coco(tmp_path / "in", "b.jpg")
    assert ids(list_images(path)) == ids(list_images(path, str(tmp_path))) == ["b.jpg"]
    for uri in ("in", "in/a.jpg", "in/*.jpg"):
        with pytest.raises(SourceError, match=r"goes with a COCO \.json"):
            list_images(f"{tmp_path}/{uri}", str(tmp_path))
    for name in ("gone", "gone.json", "gone.jpg"):
        with pytest.raises(MissingSourceError, match="nothing at"):
            list_images(str(tmp_path / name))
    for uri in ("x.zip", "{x,y}.zip"):
        with pytest.raises(SourceError, match=r"a folder of images.*COCO.*VOC.*parquet.*tar"):
            list_images(str(tmp_path / uri))
    with pytest.raises(SourceError, match=r"no source: give source\.uri"):
        list_images("")


def test_a_single_image_is_a_source(tmp_path: Path) -> None:
    touch(tmp_path, "in/a?b#c.JPG")
    (image,) = list_images(f"{tmp_path}/in/a?b#c.JPG")
    assert (image.image_id, image.uri) == ("a?b#c.JPG", f"{tmp_path}/in/a?b#c.JPG")
    assert image.version.startswith("12-")
    (table,) = list_tables(image.uri)
    assert table["uri"].to_pylist() == [image.uri]


def test_all_kinds_on_s3(tmp_path: Path) -> None:
    with faulty_s3() as server:
        storage = Storage(server.url, attempts=2, timeout_s=5)
        system, _ = filesystem("s3://kinds", storage)
        system.makedir("kinds")
        for number in range(3):
            data = Path(pack(tmp_path / "x.tar", {"a.jpg": b"A%d" % number})).read_bytes()
            system.pipe_file(f"kinds/tars/s-{number}.tar", data)
        system.pipe_file("kinds/in/top.tif", b"top.tif")
        csv = b"image_id,uri,n\na,tars/x.jpg,1\nb,s3://photos/top.tif,2\n"
        system.pipe_file("kinds/m.csv", csv)
        system.pipe_file("kinds/c.json", b'{"images": [{"file_name": "in/top.tif"}]}')
        for uri in ("s3://kinds/tars", "s3://kinds/tars/s-{0..2}.tar", "s3://kinds/tars/*.tar"):
            found = list(list_images(uri, storage=storage))
            assert ids(found) == [f"s-{n}.tar/a.jpg" for n in range(3)]
            assert [read_bytes(i.uri, storage) for i in found] == [b"A0", b"A1", b"A2"]
        (table,) = list_tables("s3://kinds/m.csv", storage=storage)
        assert table.to_pylist() == [
            {"image_id": "a", "uri": "s3://kinds/tars/x.jpg", "version": "", "n": 1},
            {"image_id": "b", "uri": "s3://photos/top.tif", "version": "", "n": 2},
        ]
        for uri, folder in (("s3://kinds/c.json", "s3://kinds"), ("s3://kinds/in/top.tif", None)):
            (image,) = list_images(uri, folder, storage)
            assert image.image_id == ("in/top.tif" if folder else "top.tif")
            assert read_bytes(image.uri, storage) == b"top.tif"
        with pytest.raises(MissingSourceError, match="nothing at"):
            list_images("s3://kinds/in/gone.tif", storage=storage)


def test_voc_image_sets(tmp_path: Path) -> None:
    touch(tmp_path, "JPEGImages/a.jpg", "ImageSets/Main/val.txt", "Annotations/a.xml")
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\n")
    size = "<size><width>4</width><height>4</height><depth>3</depth></size>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{size}</annotation>")
    assert ids(list_images(f"{tmp_path}/ImageSets/Main/val.txt")) == ["a.jpg"]
    with pytest.raises(SourceError, match="nothing at"):
        list_images(f"{tmp_path}/ImageSets/Main/gone.txt")


def test_versions_follow_the_bytes(tmp_path: Path) -> None:
    image = tmp_path / "in/a.jpg"
    image.parent.mkdir()
    (tmp_path / "c.json").write_text('{"images": [{"file_name": "in/a.jpg"}]}')
    places = ("in", "in/*.jpg", "in/{a,a2}.jpg", "c.json", "in/a.jpg", "t.tar")
    seen = []
    for content in (b"1", b"22"):
        image.write_bytes(content)
        pack(tmp_path / "t.tar", {"a.jpg": content})
        first = [next(iter(list_images(f"{tmp_path}/{place}"))).version for place in places]
        assert all(version.startswith(f"{len(content)}-") for version in first)
        seen.append(first)
    assert seen[0] != seen[1]
    assert len(set(seen[0][:5])) == 1


# Other storage


def test_remote_directory(bucket: str) -> None:
    for name in ("b.jpg", "a/1.PNG", ".h/2.jpg", "a/.3.jpg", "a/4.txt"):
        put(f"{bucket}/{name}", name.encode())
    images = list(list_directory(bucket))
    assert ids(images) == ["a/1.PNG", "b.jpg"]
    place = bucket.removeprefix("memory://")
    assert all(image.uri.endswith(f"/{place}/{image.image_id}") for image in images)
    assert all(image.uri.startswith("memory://") for image in images)
    assert read_bytes(images[0].uri) == b"a/1.PNG"
    assert list(list_directory(bucket + "/")) == images


def test_twins_on_object_storage(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    put(f"{bucket}/a.jpg")
    system = type(fsspec.filesystem("memory"))
    plain = system.ls
    monkeypatch.setattr(system, "ls", lambda *a, **k: plain(*a, **k) * 2)
    with pytest.raises(SourceError, match=r"two images with the id 'a\.jpg'"):
        list(list_images(bucket))


def test_read_bytes(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in (str(tmp_path / "gone.jpg"), f"{bucket}/gone.jpg"):
        with pytest.raises(MissingSourceError, match=r"nothing at .*/gone\.jpg: check"):
            read_bytes(uri)
    with pytest.raises(SourceError, match="is a folder"):
        read_bytes(str(tmp_path))
    for name in ("a::b.jpg", "a:b.jpg", "a?b*[c].jpg", "~x.jpg", " a .jpg"):
        touch(tmp_path, name)
        assert read_bytes(str(tmp_path / name)) == name.encode()

    def denied(path: str, *options: object) -> int:  # chmod would not stop root
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(SourceError, match="no permission"):
        read_bytes(str(tmp_path / "~x.jpg"))


# COCO


PLACES = {
    # files; names in the json; where they are listed
    "beside": (("b.jpg", "sub/a.jpg"), ("b.jpg", "sub/a.jpg"), ("b.jpg", "sub/a.jpg")),
    "in images": (("images/b.jpg", "images/a.jpg"), ("b.jpg",), ("images/b.jpg",)),
    "in both": (
        ("a.jpg", "images/a.jpg", "images/b.jpg", "c.jpg"),
        ("a.jpg", "b.jpg", "c.jpg"),
        ("a.jpg", "images/b.jpg", "c.jpg"),
    ),
    "one gone": (("images/a.jpg",), ("a.jpg", "gone.jpg"), ("images/a.jpg", "images/gone.jpg")),
    "all gone": ((), ("no.jpg", "gone.jpg"), ("no.jpg", "gone.jpg")),
}


@pytest.mark.parametrize("place", PLACES)
def test_coco_finds_the_images(tmp_path: Path, place: str) -> None:
    files, names, uris = PLACES[place]
    touch(tmp_path, *files)
    images = list(list_images(coco(tmp_path, *names)))
    assert ids(images) == list(names)
    assert [image.uri for image in images] == [str(tmp_path / uri) for uri in uris]


def test_coco_given_folder_is_not_doubted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "given/a.jpg")
    path = coco(tmp_path, "a.jpg", "gone.jpg")
    uris = [image.uri for image in list_images(path, str(tmp_path / "given/"))]
    assert uris == [str(tmp_path / "given" / name) for name in ("a.jpg", "gone.jpg")]
    names = ["/data/a.jpg", "s3://bucket/b.jpg"]  # absolute ones stay
    assert list(locate_images(names, str(tmp_path / "x.json"), "/images")) == names


def test_remote_coco(bucket: str) -> None:
    put(f"{bucket}/images/a.jpg")
    put(f"{bucket}/x.json", b'{"images": [{"file_name": "a.jpg"}]}')
    assert list(list_images(f"{bucket}/x.json")) == [SourceImage("a.jpg", f"{bucket}/images/a.jpg")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe\x00\xd8\x80", "not valid JSON"),
        (b"[]", "JSON list"),
        (b"{}", "no list 'images'"),
        (b'{"images": {}}', "no list 'images'"),
        (b'{"images": []}', "lists no image"),
        (b'{"images": [{"id": 1}]}', r"images\[0\] has no file_name"),
        (b'{"images": ["a.jpg"]}', r"images\[0\] has no file_name"),
        (b'{"images": [{"file_name": "a"}, {"file_name": ""}]}', r"images\[1\] has no file_name"),
        (b'{"images": [{"file_name": "a"}, {"file_name": "a"}]}', "'a' twice"),
        (b'{"images": [{"file_name": "s3://k:s@b/a"}]}', "a user or a secret"),
    ],
)
def test_wrong_coco_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        list_images(str(path))
    assert str(path) in str(caught.value)
    if "JSON" in message:
        with pytest.raises(SourceError, match=message):
            read_json(str(path), LOCAL)


def test_real_sources() -> None:
    folder = real_data("aerial-cars")
    listed = list(list_images(str(folder)))
    assert len(listed) == 101
    for name, count in (("train", 78), ("val", 23)):
        images = list(list_images(str(folder / f"{name}.json")))
        assert len(images) == count
        assert {image.uri for image in images} <= {image.uri for image in listed}

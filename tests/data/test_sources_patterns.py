"""Patterns: what they list, locally and on S3, and what source.uri may be at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from af_pipeline.data.access import LOCAL, MissingSourceError, SourceError, Storage
from af_pipeline.data.listing import expand_braces, parse_pattern
from af_pipeline.data.sources.open import list_images, list_tables
from af_pipeline.data.storage import filesystem, read_bytes
from tests.data.test_tar import pack
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


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[Server, Storage]]:
    with faulty_s3() as server, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        storage = Storage(server.url, attempts=2, timeout_s=5)
        system, _ = filesystem("s3://photos", storage)
        system.makedir("photos")
        for name in (*NAMES, "2024-01/", "2024-01/cam1/x/", "odd//a.jpg", "odd/a.jpg"):
            system.call_s3("put_object", Bucket="photos", Key=f"in/{name}", Body=name.encode())
        yield server, storage


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    return tmp_path / "in"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(local: Path, s3: tuple[Server, Storage], pattern: str) -> None:
    _, storage = s3
    for root in (str(local), "s3://photos/in"):
        found = list(list_images(f"{root}/{pattern}", storage=storage))
        uris = [f"{root}/{name}" for name in PATTERNS[pattern]]
        assert [image.uri for image in found] == uris
        parsed = parse_pattern(f"{root}/{pattern}")
        assert parsed is not None
        assert [f"{parsed.root}/{image.image_id}" for image in found] == uris
        assert all(read_bytes(i.uri, storage) == i.uri[len(root) + 1 :].encode() for i in found)


def test_s3_folder_is_listed_as_the_local_one(local: Path, s3: tuple[Server, Storage]) -> None:
    server, storage = s3
    server.script.requests.clear()
    remote = [i.image_id for i in list_images("s3://photos/in/", storage=storage)]
    assert [i for i in remote if "odd" not in i] == [i.image_id for i in list_images(str(local))]
    assert [i for i in remote if "odd" in i] == ["odd//a.jpg", "odd/a.jpg"]
    assert server.script.requests == {"photos": 1}
    whole = list(list_images("s3://photos", storage=storage))
    assert [i.image_id for i in whole] == [f"in/{name}" for name in remote]
    assert read_bytes(whole[-2].uri, storage) == b"odd/a.jpg"


def test_remote_faults_are_told(s3: tuple[Server, Storage]) -> None:
    _, storage = s3
    for uri in ("s3://photos/gone", "s3://no-such-bucket/x", "s3://no-such-bucket"):
        with pytest.raises(MissingSourceError, match=f"nothing at {uri}"):
            list_images(uri, storage=storage)
    with pytest.raises(SourceError):
        list_images("s3://photos/in/2024-01/cam1/a.json.gz", storage=storage)
    with pytest.raises(SourceError, match=r"no image found under s3://photos/x\*\.jpg"):
        list(list_images("s3://photos/x*.jpg", storage=storage))
    with pytest.raises(SourceError, match="the bucket must be named in full"):
        list_images("s3://pho*/x.jpg", storage=storage)


def test_all_kinds_on_s3(tmp_path: Path, s3: tuple[Server, Storage]) -> None:
    _, storage = s3
    system, _ = filesystem("s3://kinds", storage)
    system.makedir("kinds")
    for number in range(3):
        data = Path(pack(tmp_path / "x.tar", {"a.jpg": b"A%d" % number})).read_bytes()
        system.pipe_file(f"kinds/tars/s-{number}.tar", data)
    system.pipe_file("kinds/m.csv", b"image_id,uri,n\na,tars/x.jpg,1\nb,s3://photos/in/top.tif,2\n")
    system.pipe_file("kinds/c.json", b'{"images": [{"file_name": "in/top.tif"}]}')
    for uri in ("s3://kinds/tars", "s3://kinds/tars/s-{0..2}.tar", "s3://kinds/tars/*.tar"):
        found = list(list_images(uri, storage=storage))
        assert [i.image_id for i in found] == [f"s-{n}.tar/a.jpg" for n in range(3)]
        assert [read_bytes(i.uri, storage) for i in found] == [b"A0", b"A1", b"A2"]
    (table,) = list_tables("s3://kinds/m.csv", storage=storage)
    assert table.to_pylist() == [
        {"image_id": "a", "uri": "s3://kinds/tars/x.jpg", "version": "", "n": 1},
        {"image_id": "b", "uri": "s3://photos/in/top.tif", "version": "", "n": 2},
    ]
    (image,) = list_images("s3://kinds/c.json", "s3://photos", storage)
    assert read_bytes(image.uri, storage) == b"top.tif"


def test_a_file_named_like_a_pattern_is_itself(tmp_path: Path) -> None:
    for folder in ("a[1]", "b{0..1}", "c*"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").touch()
        assert [i.image_id for i in list_images(str(tmp_path / folder))] == ["x.jpg"]


def test_folders_that_cannot_match_are_not_opened(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = parse_pattern(f"{local}/2024-*/cam?/*.tif")
    assert parsed is not None
    for folder, wanted in (
        ("2024-01", True),
        ("2024-01/cam1", True),
        ("2025-01", False),
        ("2024-01/cam22", False),
        ("2024-01/cam1/deep", False),
    ):
        assert parsed.leads(folder) is wanted


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
        ("plain", ["plain"]),
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


def test_voc_image_sets(tmp_path: Path) -> None:
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\n")
    (tmp_path / "JPEGImages/a.jpg").touch()
    size = "<size><width>4</width><height>4</height><depth>3</depth></size>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{size}</annotation>")
    found = list(list_images(f"{tmp_path}/ImageSets/Main/val.txt"))
    assert [image.image_id for image in found] == ["a.jpg"]
    with pytest.raises(SourceError, match="nothing at"):
        list_images(f"{tmp_path}/ImageSets/Main/gone.txt")


def test_too_many_names() -> None:
    for text in ("{0..9999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(SourceError, match="names: 100000 are the most"):
            expand_braces(text)


def test_invalid_patterns() -> None:
    with pytest.raises(SourceError, match="no valid pattern"):
        parse_pattern("s3://b/a**b/*.jpg")


def test_anything_else_names_the_possibilities(tmp_path: Path) -> None:
    (tmp_path / "x.zip").touch()
    for uri in ("x.zip", "{x,y}.zip"):
        with pytest.raises(SourceError, match=r"a folder of images.*COCO.*VOC.*parquet.*tar"):
            list_images(str(tmp_path / uri))
    with pytest.raises(SourceError, match=r"no source: give source\.uri"):
        list_images("")
    with pytest.raises(MissingSourceError):
        list_images(str(tmp_path / "gone"))


def test_a_single_image(local: Path, s3: tuple[Server, Storage]) -> None:
    for root, storage in ((str(local), LOCAL), ("s3://photos/in", s3[1])):
        (image,) = list_images(f"{root}/{NAMES[2]}", storage=storage)
        assert (image.image_id, image.uri) == ("a.jpg", f"{root}/{NAMES[2]}")
        assert read_bytes(image.uri, storage) == NAMES[2].encode()
        with pytest.raises(MissingSourceError, match=r"nothing at .*gone\.jpg"):
            list_images(f"{root}/gone.jpg", storage=storage)
    with pytest.raises(SourceError, match="needs no image folder"):
        list_images(f"{local}/top.tif", str(local))
    (table,) = list_tables(f"{local}/top.tif")
    assert table["image_id"].to_pylist() == ["top.tif"]


def test_versions_follow_the_bytes(tmp_path: Path) -> None:
    image = tmp_path / "in/a.jpg"
    image.parent.mkdir()
    (tmp_path / "c.json").write_text('{"images": [{"file_name": "in/a.jpg"}]}')
    places = ("in", "in/*.jpg", "in/{a,a2}.jpg", "c.json", "t.tar")
    seen = []
    for content in (b"1", b"22"):
        image.write_bytes(content)
        pack(tmp_path / "t.tar", {"a.jpg": content})
        first = [next(iter(list_images(f"{tmp_path}/{place}"))).version for place in places]
        assert all(version.startswith(f"{len(content)}-") for version in first)
        seen.append(first)
    assert seen[0] != seen[1]
    assert len(set(seen[0][:4])) == 1

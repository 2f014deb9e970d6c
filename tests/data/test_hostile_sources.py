"""What must neither hang nor fill memory nor end a listing: odd files, odd names, hostile lists."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.data.access import SourceError, Storage
from af_pipeline.data.manifest import LONGEST, SourceImage, write_manifest, write_tables
from af_pipeline.data.reach import refusal
from af_pipeline.data.secrets import text_id
from af_pipeline.data.sources.folder import list_directory
from af_pipeline.data.sources.open import list_images, list_tables
from af_pipeline.data.sources.source import Source
from af_pipeline.data.sources.table import read_tables
from af_pipeline.data.storage import range_uri, read_bytes
from tests.helpers.odd_files import ODD, pack

SMALL = Storage(max_bytes=1000)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_listed_and_refused_when_read(tmp_path: Path, kind: str) -> None:
    make, message = ODD[kind]
    make(tmp_path / "p.jpg")
    (tmp_path / "q.jpg").write_bytes(b"fine")
    found = list(list_directory(str(tmp_path)))
    assert [image.image_id for image in found] == ["p.jpg", "q.jpg"]
    for uri in (found[0].uri, f"file://{found[0].uri}"):
        with pytest.raises(SourceError, match=message):
            read_bytes(uri)
    with pytest.raises(SourceError):
        read_bytes(range_uri(found[0].uri, 5, 3 << 30))
    for suffix in ("json", "csv", "parquet", "tar"):  # lists of that kind are refused as well
        (tmp_path / "p.jpg").rename(tmp_path / f"p.{suffix}")
        with pytest.raises(SourceError):
            list(list_images(f"{tmp_path}/p.{suffix}"))
        (tmp_path / f"p.{suffix}").rename(tmp_path / "p.jpg")


def test_the_size_limit_is_inclusive(tmp_path: Path) -> None:
    for size in (0, 1000, 1001):
        (tmp_path / "a").write_bytes(bytes(size))
        if size <= SMALL.max_bytes:
            assert len(read_bytes(f"{tmp_path}/a", SMALL)) == size
            continue
        for uri in (f"{tmp_path}/a", range_uri(f"{tmp_path}/a", 0, size)):
            with pytest.raises(SourceError, match=r"has 1001 bytes, more than storage\.max_bytes"):
                read_bytes(uri, SMALL)


# Names

NAMES = [b"\xff.jpg", b"\\xff.jpg", b"a\xe4/b\xff%20 #?.png", "ä%FF.jpg".encode(), b"\\\xff.jpg"]


def test_names_that_are_not_utf_8_are_text_unique_and_read(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "in")
    for name in NAMES:
        place = os.path.join(root, name)  # noqa: PTH118 (bytes)
        os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
        Path(os.fsdecode(place)).write_bytes(name)
    path = tmp_path / "m.parquet"
    assert write_tables(list_tables(f"{tmp_path}/in"), path) == len(NAMES)
    found = {row["image_id"]: read_bytes(row["uri"]) for row in pq.read_table(path).to_pylist()}
    assert found == {
        "\\xff.jpg": NAMES[0],
        "\\\\xff.jpg": NAMES[1],
        "a\\xe4/b\\xff%20 #?.png": NAMES[2],
        "ä%FF.jpg": NAMES[3],
        "\\\\\\xff.jpg": NAMES[4],
    }


def test_no_two_names_share_an_id() -> None:
    alphabet = [b"\\", b"x", b"f", b"\xff"]
    names = [b""]
    for _ in range(6):
        names += [name + letter for name in names[-(4**_) :] for letter in alphabet]
    ids = [text_id(os.fsdecode(name)) for name in names]
    assert len(set(ids)) == len(set(names)) > 4**6
    assert text_id("plain\\name ä.jpg") == "plain\\name ä.jpg"


def test_names_that_are_not_utf_8_in_tars_and_lists(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    uri = pack(tmp_path / os.fsdecode(b"\xfe.tar"), {name: b"member"})
    path = tmp_path / "m.parquet"
    write_tables(list_tables(uri), path)
    (row,) = pq.read_table(path).to_pylist()
    assert row["image_id"] == "\\xfe.tar/\\xff.jpg"
    assert read_bytes(row["uri"]) == b"member"
    (tmp_path / name).write_bytes(b"file")
    (tmp_path / "c.json").write_text(
        json.dumps({"images": [{"file_name": name}, {"file_name": "\ud800.jpg"}]})
    )
    write_tables(list_tables(f"{tmp_path}/c.json"), path)
    rows = pq.read_table(path).to_pylist()
    assert [row["image_id"] for row in rows] == ["\\xff.jpg", "\\xed\\xa0\\x80.jpg"]
    assert read_bytes(rows[0]["uri"]) == b"file"
    with pytest.raises(SourceError, match="nothing at"):
        read_bytes(rows[1]["uri"])


@pytest.mark.parametrize("column", ["image_id", "uri"])
def test_names_without_end_are_refused(tmp_path: Path, column: str) -> None:
    texts = {"image_id": "a", "uri": "/a"}
    good, bad = texts | {column: "x" * LONGEST}, texts | {column: "ä" * 150_000}
    images = [SourceImage(**good), SourceImage(**bad)]
    assert write_manifest(images[:1], tmp_path / "m.parquet") == 1
    with pytest.raises(SourceError, match=f"row 1 of the list.* has a {column} of 300000 bytes"):
        write_manifest(images, tmp_path / "m.parquet")


@pytest.mark.parametrize(
    "uri",
    [
        "/a.tar#offset=" + "1" * 5000 + "&size=1",
        "/a.tar#offset=0&size=" + "9" * 18,
        "/a\0b.jpg",
        "~nobody-of-this-name/a.jpg",
        "/" + "x/" * 150_000,
        "http://[::1/a.jpg",
        "http://h:99999/a.jpg",
        "file://~/\udcff%",
        "s3://",
        "://",
    ],
)
def test_uris_that_are_none_are_one_line(uri: str) -> None:
    for function in (read_bytes, lambda one: list(list_images(one))):
        with pytest.raises(SourceError) as caught:
            function(uri)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


# What lists may reach

HERE, AWAY, WEB = "/data/list.csv", "s3://bucket/lists/list.csv", "https://host/lists/list.csv"
FINE, LOCAL, CHAIN, CLIMBS = None, "local file", "chain", "climbs"
REACH: dict[str, tuple[str | None, str | None, str | None]] = {
    # entry of a list: on this machine, on S3, on the web
    "a.jpg": (FINE, FINE, FINE),
    "sub/../a.jpg": (FINE, FINE, FINE),
    "sub/..a/b..jpg": (FINE, FINE, FINE),
    "../a.jpg": (CLIMBS, CLIMBS, CLIMBS),
    "sub/../../etc/passwd": (CLIMBS, CLIMBS, CLIMBS),
    "%2e%2e/a.jpg": (FINE, FINE, CLIMBS),
    "/etc/passwd": (FINE, LOCAL, LOCAL),
    "file:///etc/passwd": (FINE, LOCAL, LOCAL),
    "FILE:///etc/passwd": (FINE, LOCAL, LOCAL),
    "local:///etc/passwd": (FINE, LOCAL, LOCAL),
    "s3://other/a::b.jpg": (FINE, FINE, FINE),
    "https://elsewhere/a.jpg": (FINE, FINE, FINE),
    "gs://other/a.jpg": (FINE, FINE, FINE),
    "simplecache::s3://b/a.jpg": (CHAIN, CHAIN, CHAIN),
    "zip://dir/a.jpg::s3://b/x.zip": (CHAIN, CHAIN, CHAIN),
    "filecache::file:///etc/passwd": (CHAIN, CHAIN, CHAIN),
    "gs://b/a.zip::file:///etc/passwd": (CHAIN, CHAIN, CHAIN),
    "asynclocal:///etc/passwd": ("protocol", "protocol", "protocol"),
    "reference://a.jpg": ("protocol", "protocol", "protocol"),
    " file:///etc/passwd": ("protocol", "protocol", "protocol"),
}


@pytest.mark.parametrize("entry", REACH)
def test_what_lists_may_reach(tmp_path: Path, entry: str) -> None:
    for file, reason in zip((HERE, AWAY, WEB), REACH[entry], strict=True):
        folder = file.rpartition("/")[0]
        found = refusal(entry, file, folder)
        assert (found is None) if reason is None else (reason in (found or "")), file
    reason = REACH[entry][0]
    (tmp_path / "c.json").write_text(json.dumps({"images": [{"file_name": entry}]}))
    pq.write_table(pa.table({"uri": ["fine.jpg", entry]}), tmp_path / "p.parquet")
    (tmp_path / "c.csv").write_text(f'uri\nfine.jpg\n"{entry}"\n')
    for name in ("c.json", "p.parquet", "c.csv"):
        uri = f"{tmp_path}/{name}"
        assert list(list_images(uri, storage=Storage(reach="any")))[-1].uri
        if reason is None:
            assert list(list_images(uri))
            continue
        with pytest.raises(SourceError, match=rf"{reason}.*source\.storage\.reach=any"):
            list(list_images(uri))


def test_remote_lists_reach_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Batch by batch, as they are read."""
    local = tmp_path / "p.parquet"
    pq.write_table(pa.table({"uri": ["s3://b/fine.jpg", "a.jpg", "/etc/passwd"]}), local)
    monkeypatch.setattr(
        "af_pipeline.data.sources.table.open_file",
        lambda uri, *_: local.open("rb", buffering=1 << 16),
    )
    uri = AWAY.replace("csv", "parquet")
    with pytest.raises(SourceError, match="row 2: '/etc/passwd' is a local file, and the list is"):
        list(read_tables([uri], Source(uri)))
    (table,) = read_tables([uri], Source(uri, storage=Storage(reach="any")))
    assert table["uri"].to_pylist()[1:] == ["s3://bucket/lists/a.jpg", "/etc/passwd"]


def test_messages_quote_nothing_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("uri,n\na,1\nhttps://h/a b?sig=geheim,2,3\n")
    with pytest.raises(SourceError, match="no valid CSV") as caught:
        list(list_images(f"{tmp_path}/c.csv"))
    assert "geheim" not in str(caught.value)


def test_parquet_that_stands_for_gigabytes(tmp_path: Path) -> None:
    """Some hundred bytes, as dictionaries and compression make them."""
    path = str(tmp_path / "p.parquet")
    names = pa.array([0] * 2000, pa.int32())
    long = pa.DictionaryArray.from_arrays(names, pa.array(["x" * 300_000]))
    pool = pa.default_memory_pool()
    for column in ("image_id", "uri"):
        texts = {"image_id": [str(n) for n in range(2000)], "uri": ["a.jpg"] * 2000}
        pq.write_table(pa.table(texts | {column: long}), path, compression="zstd")
        before = pool.max_memory()
        with pytest.raises(SourceError, match=f"has a {column} of 300000 bytes, over {LONGEST}"):
            list(list_tables(path))
        assert pool.max_memory() - before < 100e6


@pytest.mark.parametrize("column", ["image_id", "uri", "note"])
def test_text_that_is_no_utf_8_is_told_at_once(tmp_path: Path, column: str) -> None:
    """Comparing ids, and the tables at the end of a run, would stop at it."""
    offsets = pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0")
    bad = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff\xfe")])
    texts = {"image_id": ["a", "b"], "uri": ["a", "b"], column: bad}
    pq.write_table(pa.table(texts), tmp_path / "p.parquet")
    with pytest.raises(SourceError, match=r"p\.parquet row 0 or one after it: .*UTF8"):
        list(list_tables(f"{tmp_path}/p.parquet"))

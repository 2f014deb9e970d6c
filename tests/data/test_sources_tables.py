"""Parquet and CSV files of URIs: what becomes of their columns, and what is refused."""

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.core.schema import IMAGES, MANIFEST
from af_pipeline.data.access import MissingSourceError, SourceError, Storage
from af_pipeline.data.manifest import SourceImage, write_tables
from af_pipeline.data.sources.open import list_images, list_tables
from tests.helpers.odd_files import save_table as save


def read(uri: str, **options: Any) -> pa.Table:
    return pa.concat_tables(list_tables(uri, **options))


URIS = ["s3://b/x.jpg", "/data/y.jpg", "sub/z.jpg", "s3://b/t.tar#offset=512&size=9"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_columns_ids_and_relative_uris(tmp_path: Path, kind: str) -> None:
    columns = {"image_id": ["a", "b", "007", "ä"], "uri": URIS, "camera": [1, 2, 3, 4]}
    uri = save(tmp_path / f"m.{kind}", columns)
    found = read(uri)
    assert found.schema == pa.schema(
        [(name, pa.string()) for name in ("image_id", "uri", "version")] + [("camera", pa.int64())]
    )
    assert found["image_id"].to_pylist() == columns["image_id"]
    assert found["uri"].to_pylist() == [*URIS[:2], f"{tmp_path}/sub/z.jpg", URIS[3]]
    assert read(uri, images="s3://c/in/")["uri"].to_pylist()[2] == "s3://c/in/sub/z.jpg"
    images = list(list_images(uri))
    assert images[0] == SourceImage("a", "s3://b/x.jpg")
    assert len(images) == 4


def test_without_ids_the_uri_is_the_id(tmp_path: Path) -> None:
    found = read(save(tmp_path / "m.parquet", {"uri": URIS}))
    assert found["image_id"].to_pylist() == URIS
    assert found["uri"].to_pylist()[2] == f"{tmp_path}/sub/z.jpg"


def test_columns_by_other_names(tmp_path: Path) -> None:
    uri = save(tmp_path / "m.parquet", {"key": [5, 6], "path": URIS[:2], "url": ["u", "v"]})
    found = read(uri, id_column="key", uri_column="path")
    known = {"image_id": ["5", "6"], "uri": URIS[:2], "version": ["", ""]}
    assert found.to_pydict() == {**known, "url": ["u", "v"]}


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_column_of_versions_is_taken_as_that(tmp_path: Path, kind: str) -> None:
    columns = {"uri": URIS[:2], "version": pa.array(["007", None]), "n": [1, 2]}
    found = read(save(tmp_path / f"m.{kind}", columns))
    assert found.schema.names == ["image_id", "uri", "version", "n"]
    assert found["version"].to_pylist() == ["007", ""]
    with pytest.raises(SourceError, match="'version' holds double, expected text"):
        read(save(tmp_path / "n.parquet", {"uri": ["a"], "version": [0.5]}))


def test_types_of_other_columns_stay(tmp_path: Path) -> None:
    extras = {
        "time": pa.array([1, None], pa.timestamp("us", "UTC")),
        "tags": pa.array([["a"], []], pa.list_(pa.string())),
        "site": pa.array(["n", "s"]).dictionary_encode(),
        "at": pa.array([{"lat": 1.5}, None], pa.struct([("lat", pa.float32())])),
        "note": pa.array([None, None], pa.string()),
    }
    ids = pa.array(["a", "b"]).dictionary_encode()
    uris = pa.array(URIS[:2], pa.large_string())
    table = pa.table({**extras, "image_id": ids, "uri": uris})
    path = tmp_path / "out.parquet"
    assert write_tables(list_tables(save(tmp_path / "m.parquet", table)), path) == 2
    found = pq.read_table(path)
    assert found.select(list(extras)).equals(table.select(list(extras)))
    assert found.schema.names == ["image_id", "uri", "version", *extras]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_parts(tmp_path: Path, kind: str) -> None:
    names = [f"{i}.jpg" for i in range(10)]
    for part in range(2):
        half = names[5 * part : 5 * part + 5]
        save(tmp_path / "m" / f"part-{part}.{kind}", {"uri": half, "n": range(5)})
    (tmp_path / "m" / "_SUCCESS").touch()
    (tmp_path / "m" / ".part.crc").touch()
    for uri in (f"m/*.{kind}", "m", "m/", f"m/part-{{0..1}}.{kind}", f"m/part-?.{kind}"):
        assert read(f"{tmp_path}/{uri}")["image_id"].to_pylist() == names
    (tmp_path / "m").rename(tmp_path / f"m.{kind}")  # as Spark names its folders
    assert read(f"{tmp_path}/m.{kind}")["image_id"].to_pylist() == names
    with pytest.raises(MissingSourceError, match="nothing at"):
        read(f"{tmp_path}/m.{kind}/x*.{kind}")


def test_parts_must_be_alike(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", {"uri": ["x"], "n": pa.array([1], pa.int32())})
    save(tmp_path / "b.parquet", {"n": pa.array([2], pa.int64()), "uri": ["y"]})
    found = read(f"{tmp_path}/*.parquet")
    assert found.to_pydict() == {
        "image_id": ["x", "y"],
        "uri": [f"{tmp_path}/x", f"{tmp_path}/y"],
        "version": ["", ""],
        "n": [1, 2],
    }
    save(tmp_path / "c.parquet", {"uri": ["z"], "n": ["three"]})
    with pytest.raises(SourceError, match=r"c\.parquet has other columns or types than .*a\.par"):
        read(f"{tmp_path}/*.parquet")
    save(tmp_path / "c.parquet", {"uri": ["z"]})
    with pytest.raises(SourceError, match=r"c\.parquet has other columns"):
        read(f"{tmp_path}/*.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"url": ["a"]}, r"no column 'uri', only url: .*source\.uri_column"),
        ({"uri": ["a", None]}, "row 1, counted from 0, has no 'uri'"),
        ({"uri": ["a", "b", "c", "d", ""]}, "row 4, counted from 0, has no 'uri'"),
        ({"uri": ["a"], "image_id": [""]}, "row 0, counted from 0, has no 'image_id'"),
        ({"uri": [1.5]}, "'uri' holds double, expected text"),
        ({"uri": ["a"], "image_id": [b"x"]}, "'image_id' holds binary"),
        ({"uri": ["a"], "width": [1], "n": [1], "error": [1]}, "names are taken: width, error;"),
        ({"uri": ["b", "s3://k:geheim@b/x"]}, "row 1 has a URI with a user or a secret"),
        ({"uri": ["s3://b/x", "s3://AKIA:geheim/x@b/k.jpg"]}, "row 1 has a URI with a user"),
        ({"uri": ["https://u:geheim@h/x"]}, "row 0 has a URI with a user or a secret"),
        ({"uri": ["a"], "Error": [1]}, "names are taken: Error; rename or drop"),
        ({"uri": ["a"], "URI": ["b"]}, "names are taken: URI; rename or drop"),
        ({"uri": ["a"], "Image_ID": ["b"]}, "names are taken: Image_ID; rename or drop"),
        (
            {"uri": ["a"], "File_row_number": [1]},
            "names are taken: File_row_number; rename or drop",
        ),
        ({"uri": ["a"], "gps": [1], "n": [1], "GPS": [2]}, "only in case: gps, GPS; rename or dr"),
        ({"uri": ["a"], "": [1]}, "column 1, counted from 0, has no name: rename or drop it"),
        ({"uri": []}, "lists no image"),
    ],
)
def test_refused_files(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    table = {k: v or pa.array([], pa.string()) for k, v in columns.items()}
    uri = save(tmp_path / "m.parquet", table, 2)
    with pytest.raises(SourceError, match=message) as caught:
        read(uri)
    assert uri in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_all_output_columns_are_taken(tmp_path: Path) -> None:
    for name in set(IMAGES.names) - set(MANIFEST.names):
        with pytest.raises(SourceError, match=f"names are taken: {name};"):
            read(save(tmp_path / "m.parquet", {"uri": ["a"], name: [1]}))
    uri = save(tmp_path / "m.parquet", {"key": ["a"], "uri": ["a"], "image_id": ["b"]})
    with pytest.raises(SourceError, match="names are taken: image_id;"):
        read(uri, id_column="key")
    with pytest.raises(SourceError, match="no column 'gone'"):
        read(uri, id_column="gone")


def test_broken_files(tmp_path: Path) -> None:
    whole = Path(save(tmp_path / "m.parquet", {"uri": ["a"] * 100})).read_bytes()
    for content in (b"", b"hello", whole[:-20], whole[:4] + bytes(50) + whole[54:]):
        (tmp_path / "m.parquet").write_bytes(content)
        with pytest.raises(SourceError, match=r"m\.parquet"):
            read(f"{tmp_path}/m.parquet")
    for content in (b"", b"uri,n\na,1,2\n", b"\xff\xfe\x00"):
        (tmp_path / "m.csv").write_bytes(content)
        with pytest.raises(SourceError, match=r"m\.csv"):
            read(f"{tmp_path}/m.csv")
    with pytest.raises(MissingSourceError):
        read(f"{tmp_path}/gone.csv")


def test_csv_as_people_write_it(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(
        b'image_id,uri,note\r\n007,"a,b.jpg","two\nlines"\r\n"NA",null,\r\n'
    )
    assert read(f"{tmp_path}/m.csv").to_pydict() == {
        "image_id": ["007", "NA"],
        "uri": [f"{tmp_path}/a,b.jpg", f"{tmp_path}/null"],
        "version": ["", ""],
        "note": ["two\nlines", ""],
    }
    (tmp_path / "m.csv").write_text("uri\na\n\nb\n")
    assert read(f"{tmp_path}/m.csv")["image_id"].to_pylist() == ["a", "b"]


def test_csv_types_are_guessed_once(tmp_path: Path) -> None:
    rows = "\n".join(f"{i}.jpg,{i}" for i in range(200_000))
    (tmp_path / "m.csv").write_text(f"uri,n\n{rows}\nx.jpg,many\n")
    with pytest.raises(SourceError, match=r"many.*use Parquet"):
        read(f"{tmp_path}/m.csv")


def test_twins_are_found_when_written(tmp_path: Path) -> None:
    uri = save(tmp_path / "m.parquet", {"uri": ["a", "b", "a"]})
    with pytest.raises(SourceError, match="'a' in rows 0 and 2"):
        write_tables(list_tables(uri), tmp_path / "out.parquet")


def test_memory_is_that_of_some_batches(tmp_path: Path) -> None:
    ids = pa.array([f"{i:09d}" * 4 for i in range(1_000_000)])
    uri = save(tmp_path / "m.parquet", {"image_id": ids, "uri": ids}, 20_000)
    size = 2 * ids.nbytes
    del ids
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    most = max(pa.total_allocated_bytes() - before for _ in list_tables(uri))
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size >= 80e6
    assert most + python < 50e6


SIGNED = "?X-Amz-Signature=geheim&X-Amz-Expires=9"


def test_ids_hold_no_signature(tmp_path: Path) -> None:
    member = "#offset=512&size=9"
    uris = [
        f"https://h/a.jpg{SIGNED}",
        f"HTTPS://h/t.tar{SIGNED}{member}",
        f"simplecache::https://h/b.jpg{SIGNED}#x",
        f"abfs://c/d.jpg{SIGNED}",
        "https://h/k.jpg#access_token=geheim",
        "s3://b/k?.jpg",
        "/data/a?b=c.jpg",
        "e?b=c.jpg",
    ]
    uri = save(tmp_path / "m.parquet", {"uri": uris})
    ids = [
        "https://h/a.jpg",
        f"HTTPS://h/t.tar{member}",
        "simplecache::https://h/b.jpg",
        "abfs://c/d.jpg",
        "https://h/k.jpg",
    ]
    found = read(uri, storage=Storage(reach="any"))
    assert found["image_id"].to_pylist() == [*ids, *uris[5:]]
    assert found["uri"].to_pylist() == [*uris[:7], f"{tmp_path}/{uris[7]}"]
    found = read(save(tmp_path / "n.csv", {"uri": [f"x/ä.jpg{SIGNED}"]}), images="https://h/in")
    assert found.to_pydict() == {
        "image_id": ["x/ä.jpg"],
        "uri": [f"https://h/in/x/ä.jpg{SIGNED}"],
        "version": [""],
    }
    given = {"uri": uris[:1], "image_id": uris[1:2]}
    assert read(save(tmp_path / "o.parquet", given))["image_id"].to_pylist() == uris[1:2]


def test_two_signatures_of_one_image_are_twins(tmp_path: Path) -> None:
    uris = [f"https://h/a.jpg{SIGNED}", f"https://h/a.jpg{SIGNED}9"]
    tables = list_tables(save(tmp_path / "m.parquet", {"uri": uris}))
    with pytest.raises(SourceError, match=r"'https://h/a\.jpg' in rows 0 and 1"):
        write_tables(tables, tmp_path / "out.parquet")


def test_uris_that_only_look_like_secrets(tmp_path: Path) -> None:
    uris = ["http://h:80/a@b:c.jpg", "s3://b/photo@2x.jpg", "x:y@z.jpg", "s3://b/a:b@c.jpg"]
    assert read(save(tmp_path / "m.parquet", {"uri": uris})).num_rows == 4


@pytest.mark.parametrize("place", ["s3://AKIA:gehe/im@b", "https://geheim@h"])
def test_secrets_in_the_source_are_refused_at_once(tmp_path: Path, place: str) -> None:
    """Names of braces are not looked for, so nothing else would stop them."""
    uri = save(tmp_path / "m.parquet", {"uri": ["x.jpg"]})
    for options in ({"uri": uri, "images": place}, {"uri": f"{place}/{{0..3}}.jpg"}):
        with pytest.raises(SourceError, match="holds a user name or a secret") as caught:
            list_tables(**options)
        assert "gehe" not in str(caught.value)

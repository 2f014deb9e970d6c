"""manifest: what is written, streamed, and the ids that occur twice."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.schema import MANIFEST
from af_pipeline.data import manifest
from af_pipeline.data.access import SourceError
from af_pipeline.data.manifest import SourceImage, image_tables, write_manifest, write_tables


@pytest.mark.parametrize("count", [0, 1, 4, 5, 13])
def test_round_trip(tmp_path: Path, count: int) -> None:
    images = [SourceImage(f"ä/{i}.jpg", f"s3://b/{i}.jpg", f"{i}-x") for i in range(count)]
    path = tmp_path / "new" / "manifest.parquet"
    assert write_manifest(iter(images), path, 4) == count
    file = pq.ParquetFile(path)
    assert file.schema_arrow == MANIFEST
    assert file.num_row_groups == max(1, -(-count // 4))
    assert [SourceImage(**row) for row in file.read().to_pylist()] == images
    assert list(path.parent.iterdir()) == [path]


def test_it_is_streamed(tmp_path: Path) -> None:
    held: list[int] = []

    def source() -> Iterator[SourceImage]:
        for i in range(1000):
            held.append(i)
            yield SourceImage(f"{i}", f"{i}")

    tables = image_tables(source(), 10)
    next(tables)
    assert len(held) == 10
    assert write_tables(tables, tmp_path / "m.parquet") == 990


def test_large_tables_become_small_row_groups(tmp_path: Path) -> None:
    ids = [str(i) for i in range(100)]
    table = pa.table({"image_id": ids, "uri": ids, "camera": pa.array(range(100), pa.int16())})
    path = tmp_path / "m.parquet"
    assert write_tables([table], path, 30) == 100
    assert [pq.ParquetFile(path).metadata.row_group(g).num_rows for g in range(4)] == [30] * 3 + [
        10
    ]
    assert pq.read_table(path).equals(table)


def test_failed_listing_leaves_the_old_manifest(tmp_path: Path) -> None:
    def failing() -> Iterator[SourceImage]:
        yield SourceImage("a", "a")
        raise SourceError("no more")

    path = tmp_path / "m.parquet"
    write_manifest([SourceImage("old", "old")], path)
    with pytest.raises(SourceError, match="no more"):
        write_manifest(failing(), path, 1)
    assert pq.read_table(path).to_pylist() == [{"image_id": "old", "uri": "old", "version": ""}]
    assert list(tmp_path.iterdir()) == [path]


def test_twins_are_named_with_their_rows(tmp_path: Path) -> None:
    ids = [f"{i}.jpg" for i in range(50)]
    ids[41] = ids[7]
    path = tmp_path / "m.parquet"
    with pytest.raises(
        SourceError, match=r"1 image ids occur more than once, as '7\.jpg' in rows 7 and 41 "
    ):
        write_manifest((SourceImage(i, i) for i in ids), path, 5)
    assert not list(tmp_path.iterdir())


@settings(deadline=None, max_examples=15)
@given(ids=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=2), max_size=30))
def test_twins_are_found_exactly(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "twins.parquet"
    images = [SourceImage(i, i) for i in ids]
    twins = len(ids) - len(set(ids))
    if not twins:
        assert write_manifest(images, path, 3) == len(ids)
        return
    with pytest.raises(SourceError, match="more than once") as caught:
        write_manifest(images, path, 3)
    first, second = map(int, re.findall(r"rows (\d+) and (\d+)", str(caught.value))[0])
    assert first < second
    assert ids[first] == ids[second]


def test_the_check_may_use_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_CHECK_MEMORY", "24MB")
    monkeypatch.setattr(manifest, "_CHECK_THREADS", 1)
    ids = pa.array([f"{'x' * 60}{i}" for i in range(300_000)])
    path = tmp_path / "m.parquet"
    assert write_tables([pa.table({"image_id": ids, "uri": ids})], path) == 300_000
    assert list(tmp_path.iterdir()) == [path]


def test_twins_are_named_without_secrets(tmp_path: Path) -> None:
    images = [SourceImage("https://u:geheim@h/x.jpg?sig=geheim", "x")] * 2
    with pytest.raises(SourceError, match="more than once") as caught:
        write_manifest(images, tmp_path / "m.parquet")
    assert "geheim" not in str(caught.value)

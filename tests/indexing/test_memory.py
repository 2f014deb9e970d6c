"""Decoded images stay in their worker: only native crops go through the object store."""

import gc
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.core.schema import MANIFEST, table_to_rows
from af_pipeline.indexing.index import index
from af_pipeline.indexing.stages import (
    CoarseStage,
    DetectStage,
    FusedStage,
    StackStage,
    StageSettings,
)
from af_pipeline.settings.modes import build_plan
from tests.helpers.planted import SMALL, index_config, picture, save, source

HEIGHT, WIDTH = 2400, 3200
DECODED = HEIGHT * WIDTH * 3  # 23 MB


def write_image(path: Path) -> Path:
    """One small rectangle in a large picture: one FocusChip a scale."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:480, :640] = picture(0, [SMALL])
    save(path, image)
    return path


def settings(tmp_path: Path, scale: int | None = 0) -> StageSettings:
    config = index_config(tmp_path, tmp_path / "out")
    return StageSettings(build_plan(config), source(), 10**9, name="stage", scale=scale)


def listed(path: Path, count: int) -> pa.Table:
    """The same file under several names."""
    ids = [str(number) for number in range(count)]
    return pa.table([ids, [str(path)] * count, [""] * count], schema=MANIFEST)


def bytes_sent(table: pa.Table) -> int:
    """What Ray writes into the object store: more than the rows where buffers are shared."""
    buffers: list[Any] = []
    rest = pickle.dumps(table, protocol=5, buffer_callback=buffers.append)
    return len(rest) + sum(buffer.raw().nbytes for buffer in buffers)


def crop_bytes(table: pa.Table) -> int:
    crops = [chip.pixels for row in table_to_rows(table) for chip in row.chips]
    return sum(crop.array.nbytes for crop in crops if crop is not None)


def test_stages_hand_on_crops_and_nothing_else(tmp_path: Path) -> None:
    path = write_image(tmp_path / "large.png")
    coarse, middle, fine = (settings(tmp_path, scale) for scale in range(3))
    tables = [CoarseStage(coarse)(listed(path, 3))]
    tables.append(DetectStage(middle)(tables[-1]))
    tables.append(DetectStage(fine)(tables[-1]))
    tables.append(StackStage(fine.plan)(tables[-1]))
    crops = [crop_bytes(table) for table in tables]
    assert crops[0] > 0
    assert crops[1] > 0
    assert crops[2:] == [0, 0]
    for table, size in zip(tables, crops, strict=True):
        assert bytes_sent(table) < size + 20_000
        assert bytes_sent(table) < 0.02 * table.num_rows * DECODED
        assert bytes_sent(table.slice(1, 1)) < size + 20_000
    assert [len(row.chips) for row in table_to_rows(tables[-1])] == [3, 3, 3]


def test_the_fused_stage_hands_on_no_pixels(tmp_path: Path) -> None:
    path = write_image(tmp_path / "large.png")
    table = FusedStage(settings(tmp_path, None))(listed(path, 2))
    assert crop_bytes(table) == 0
    assert bytes_sent(table) < 20_000


def test_a_stage_lets_go_of_the_image(tmp_path: Path) -> None:
    path = write_image(tmp_path / "large.png")
    stage = CoarseStage(replace(settings(tmp_path), threads=1))
    stage(listed(path, 1))
    tracemalloc.start()
    try:
        table = stage(listed(path, 4))
        gc.collect()
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert table.num_rows == 4
    assert peak > DECODED  # it is seen here at all
    assert left < 0.1 * DECODED


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_a_run_puts_into_the_object_store(tmp_path: Path) -> None:
    count = 40
    path = write_image(tmp_path / "large.png")
    manifest = tmp_path / "list.parquet"
    pq.write_table(listed(path, count), manifest)
    before = store_stats()
    outcome = index(index_config(manifest, tmp_path / "out"), source())
    after = store_stats()
    assert (outcome.totals.images, outcome.totals.errors) == (count, 0)
    assert outcome.totals.chips == 2 * count
    created = after.cumulative_created_bytes - before.cumulative_created_bytes
    crops = count * 160 * 160 * 3 * 2
    assert 0 < created < crops + 5_000_000
    assert created < 0.02 * count * DECODED
    assert after.spilled_bytes_total == before.spilled_bytes_total


def store_stats() -> Any:
    import ray
    from ray._private import internal_api

    (node,) = ray.nodes()
    address = node["NodeManagerAddress"], node["NodeManagerPort"]
    return internal_api.node_stats(*address, include_memory_info=False).store_stats

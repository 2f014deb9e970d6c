"""The estimate of a dry run: the right images, pixels by stage, time by the slowest stage."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.core.cascade import run_cascade
from af_pipeline.core.schema import ImageRow
from af_pipeline.indexing.estimate import (
    Sample,
    costs,
    estimate_seconds,
    route_pixels,
    sample_images,
)
from af_pipeline.indexing.pools import plan_pools, routes_of
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from tests.helpers.planted import SCENE, FakeDetector, index_config, picture

CARDS = [{"max_side": 128, "num_gpus": 1, "actors": 4}, {"num_gpus": 1}]


def config(**changes: Any) -> IndexConfig:
    return index_config(Path("images"), Path("out"), **changes)


def row_of(made: IndexConfig) -> ImageRow:
    row = ImageRow("a", "b")
    run_cascade(row, picture(1, SCENE), build_plan(made), FakeDetector(1))
    row.ledger.decode_ms = 100.0
    return row


@pytest.mark.parametrize(("images", "count"), [(1, 16), (5, 16), (1000, 16), (1000, 1)])
def test_the_sample_is_spread_evenly(tmp_path: Path, images: int, count: int) -> None:
    ids = [f"{n:04d}" for n in range(images)]
    table = pa.table({"image_id": ids, "uri": ids, "version": ids, "more": list(range(images))})
    pq.write_table(table, tmp_path / "it's.parquet", row_group_size=7)
    chosen = sample_images(tmp_path / "it's.parquet", images, count)["image_id"].to_pylist()
    assert len(chosen) == min(count, images)
    assert chosen == sorted(set(chosen))
    if count > 1:
        assert (chosen[0], chosen[-1]) == (ids[0], ids[-1])
        steps = np.diff([int(one) for one in chosen])
        assert steps.size == 0 or steps.max() - steps.min() <= 1


def test_every_chip_belongs_to_one_stage() -> None:
    made = config(ray={"pools": [{"max_side": 128}, {"max_side": 256}, {}]})
    plan, row = build_plan(made), row_of(made)
    shares = [route_pixels(row, route, plan) for route in routes_of(made, plan)]
    assert shares[0] == 320 * 240
    fused = config(plan="fused")
    (only,) = routes_of(fused, build_plan(fused))
    assert sum(shares) == pytest.approx(route_pixels(row, only, plan))
    assert sum(shares) <= sum(row.ledger.pixels)  # tiles overlap


def test_without_gpus_the_cores_are_shared() -> None:
    made = config()
    plan = build_plan(made)
    pools = plan_pools(made, plan, {"CPU": 8.0})
    sample = Sample([row_of(made)] * 2, seconds=4.0)
    # 2 core-seconds an image, shared by 8 cores.
    assert estimate_seconds(1000, sample, pools, plan, 8.0) == pytest.approx(250)
    assert estimate_seconds(1000, sample, pools, plan, 80.0) == pytest.approx(25)


def test_with_gpus_the_slowest_stage_decides() -> None:
    made = config(ray={"pools": CARDS})
    plan, row = build_plan(made), row_of(made)
    pools = plan_pools(made, plan, {"CPU": 32.0, "GPU": 32.0})
    sample = Sample([row], seconds=1.1)
    total = sum(row.ledger.pixels)
    spent = [
        (
            route_pixels(row, pool.route, plan) / total
            + (0.1 if pool.route.scale == 0 else 0.0)  # decoding is the coarse stage's
        )
        / pool.route.pool.actor_range[1]
        for pool in pools
    ]
    assert estimate_seconds(10, sample, pools, plan, 32.0) == pytest.approx(10 * max(spent))


def test_a_sample_of_errors_gives_no_estimate() -> None:
    broken = ImageRow("a", "b", error="not an image")
    lines = costs(config(), Sample([broken], 1.0), 10, 1.0)
    assert lines[0] == "sample      1 images, 1 errors"
    assert lines[1:] == [
        "error       a: not an image",
        "estimate    none: no image of the sample could be looked at",
    ]

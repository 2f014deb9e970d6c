"""Pools: every chip has one, and what a cluster cannot hold is said before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.plan import Plan
from af_pipeline.indexing.pools import StageLayout, plan_pools, routes_of
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from tests.helpers.planted import index_config


def config(*pools: dict[str, Any], **changes: Any) -> IndexConfig:
    ray = {"pools": list(pools) or [{}], **changes.pop("ray", {})}
    return index_config(Path("images"), Path("out"), ray=ray, **changes)


def planned(config: IndexConfig, **cluster: float) -> list[StageLayout]:
    return plan_pools(config, build_plan(config), cluster)


def takes_nothing(bounded: list[dict[str, Any]], scale: int) -> bool:
    """Whether two bounds of a scale have the same lanes below them."""
    own = [b["max_side"] for b in bounded if b["scales"] is None or scale in b["scales"]]
    largest = [max(side for side in (128, 256, 512) if side <= bound) for bound in own]
    return len(set(largest)) < len(largest)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([128, 256, 300, 512, 900]), unique=True, max_size=4),
    st.lists(st.sampled_from([None, (1,), (1, 2), (0, 2)]), min_size=4, max_size=4),
)
def test_every_chip_has_one_pool(sides: list[int], scales: list[Any]) -> None:
    bounded = [{"max_side": s, "scales": of} for s, of in zip(sides, scales, strict=False)]
    made = config(*bounded, {})
    plan: Plan = build_plan(made)
    if any(scale > 0 and takes_nothing(bounded, scale) for scale in range(3)):
        with pytest.raises(ValueError, match="takes no lane"):
            routes_of(made, plan)
        return
    routes = routes_of(made, plan)
    for scale in range(3):
        own = [route for route in routes if route.scale == scale]
        lanes = [lane for route in own for lane in route.lanes or ()]
        assert sorted(lanes) == list(range(-1, len(plan.lanes)))
        assert [route.last for route in own] == [False] * (len(own) - 1) + [True]
        for route in own:
            if route.pool.max_side is not None:
                held = [plan.lanes[lane] for lane in route.lanes or ()]
                assert all(max(h.height, h.width) <= route.pool.max_side for h in held)
    assert [r.scale for r in routes] == sorted(r.scale or 0 for r in routes)
    assert len({route.name for route in routes}) == len(routes)


@pytest.mark.parametrize(
    ("pools", "reason"),
    [
        ([{"max_side": 256}], "no pool takes the largest chips of scale 0"),
        ([{"scales": [0]}, {"scales": [1]}], "no pool takes the largest chips of scale 2"),
        ([{}, {}], "two entries of ray.pools want the same chips of scale 0"),
        ([{"max_side": 256}, {"max_side": 256}, {}], "want the same chips of scale 1"),
        ([{"max_side": 256}, {"max_side": 300}, {}], "max_side=300 takes no lane of scale 1"),
        ([{"max_side": 64}, {}], r"lanes.sides are 128, 256, 512"),
    ],
)
def test_pools_that_leave_or_double_chips_are_refused(pools: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        planned(config(*pools), CPU=64)


def test_fused_takes_one_pool() -> None:
    (only,) = planned(config({"actors": 3}, plan="fused"), CPU=8)
    assert (only.route.scale, only.route.lanes, only.route.last) == (None, None, True)
    with pytest.raises(ValueError, match=r"give one entry of ray\.pools"):
        planned(config({"max_side": 256}, {}, plan="fused"), CPU=8)


def test_cpus_are_shared_out() -> None:
    for cpus in (2, 4, 64):
        pools = planned(config(), CPU=cpus)
        assert [pool.route.name for pool in pools] == ["Detect[s0]", "Detect[s1]", "Detect[s2]"]
        assert sum(pool.num_cpus for pool in pools) + 1.75 <= cpus
        assert all(0 < pool.num_cpus <= 1 and pool.threads >= 1 for pool in pools)
    with pytest.raises(ValueError, match=r"needs 1\.75 CPUs or more, the cluster has 1"):
        planned(config(), CPU=1)
    greedy = config({"num_cpus": 1})
    with pytest.raises(ValueError, match=r"needs 4\.75 .* the cluster has 4: lower ray\.pools"):
        planned(greedy, CPU=4)
    assert len(planned(greedy, CPU=5)) == 3
    # Pools that grow are laid out for their most, and asked for at their least.
    grown = planned(config({"actors": [1, 4]}), CPU=8)
    assert sum(4 * pool.num_cpus for pool in grown) + 1.75 <= 8


def test_resources_are_asked_for() -> None:
    cards = [
        {"max_side": 256, "num_gpus": 0.5, "actors": 2, "resources": {"lane_small": 1}},
        {"num_gpus": 1, "accelerator_type": "A10G", "num_cpus": 2},
    ]
    pools = planned(config(*cards), CPU=32, GPU=5, lane_small=4, **{"accelerator_type:A10G": 1.0})
    small, large = pools[1], pools[2]
    assert small.needs["resources"] == {"lane_small": 1}
    assert small.needs["num_gpus"] == 0.5
    assert large.needs == {"num_cpus": 2, "num_gpus": 1, "accelerator_type": "A10G"}
    with pytest.raises(ValueError, match=r"ask for 5 GPU, 4 lane_small.*has 4 GPU, 0 "):
        planned(config(*cards), CPU=32, GPU=4, **{"accelerator_type:A10G": 1.0})
    # A cluster that grows on demand has nothing yet.
    assert len(planned(config(*cards, ray={"elastic": True}))) == 5


@pytest.mark.parametrize("actors", [0, (0, 2), (3, 2)])
def test_numbers_of_actors_that_cannot_be(actors: Any) -> None:
    with pytest.raises(ValueError, match="from 1 to 10000"):
        config({"actors": actors})

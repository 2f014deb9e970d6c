"""Which actors look at which chips: lanes routed to pools, pools laid over the cluster.

A pool of the config becomes one stage of the graph per scale it serves. A chip goes to the pool of
its scale with the smallest ``max_side`` that its lane fits in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from af_pipeline.core.plan import Plan
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.ray import PoolConfig

RAY_CPUS = 1.0  # what Ray Data's own tasks ask for, one at a time
UNLANED = -1  # the lane of chips that are larger than the largest


@dataclass(frozen=True)
class Route:
    """A stage: it looks at the chips of ``scale`` in ``lanes``; None: all scales, all lanes.

    ``last``: no later stage looks at this scale.
    """

    name: str
    pool: PoolConfig
    scale: int | None
    lanes: tuple[int, ...] | None
    last: bool = True


@dataclass(frozen=True)
class StageLayout:
    """A route with its share of the cluster: CPUs and torch threads per actor."""

    route: Route
    num_cpus: float
    threads: int

    @property
    def needs(self) -> dict[str, Any]:
        """Resources per actor, as `ray.remote` takes them."""
        pool = self.route.pool
        needs: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": pool.num_gpus}
        if pool.accelerator_type:
            needs["accelerator_type"] = pool.accelerator_type
        if pool.resources:
            needs["resources"] = dict(pool.resources)
        return needs


def routes_of(config: IndexConfig, plan: Plan) -> list[Route]:
    """The detecting stages in the order of the graph.

    Raises ValueError where a chip would have no pool or two.
    """
    pools = config.ray.pools
    if config.is_fused:
        if not config.ray.pools_are_one:
            raise ValueError(
                "plan=fused runs the whole cascade in one pool: give one entry of ray.pools, "
                "without scales and max_side, or use plan=staged"
            )
        return [Route("Cascade", pools[0], None, None)]
    return [route for scale in range(len(plan.scales)) for route in _of_scale(pools, scale, plan)]


def _of_scale(pools: Sequence[PoolConfig], scale: int, plan: Plan) -> list[Route]:
    serving = [pool for pool in pools if pool.scales is None or scale in pool.scales]
    if scale == 0:  # where images are read and decoded: only chips travel on to another pool
        serving = [pool for pool in serving if pool.max_side is None]
    bounded = sorted((p for p in serving if p.max_side is not None), key=_side)
    rest = [pool for pool in serving if pool.max_side is None]
    if not rest:
        raise ValueError(
            f"no pool takes the largest chips of scale {scale}: give ray.pools an entry for it "
            "without max_side"
        )
    sides = [pool.max_side for pool in bounded]
    if len(rest) > 1 or len(set(sides)) < len(sides):
        raise ValueError(
            f"two entries of ray.pools want the same chips of scale {scale}: give them other "
            "scales or another max_side"
        )
    routes, left = [], list(range(len(plan.lanes)))
    for pool in bounded:
        own = [i for i in left if max(plan.lanes[i].height, plan.lanes[i].width) <= _side(pool)]
        left = [i for i in left if i not in own]
        if not own:
            raise ValueError(
                f"the pool of ray.pools with max_side={pool.max_side} takes no lane of scale "
                f"{scale}: lanes.sides are "
                + ", ".join(str(side) for side in sorted({lane.width for lane in plan.lanes}))
            )
        name = f"Detect[s{scale}<={pool.max_side}]"
        routes.append(Route(name, pool, scale, tuple(own), last=False))
    return [*routes, Route(f"Detect[s{scale}]", rest[0], scale, (UNLANED, *left))]


def _side(pool: PoolConfig) -> int:
    return pool.max_side or 0


def plan_pools(config: IndexConfig, plan: Plan, cluster: Mapping[str, float]) -> list[StageLayout]:
    """The stages with their share of the cluster, whose resources are given by name.

    CPUs and threads left at 0 are shared out. Raises ValueError where a chip would have no pool,
    and, unless the cluster is elastic, where it lacks a resource or cannot hold the least number
    of all actors at once, which would hang: Ray's own listing and repartitioning need a whole CPU
    beside the pools.
    """
    routes = routes_of(config, plan)
    cpus = cluster.get("CPU", 0.0)
    own = RAY_CPUS + 3 * config.ray.task_cpus  # listing or repartition; read, stack and write
    most = sum(route.pool.actor_range[1] for route in routes)
    share = 1.0 if config.ray.elastic else min(1.0, max(0.0, 0.9 * (cpus - own)) / most)
    threads = max(1, int(cpus // most))
    pools = [
        StageLayout(route, route.pool.num_cpus or share, route.pool.threads or threads)
        for route in routes
    ]
    if not config.ray.elastic:
        _check_fit(pools, cluster, own)
    return pools


def _check_fit(pools: Sequence[StageLayout], cluster: Mapping[str, float], own: float) -> None:
    cpus = cluster.get("CPU", 0.0)
    needed = own + sum(p.route.pool.actor_range[0] * p.num_cpus for p in pools)
    if needed > cpus or any(p.num_cpus == 0 for p in pools):
        raise ValueError(
            f"the graph needs {needed:.2f} CPUs or more, the cluster has {cpus:g}: lower "
            "ray.pools.N.num_cpus or actors, or start Ray with more (ray start --num-cpus=N)"
        )
    wanted: dict[str, float] = {}
    for planned in pools:
        pool = planned.route.pool
        asked = {"GPU": pool.num_gpus, **pool.resources}
        if pool.accelerator_type:
            asked[f"accelerator_type:{pool.accelerator_type}"] = 0.001
        for name, amount in asked.items():
            wanted[name] = wanted.get(name, 0.0) + amount * pool.actor_range[0]
    lacking = {name: amount for name, amount in wanted.items() if amount > cluster.get(name, 0.0)}
    if lacking:
        short = ", ".join(f"{amount:g} {name}" for name, amount in lacking.items())
        raise ValueError(
            f"ray.pools ask for {short}, the cluster has "
            + ", ".join(f"{cluster.get(name, 0.0):g} {name}" for name in lacking)
            + ": lower ray.pools, or set ray.elastic=true where the cluster grows on demand"
        )


def stage_plan(plan: Plan, pool: PoolConfig) -> Plan:
    """The plan with the pool's own batch budget."""
    return replace(plan, batch_pixels=pool.batch_pixels or plan.batch_pixels)

"""The index graph on Ray Data: manifest -> coarse -> one pool per finer scale -> stack -> rows/.

Settings and why (measured on Ray 2.60): one output block per task, since a retried task with
several may repeat rows; bounded retries, since the default retries a row that kills its process
for ever, and just one, since each restarts a worker and lost blocks are run again anyway; CPUs
stated for every pool, since undeclared ones may wait for each other for ever.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, SaveMode

from af_pipeline.dist.stacking_stage import StackStage, stage_class
from af_pipeline.dist.stages import CoarseStage, DetectStage, StageSettings
from af_pipeline.settings import IndexConfig, PoolConfig

RAY_CPUS = 1.0  # what Ray Data's own tasks ask for, one at a time
FAULTS: dict[str, Any] = {"max_task_retries": 1, "max_restarts": -1}


@dataclass(frozen=True)
class PoolPlan:
    """A pool as it will run: name, actors, CPUs and GPUs per actor, torch threads per actor."""

    name: str
    actors: int
    num_cpus: float
    num_gpus: float
    threads: int


def plan_pools(config: IndexConfig, scales: int, cluster_cpus: float) -> list[PoolPlan]:
    """One pool per scale run; CPUs and threads left at 0 are shared out over the cluster.

    Raises ValueError when the stated CPUs cannot all be had at once, which would hang: Ray's own
    listing and repartitioning need a whole CPU beside the pools.
    """
    given = config.ray.pools
    chosen: list[PoolConfig] = [given[min(i, len(given) - 1)] for i in range(scales)]
    actors = sum(pool.actors for pool in chosen)
    own = RAY_CPUS + 3 * config.ray.task_cpus  # listing or repartition; read, stack and write
    share = min(1.0, max(0.0, 0.9 * (cluster_cpus - own)) / actors)
    pools = [
        PoolPlan(
            name=f"Detect[s{i}]",
            actors=pool.actors,
            num_cpus=pool.num_cpus or share,
            num_gpus=pool.num_gpus,
            threads=pool.threads or max(1, int(cluster_cpus // actors)),
        )
        for i, pool in enumerate(chosen)
    ]
    needed = sum(p.actors * p.num_cpus for p in pools) + own
    if needed > cluster_cpus or share == 0:
        raise ValueError(
            f"the graph needs {needed:.2f} CPUs or more, the cluster has {cluster_cpus:g}: lower "
            "ray.pools.N.num_cpus or actors, or start Ray with more (ray start --num-cpus=N)"
        )
    return pools


def set_context(config: IndexConfig, tolerate_lost_blocks: bool) -> None:
    """Ray Data settings of this driver for the graphs to come."""
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.wait_for_min_actors_s = config.ray.wait_for_actors_s
    context.max_errored_blocks = -1 if tolerate_lost_blocks else 0
    context.enable_progress_bars = False  # the run shows its own, with images and errors
    context.print_on_execution_start = False
    # Failures are raised or, for lost blocks, told by the run itself; a record of one would hold
    # its traceback, and that the actors of the ended graph, where a handler keeps records.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Bounded retries have no other spelling until Ray 2.64, which pyproject.toml keeps out.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    # Fewer blocks than actors: a small collection, or the last images of a resumed run.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")


def build_graph(
    config: IndexConfig,
    manifest: Path,
    settings: StageSettings,
    pools: list[PoolPlan],
    alone: bool,
    progress: Any = None,
) -> Dataset:
    """The lazy dataset from manifest to finished rows; nothing runs yet.

    ``alone``: one image a block, and none waits at an actor that works on another: a task that
    waits there spends its retries when the actor dies of the other.
    """
    cpus = config.ray.task_cpus
    rows_per_block = 1 if alone else config.ray.rows_per_block
    in_flight = 1 if alone else None
    rows = ray.data.read_parquet(str(manifest), num_cpus=cpus)
    rows = rows.repartition(target_num_rows_per_block=rows_per_block)
    for scale, pool in enumerate(pools):
        base = CoarseStage if scale == 0 else DetectStage
        own = replace(settings, threads=pool.threads)
        arguments = (own,) if scale == 0 else (own, scale)
        rows = rows.map_batches(
            stage_class(base, pool.name),
            fn_constructor_args=arguments,
            batch_format="pyarrow",
            batch_size=rows_per_block,
            compute=ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=in_flight),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            **FAULTS,
        )
    return rows.map_batches(
        stage_class(StackStage, "Stack"),
        fn_constructor_args=(settings.plan, progress),
        batch_format="pyarrow",
        batch_size=None,
        compute=ActorPoolStrategy(size=1),
        num_cpus=cpus,
        **FAULTS,
    )


def run_graph(rows: Dataset, target: Path, task_cpus: float) -> None:
    """Execute the graph into ``target``/*.parquet."""
    rows.write_parquet(str(target), mode=SaveMode.APPEND, ray_remote_args={"num_cpus": task_cpus})

"""The index graph on Ray Data: manifest -> coarse -> one pool per finer scale -> stack -> rows/.

Settings and why (measured on Ray 2.60): one output block per task, since a retried task with
several may repeat rows; bounded retries, since the default retries a row that kills its process
for ever, and just one, since each restarts a worker and lost blocks are run again anyway; CPUs
stated for every pool, since undeclared ones may wait for each other for ever.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from pyarrow import fs
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.datasource import Datasink

from af_pipeline.indexing.pools import Route, StageLayout, stage_plan
from af_pipeline.indexing.stages import (
    STACK,
    CoarseStage,
    DetectStage,
    FusedStage,
    StackStage,
    StageSettings,
    stage_class,
)
from af_pipeline.output.folder import OutputFolder
from af_pipeline.settings.ray import RayConfig

CPUS_PER_WRITER = 8
STACKED_BY_ONE = 8  # detecting actors that one stacking actor keeps up with
FAULTS: dict[str, Any] = {"max_task_retries": 1, "max_restarts": -1}


class RowSink(Datasink[None]):
    """Writes finished rows as parts of rows/; a task that is tried again writes the same part."""

    def __init__(self, folder: OutputFolder, rows_per_part: int) -> None:
        self.folder, self.rows_per_part = folder, rows_per_part

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        """As Ray asks: what one task writes is one part."""
        tables = [block for block in blocks if block.num_rows]
        if tables:
            self.folder.write_part(pa.concat_tables(tables))

    @property
    def min_rows_per_write(self) -> int:
        """Rows that a task gets, but for the last."""
        return self.rows_per_part


def set_context(config: RayConfig) -> None:
    """Ray Data settings of this driver for the graphs to come."""
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.wait_for_min_actors_s = config.wait_for_actors_s
    context.max_errored_blocks = -1  # lost blocks run again
    context.execution_no_progress_timeout_s = -1  # nodes of a growing cluster may take hours
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
    config: RayConfig,
    parts: Sequence[str],
    filesystem: fs.FileSystem,
    settings: StageSettings,
    pools: Sequence[StageLayout],
    alone: bool,
) -> Dataset:
    """The lazy dataset from the lists of images to do to finished rows; nothing runs yet.

    ``alone``: one image a block, and none waits at an actor that works on another: a task that
    waits there spends its retries when the actor dies of the other.
    """
    cpus = config.task_cpus
    rows_per_block = 1 if alone else config.rows_per_block
    in_flight = 1 if alone else None
    settings = replace(settings, alone=alone)
    rows = ray.data.read_parquet(
        list(parts), filesystem=filesystem, partitioning=None, num_cpus=cpus
    )
    rows = rows.repartition(target_num_rows_per_block=rows_per_block)
    for planned, (kind, own) in zip(pools, detecting_stages(settings, pools), strict=True):
        low, high = planned.route.pool.actor_range
        rows = rows.map_batches(
            stage_class(kind, planned.route.name),
            fn_constructor_args=(own,),
            batch_format="pyarrow",
            batch_size=rows_per_block,
            compute=ActorPoolStrategy(
                min_size=low, max_size=high, max_tasks_in_flight_per_actor=in_flight
            ),
            **planned.needs,
            **FAULTS,
        )
    return rows.map_batches(
        stage_class(StackStage, STACK),
        fn_constructor_args=(settings.plan, settings.counter, alone),
        batch_format="pyarrow",
        batch_size=None,
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, _actors(pools) // STACKED_BY_ONE)),
        num_cpus=cpus,
        **FAULTS,
    )


def stage_names(pools: Sequence[StageLayout]) -> list[str]:
    """The stages of the graph that count what they do, in order."""
    return [*(planned.route.name for planned in pools), STACK]


def detecting_stages(
    settings: StageSettings, pools: Sequence[StageLayout]
) -> list[tuple[type[DetectStage], StageSettings]]:
    """The class and the settings of each detecting stage, in the order of the graph."""
    uses_gpus = any(planned.route.pool.num_gpus for planned in pools)
    return [(_kind(planned.route), _own(settings, planned, uses_gpus)) for planned in pools]


def _kind(route: Route) -> type[DetectStage]:
    if route.scale is None:
        return FusedStage
    return CoarseStage if route.scale == 0 else DetectStage


def _own(settings: StageSettings, planned: StageLayout, uses_gpus: bool) -> StageSettings:
    route, detector = planned.route, settings.detector
    if uses_gpus and not route.pool.num_gpus:
        # Else it would take the first card of its node, which Ray has given to others.
        detector = replace(detector, options=detector.options | {"device": "cpu"})
    return replace(
        settings,
        detector=detector,
        plan=stage_plan(settings.plan, route.pool),
        name=route.name,
        scale=route.scale,
        lanes=route.lanes,
        last=route.last,
        threads=planned.threads,
    )


def _actors(pools: Sequence[StageLayout]) -> int:
    return sum(planned.route.pool.actor_range[1] for planned in pools)


def run_graph(rows: Dataset, folder: OutputFolder, images_per_file: int, task_cpus: float) -> None:
    """Execute the graph into rows/*.parquet of ``folder``.

    Few write at a time: a burst would start a process of 110 MB for each of its tasks.
    """
    writers = max(2, int(ray.cluster_resources().get("CPU", 0)) // CPUS_PER_WRITER)
    rows.write_datasink(
        RowSink(folder, images_per_file),
        concurrency=writers,
        ray_remote_args={"num_cpus": task_cpus},
    )

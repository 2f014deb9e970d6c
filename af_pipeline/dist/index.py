"""One index run: list, resume, execute the graph, account for every image, publish."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError
from rich.console import Console

from af_pipeline.config import config_hash, dump_without
from af_pipeline.data.listing import list_tables
from af_pipeline.data.manifest import SourceImage, write_manifest, write_tables
from af_pipeline.data.storage import Storage
from af_pipeline.dist.account import NOT_IDENTITY, Outcome, write_run
from af_pipeline.dist.detector_source import detector_from_config
from af_pipeline.dist.dry_run import costs, describe, estimate_seconds, run_sample, sample_images
from af_pipeline.dist.graph import build_graph, run_graph, set_context, stage_names
from af_pipeline.dist.pools import PoolPlan, plan_pools
from af_pipeline.dist.progress import shown_progress
from af_pipeline.dist.publish import publish
from af_pipeline.dist.sink import OutputError, RunFolder, reaching
from af_pipeline.dist.stacking_stage import fail
from af_pipeline.dist.stages import DetectorSource, StageSettings
from af_pipeline.dist.todo import Todo, left_to_do, settle, write_todo
from af_pipeline.plans import build_plan
from af_pipeline.schema import ImageRow
from af_pipeline.settings import IndexConfig, StorageConfig

FEW = 64  # so many lost images are done one by one at once


class GraphError(RuntimeError):
    """The graph stopped before its end; what is done is kept."""


def storage_of(config: StorageConfig) -> Storage:
    """The plain `Storage`."""
    return Storage(**config.model_dump())


def index(
    config: IndexConfig,
    detector: DetectorSource | None = None,
    console: Console | None = None,
    images: Iterable[SourceImage] | None = None,
) -> Outcome:
    """Index ``images``, or those of ``config.source``, into ``config.output``.

    Ray must be initialised. Every listed image ends as one row, failed ones with the reason; those
    that an earlier start finished are left as they are. Raises SourceError, OutputError,
    CheckpointError, DeviceError or ValueError for input that cannot be used, GraphError where the
    graph stopped half-way.
    """
    began = time.perf_counter()
    console = console or Console(highlight=False)
    if not config.output.uri:
        raise OutputError("no output: give --set output.uri=DIRECTORY")
    folder = RunFolder.at(config.output.uri, storage_of(config.output.storage))
    detector = detector or detector_from_config(config)
    identity = {
        "config": dump_without(config, NOT_IDENTITY),
        "detector": detector.identity,
        "class_names": list(detector.class_names),
    }
    run_id = f"{config_hash(config, NOT_IDENTITY)}-{detector.identity[:8]}"
    plan = build_plan(config)
    pools = plan_pools(config, plan, ray.cluster_resources())
    storage = storage_of(config.source.storage)
    settings = StageSettings(plan, detector, config.source.max_pixels, storage)
    with reaching(folder.uri):
        folder.check(identity, config.output.on_conflict)
    with tempfile.TemporaryDirectory(prefix="af_pipeline-") as scratch, reaching(folder.uri):
        manifest = Path(scratch) / "manifest.parquet"
        # A source without images is told before the output is touched.
        list_source(config, images, manifest)
        folder.open(identity, config.output.on_conflict)
        folder.write_file("manifest.parquet", manifest)
        run = _Run(config, folder, manifest, settings, pools, console)
        skipped, stages = run.execute()
        chips = config.output.chips
        totals = publish(folder, detector.class_names, run_id, chips, manifest)
        seconds = time.perf_counter() - began
        outcome = Outcome(folder.uri, totals, skipped, seconds, stages)
        write_run(config, folder, outcome, identity, run_id)
    return outcome


def dry_run(config: IndexConfig, detector: DetectorSource | None = None) -> list[str]:
    """What `index` would do and cost, as lines; Ray must be initialised. Errors as of `index`."""
    cluster = ray.cluster_resources()
    detector = detector or detector_from_config(config)
    plan = build_plan(config)
    pools = plan_pools(config, plan, cluster)
    threads = config.ray.pools[0].threads or os.cpu_count() or 1
    storage = storage_of(config.source.storage)
    settings = StageSettings(plan, detector, config.source.max_pixels, storage, threads=threads)
    with tempfile.TemporaryDirectory(prefix="af_pipeline-") as scratch:
        manifest = Path(scratch) / "manifest.parquet"
        images = list_source(config, None, manifest)
        sample = run_sample(sample_images(manifest, images), settings)
    seconds = estimate_seconds(images, sample, pools, plan, cluster.get("CPU", 1.0))
    lines = describe(config, plan, pools, images)
    return lines + costs(config, sample, images, seconds)


def list_source(config: IndexConfig, images: Iterable[SourceImage] | None, manifest: Path) -> int:
    """Write the manifest of ``images``, or of ``config.source``; returns how many there are."""
    if images is not None:
        return write_manifest(images, manifest)
    source = config.source
    storage = storage_of(source.storage)
    tables = list_tables(source.uri, source.images, storage, source.id_column, source.uri_column)
    return write_tables(tables, manifest)


@dataclass
class _Run:
    """The graph, run over what is not done yet until every image has its row."""

    config: IndexConfig
    folder: RunFolder
    manifest: Path
    settings: StageSettings
    pools: list[PoolPlan]
    console: Console

    def execute(self) -> tuple[int, list[dict[str, Any]]]:
        """Returns how many images were done before, and the stages' account of the first pass.

        A block whose process dies again and again, or whose node does, is given up by Ray. Its
        images run once more: together where they are many, then each alone, so that only the
        culprit is left, which becomes an error row.
        """
        listed = pq.read_metadata(self.manifest).num_rows
        skipped = 0
        stages: list[dict[str, Any]] = []
        for number, alone in enumerate((False, False, True)):
            todo = self._todo(redo_errors=self.config.output.redo_errors and number == 0)
            if number == 0:
                skipped = listed - todo.images
                if skipped:
                    self.console.print(f"resuming: {skipped} of {listed} images are done")
            if not todo.images:
                break
            if number == 1 and todo.images <= FEW:
                continue
            if number:
                how = "one by one" if alone else "once more"
                self.console.print(f"{todo.images} images were lost with their worker; {how} now")
            account = self._pass(todo, alone)
            stages = stages or account
        else:
            self._give_up()
        self.folder.remove("todo")
        return skipped, stages

    def _todo(self, redo_errors: bool = False) -> Todo:
        scratch = self.manifest.parent
        self.done = settle(self.folder, scratch, redo_errors)
        return write_todo(self.folder, self.manifest, self.done, scratch)

    def _pass(self, todo: Todo, alone: bool) -> list[dict[str, Any]]:
        config, folder = self.config, self.folder
        set_context(config, tolerate_lost_blocks=True)
        per_file = 1 if alone else config.output.images_per_file or _images_per_file(todo.images)
        with shown_progress(todo.images, stage_names(self.pools), self.console) as counter:
            settings = replace(self.settings, counter=counter)
            graph = build_graph(config, todo.parts, folder.arrow, settings, self.pools, alone)
            try:
                run_graph(graph, folder.path("rows"), folder.arrow, per_file, config.ray.task_cpus)
            except RayError as error:
                raise GraphError(_why(error)) from error
            account: list[dict[str, Any]] = ray.get(counter.report.remote())
        # The traceback of a lost block holds actors of the graph, and these the CPUs of the next.
        del graph
        gc.collect()
        return account

    def _give_up(self) -> None:
        """Write error rows for what the last pass lost."""
        done = settle(self.folder, self.manifest.parent)
        for table in left_to_do(self.manifest, done, self.manifest.parent):
            pairs = zip(table["image_id"].to_pylist(), table["uri"].to_pylist(), strict=True)
            self.folder.append_rows([_lost_row(*pair) for pair in pairs])


def _images_per_file(images: int) -> int:
    """Files of a long run by the thousand, not by the million; a short one loses little by a kill.

    What a kill can cost is this many images per file that is being filled.
    """
    return min(1_024, max(1, images // 2_000))


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return f"the graph stopped: {reason[:400]}; run the same command again to go on from here"


def _lost_row(image_id: str, uri: str) -> ImageRow:
    row = ImageRow(image_id, uri)
    fail(row, "its worker process died each time it was tried (crash or out of memory)")
    return row

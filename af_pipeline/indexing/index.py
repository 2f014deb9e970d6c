"""One index run: list, resume, execute the graph, account for every image, publish."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import ray
from rich.console import Console

from af_pipeline.config import config_hash, dump_without
from af_pipeline.core.schema import SCHEMA_VERSION
from af_pipeline.data.manifest import SourceImage, write_manifest, write_tables
from af_pipeline.data.secrets import redact_tree
from af_pipeline.data.sources.open import list_tables
from af_pipeline.indexing.detector import detector_from_config
from af_pipeline.indexing.estimate import (
    costs,
    describe,
    estimate_seconds,
    run_sample,
    sample_images,
)
from af_pipeline.indexing.lost_blocks import GraphError
from af_pipeline.indexing.passes import Passes
from af_pipeline.indexing.pools import plan_pools
from af_pipeline.indexing.run_budget import (
    describe_floor,
    floored,
    has_run_budget,
    planned_floor,
    stored_floor,
    with_floor,
)
from af_pipeline.indexing.stages import DetectorSource, StageSettings
from af_pipeline.output.account import NOT_IDENTITY, Outcome, budget_record, write_run
from af_pipeline.output.folder import OutputError, RunFolder, reaching
from af_pipeline.output.publish import publish
from af_pipeline.settings.guarantee import check_guarantee
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan


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
    detector = detector or detector_from_config(config)
    check_guarantee(config, detector.identity)
    run_id = f"{config_hash(config, NOT_IDENTITY)}-{detector.identity[:8]}"
    folder = RunFolder.at(config.output.uri, config.output.storage, run_id)
    identity = {
        "job": "index",
        "schema": SCHEMA_VERSION,
        "config": redact_tree(dump_without(config, NOT_IDENTITY)),
        "detector": detector.identity,
        "class_names": list(detector.class_names),
    }
    plan = build_plan(config)
    pools = plan_pools(config, plan, ray.cluster_resources())
    source = config.source
    storage = source.storage
    settings = StageSettings(plan, detector, source.max_pixels, storage, source.depth)
    with reaching(folder.uri):
        floor = stored_floor(folder, identity)
        folder.check(with_floor(identity, floor), config.output.on_conflict)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="af_pipeline-"))
        stack.enter_context(reaching(folder.uri))
        manifest = Path(scratch) / "manifest.parquet"
        # A source without images is told before the output is touched.
        listed = list_source(config, images, manifest)
        if floor is None and has_run_budget(config, plan):
            floor = planned_floor(config, manifest, listed, settings, pools)
        identity, settings = with_floor(identity, floor), floored(settings, floor)
        folder = folder.open(identity, config.output.on_conflict)
        stack.enter_context(reaching(folder.uri, GraphError))  # from here on the run has begun
        folder.write_file("manifest.parquet", manifest)
        run = Passes(config, folder, manifest, settings, pools, console)
        skipped, stages = run.execute()
        chips = config.output.chips
        totals = publish(folder, run.done.parts, detector.class_names, chips, manifest)
        seconds = time.perf_counter() - began
        budget = budget_record(config, plan, floor, totals)
        outcome = Outcome(folder.uri, totals, skipped, seconds, stages, budget)
        folder.check_owner()
        write_run(config, folder, outcome, identity)
        folder.release()
    return outcome


def dry_run(config: IndexConfig, detector: DetectorSource | None = None) -> list[str]:
    """What `index` would do and cost, as lines; Ray must be initialised. Errors as of `index`."""
    cluster = ray.cluster_resources()
    detector = detector or detector_from_config(config)
    check_guarantee(config, detector.identity)
    plan = build_plan(config)
    pools = plan_pools(config, plan, cluster)
    source = config.source
    storage = source.storage
    settings = StageSettings(plan, detector, source.max_pixels, storage, source.depth)
    with tempfile.TemporaryDirectory(prefix="af_pipeline-") as scratch:
        manifest = Path(scratch) / "manifest.parquet"
        images = list_source(config, None, manifest)
        floor = None
        if has_run_budget(config, plan):
            floor = planned_floor(config, manifest, images, settings, pools)
        settings = floored(settings, floor)
        sample = run_sample(sample_images(manifest, images), settings)
    seconds = estimate_seconds(images, sample, pools, plan, cluster.get("CPU", 1.0))
    lines = describe(config, plan, pools, images)
    if floor is not None:
        lines += describe_floor(floor)
    return lines + costs(config, sample, images, seconds)


def list_source(config: IndexConfig, images: Iterable[SourceImage] | None, manifest: Path) -> int:
    """Write the manifest of ``images``, or of ``config.source``; returns how many there are."""
    if images is not None:
        return write_manifest(images, manifest)
    source = config.source
    storage = source.storage
    tables = list_tables(source.uri, source.images, storage, source.id_column, source.uri_column)
    return write_tables(tables, manifest)

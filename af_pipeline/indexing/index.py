"""One index run: list, resume, execute the graph, account for every image, publish."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from af_pipeline.config import config_hash, dump_without
from af_pipeline.core.budget import Floor
from af_pipeline.core.schema import SCHEMA_VERSION
from af_pipeline.data.manifest import SourceImage, write_manifest, write_tables
from af_pipeline.data.secrets import redact_tree
from af_pipeline.data.sources.open import list_tables
from af_pipeline.indexing.detector import detector_from_config
from af_pipeline.indexing.estimate import (
    costs,
    describe,
    describe_floor,
    estimate_seconds,
    floored,
    planned_floor,
    run_sample,
    sample_images,
    stored_floor,
    with_floor,
)
from af_pipeline.indexing.meter import GraphError
from af_pipeline.indexing.passes import Passes
from af_pipeline.indexing.pools import StageLayout, plan_pools
from af_pipeline.indexing.stages import DetectorSource, StageSettings
from af_pipeline.output.account import NOT_IDENTITY, Outcome, budget_record, describe_run
from af_pipeline.output.folder import RUN_FILE, OutputFolder
from af_pipeline.output.place import OutputError, reaching
from af_pipeline.output.tables import publish
from af_pipeline.settings.guarantee import check_guarantee
from af_pipeline.settings.index import IndexConfig, OutputConfig, SourceConfig
from af_pipeline.settings.modes import build_plan, fit_lanes
from af_pipeline.settings.ray import RayConfig


@dataclass(frozen=True)
class IndexJob:
    """An index run before it begins: what is read, by which stages, and where to.

    ``limit``: the budget as run.json tells it, None: there is none. ``identity`` tells this run
    from others, ``record`` describes it in run.json; its clock runs from ``began``.
    """

    began: float
    source: SourceConfig
    settings: StageSettings
    layouts: list[StageLayout]
    limit: dict[str, Any] | None
    output: OutputConfig
    ray: RayConfig
    max_error_rate: float
    identity: dict[str, Any]
    record: dict[str, Any]

    @classmethod
    def prepare(cls, config: IndexConfig, detector: DetectorSource | None = None) -> IndexJob:
        """Load the detector and lay the stages over the cluster; Ray must be initialised.

        Raises CheckpointError, DeviceError or ValueError for input that cannot be used.
        """
        began = time.perf_counter()
        detector = detector or detector_from_config(config)
        config = fit_lanes(config, detector.shape)
        check_guarantee(config, detector.identity)
        plan = build_plan(config)
        source = config.source
        settings = StageSettings(plan, detector, source.max_pixels, source.storage, source.depth)
        run_id = f"{config_hash(config, NOT_IDENTITY)}-{detector.identity[:8]}"
        identity = {
            "job": "index",
            "schema": SCHEMA_VERSION,
            "config": redact_tree(dump_without(config, NOT_IDENTITY)),
            "detector": detector.identity,
            "class_names": list(detector.class_names),
        }
        focus = config.focus
        return cls(
            began=began,
            source=source,
            settings=settings,
            layouts=plan_pools(config, plan, ray.cluster_resources()),
            limit={"pixels": focus.budget, "per": focus.budget_per} if plan.budget else None,
            output=config.output,
            ray=config.ray,
            max_error_rate=config.max_error_rate,
            identity=identity,
            record=describe_run(config, run_id, identity),
        )

    def run(
        self, console: Console | None = None, images: Iterable[SourceImage] | None = None
    ) -> Outcome:
        """Index ``images``, or those of the source, into the output folder.

        Every listed image ends as one row, failed ones with the reason; those that an earlier start
        finished are left as they are. Raises SourceError or OutputError for places that cannot be
        used, GraphError where the graph stopped half-way.
        """
        console = console or Console(highlight=False)
        output = self.output
        if not output.uri:
            raise OutputError("no output: give --set output.uri=DIRECTORY")
        folder = OutputFolder.at(output.uri, output.storage, run_id=self.record["run_id"])
        with reaching(folder.uri):
            floor = stored_floor(folder, self.identity)
            folder.check(with_floor(self.identity, floor), output.on_conflict)
        with ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="af_pipeline-"))
            stack.enter_context(reaching(folder.uri))
            manifest = Path(scratch) / "manifest.parquet"
            # A source without images is told before the output is touched.
            listed = list_source(self.source, images, manifest)
            floor = floor or self.floor(manifest, listed)
            folder = folder.open(with_floor(self.identity, floor), output.on_conflict)
            stack.enter_context(reaching(folder.uri, GraphError))  # from here on it has begun
            folder.write_file("manifest.parquet", manifest)
            result = Passes(
                folder=folder,
                manifest=manifest,
                settings=floored(self.settings, floor),
                layouts=self.layouts,
                output=output,
                ray=self.ray,
                max_error_rate=self.max_error_rate,
                console=console,
            ).execute()
            names = self.settings.detector.class_names
            totals = publish(folder, result.parts, names, output.chips, manifest)
            seconds = time.perf_counter() - self.began
            budget = budget_record(self.limit, floor, totals)
            outcome = Outcome(folder.uri, totals, result.skipped, seconds, result.stages, budget)
            folder.check_owner()
            folder.write_json(RUN_FILE, self.record | outcome.record(folder.damaged))
            folder.release()
        return outcome

    def floor(self, manifest: Path, images: int) -> Floor | None:
        """What a sample says of the run's budget; None: it has none."""
        if self.limit is None or self.limit["per"] != "run":
            return None
        return planned_floor(self.limit["pixels"], manifest, images, self.settings, self.layouts)


def index(
    config: IndexConfig,
    detector: DetectorSource | None = None,
    console: Console | None = None,
    images: Iterable[SourceImage] | None = None,
) -> Outcome:
    """Prepare an `IndexJob` and run it."""
    return IndexJob.prepare(config, detector).run(console, images)


def dry_run(config: IndexConfig, detector: DetectorSource | None = None) -> list[str]:
    """What `index` would do and cost, as lines; Ray must be initialised. Errors as of `index`."""
    job = IndexJob.prepare(config, detector)
    with tempfile.TemporaryDirectory(prefix="af_pipeline-") as scratch:
        manifest = Path(scratch) / "manifest.parquet"
        images = list_source(job.source, None, manifest)
        floor = job.floor(manifest, images)
        sample = run_sample(sample_images(manifest, images), floored(job.settings, floor))
    plan = job.settings.plan
    cpus = ray.cluster_resources().get("CPU", 1.0)
    seconds = estimate_seconds(images, sample, job.layouts, plan, cpus)
    lines = describe(config, plan, job.layouts, images)
    if floor is not None:
        lines += describe_floor(floor)
    return lines + costs(config, sample, images, seconds)


def list_source(source: SourceConfig, images: Iterable[SourceImage] | None, manifest: Path) -> int:
    """Write the manifest of ``images``, or of ``source``; returns how many there are."""
    if images is not None:
        return write_manifest(images, manifest)
    columns = source.id_column, source.uri_column
    return write_tables(list_tables(source.uri, source.images, source.storage, *columns), manifest)

"""One index run: list, resume, execute the graph, account for every image, publish."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from rich.console import Console

from af_pipeline.config import config_hash, dump_config
from af_pipeline.data.listing import list_images
from af_pipeline.data.sources import SourceImage, write_manifest
from af_pipeline.dist.graph import PoolPlan, build_graph, plan_pools, run_graph, set_context
from af_pipeline.dist.progress import shown_progress
from af_pipeline.dist.sink import OutputError, RunFolder, Totals, publish, write_json
from af_pipeline.dist.stacking_stage import fail
from af_pipeline.dist.stages import DetectorSource, StageSettings
from af_pipeline.model.base import Detector
from af_pipeline.model.checkpoint import checkpoint_hash, load_detector
from af_pipeline.plans import build_plan
from af_pipeline.predict import TorchPredictor, pick_device
from af_pipeline.schema import MANIFEST, ImageRow
from af_pipeline.settings import IndexConfig

LIBRARIES = (
    "af_pipeline",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "pyarrow",
    "opencv-python-headless",
)

# Settings that change how fast a run goes, not what it finds: free to differ when resuming.
NOT_IDENTITY = ("ray", "output", "device", "max_error_rate", "checkpoint")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind; ``skipped``: images that an earlier start had finished."""

    root: Path
    totals: Totals
    skipped: int
    seconds: float

    @property
    def error_rate(self) -> float:
        """Share of images that failed."""
        return self.totals.errors / max(1, self.totals.images)


def shared_predictor(threads: int, detector: bytes, **options: Any) -> TorchPredictor:
    """Predictor of a detector that the driver put into the object store."""
    torch.set_num_threads(threads)
    held: Detector = ray.get(ray.cloudpickle.loads(detector))
    device = pick_device(options.pop("device"))
    return TorchPredictor(held, device, **options)


def detector_from_config(config: IndexConfig) -> DetectorSource:
    """Load the checkpoint once, here; actors on any node get it through the object store.

    Raises CheckpointError or DeviceError before anything is started.
    """
    if not any(pool.num_gpus for pool in config.ray.pools):
        pick_device(config.device)
    detector, info = load_detector(config.checkpoint)
    options = {
        # The reference goes as bytes: Ray then keeps the object as long as this driver lives,
        # also for actors that restart late.
        "detector": ray.cloudpickle.dumps(ray.put(detector)),
        "device": config.device,
        "bf16": config.bf16,
        "pad_to_lane": config.lanes.pad,
        "min_score": config.detector_score,
        "nms_iou": config.detector_nms,
        "proposals": config.finds == "proposals",
    }
    names = ("object",) if config.finds == "proposals" else info.class_names
    return DetectorSource(shared_predictor, options, names, checkpoint_hash(config.checkpoint))


def index(
    config: IndexConfig,
    detector: DetectorSource | None = None,
    console: Console | None = None,
    images: Iterable[SourceImage] | None = None,
) -> Outcome:
    """Index ``images``, or those of ``config.source``, into ``config.output``.

    Ray must be initialised.
    Every listed image ends as one row, failed ones with the reason. Raises SourceError,
    OutputError, CheckpointError, DeviceError or ValueError for input that cannot be used.
    """
    began = time.perf_counter()
    console = console or Console(highlight=False)
    folder = _folder(config)
    detector = detector or detector_from_config(config)
    identity = {
        "config": {k: v for k, v in dump_config(config).items() if k not in NOT_IDENTITY},
        "detector": detector.identity,
        "class_names": list(detector.class_names),
    }
    run_id = f"{config_hash(config, NOT_IDENTITY)}-{detector.identity[:8]}"
    plan = build_plan(config)
    pools = plan_pools(config, len(plan.scales), ray.cluster_resources()["CPU"])
    settings = StageSettings(plan, detector, config.source.max_pixels)
    listed = iter(images or list_images(config.source.uri, config.source.images))
    first = next(listed)  # a source without images is told before the output is touched
    folder.open(identity)
    manifest = folder.root / "manifest.parquet"
    write_manifest(chain([first], listed), manifest)
    skipped = _execute(config, folder, manifest, settings, pools, console)
    totals = publish(folder, detector.class_names, run_id, config.output.chips)
    seconds = time.perf_counter() - began
    outcome = Outcome(folder.root, totals, skipped, seconds)
    _write_run(config, folder, outcome, identity, run_id)
    return outcome


def _folder(config: IndexConfig) -> RunFolder:
    if not config.output.uri:
        raise OutputError("no output: give --set output.uri=DIRECTORY")
    if "://" in config.output.uri:
        raise OutputError(
            f"output.uri={config.output.uri}: only local or mounted directories can be written"
        )
    return RunFolder(Path(config.output.uri).absolute())


def _execute(
    config: IndexConfig,
    folder: RunFolder,
    manifest: Path,
    settings: StageSettings,
    pools: list[PoolPlan],
    console: Console,
) -> int:
    """Run the graph over what is not done yet; returns how many images were done before.

    A block whose process dies again and again is given up by Ray. Its images run once more, each
    alone, so that only the culprit is left, which becomes an error row.
    """
    listed = pq.read_table(manifest)
    skipped = 0
    for attempt in range(2):
        todo = _not_done(listed, folder)
        if attempt == 0:
            skipped = listed.num_rows - todo.num_rows
            if skipped:
                console.print(f"resuming: {skipped} of {listed.num_rows} images are done")
        if not todo.num_rows:
            return skipped
        if attempt:
            console.print(f"{todo.num_rows} images were lost with their worker; one by one now")
        part = folder.root / "todo.parquet"
        pq.write_table(todo, part)
        set_context(config, tolerate_lost_blocks=True)
        with shown_progress(todo.num_rows, console) as counter:
            graph = build_graph(config, part, settings, pools, bool(attempt), counter)
            run_graph(graph, folder.rows, config.ray.task_cpus)
        # The traceback of a lost block holds actors of the graph, and these the CPUs of the next.
        del graph
        gc.collect()
        part.unlink()
    lost = _not_done(listed, folder)
    if lost.num_rows:
        folder.append_rows([_lost_row(*pair) for pair in _pairs(lost)], f"lost-{time.time_ns()}")
    return skipped


def _not_done(listed: pa.Table, folder: RunFolder) -> pa.Table:
    done = folder.done_ids()
    keep = [image_id not in done for image_id in listed["image_id"].to_pylist()]
    return listed.filter(pa.array(keep, pa.bool_())).cast(MANIFEST)


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["image_id"].to_pylist(), table["uri"].to_pylist(), strict=True))


def _lost_row(image_id: str, uri: str) -> ImageRow:
    row = ImageRow(image_id, uri)
    fail(row, "its worker process died each time it was tried (crash or out of memory)")
    return row


def _write_run(
    config: IndexConfig, folder: RunFolder, outcome: Outcome, identity: dict[str, Any], run_id: str
) -> None:
    write_json(
        folder.root / "run.json",
        {
            "run_id": run_id,
            "config": dump_config(config),
            "config_hash": config_hash(config, NOT_IDENTITY),
            "checkpoint_hash": identity["detector"],
            "class_names": identity["class_names"],
            "libraries": {"python": platform.python_version()} | _versions(),
            "totals": asdict(outcome.totals),
            "skipped": outcome.skipped,
            "wall_seconds": round(outcome.seconds, 3),
        },
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def summary(outcome: Outcome) -> str:
    """The closing lines of a run."""
    t = outcome.totals
    share = 100 * t.pixels_processed / max(1, t.pixels_pyramid)
    scales = zip(t.pixels_per_scale, t.chips_per_scale, strict=True)
    lines = [
        f"images      {t.images} ({t.errors} errors, {outcome.skipped} done before)",
        f"detections  {t.detections}",
        f"pixels      {t.pixels_processed / 1e6:.1f} MP looked at = {share:.1f}% of the full "
        f"pyramid's {t.pixels_pyramid / 1e6:.1f} MP (+ {t.pixels_padded / 1e6:.1f} MP padding)",
    ]
    lines += [
        f"  scale {i}   {chips} chips, {pixels / 1e6:.1f} MP"
        for i, (pixels, chips) in enumerate(scales)
    ]
    lines += [f"error       {message}" for message in t.first_errors]
    rate = t.images / max(1e-9, outcome.seconds)
    lines += [
        f"time        {outcome.seconds:.1f} s ({rate:.2f} images/s with start-up)",
        f"output      {outcome.root}",
    ]
    return "\n".join(lines)

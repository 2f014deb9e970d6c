"""What a run says of itself: run.json and the closing lines."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from af_pipeline.config import config_hash, dump_config
from af_pipeline.core.budget import Floor
from af_pipeline.data.secrets import redact_tree
from af_pipeline.output.tables import Totals
from af_pipeline.settings.guarantee import NOT_IN_ROWS, guarantee_record
from af_pipeline.settings.index import IndexConfig

LIBRARIES = (
    "af_pipeline",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "pyarrow",
    "opencv-python-headless",
)

# Settings that change how a run goes, not what it finds: free to differ when resuming.
NOT_IDENTITY = (*NOT_IN_ROWS, "source.storage")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    ``uri``: its folder; ``skipped``: images that an earlier start had finished; ``stages``: a
    record per stage of the graph, see `af_pipeline.indexing.meter.stage_record`; ``budget``: see
    `budget_record`.
    """

    uri: str
    totals: Totals
    skipped: int
    seconds: float
    stages: list[dict[str, Any]] = field(default_factory=list)
    budget: dict[str, Any] | None = None

    @property
    def root(self) -> Path:
        """The folder of a local run."""
        return Path(self.uri)

    @property
    def error_rate(self) -> float:
        """Share of images that failed."""
        return self.totals.errors / max(1, self.totals.images)

    def record(self, damaged: Sequence[str]) -> dict[str, Any]:
        """What run.json says of it; ``damaged``: parts of rows/ that were put aside."""
        return {
            "totals": asdict(self.totals),
            "skipped": self.skipped,
            "damaged": list(damaged),
            "wall_seconds": round(self.seconds, 3),
            "stages": self.stages,
            "budget": self.budget,
        }


def budget_record(
    limit: dict[str, Any] | None, floor: Floor | None, totals: Totals
) -> dict[str, Any] | None:
    """What was allowed and what became of it, network px; ``limit`` None: there was no budget."""
    if limit is None:
        return None
    return {
        **limit,
        **(asdict(floor) if floor else {}),
        "spent": totals.pixels_processed + totals.pixels_padded,
        "chips_refused": totals.chips_refused,
    }


def describe_run(config: IndexConfig, run_id: str, identity: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a run before it begins."""
    return {
        "run_id": run_id,
        "config": redact_tree(dump_config(config)),
        "config_hash": config_hash(config, NOT_IDENTITY),
        "checkpoint_hash": identity["detector"],
        "class_names": identity["class_names"],
        "libraries": {"python": platform.python_version()} | _versions(),
        "guarantee": guarantee_record(config),
    }


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
    lines += [_budget_line(outcome.budget)] if outcome.budget else []
    lines += _limit_lines(t.counters)
    lines += [_stage_line(stage) for stage in outcome.stages]
    lines += [f"error       {message}" for message in t.first_errors]
    rate = (t.images - outcome.skipped) / max(1e-9, outcome.seconds)
    lines += [
        f"time        {outcome.seconds:.1f} s ({rate:.2f} images/s with start-up)",
        f"output      {outcome.uri}",
    ]
    return "\n".join(lines)


def _budget_line(budget: dict[str, Any]) -> str:
    """What was allowed, what was spent, what was left out."""
    text = f"budget      {budget['pixels'] / 1e6:.4g} MP"
    if budget["per"] == "image":
        text += " an image"
    else:
        text += f" in all, {budget['spent'] / 1e6:.4g} MP spent; the least gain of a chip is "
        text += f"{budget['least_gain']:.4g} FocusPixels per MP, by {budget['sample']} images"
    return f"{text}; {budget['chips_refused']} chips refused"


def _limit_lines(counters: dict[str, int]) -> list[str]:
    """What settings that bound the number of detections, and seams of tiles, have cost."""
    texts = {
        "dropped_forward": "limit       {} detections were beyond detector_max of a forward",
        "dropped_image": "limit       {} detections were beyond stack.max_detections of an image",
        "cut_seam": "seams       {} detections are parts of objects that tiles cut",
    }
    return [text.format(counters[name]) for name, text in texts.items() if counters[name]]


def _stage_line(stage: dict[str, Any]) -> str:
    """One stage: what one of its actors does in a second, how busy they were, what waited."""
    text = f"stage       {stage['stage']}: {stage['images_per_busy_s'] or 0:.2f} images/s an actor"
    text += f", busy {100 * (stage['busy_share'] or 0):.0f}%"
    if stage["queue_mean"] is not None:
        text += f", {stage['queue_mean']:.1f} images queued (at most {stage['queue_max']})"
    if stage["batch_fill"] is not None:
        text += f", batches {100 * stage['batch_fill']:.0f}% full"
    return text

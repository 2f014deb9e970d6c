"""What an index run would do and cost, from a sample: nothing is written, no graph is started.

A budget for a whole run comes from a sample too, looked at with no limit: the floor is the gain
that a chip must promise. Which chips a run takes then depends on this one number, which is stored
with the run: a resumed run takes the same one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from af_pipeline.core.budget import Floor, gain_floor
from af_pipeline.core.lanes import Lane
from af_pipeline.core.plan import Plan, with_gain_floor
from af_pipeline.core.scales import Scale
from af_pipeline.core.schema import MANIFEST, ImageRow, table_to_rows
from af_pipeline.data.secrets import redact
from af_pipeline.indexing.meter import STOPPED, GraphError
from af_pipeline.indexing.passes import reason_in
from af_pipeline.indexing.pools import Route, StageLayout, stage_plan
from af_pipeline.indexing.stages import ActorFault, FusedStage, SampleStage, StageSettings, Worth
from af_pipeline.output.folder import OutputFolder
from af_pipeline.output.tables import scan
from af_pipeline.settings.index import IndexConfig

SAMPLE = 16  # images that a dry run looks at
BUDGET_SAMPLE = 32  # images from which the floor of a budget is made


@dataclass(frozen=True)
class Sample:
    """Some images through the whole cascade by one thread; ``seconds`` for all of them."""

    rows: list[ImageRow]
    seconds: float

    @property
    def good(self) -> list[ImageRow]:
        """The rows without error."""
        return [row for row in self.rows if not row.error]


def sample_images(manifest: Path, images: int, count: int = SAMPLE) -> pa.Table:
    """Up to ``count`` rows of the manifest, evenly spread."""
    chosen = np.unique(np.linspace(0, images - 1, min(count, images)).astype(int))
    numbers = ", ".join(str(number) for number in chosen)
    with duckdb.connect() as connection:
        found = connection.sql(
            f"SELECT {', '.join(MANIFEST.names)} FROM {scan(manifest)} "
            f"WHERE file_row_number IN ({numbers}) ORDER BY file_row_number"
        )
        return found.to_arrow_table().cast(MANIFEST)


def run_sample(table: pa.Table, settings: StageSettings) -> Sample:
    """Read, decode and look at the images of ``table`` as an actor of the fused plan does, with one
    thread.

    The first is looked at twice, the first time not counted: it pays for warming up.
    """
    stage = FusedStage(replace(settings, name="sample", scale=None, lanes=None))
    stage(table.slice(0, 1))
    rows: list[ImageRow] = []
    began = time.perf_counter()
    for number in range(table.num_rows):
        rows += table_to_rows(stage(table.slice(number, 1)))
    return Sample(rows, time.perf_counter() - began)


class Sampler:
    """The stage as an actor: one image a call, since an image may kill its process."""

    def __init__(self, settings: StageSettings) -> None:
        self.stage = SampleStage(settings)

    def worth(self, table: pa.Table) -> list[Worth]:
        """Those of the images of a table of `MANIFEST` that can be looked at."""
        self.stage.worths = []
        self.stage(table)
        return self.stage.worths


def look_at_sample(
    table: pa.Table, settings: StageSettings, pools: Sequence[StageLayout]
) -> list[Worth]:
    """What the images of ``table`` are worth, by an actor of the strongest pool; without those
    that fail."""
    pool = max(pools, key=lambda planned: planned.route.pool.num_gpus)
    plan = stage_plan(settings.plan, pool.route.pool)
    own = replace(settings, plan=plan, threads=pool.threads)
    kind: Any = ray.remote(**pool.needs)(Sampler)
    found: list[Worth] = []
    sampler: Any = None
    for number in range(table.num_rows):
        sampler = sampler or kind.remote(own)
        try:
            found += ray.get(sampler.worth.remote(table.slice(number, 1)))
        except RayError as error:
            if isinstance(error, ActorFault) or getattr(error, "actor_init_failed", False):
                raise GraphError(STOPPED.format(reason_in(str(error)))) from error
            sampler = None  # the image took its process along
    if sampler is not None:
        ray.kill(sampler)
    return found


def floor_of(worths: Sequence[Worth], looked: int, images: int, budget: float) -> Floor:
    """The least gain with which ``images`` are expected to take ``budget`` network px at most.

    ``worths``: of those of ``looked`` images that did not fail. Raises ValueError where the budget
    is less than the coarsest looks take.
    """
    if not worths:
        raise ValueError(
            f"focus.budget_per=run: none of the {looked} images of the sample could be looked at; "
            "see why with focus.budget_per=image"
        )
    share = images / looked
    coarse = sum(one.coarse for one in worths)
    if budget < coarse * share:
        raise ValueError(
            f"focus.budget={budget:.6g} is less than the coarsest looks of {images} images take: "
            f"give {-(-coarse * share // 1):.0f} network px or more"
        )
    gains = list(chain.from_iterable(one.gains for one in worths))
    costs = list(chain.from_iterable(one.costs for one in worths))
    least = gain_floor(gains, costs, budget / share - coarse)
    taken = sum(cost for gain, cost in zip(gains, costs, strict=True) if gain >= least)
    return Floor(least, looked, coarse * share, (coarse + taken) * share)


def run_budget(config: IndexConfig, plan: Plan) -> float | None:
    """What the run as a whole may take, network px; None: as much as it asks for."""
    return config.focus.budget if plan.budget and config.focus.budget_per == "run" else None


def stored_floor(folder: OutputFolder, identity: dict[str, Any]) -> Floor | None:
    """The floor of the run of this ``identity`` that was started in ``folder`` before."""
    plan = folder.plan()
    found = plan.pop("budget", None)
    if not found or plan != identity:
        return None
    try:
        return Floor(**found)
    except TypeError:  # damaged: to be refused as the plan of another run
        return None


def with_floor(identity: dict[str, Any], floor: Floor | None) -> dict[str, Any]:
    """The identity of a run that has this floor."""
    return identity if floor is None else identity | {"budget": asdict(floor)}


def planned_floor(
    budget: float,
    manifest: Path,
    images: int,
    settings: StageSettings,
    layouts: Sequence[StageLayout],
) -> Floor:
    """The floor for ``images`` of a manifest, by a sample of them; errors as of `floor_of`."""
    table = sample_images(manifest, images, BUDGET_SAMPLE)
    worths = look_at_sample(table, settings, layouts)
    return floor_of(worths, table.num_rows, images, budget)


def floored(settings: StageSettings, floor: Floor | None) -> StageSettings:
    """The settings with the floor in their plan."""
    if floor is None:
        return settings
    return replace(settings, plan=with_gain_floor(settings.plan, floor.least_gain))


def describe_floor(floor: Floor) -> list[str]:
    """What a run with this floor is expected to take, a line for the dry run."""
    return [
        f"budget      chips of {floor.least_gain:.4g} expected FocusPixels per MP or more, by "
        f"{floor.sample} images: {floor.expected / 1e6:.4g} MP in all, {floor.coarse / 1e6:.4g} MP "
        "of them coarsest looks"
    ]


def route_pixels(row: ImageRow, route: Route, plan: Plan) -> float:
    """Network px of one image that a stage forwards, without the overlap of tiles."""
    chips = [
        chip
        for chip in row.chips
        if (route.scale is None or chip.scale == route.scale)
        and (route.lanes is None or chip.lane in route.lanes)
    ]
    factors = [plan.scales[c.scale].factor_for(row.height, row.width) for c in chips]
    areas = [(c.box[2] - c.box[0]) * (c.box[3] - c.box[1]) for c in chips]
    return float(sum(area * factor**2 for area, factor in zip(areas, factors, strict=True)))


def estimate_seconds(
    images: int, sample: Sample, pools: Sequence[StageLayout], plan: Plan, cluster_cpus: float
) -> float:
    """Time of the graph for ``images`` if every actor is as fast as this process was.

    With GPUs the stages overlap and the slowest one decides; without, all share the CPUs.
    """
    per_image = sample.seconds / len(sample.rows)
    if not any(pool.route.pool.num_gpus for pool in pools):
        return images * per_image / max(1.0, cluster_cpus)
    decode = sum(row.ledger.decode_ms for row in sample.good) / 1000 / len(sample.rows)
    forward = max(0.0, per_image - decode)
    spent = []
    for pool in pools:
        pixels = sum(route_pixels(row, pool.route, plan) for row in sample.good)
        total = sum(sum(row.ledger.pixels) for row in sample.good)
        own = forward * min(1.0, pixels / max(1, total))
        own += decode if pool.route.scale in (0, None) else 0.0
        spent.append(images * own / pool.route.pool.actor_range[1])
    return max(spent)


def describe(
    config: IndexConfig, plan: Plan, pools: Sequence[StageLayout], images: int
) -> list[str]:
    """Source, scales, lanes and pools, a line each."""
    plan_name = "fused" if config.is_fused else "staged"
    lines = [
        f"source      {images} images: {redact(config.source.uri)}",
        f"output      {redact(config.output.uri) or '(none given)'}; nothing is written now",
        f"plan        {config.mode}, {plan_name}, {config.ray.rows_per_block} images a block",
    ]
    lines += [f"scale {i}     {_scale(scale)}" for i, scale in enumerate(plan.scales)]
    lines += [f"pool        {_pool(pool, plan)}" for pool in pools]
    return lines


def costs(config: IndexConfig, sample: Sample, images: int, seconds: float) -> list[str]:
    """What the sample cost and what all images will, a line each."""
    good = sample.good
    lines = [f"sample      {len(sample.rows)} images, {len(sample.rows) - len(good)} errors"]
    lines += [
        f"error       {redact(row.image_id)}: {row.error}" for row in sample.rows if row.error
    ]
    if not good:
        return [*lines, "estimate    none: no image of the sample could be looked at"]
    pixels = np.mean([row.ledger.pixels for row in good], axis=0)
    chips = np.mean([row.ledger.chips for row in good], axis=0)
    pyramid = float(np.mean([row.ledger.pixels_pyramid for row in good]))
    area = float(np.mean([row.height * row.width for row in good]))
    lines[0] += f", {area / 1e6:.2f} MP each, {sample.seconds / len(sample.rows):.2f} s each"
    lines[0] += " in this process, one thread"
    lines += [
        f"  scale {i}   {chips[i]:.1f} chips, {pixels[i] / 1e6:.2f} MP an image"
        for i in range(len(pixels))
    ]
    if config.mode == "autofocus" and config.focus.budget is not None:
        lines.append(_refused(config, good))
    share = len(good) / len(sample.rows)
    total = images * share * float(pixels.sum())
    lines += [
        f"pixels      {pixels.sum() / 1e6:.2f} MP an image = {100 * pixels.sum() / pyramid:.1f}% "
        f"of the full pyramid's {pyramid / 1e6:.2f} MP; {total / 1e9:.3g} GP in all",
        f"time        about {_duration(seconds)} with {_actors(config)}, start-up left out, if "
        "they are as fast as this process and the sample is like the rest",
    ]
    return lines


def _refused(config: IndexConfig, rows: Sequence[ImageRow]) -> str:
    """The budget of one image, or of all, and how many chips it leaves out."""
    refused = float(np.mean([sum(row.ledger.refused) for row in rows]))
    whole = {"image": "an image", "run": "in all"}[config.focus.budget_per]
    text = f"budget      {(config.focus.budget or 0) / 1e6:.4g} MP {whole}, padding included"
    return f"{text}; {refused:.1f} chips refused an image"


def _scale(scale: Scale) -> str:
    rule = f"factor {scale.factor:g}" if scale.factor is not None else _sides(scale)
    low = f"{scale.valid_low:g}" if scale.valid_low > 0 else "0"
    high = f"{scale.valid_high:g} px" if scale.valid_high > 0 else "any size"
    return f"{rule}, objects of {low} to {high} (sqrt of area, original px)"


def _sides(scale: Scale) -> str:
    return f"min_side {scale.min_side}, max_side {scale.max_side}"


def _pool(planned: StageLayout, plan: Plan) -> str:
    low, high = planned.route.pool.actor_range
    actors = f"{low} to {high} actors" if high > low else f"{low} actor{'s' * (low > 1)}"
    needs = {name: value for name, value in planned.needs.items() if value}
    text = ", ".join(f"{name}={_short(value)}" for name, value in needs.items())
    return f"{planned.route.name}: {actors}, {planned.threads} threads, {text}; " + _lanes(
        planned.route, plan.lanes
    )


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _lanes(route: Route, lanes: Sequence[Lane]) -> str:
    held = lanes if route.lanes is None else [lanes[i] for i in route.lanes if i >= 0]
    sides = sorted({max(lane.height, lane.width) for lane in held})
    text = "lanes of " + (", ".join(str(side) for side in sides) + " px" if sides else "no size")
    larger = route.lanes is None or -1 in route.lanes
    return text + (" and larger chips in tiles" if larger else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _actors(config: IndexConfig) -> str:
    count = sum(pool.actor_range[1] for pool in config.ray.pools)
    return f"{count} actor{'s' * (count > 1)} " + (
        "in one pool" if config.is_fused else "per scale"
    )

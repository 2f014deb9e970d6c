"""A budget for a whole run: from a sample of its images, the gain that a chip must promise.

The sample is looked at with no limit. Which chips a run takes then depends on one number, the
floor, that is stored with the run: a resumed run takes the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from af_pipeline.core.budget import BudgetRule, Floor, gain_floor
from af_pipeline.core.cascade import look
from af_pipeline.core.chips import forward_pixels, next_chips
from af_pipeline.core.plan import Plan, with_gain_floor
from af_pipeline.core.schema import ImageRow
from af_pipeline.indexing.estimate import sample_images
from af_pipeline.indexing.lost_blocks import STOPPED, GraphError, reason_in
from af_pipeline.indexing.pools import PoolPlan, stage_plan
from af_pipeline.indexing.stages import ActorFault, CoarseStage, StageSettings, fail
from af_pipeline.output.folder import RunFolder
from af_pipeline.settings.index import IndexConfig

SAMPLE = 32  # images looked at


@dataclass(frozen=True)
class Worth:
    """One image: ``coarse`` network px of the coarsest look; of each chip the network px and the
    effective gain per megapixel, the least of its own and of those it was cut from."""

    coarse: int
    costs: tuple[int, ...] = ()
    gains: tuple[float, ...] = ()


class SampleStage(CoarseStage):
    """Takes every chip of an image, whatever it costs; what they are worth is kept."""

    def __init__(self, settings: StageSettings) -> None:
        unlimited = replace(settings.plan, budget=BudgetRule())
        super().__init__(replace(settings, name="sample", plan=unlimited))
        self.worths: list[Worth] = []

    def look_through(self, rows: Sequence[ImageRow]) -> None:
        """All scales of each image."""
        for row in rows:
            try:
                self.worths.append(self._worth(row))
            except Exception as error:
                self.check_detector()
                fail(row, f"detection failed: {error!r}")

    def _worth(self, row: ImageRow) -> Worth:
        gains, costs = [float("inf")], [self._cost(row, 0)]
        for scale in range(len(self.plan.scales)):
            look([row], scale, self.plan, self.predict)
            for one in next_chips(row, scale, self.plan):
                costs.append(self._cost(row, len(costs)))
                gains.append(min(one.gain / max(costs[-1], 1) * 1e6, gains[one.parent]))
        return Worth(costs[0], tuple(costs[1:]), tuple(gains[1:]))

    def _cost(self, row: ImageRow, index: int) -> int:
        chip = row.chips[index]
        return forward_pixels(row, chip.scale, chip.box, self.plan)


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
    table: pa.Table, settings: StageSettings, pools: Sequence[PoolPlan]
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


def has_run_budget(config: IndexConfig, plan: Plan) -> bool:
    """Whether the run as a whole has a budget."""
    return plan.budget is not None and config.focus.budget_per == "run"


def stored_floor(folder: RunFolder, identity: dict[str, Any]) -> Floor | None:
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
    config: IndexConfig, manifest: Path, images: int, settings: StageSettings, pools: list[PoolPlan]
) -> Floor:
    """The floor for ``images`` of a manifest, by a sample of them; errors as of `floor_of`."""
    assert config.focus.budget is not None
    table = sample_images(manifest, images, SAMPLE)
    worths = look_at_sample(table, settings, pools)
    return floor_of(worths, table.num_rows, images, config.focus.budget)


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

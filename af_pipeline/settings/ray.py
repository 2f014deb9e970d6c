"""The settings of how the index job uses Ray: its actors, and what they reserve."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from af_pipeline.config import NodeCores, Pixels, Section, Side, Threads


class PoolConfig(Section):
    """Actors of one kind, and the chips they take: those of some scales up to some size."""

    scales: tuple[int, ...] | None = Field(None, description="scales served; None: all")
    max_side: Side | None = Field(
        None, ge=32, description="largest side of a lane served, network px; None: what is left"
    )
    actors: int | tuple[int, int] = Field(
        1,
        description="actors per scale, up to 10,000, which Ray is tested with; [least, most] grows "
        "and shrinks with the work",
    )
    num_cpus: NodeCores = Field(
        0, ge=0, description="CPUs that Ray reserves per actor; 0: a share of the cluster's"
    )
    num_gpus: float = Field(
        0, ge=0, le=64, description="GPUs that Ray reserves per actor: a share of one, or whole"
    )
    accelerator_type: str | None = Field(None, description="kind of GPU, Ray's name (A10G, H100)")
    resources: dict[str, Annotated[float, Field(gt=0, le=10**6)]] = Field(
        {}, description="custom resources per actor, as nodes were started with"
    )
    threads: Threads = Field(
        0, ge=0, description="forwards an actor makes at once on a CPU; 0: cores shared out"
    )
    batch_pixels: Pixels | None = Field(
        None, ge=1, description="network px a batch may hold here; None: lanes.batch_pixels"
    )

    @model_validator(mode="after")
    def _actors(self) -> PoolConfig:
        low, high = self.actor_range
        if not 1 <= low <= high <= 10_000:
            raise ValueError(
                f"actors takes a number or [least, most] from 1 to 10000; found {low, high}"
            )
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ValueError(f"num_gpus above 1 must be whole, for Ray; found {self.num_gpus:g}")
        if reserved := sorted({"CPU", "GPU"} & self.resources.keys()):
            raise ValueError(f"resources holds {reserved[0]}: use num_cpus or num_gpus")
        return self

    @property
    def actor_range(self) -> tuple[int, int]:
        """Least and most actors."""
        return self.actors if isinstance(self.actors, tuple) else (self.actors, self.actors)


class RayConfig(Section):
    """How the job uses Ray."""

    address: str | None = Field(None, description="None: the cluster of `ray job`, else local")
    rows_per_block: int = Field(
        4, ge=1, le=10_000, description="images per block: 0.5 s of work or more; held in memory"
    )
    pools: tuple[PoolConfig, ...] = Field(
        (PoolConfig(),),
        min_length=1,
        description="per scale, a chip goes to the first pool that takes it, smallest side first",
    )
    task_cpus: NodeCores = Field(
        0.25, gt=0, description="CPUs of a read, stack or write task; low: many processes at once"
    )
    wait_for_actors_s: int = Field(
        600, gt=0, le=604_800, description="fail if actors do not start by then; a week at most"
    )
    elastic: bool = Field(
        False, description="the cluster grows on demand: do not ask whether it is large enough now"
    )

    @property
    def pools_are_one(self) -> bool:
        """Whether a single pool takes every chip."""
        first = self.pools[0]
        return len(self.pools) == 1 and first.scales is None and first.max_side is None

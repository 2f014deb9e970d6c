"""What a tuning is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from af_pipeline.config import Section


def _parts(values: Any) -> Any:
    return values.split(",") if isinstance(values, str) else values


def _in_order(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


Number = TypeVar("Number")
Positive = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[int, Field(ge=0)]
Cells = Annotated[int, Field(ge=1, le=31)]
Side = Annotated[int, Field(ge=16)]
# Values with commas between, each once.
Several = Annotated[tuple[Number, ...], BeforeValidator(_parts), AfterValidator(_in_order)]


class TuneRule(Section):
    """The options of `jobs/tune.py`, one a field."""

    output: Path = Field(description="folder for settings and report")
    ground_truth: str | None = Field(
        None,
        description="COCO json, VOC image set or Parquet; none: "
        "the full pyramid's confident detections stand for it",
    )
    on_broken: Literal["fail", "drop"] = Field(
        "fail",
        description="broken boxes of the ground truth: stop and name them, or leave them out",
    )
    sample: int = Field(100, ge=1, description="images to search on")
    seed: int = Field(0, ge=0, description="of the choice of images")
    max_loss: float = Field(0.001, description="AP below the full pyramid's")
    max_lost: float = Field(
        0.05,
        description="share of its confident detections, with ground truth of those that are right",
    )
    iou: float = Field(0.5, gt=0, le=1, description="overlap from which one of them is found again")
    confirm: int = Field(5, ge=1, description="settings to run for real")
    workers: int = Field(2, ge=1, description="processes that replay")
    thresholds: Several[Share] = Field(
        (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), description="probabilities tried, with commas between"
    )
    dilations: Several[Cells] = Field((1, 3), description="cells")
    contexts: Several[Length] = Field((0, 8, 16), description="network px of the map's scale")
    min_sizes: Several[Side] = Field((32, 64, 128), description="network px of the map's scale")
    chip_costs: Several[Positive] = Field((), description="px of area; none: as configured")
    alpha: float | None = Field(
        None, gt=0, lt=1, description="certify: mean share of confident detections lost, at most"
    )
    delta: float = Field(0.1, gt=0, lt=1, description="probability that this does not hold")
    calibration: int = Field(100, ge=1, description="further images to certify on")

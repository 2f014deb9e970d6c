"""The settings of the index job, and those it shares with training, section by section.

Every field's description states its unit and why one would change it; what cannot work is
refused here, before anything starts. `af_pipeline.config` reads them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from af_pipeline.config import Count, Section
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.lanes import LaneConfig
from af_pipeline.core.plan import TilesConfig
from af_pipeline.core.scales import Scale, check_pyramid
from af_pipeline.core.stacking import StackRule
from af_pipeline.data.access import Storage
from af_pipeline.images.depth import DepthConfig
from af_pipeline.settings.detector import FocusNetworkConfig, ForeignConfig
from af_pipeline.settings.ray import RayConfig


class FocusSection(Section):
    """From the focus maps to the FocusChips, and what they may cost."""

    steps: tuple[ChipRule, ...] = Field((), description="one per step to the next finer scale")
    network: FocusNetworkConfig | None = Field(
        None, description="a network that makes the focus maps; null: the detector's own"
    )
    budget: float | None = Field(
        None, gt=0, description="network px to spend, padding included; None: what the maps ask for"
    )
    budget_per: Literal["image", "run"] = Field(
        "image",
        description="image: never more in any image; run: about this much in sum, spent on the "
        "images that gain most, by a sample",
    )


class SourceConfig(Section):
    """Where images come from."""

    uri: str = Field(
        "",
        description="directory, glob, an image, COCO json, Parquet or CSV list of URIs, WebDataset "
        "tar, VOC image set; local or s3://",
    )
    images: str | None = Field(None, description="image folder of a COCO json, if elsewhere")
    id_column: str = Field("image_id", description="of a Parquet or CSV list")
    uri_column: str = Field("uri", description="of a Parquet or CSV list")
    storage: Storage = Storage()
    max_pixels: int = Field(
        200_000_000, gt=0, description="larger images become error rows (decompression bombs)"
    )
    depth: DepthConfig = DepthConfig()


class OutputConfig(Section):
    """Where results go."""

    uri: str = Field("", description="directory of the run, local or s3://")
    chips: bool = Field(True, description="write chips/*.parquet")
    on_conflict: Literal["refuse", "overwrite"] = Field(
        "refuse", description="where another run's results are: stop, or remove them and begin"
    )
    redo_errors: bool = Field(
        False, description="on a rerun, try the images again that ended as error rows"
    )
    redo_changed: bool = Field(
        True,
        description="on a rerun, do images again whose size, ETag or time of change is another "
        "than when they were done",
    )
    images_per_file: Count = Field(
        0, ge=0, description="rows of one rows/*.parquet, lost with a kill; 0: by the total"
    )
    storage: Storage = Storage()


class GuaranteeConfig(Section):
    """What jobs/tune.py certified of these settings; written by it, not by hand."""

    alpha: float = Field(gt=0, lt=1, description="bound on the mean share lost an image")
    delta: float = Field(gt=0, lt=1, description="probability that the bound does not hold")
    confident: float = Field(description="score from which the pyramid's detections count")
    found_score: float = Field(description="score from which a detection finds one of them again")
    iou: float = Field(description="overlap from which it does, class being the same")
    images: int = Field(ge=1, description="calibration images with confident detections")
    mean_lost: float = Field(ge=0, le=1, description="mean share lost an image among them")
    p_value: float = Field(ge=0, le=1, description="of: the mean share lost exceeds alpha")
    method: str = Field(description="test of that hypothesis, see af_pipeline.tuning.risk")
    source: str = Field(description="where the calibration images came from")
    settings: str = Field(description="hash of what it holds for: detector, pyramid, focus, ...")


class IndexConfig(Section):
    """`jobs/index.py`."""

    source: SourceConfig = SourceConfig()
    output: OutputConfig = OutputConfig()
    mode: Literal["autofocus", "pyramid", "tiles", "whole"] = Field(
        "autofocus",
        description="autofocus; pyramid: every scale whole; tiles: fixed windows and the whole "
        "image; whole: coarsest scale only",
    )
    plan: Literal["auto", "staged", "fused"] = Field(
        "auto",
        description="staged: pools of actors per scale; fused: one that runs the whole cascade; "
        "auto: fused where chips are whole images (modes pyramid, tiles) and one pool serves all",
    )
    checkpoint: str = Field("checkpoints/aerial_tiny.safetensors", description="detector weights")
    detector: ForeignConfig | None = Field(
        None, description="a detector of another maker, instead of the checkpoint"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where detectors run")
    bf16: bool | Literal["auto"] = Field(
        "auto", description="bfloat16 autocast, same AP; auto: where the device computes in it"
    )
    pyramid: tuple[Scale, ...] = Field(description="scales, coarse to fine")
    focus: FocusSection = FocusSection()
    detector_score: float = Field(
        0.01, ge=0, le=1, description="lowest score kept per chip, where stack.min_score is lower"
    )
    detector_max: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="detections kept of one forward; images/ counts the others as dropped_forward",
    )
    finds: Literal["objects", "proposals"] = Field(
        "objects", description="proposals: boxes of anything, without a class (jobs/mine.py)"
    )
    detector_nms: float = Field(0.6, gt=0, le=1, description="NMS overlap within one chip")
    guarantee: GuaranteeConfig | None = Field(
        None, description="what jobs/tune.py certified of these settings"
    )
    lanes: LaneConfig = LaneConfig()
    tiles: TilesConfig = TilesConfig()
    stack: StackRule = StackRule()
    ray: RayConfig = RayConfig()
    max_error_rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of failed images above which the job exits non-zero; from 200 images on "
        "judged while it runs",
    )

    @model_validator(mode="after")
    def _steps(self) -> IndexConfig:
        check_pyramid(self.pyramid)
        if self.mode == "autofocus" and len(self.focus.steps) != len(self.pyramid) - 1:
            raise ValueError(
                f"focus.steps needs one entry per step between scales: {len(self.pyramid) - 1} "
                f"for {len(self.pyramid)} scales, found {len(self.focus.steps)}"
            )
        if self.mode == "tiles":
            self._tile_scale()
        if self.detector is not None and self.finds == "proposals":
            raise ValueError("finds=proposals needs a checkpoint of ours, not detector.path")
        return self

    @property
    def is_fused(self) -> bool:
        """Whether one pool runs the whole cascade."""
        if self.plan == "auto":
            return self.mode in ("pyramid", "tiles") and self.ray.pools_are_one
        return self.plan == "fused"

    def _tile_scale(self) -> None:
        count = len(self.pyramid)
        if not -count <= self.tiles.scale < count or self.tiles.scale % count == 0:
            raise ValueError(
                "mode=tiles looks at the coarsest scale whole and at a finer one in windows: "
                f"tiles.scale must name one of the other {count - 1} pyramid entries"
            )

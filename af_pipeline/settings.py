"""The settings of the index job, and those it shares with training, section by section.

Every field's description states its unit and why one would change it; what cannot work is
refused here, before anything starts. `af_pipeline.config` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from af_pipeline.config import Count, Pixels, Section, Side
from af_pipeline.depth import DepthConfig
from af_pipeline.focus import ChipRule, FocusRule
from af_pipeline.lanes import TILE_STEP
from af_pipeline.ray_settings import RayConfig
from af_pipeline.scales import Scale


class ScaleConfig(Section):
    """One pyramid level, coarse to fine: either ``factor`` or a resolution rule."""

    factor: float | None = Field(
        None, ge=0.001, le=16, description="network px per original px; enlarged by more, it blurs"
    )
    min_side: Side = Field(-1, description="paper's rule: shorter side, network px; -1: none")
    max_side: Side = Field(-1, description="paper's rule: cap of the longer side, network px")
    valid_range: tuple[float, float] = Field(
        (-1, -1), description="sqrt(area) of objects this scale answers for, original px; -1: open"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> ScaleConfig:
        for name, side in (("min_side", self.min_side), ("max_side", self.max_side)):
            if side < 1 and side != -1:
                raise ValueError(f"{name} must be 1 px or more, or -1 for none; found {side}")
        if self.factor is None and self.min_side < 0 and self.max_side < 0:
            raise ValueError("give factor, or min_side and max_side")
        if self.factor is not None and (self.min_side > 0 or self.max_side > 0):
            raise ValueError("give factor or min_side/max_side, not both")
        return self

    @model_validator(mode="after")
    def _range(self) -> ScaleConfig:
        low, high = self.valid_range
        if (low < 0 and low != -1) or (high <= 0 and high != -1):
            raise ValueError(f"valid_range takes px, or -1 for open; found {low:g} to {high:g}")
        if high > 0 and low >= high:
            raise ValueError(f"valid_range must rise; found {low:g} to {high:g}")
        return self

    def build(self) -> Scale:
        """The plain `Scale`."""
        low, high = self.valid_range
        return Scale(self.factor, self.min_side, self.max_side, low, high)


def check_pyramid(scales: Sequence[ScaleConfig]) -> None:
    """Raise ValueError unless there are scales, coarse to fine as far as they compare."""
    if not scales:
        raise ValueError("pyramid needs at least one scale")
    for number, (coarse, fine) in enumerate(pairwise(scales)):
        for name in ("factor", "min_side", "max_side"):
            low, high = getattr(coarse, name) or -1, getattr(fine, name) or -1
            if low > 0 and high > 0 and low >= high:
                raise ValueError(
                    f"pyramid goes coarse to fine: {name} must rise, but scale {number} has "
                    f"{low:g} and scale {number + 1} has {high:g}"
                )


class FocusConfig(Section):
    """How the focus map of one scale becomes the FocusChips of the next finer one."""

    threshold: float = Field(0.1, ge=0, le=1, description="probability at which a cell counts")
    dilation: int = Field(3, ge=1, le=31, description="square structuring element, cells; 1: none")
    min_size: Side = Field(128, ge=16, description="least chip side, network px of this scale")
    merge: Literal["cost", "paper"] = Field(
        "cost", description="cost: merge where one forward of the union is cheaper; paper: touch"
    )
    chip_cost: float = Field(
        4096, ge=0, description="price of one more chip, network px of this scale, for merge=cost"
    )
    context: Side = Field(
        0, ge=0, description="least margin of a chip around its cells, network px of this scale"
    )

    def build(self) -> ChipRule:
        """The plain `ChipRule`."""
        return ChipRule(
            self.threshold,
            self.dilation,
            self.min_size,
            self.merge,
            self.chip_cost,
            self.context,
        )


class FocusSection(Section):
    """From the focus maps to the FocusChips, and what they may cost."""

    steps: tuple[FocusConfig, ...] = Field((), description="one per step to the next finer scale")
    budget: float | None = Field(
        None, gt=0, description="network px to spend, padding included; None: what the maps ask for"
    )
    budget_per: Literal["image", "run"] = Field(
        "image",
        description="image: never more in any image; run: about this much in sum, spent on the "
        "images that gain most, by a sample",
    )


class FocusLabelConfig(Section):
    """Object sizes that make a FocusPixel, sqrt(area) in network px (AutoFocus §3.1: a, b, c)."""

    ignore_below: float = Field(5, ge=0, description="smaller objects give no focus loss")
    focus_below: float = Field(64, gt=0, description="smaller objects are FocusPixels")
    ignore_until: float = Field(90, gt=0, description="objects up to here give no focus loss")

    @model_validator(mode="after")
    def _order(self) -> FocusLabelConfig:
        if not self.ignore_below < self.focus_below <= self.ignore_until:
            raise ValueError(
                "ignore_below < focus_below <= ignore_until must hold; found "
                f"{self.ignore_below:g}, {self.focus_below:g}, {self.ignore_until:g}"
            )
        return self

    def build(self) -> FocusRule:
        """The plain `FocusRule`."""
        return FocusRule(self.ignore_below, self.focus_below, self.ignore_until)


class StorageConfig(Section):
    """How a remote place is reached; credentials come from the usual places only."""

    endpoint: str | None = Field(None, description="URL of an S3-compatible server; None: AWS")
    anonymous: bool = Field(False, description="send no credentials (public buckets)")
    attempts: int = Field(5, ge=1, le=100, description="tries of one request, with growing pauses")
    timeout_s: float = Field(60, gt=0, le=3600, description="limit of one try to connect or read")
    min_rate: float = Field(
        10_000, gt=0, description="bytes/s that a file must come with on average, after timeout_s"
    )


class SourceConfig(Section):
    """Where images come from."""

    uri: str = Field(
        "",
        description="directory, glob, COCO json, Parquet or CSV list of URIs, WebDataset tar, "
        "VOC image set; local or s3://",
    )
    images: str | None = Field(None, description="image folder of a COCO json, if elsewhere")
    id_column: str = Field("image_id", description="of a Parquet or CSV list")
    uri_column: str = Field("uri", description="of a Parquet or CSV list")
    storage: StorageConfig = StorageConfig()
    max_pixels: int = Field(
        200_000_000, gt=0, description="larger images become error rows (decompression bombs)"
    )
    depth: DepthConfig = DepthConfig()
    max_bytes: int = Field(
        2 << 30, gt=0, description="bytes; larger files become error rows before they fill memory"
    )
    reach: Literal["own", "any"] = Field(
        "own",
        description="own: no local files from a remote list, no chains such as simplecache::, no "
        ".. above a list's folder, redirects to the same host only; any: all that can be read",
    )


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
    storage: StorageConfig = StorageConfig()


class LaneConfig(Section):
    """Size buckets of chips at network input."""

    sides: tuple[Side, ...] = Field(
        (256, 384, 512, 768, 1024, 1536),
        max_length=100,
        description="bucket sides, network px, multiples of 32",
    )
    overlap: int = Field(
        128, ge=0, description="overlap of the tiles of a chip above the largest lane, network px"
    )
    batch_pixels: Pixels = Field(1, ge=1, description="network px of a batch, one chip at least")
    pad: bool = Field(
        False,
        description="pad chips to their lane's shape and batch them across images (GPU, compiled "
        "shapes), or batch those of one image that have one shape",
    )
    fill: bool = Field(
        False, description="chips grow to their lane's shape where their parent has more to show"
    )

    @model_validator(mode="after")
    def _sides(self) -> LaneConfig:
        if not self.sides or any(side % 32 or side <= 0 for side in self.sides):
            raise ValueError("sides must be positive multiples of 32")
        if list(self.sides) != sorted(set(self.sides)):
            raise ValueError("sides must rise")
        if self.overlap >= self.sides[-1] // 2:
            raise ValueError("overlap must be less than half of the largest side")
        if self.sides[-1] - self.overlap < 3 * TILE_STEP:
            raise ValueError(f"overlap must leave {3 * TILE_STEP} px of the largest side")
        return self


class StackConfig(Section):
    """Focus stacking: how the detections of all scales become one list."""

    method: Literal["soft", "hard"] = Field("soft", description="Gaussian soft-NMS or plain NMS")
    sigma: float = Field(0.55, gt=0, description="soft-NMS width (AutoFocus: 0.55)")
    iou: float = Field(0.5, gt=0, le=1, description="plain NMS: overlap that suppresses")
    min_score: float = Field(0.01, ge=0, le=1, description="lowest score written")
    max_detections: Count = Field(
        5000, ge=1, description="kept per image; images/ counts the others as dropped_image"
    )
    border: float = Field(
        4, ge=0, description="a box this near an inner chip edge is dropped, network px"
    )
    class_agnostic: bool = Field(False, description="suppress across classes")
    valid_ranges: bool = Field(True, description="drop what lies outside its scale's valid range")


class TilesConfig(Section):
    """Mode tiles: fixed windows of one scale beside the whole image at the coarsest."""

    scale: int = Field(-1, description="pyramid entry that the windows are seen at; -1: finest")
    side: Side = Field(640, ge=64, description="side of a window, network px, multiple of 32")
    overlap: int = Field(128, ge=32, description="least overlap of neighbours, network px")

    @model_validator(mode="after")
    def _fits(self) -> TilesConfig:
        if self.side % 32:
            raise ValueError(f"side must be a multiple of 32, found {self.side}")
        if self.side - self.overlap < 3 * TILE_STEP:
            raise ValueError(f"side must exceed overlap by {3 * TILE_STEP} px or more")
        return self


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
    method: str = Field(description="test of that hypothesis, see af_pipeline.risk")
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
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where detectors run")
    bf16: bool | Literal["auto"] = Field(
        "auto", description="bfloat16 autocast, same AP; auto: where the device computes in it"
    )
    pyramid: tuple[ScaleConfig, ...] = Field(description="scales, coarse to fine")
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
    stack: StackConfig = StackConfig()
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

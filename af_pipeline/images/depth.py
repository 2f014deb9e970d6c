"""How values deeper than 8 bits become the 8 bits that detectors see."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from af_pipeline.config import rule

_SAMPLE = 1 << 20  # pixels from which percentiles are taken
_BLOCK = 1 << 16  # values converted at a time


@rule
class DepthConfig:
    """How values of more than 8 bits (PNG and TIFF, gray or colour) become 8 bits."""

    stretch: Literal["type", "window", "percentiles"] = Field(
        default="type",
        description="what becomes 0 and 255, because values of 11 or 12 bits in 16 are else black. "
        "type: the bounds of the data type; window: the values low and high; percentiles: those "
        "of each image, over all channels",
    )
    low: float | None = Field(
        default=None, description="for 0: a value, or a percentile (0 to 100)"
    )
    high: float | None = Field(
        default=None, description="for 255: a value, or a percentile (0 to 100)"
    )

    @model_validator(mode="after")
    def _bounds(self) -> DepthConfig:
        if self.stretch == "type":
            if self.low is not None or self.high is not None:
                raise ValueError("low and high belong to stretch=window or percentiles")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"stretch={self.stretch} needs low and high, low below high")
        elif self.stretch == "percentiles" and not 0 <= self.low < self.high <= 100:
            raise ValueError("percentiles lie between 0 and 100")
        return self


BY_TYPE = DepthConfig()


def to_8_bit(
    values: NDArray[Any], bits: int, depth: DepthConfig = BY_TYPE, nodata: float | None = None
) -> NDArray[np.uint8]:
    """Integers or floats [H, W] or [H, W, C] of so many bits as uint8 of the same shape.

    What is not a number, or is ``nodata`` (the file's mark of pixels without a value), becomes 0
    and counts in no percentile.
    """
    low, high = _range(values, bits, depth, nodata)
    scale = 255 / (high - low) if high > low else math.inf  # a step: what is above is white
    table = None
    if values.dtype.itemsize == 2 and values.dtype.kind != "f":
        every = np.arange(2**16).astype(np.uint16)
        table = _scaled(every.view(values.dtype), low, scale, nodata)
    result = np.empty(values.shape, np.uint8)
    rows = max(1, _BLOCK // max(1, values[0].size))
    for start in range(0, len(values), rows):  # the steps take 4 to 8 times as much memory
        part = values[start : start + rows]
        scaled = _scaled(part, low, scale, nodata) if table is None else table[part]
        result[start : start + rows] = scaled
    return result


def _scaled(
    values: NDArray[Any], low: float, scale: float, nodata: float | None
) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore", over="ignore"):
        above = values.astype(np.float64) - low
        steps = 255.0 * (above > 0) if math.isinf(scale) else np.clip(above * scale + 0.5, 0, 255)
    steps[_without_value(values, nodata)] = 0
    return steps.astype(np.uint8)


def _range(
    values: NDArray[Any], bits: int, depth: DepthConfig, nodata: float | None
) -> tuple[float, float]:
    if depth.stretch == "window":
        return depth.low or 0.0, depth.high or 0.0
    if depth.stretch == "percentiles":
        step = int(np.ceil(np.sqrt(values.shape[0] * values.shape[1] / _SAMPLE)))
        sample = values[::step, ::step]
        sample = sample[~_without_value(sample, nodata)]
        if sample.size == 0:
            return 0.0, 0.0
        low, high = np.percentile(sample, [depth.low, depth.high], method="nearest")
        return float(low), float(high)
    advice = "set source.depth.stretch to window or percentiles, or save as 8 or 16 bit"
    if values.dtype.kind == "f":
        raise ValueError(f"floating point image: its values have no fixed range; {advice}")
    full = 2 ** min(bits, 16) - 1
    known = values if nodata is None else values[~_without_value(values, nodata)]
    low, high = (int(known.min()), int(known.max())) if known.size else (0, 0)
    if low < 0 or high > full:
        raise ValueError(
            f"integer image with values {low}..{high}: only 0..{full} has a fixed range; {advice}"
        )
    return 0.0, float(full)


def _without_value(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    missing = ~np.isfinite(values)
    return missing if nodata is None else missing | (values == nodata)

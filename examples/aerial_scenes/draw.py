"""Drawing primitives shared by the painters of the synthetic aerial scene.

Coordinates are image pixels, x right and y down, continuous: pixel ``i`` covers ``[i, i + 1)``.
Painters mutate the :class:`Canvas` handed to them and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [N, 2] x, y in px (or metres where said so)
Image = NDArray[np.uint8]
Colour = tuple[float, float, float]  # RGB, 0..255
Rng = np.random.Generator

_SHIFT = 4  # fractional bits given to OpenCV, so that edges land on 1/16 px


@dataclass(frozen=True)
class View:
    """The camera and the light of one scene.

    ``ppm`` is px per metre, ``heading`` the street grid's angle in radians, ``sun`` the shadow's
    shift and ``tilt`` the oblique view's shift, both as (x, y) px per metre of height. ``shade``
    is the fraction of light left in shadow.
    """

    height: int
    width: int
    ppm: float
    heading: float
    sun: tuple[float, float]
    tilt: tuple[float, float]
    shade: float

    def lift(self, points: Points, height_m: float) -> Points:
        """Where ground ``points`` [N, 2] px appear when raised by ``height_m`` metres."""
        return points + np.asarray(self.tilt) * height_m

    def cast(self, points: Points, height_m: float) -> Points:
        """Where the shadow of ``points`` [N, 2] px at ``height_m`` metres falls on the ground."""
        return points + np.asarray(self.sun) * height_m


@dataclass
class Canvas:
    """Layers of one scene, all [H, W] or [H, W, 3]; painters draw on them in place.

    ``over`` holds what stands above vehicles (roofs, crowns) with premultiplied colour;
    ``rough`` and ``over_rough`` are texture strengths; ``blocked`` marks taken ground.
    """

    image: Image
    rough: Image
    wear: Image
    shadow: Image
    blocked: Image
    over: Image
    over_alpha: Image
    over_rough: Image


def new_canvas(height: int, width: int) -> Canvas:
    """An empty canvas of ``height`` x ``width`` px."""

    def plane(value: int = 0) -> Image:
        return np.full((height, width), value, np.uint8)

    return Canvas(
        image=np.zeros((height, width, 3), np.uint8),
        rough=plane(),
        wear=plane(128),
        shadow=plane(),
        blocked=plane(),
        over=np.zeros((height, width, 3), np.uint8),
        over_alpha=plane(),
        over_rough=plane(),
    )


def scale_colour(colour: Colour, factor: float) -> Colour:
    """``colour`` multiplied by ``factor`` and clipped to 0..255."""
    r, g, b = (min(255.0, max(0.0, c * factor)) for c in colour)
    return (r, g, b)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` moved towards ``b`` by ``share`` in 0..1."""
    r, g, bl = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return (r, g, bl)


def jitter(rng: Rng, colour: Colour, amount: float) -> Colour:
    """``colour`` with random brightness (sd ``amount``) and a little random tint."""
    gain = float(np.exp(rng.normal(0.0, amount)))
    tints = rng.normal(0, 0.005 * sum(colour), 3)  # greys must stay nearly grey
    r, g, b = (c * gain + float(t) for c, t in zip(colour, tints, strict=True))
    return scale_colour((r, g, b), 1.0)


def fixed(points: Points) -> NDArray[np.int32]:
    """``points`` [N, 2] px as OpenCV fixed point, whose pixel centres are whole numbers."""
    return np.round((points - 0.5) * (1 << _SHIFT)).astype(np.int32)


def fill(layer: Image, points: Points, colour: Colour | float, smooth: bool = True) -> None:
    """Fill the polygon ``points`` [N, 2] px on ``layer`` in place."""
    line = cv2.LINE_AA if smooth else cv2.LINE_8
    cv2.fillPoly(layer, [fixed(points)], _scalar(colour), line, _SHIFT)


def stroke(
    layer: Image, points: Points, width: float, colour: Colour, base: Colour | None = None
) -> None:
    """Draw a polyline ``width`` px wide; below 1 px its colour fades towards ``base``."""
    if width < 1.0 and base is not None:
        colour = mix(base, colour, max(width, 0.15))
    thick = max(1, round(width))
    cv2.polylines(layer, [fixed(points)], False, _scalar(colour), thick, cv2.LINE_AA, _SHIFT)


def dot(layer: Image, centre: Points, radius: float, colour: Colour | float) -> None:
    """Fill a circle of ``radius`` px around ``centre`` [2] px."""
    x, y = fixed(centre)
    r = max(1, round(radius * (1 << _SHIFT)))
    cv2.circle(layer, (int(x), int(y)), r, _scalar(colour), -1, cv2.LINE_AA, _SHIFT)


def _scalar(colour: Colour | float) -> tuple[float, ...]:
    return colour if isinstance(colour, tuple) else (float(colour),)


def hull(*parts: Points) -> Points:
    """Convex hull [M, 2] of the points of all ``parts``."""
    joined = np.concatenate(parts).astype(np.float32)
    out: Points = cv2.convexHull(joined).reshape(-1, 2).astype(np.float64)
    return out


def rotation(angle: float) -> NDArray[np.float64]:
    """Matrix [2, 2] for row vectors: ``points @ rotation(angle)`` turns x towards y."""
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return np.array([[c, s], [-s, c]])


def rect(centre: Sequence[float] | Points, size: Sequence[float] | Points, angle: float) -> Points:
    """Corners [4, 2] of a rectangle with ``size`` (along, across) px turned by ``angle``."""
    a, b = size[0] / 2, size[1] / 2
    corners = np.array([[-a, -b], [a, -b], [a, b], [-a, b]])
    out: Points = corners @ rotation(angle) + np.asarray(centre)
    return out


def within(poly: Points, u0: float, u1: float, v0: float, v1: float) -> Points:
    """Sub-quad [4, 2] of a 4-corner ``poly`` spanning u0..u1 along and v0..v1 across, in 0..1."""
    origin, along, across = poly[0], poly[1] - poly[0], poly[3] - poly[0]
    uv = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]])
    out: Points = origin + uv[:, :1] * along + uv[:, 1:] * across
    return out


def offset_line(line: Points, distance: float | NDArray[np.float64]) -> Points:
    """``line`` [N, 2] moved sideways by ``distance`` px (scalar or [N])."""
    step = np.gradient(line, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / np.linalg.norm(step, axis=1, keepdims=True)
    out: Points = line + normal * np.reshape(distance, (-1, 1))
    return out


def band(line: Points, left: float, right: float) -> Points:
    """Polygon [2N, 2] between the offsets ``left`` and ``right`` px of ``line``."""
    return np.concatenate([offset_line(line, left), offset_line(line, right)[::-1]])


def touches(mask: Image, poly: Points) -> bool:
    """Whether any set pixel of ``mask`` [H, W] lies under the convex polygon ``poly`` [N, 2]."""
    h, w = mask.shape
    x0, y0 = np.floor(poly.min(0)).astype(int)
    x1, y1 = np.ceil(poly.max(0)).astype(int) + 1
    cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, w), min(y1, h)
    if cx0 >= cx1 or cy0 >= cy1:
        return False
    local = np.zeros((cy1 - cy0, cx1 - cx0), np.uint8)
    fill(local, poly - (cx0, cy0), 1, smooth=False)
    return bool(np.any(local & mask[cy0:cy1, cx0:cx1]))


def noise(rng: Rng, height: int, width: int, cell: float, octaves: int) -> NDArray[np.float32]:
    """Multi-octave value noise [H, W], mean about 0, sd about 1; ``cell`` px is the largest grain.

    Each octave is coarse white noise enlarged smoothly, which is far cheaper than gradient noise.
    """
    total = np.zeros((height, width), np.float32)
    weight = 0.0
    for k in range(octaves):
        grain = max(cell / 2**k, 1.0)
        rows, cols = int(height / grain) + 3, int(width / grain) + 3
        grid = rng.standard_normal((rows, cols), dtype=np.float32)
        share = 0.72**k
        shift = rng.uniform(0, 1, 2)
        warp = np.array([[1 / grain, 0, shift[0]], [0, 1 / grain, shift[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        layer = cv2.warpAffine(grid, warp, (width, height), flags=flags)
        cv2.scaleAdd(layer, share, total, total)
        weight += (share * 0.7) ** 2
    total *= np.float32(1.0 / np.sqrt(weight))
    return total


def pick(rng: Rng, table: Sequence[tuple[float, Colour]]) -> Colour:
    """A colour drawn from ``table`` of (weight, colour)."""
    weights = np.array([w for w, _ in table])
    return table[int(rng.choice(len(table), p=weights / weights.sum()))][1]

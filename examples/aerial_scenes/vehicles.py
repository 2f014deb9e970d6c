"""Vehicle sprites for synthetic aerial scenes: cars, trucks, buses, minibuses and cyclists.

A vehicle is a stack of flat polygons and prisms in metres (x forward, y to the right, heights
above the ground). It is drawn several times too large and averaged down, so that edges stay
smooth even where a car is 14 px long.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from examples.aerial_scenes.draw import (
    Colour,
    Image,
    Points,
    Rng,
    View,
    fixed,
    hull,
    jitter,
    mix,
    pick,
    rotation,
    scale_colour,
)

CAR, TRUCK, BUS, MINIBUS, CYCLIST = range(5)
CAR_METRES = 4.5  # the car that ``car_length`` refers to

_CAR_PAINT: tuple[tuple[float, Colour], ...] = (
    (0.28, (228, 229, 230)), (0.17, (165, 168, 172)), (0.15, (92, 95, 100)),
    (0.17, (32, 33, 37)), (0.07, (36, 56, 108)), (0.07, (150, 30, 34)),
    (0.02, (205, 172, 46)), (0.03, (120, 108, 92)), (0.02, (44, 78, 60)), (0.02, (70, 140, 175)),
)  # fmt: skip
_BUS_PAINT: tuple[tuple[float, Colour], ...] = (
    (0.35, (222, 224, 222)), (0.2, (120, 190, 110)), (0.15, (60, 130, 130)),
    (0.1, (205, 180, 60)), (0.1, (170, 45, 40)), (0.1, (60, 85, 150)),
)  # fmt: skip
_CARGO_PAINT: tuple[tuple[float, Colour], ...] = (
    (0.45, (215, 217, 216)), (0.2, (150, 160, 165)), (0.1, (60, 85, 140)),
    (0.1, (140, 60, 50)), (0.1, (70, 95, 75)), (0.05, (200, 150, 60)),
)  # fmt: skip
_CLOTHES: tuple[tuple[float, Colour], ...] = (
    (0.3, (40, 42, 50)), (0.2, (200, 200, 200)), (0.15, (150, 45, 45)), (0.15, (50, 75, 140)),
    (0.1, (190, 200, 60)), (0.1, (110, 110, 100)),
)  # fmt: skip
_WHITE: Colour = (235, 235, 228)
_RED: Colour = (150, 30, 30)


@dataclass(frozen=True)
class Sprite:
    """A painted vehicle, ready to be laid over an image.

    ``rgb`` [h, w, 3] is premultiplied by ``alpha`` [h, w] (both uint8); ``origin`` is the image
    pixel (x, y) of its upper left corner; ``footprint`` [N, 2] and ``shadow`` [M, 2] are the
    ground outline and cast shadow as polygons in image px.
    """

    rgb: Image
    alpha: Image
    origin: tuple[int, int]
    footprint: Points
    shadow: Points


@dataclass
class _Model:
    """Polygons of one vehicle in painting order; each is (points [N, 2] px, colour)."""

    view: View
    centre: Points
    angle: float
    size: float
    parts: list[tuple[Points, Colour]] = field(default_factory=list)

    def ground(self, points: Points) -> Points:
        """Vehicle frame, metres -> image px on the ground."""
        return points @ rotation(self.angle) * (self.view.ppm * self.size) + self.centre

    def at(self, points: Points, height: float) -> Points:
        return self.view.lift(self.ground(points), height * self.size)

    def flat(self, points: Points, height: float, colour: Colour) -> None:
        self.parts.append((self.at(points, height), colour))

    def prism(self, points: Points, low: float, high: float, colour: Colour) -> None:
        self.frustum(points, low, points, high, colour)

    def frustum(self, base: Points, low: float, top: Points, high: float, colour: Colour) -> None:
        self.parts.append((hull(self.at(base, low), self.at(top, high)), colour))


def _outline(length: float, width: float, nose: float, tail: float) -> Points:
    """Convex body outline in metres, centred; ``nose`` and ``tail`` are corner lengths."""
    turn = np.linspace(0, np.pi / 2, 4)
    side = width / 2
    front = [(length / 2 - nose * (1 - np.sin(t)), side - 0.42 * nose * (1 - np.cos(t)))
             for t in turn]  # fmt: skip
    rear = [(-length / 2 + tail * (1 - np.sin(t)), side - 0.42 * tail * (1 - np.cos(t)))
            for t in turn]  # fmt: skip
    half = np.array(rear + front)
    return hull(half, half * (1, -1))


def _box(x0: float, x1: float, width: float, y: float = 0.0) -> Points:
    """Rectangle [4, 2] in metres from x0 to x1, ``width`` wide around ``y``."""
    w = width / 2
    return np.array([[x0, y - w], [x1, y - w], [x1, y + w], [x0, y + w]])


def _glass(rng: Rng) -> Colour:
    return jitter(rng, mix((28, 32, 38), (105, 118, 128), float(rng.beta(1.3, 3.0))), 0.1)


def _lights(model: _Model, half: float, width: float, height: float) -> None:
    for y in (-width * 0.34, width * 0.34):
        model.flat(_box(half - 0.3, half - 0.12, 0.32, y), height, _WHITE)
        model.flat(_box(-half + 0.06, -half + 0.22, 0.36, y), height, _RED)


def _car(model: _Model, rng: Rng) -> float:
    """Saloon, hatchback or estate; returns its height in metres."""
    width = float(rng.uniform(1.74, 1.95))
    high = float(rng.uniform(1.35, 1.75))
    half = CAR_METRES / 2
    paint = jitter(rng, pick(rng, _CAR_PAINT), 0.08)
    belt = high * 0.6
    body = _outline(CAR_METRES, width, rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.5))
    model.prism(body, 0.2, belt, scale_colour(paint, 0.62))
    model.flat(body, belt, scale_colour(paint, 0.94))
    model.flat(body * (0.93, 0.84), belt, paint)
    _lights(model, half, width, belt)
    bonnet = float(rng.uniform(1.0, 1.35))
    boot = float(rng.choice([0.1, 0.25, 0.75], p=[0.35, 0.2, 0.45]))
    base = _outline(CAR_METRES - bonnet - boot, width * 0.9, 0.3, 0.2)
    middle = (boot - bonnet) / 2
    base = base + np.array([middle, 0.0])
    front, back = half - bonnet, -half + boot
    roof0, roof1 = back + (0.55 if boot > 0.5 else 0.3), front - float(rng.uniform(0.6, 0.85))
    roof = _box(roof0, roof1, width * 0.74)
    model.frustum(base, belt, roof, high, _glass(rng))
    _pillars(model, (back, front), width * 0.86, belt, roof, high, scale_colour(paint, 0.8))
    model.flat(roof, high, scale_colour(paint, float(rng.uniform(1.0, 1.1))))
    if rng.random() < 0.2:
        model.flat(_box(roof1 - 1.0, roof1 - 0.2, width * 0.5), high, _glass(rng))
    for y in (-1.0, 1.0):
        mirror = _box(front - 0.35, front - 0.18, 0.2, y * (width / 2 + 0.06))
        model.flat(mirror, belt, scale_colour(paint, 0.8))
    return high


def _pillars(
    model: _Model, span: tuple[float, float], width: float, belt: float, roof: Points,
    high: float, colour: Colour,
) -> None:  # fmt: skip
    """Struts between belt line and roof that part the glass into windows."""
    lower, upper = model.at(_box(*span, width), belt), model.at(roof, high)
    thick = 0.07 * model.view.ppm
    mid = [((lower[i] + lower[j]) / 2, (upper[i] + upper[j]) / 2) for i, j in ((0, 1), (3, 2))]
    for a, b in [*zip(lower, upper, strict=True), *mid]:
        step = b - a
        norm = float(np.hypot(*step))
        if norm > 1e-6:
            side = np.array([-step[1], step[0]]) / norm * thick
            model.parts.append((np.stack([a - side, a + side, b + side, b - side]), colour))


def _minibus(model: _Model, rng: Rng) -> float:
    """A van: short bonnet, long high roof."""
    length, width = CAR_METRES * float(rng.uniform(1.22, 1.4)), float(rng.uniform(1.9, 2.1))
    high, half = float(rng.uniform(2.0, 2.6)), length / 2
    light = rng.random() < 0.65
    paint = jitter(rng, (232, 233, 232) if light else pick(rng, _CAR_PAINT), 0.06)
    body = _outline(length, width, 0.45, 0.2)
    bonnet = float(rng.uniform(0.65, 1.1))
    model.prism(body, 0.25, 1.1, scale_colour(paint, 0.7))
    model.flat(body, 1.1, paint)
    _lights(model, half, width, 1.1)
    cabin = _box(-half + 0.05, half - bonnet, width * 0.95)
    roof = _box(-half + 0.12, half - bonnet - 0.6, width * 0.86)
    glass = _glass(rng)
    panel = glass if rng.random() < 0.6 else scale_colour(paint, 0.72)
    model.frustum(cabin, 1.1, roof, high - 0.25, panel)
    screen = _box(half - bonnet - 0.62, half - bonnet + 0.05, width * 0.84)
    model.frustum(screen[1:3], 1.15, roof[1:3], high - 0.1, glass)
    model.prism(roof, high - 0.35, high, scale_colour(paint, 0.8))
    model.flat(roof, high, paint)
    for _ in range(int(rng.integers(0, 3))):
        x = float(rng.uniform(-half + 0.6, half - bonnet - 1.6))
        model.flat(_box(x, x + 0.75, 0.7), high + 0.1, mix(glass, paint, 0.2))
    return high


def _bus(model: _Model, rng: Rng) -> float:
    """City bus, tram-like or trolley: long, flat roof with units on it."""
    length, width, high = CAR_METRES * float(rng.uniform(2.3, 2.75)), 2.55, 3.0
    half = length / 2
    paint = jitter(rng, pick(rng, _BUS_PAINT), 0.1)
    roof_paint = jitter(rng, mix(paint, _WHITE, float(rng.uniform(0, 0.7))), 0.05)
    body = _outline(length, width, 0.35, 0.2)
    model.prism(body, 0.3, 1.1, scale_colour(paint, 0.7))
    model.prism(body, 1.1, 2.4, _glass(rng))
    model.prism(body, 2.4, high, scale_colour(paint, 0.75))
    model.flat(body, high, scale_colour(roof_paint, 0.88))
    model.flat(body * (0.975, 0.86), high, roof_paint)
    model.flat(_box(half - 0.42, half - 0.15, width * 0.8), high, _glass(rng))
    unit = jitter(rng, mix(roof_paint, (120, 122, 120), 0.5), 0.2)
    for x in np.arange(-half + 1.2, half - 2.2, float(rng.uniform(2.2, 3.4))):
        size = float(rng.uniform(0.6, 1.5))
        model.flat(_box(x, x + size, float(rng.uniform(0.7, 1.7))), high + 0.2, unit)
    if rng.random() < 0.35:  # current collector
        for y in (-0.25, 0.25):
            model.flat(_box(-half - 0.2, half * 0.15, 0.1, y), high + 0.3, (40, 42, 44))
    return high


def _truck(model: _Model, rng: Rng) -> float:
    """Cab with a box, a tank or an open load behind it."""
    length, width = CAR_METRES * float(rng.uniform(1.6, 2.2)), float(rng.uniform(2.1, 2.5))
    half, cab_len = length / 2, float(rng.uniform(1.6, 2.1))
    cab, load = jitter(rng, pick(rng, _CARGO_PAINT), 0.1), jitter(rng, pick(rng, _CARGO_PAINT), 0.1)
    model.prism(_box(-half, half - 0.5, width * 0.6), 0.4, 0.9, (52, 52, 54))
    shell = _outline(cab_len, width * 0.92, 0.35, 0.1) + np.array([half - cab_len / 2, 0.0])
    top = _box(half - cab_len + 0.1, half - 0.55, width * 0.78)
    model.prism(shell, 0.4, 1.5, scale_colour(cab, 0.7))
    model.flat(shell, 1.5, cab)
    model.frustum(_box(half - cab_len, half - 0.15, width * 0.86), 1.5, top, 2.4, _glass(rng))
    model.flat(top, 2.5, scale_colour(cab, 1.03))
    bed = _box(-half, half - cab_len - 0.25, width)
    kind = rng.random()
    high = float(rng.uniform(2.6, 3.6)) if kind < 0.7 else 1.6
    model.prism(bed, 0.9, high, scale_colour(load, 0.68))
    model.flat(bed, high, scale_colour(load, 0.9))
    inner = bed.mean(0) + (bed - bed.mean(0)) * (0.96, 0.9)
    if kind < 0.7:
        model.flat(inner, high, load)
        if kind < 0.2:  # tarpaulin bows
            for x in np.arange(-half + 0.6, half - cab_len - 0.6, 0.9):
                model.flat(_box(x, x + 0.12, width * 0.9), high, scale_colour(load, 0.85))
    else:
        cargo: Colour = [(96, 84, 68), (60, 60, 60), (150, 140, 120)][int(rng.integers(3))]
        model.flat(inner, high - 0.3, jitter(rng, cargo, 0.15))
    return high


def _cyclist(model: _Model, rng: Rng) -> float:
    """Rider on a bicycle, seen from above."""
    clothes, frame = jitter(rng, pick(rng, _CLOTHES), 0.15), jitter(rng, (45, 45, 48), 0.3)
    model.prism(_box(-0.9, 0.9, 0.2), 0.0, 0.6, frame)
    model.flat(_box(0.42, 0.54, 0.6), 1.0, frame)
    for y in (-0.17, 0.17):
        model.flat(_box(-0.25, 0.25, 0.18, y), 0.6, scale_colour(clothes, 0.6))
    turn = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    ring = np.stack([np.cos(turn), np.sin(turn)], 1)
    model.frustum(ring * (0.26, 0.2) - (0.2, 0), 0.8, ring * (0.24, 0.34), 1.35, clothes)
    head: Colour = [(60, 45, 38), (220, 220, 220), (196, 160, 138)][int(rng.integers(3))]
    model.flat(ring * 0.14 + (0.12, 0), 1.6, head)
    return 1.6


_BUILDERS = (_car, _truck, _bus, _minibus, _cyclist)


def vehicle_sprite(rng: Rng, label: int, centre: Points, angle: float, view: View) -> Sprite:
    """Paint one vehicle of class ``label`` at ``centre`` [2] px heading along ``angle`` rad."""
    size = float(np.clip(rng.normal(1.0, 0.045), 0.9, 1.1))
    model = _Model(view, np.asarray(centre, np.float64), angle, size)
    high = _BUILDERS[label](model, rng) * size
    everything = np.concatenate([p for p, _ in model.parts])
    x0, y0 = np.floor(everything.min(0)).astype(int) - 1
    x1, y1 = np.ceil(everything.max(0)).astype(int) + 1
    # Enough samples per pixel for smooth edges, without huge canvases for near views.
    factor = int(np.clip(160 / max(view.ppm * CAR_METRES, 1), 3, 6))
    rgb = np.zeros(((y1 - y0) * factor, (x1 - x0) * factor, 3), np.uint8)
    mask = np.zeros(rgb.shape[:2], np.uint8)
    for points, colour in model.parts:
        corners = [fixed((points - (x0, y0)) * factor)]
        cv2.fillPoly(rgb, corners, colour, cv2.LINE_8, 4)
        cv2.fillPoly(mask, corners, (255,), cv2.LINE_8, 4)
    size_px = (int(x1 - x0), int(y1 - y0))
    small = cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(mask, size_px, interpolation=cv2.INTER_AREA)
    ground = hull(model.parts[0][0])
    return Sprite(
        rgb=_lit(rng, small.astype(np.uint8)),
        alpha=alpha.astype(np.uint8),
        origin=(int(x0), int(y0)),
        footprint=ground,
        shadow=hull(ground, view.cast(ground, high * 0.85)),
    )


def _lit(rng: Rng, rgb: Image) -> Image:
    """``rgb`` [h, w, 3] under a random linear light gradient, as curved sheet metal shows."""
    h, w = rgb.shape[:2]
    slope = rng.uniform(-0.12, 0.12, 2)
    ys, xs = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None]
    gain: NDArray[np.float64] = (1.0 + slope[0] * ys + slope[1] * xs)[..., None]
    out: Image = np.minimum(rgb * gain, 255.0).astype(np.uint8)
    return out


def alpha_box(sprite: Sprite) -> tuple[int, int, int, int]:
    """Tight half-open bound x0, y0, x1, y1 (image px, unclipped) of the body, alpha > 0.5."""
    rows = np.flatnonzero((sprite.alpha > 127).any(1))
    cols = np.flatnonzero((sprite.alpha > 127).any(0))
    if rows.size == 0 or cols.size == 0:
        return (0, 0, 0, 0)
    x, y = sprite.origin
    return (x + int(cols[0]), y + int(rows[0]), x + int(cols[-1]) + 1, y + int(rows[-1]) + 1)

"""Buildings, trees and vehicle look-alikes of a synthetic aerial scene."""

from __future__ import annotations

import numpy as np

from examples.aerial_scenes.draw import (
    Canvas,
    Colour,
    Points,
    Rng,
    View,
    dot,
    fill,
    hull,
    jitter,
    mix,
    pick,
    rect,
    scale_colour,
    stroke,
    touches,
    within,
)

_ROOFS: tuple[tuple[float, Colour], ...] = (
    (0.2, (142, 82, 64)), (0.12, (112, 70, 56)), (0.2, (128, 128, 126)), (0.12, (86, 88, 92)),
    (0.12, (176, 174, 168)), (0.08, (70, 66, 64)), (0.06, (96, 118, 110)), (0.08, (140, 124, 104)),
)  # fmt: skip
_WALLS: tuple[tuple[float, Colour], ...] = (
    (0.4, (168, 156, 138)), (0.3, (140, 134, 128)), (0.2, (176, 150, 110)), (0.1, (120, 84, 70)),
)  # fmt: skip
_BOXES: tuple[tuple[float, Colour], ...] = (
    (0.25, (196, 196, 192)), (0.2, (110, 112, 114)), (0.12, (40, 62, 110)), (0.12, (128, 52, 44)),
    (0.1, (52, 92, 70)), (0.1, (60, 62, 64)), (0.06, (190, 150, 60)), (0.05, (70, 140, 140)),
)  # fmt: skip
_LEAVES: tuple[Colour, ...] = ((48, 62, 36), (60, 74, 42), (38, 52, 34), (76, 84, 48))


def _over(canvas: Canvas, poly: Points, colour: Colour, rough: float = 20) -> None:
    """Draw ``poly`` on the layer above the vehicles."""
    fill(canvas.over, poly, colour)
    fill(canvas.over_alpha, poly, 255)
    fill(canvas.over_rough, poly, rough, smooth=False)


def paint_buildings(rng: Rng, canvas: Canvas, view: View) -> None:
    """Place houses and halls with roofs, walls and shadows off roads and lots."""
    extent = view.height * view.width / view.ppm**2
    wish = int(rng.poisson(min(extent / 1100, 22))) if rng.random() < 0.85 else 0
    for _ in range(wish * 2):
        big = rng.random() < 0.4
        length = float(rng.uniform(18, 60) if big else rng.uniform(8, 18))
        size = np.array([length, float(rng.uniform(10, 20) if big else rng.uniform(7, 11))])
        angle = view.heading + float(rng.choice([0, np.pi / 2])) + float(rng.normal(0, 0.02))
        spot = rng.uniform((-0.05, -0.05), (1.05, 1.05)) * (view.width, view.height)
        base = rect(spot, size * view.ppm, angle)
        if touches(canvas.blocked, rect(spot, (size + 4) * view.ppm, angle)):
            continue
        fill(canvas.blocked, base, 1, smooth=False)
        _building(rng, canvas, view, base, size, float(rng.uniform(4, 20 if big else 9)))


def _building(
    rng: Rng, canvas: Canvas, view: View, base: Points, size: Points, high: float
) -> None:
    fill(canvas.shadow, hull(base, view.cast(base, high)), 255)
    wall = jitter(rng, pick(rng, _WALLS), 0.12)
    top = view.lift(base, high)
    _walls(rng, canvas, view, base, top, wall, high)
    roof = jitter(rng, pick(rng, _ROOFS), 0.12)
    if rng.random() < 0.5:
        _gable(rng, canvas, view, top, roof)
    else:
        _flat_roof(rng, canvas, view, top, roof)
    # The more a real roof carries, the more it resembles a row of cars: keep such negatives.
    if rng.random() < 0.4:
        _window_row(rng, canvas, view, top, size)


def _walls(
    rng: Rng, canvas: Canvas, view: View, base: Points, top: Points, wall: Colour, high: float
) -> None:
    for k in range(4):
        j = (k + 1) % 4
        out = base[k] + base[j] - 2 * base.mean(0)
        # A wall shows when the roof leans away from it.
        if np.dot(out, view.tilt) > 0:
            continue
        facing = -np.dot(out, view.sun) / (np.linalg.norm(out) * (np.hypot(*view.sun) + 1e-6))
        side = np.stack([base[k], base[j], top[j], top[k]])
        shade = scale_colour(wall, 0.72 + 0.28 * float(facing))
        _over(canvas, side, shade, 14)
        span, rise = np.linalg.norm(base[j] - base[k]), np.linalg.norm(top[k] - base[k])
        if rise < 8:
            continue
        floors, wide = max(1, int(high / 3.2)), max(1, int(span / (3 * view.ppm)))
        pane = scale_colour(shade, float(rng.uniform(0.45, 0.7)))
        for f in range(floors):
            for w in range(wide):
                u, v = (w + 0.3) / wide, (f + 0.3) / floors
                _over(canvas, within(side, u, u + 0.4 / wide, v, v + 0.45 / floors), pane, 10)


def _gable(rng: Rng, canvas: Canvas, view: View, top: Points, roof: Colour) -> None:
    """Ridge along the long side; both slopes lit by the sun's direction."""
    if np.linalg.norm(top[1] - top[0]) < np.linalg.norm(top[2] - top[1]):
        top = np.roll(top, -1, 0)
    hip = float(rng.choice([0.0, 0.15]))
    ridge = within(top, hip, 1 - hip, 0.5, 0.5)[:2] + np.asarray(view.tilt) * 2.5
    normal = (top[0] - top[3]) / np.linalg.norm(top[0] - top[3])
    lit = -float(np.dot(normal, view.sun)) / (float(np.hypot(*view.sun)) + 1e-6)
    gain = 0.25 * (1 - view.shade)
    near = np.stack([top[0], top[1], ridge[1], ridge[0]])
    far = np.stack([top[3], top[2], ridge[1], ridge[0]])
    for side, sign in ((near, 1.0), (far, -1.0)):
        colour = scale_colour(roof, 1 + sign * gain * lit)
        _over(canvas, side, colour, 34)
        seam = scale_colour(colour, float(rng.uniform(0.86, 1.1)))
        count = int(np.linalg.norm(top[1] - top[0]) / max(1.4 * view.ppm, 5))
        for u in np.linspace(0, 1, count + 2)[1:-1]:
            a, b = side[0] + u * (side[1] - side[0]), side[3] + u * (side[2] - side[3])
            stroke(canvas.over, np.stack([a, b]), 0.12 * view.ppm, seam, colour)
    for end in ((top[0], ridge[0], top[3]), (top[1], ridge[1], top[2])):
        _over(canvas, np.stack(end), scale_colour(roof, 0.95), 34)
    stroke(canvas.over, ridge, 0.3 * view.ppm, scale_colour(roof, 1.2), roof)
    for _ in range(int(rng.integers(0, 4))):  # chimneys
        u = float(rng.uniform(0.1, 0.9))
        spot = within(top, u, u, 0.4, 0.4)[0] + np.asarray(view.tilt) * 2
        _unit(rng, canvas, view, spot, (0.8, 0.8), 1.2, jitter(rng, (120, 96, 84), 0.2))


def _flat_roof(rng: Rng, canvas: Canvas, view: View, top: Points, roof: Colour) -> None:
    _over(canvas, top, scale_colour(roof, 1.2), 18)
    inner = top.mean(0) + (top - top.mean(0)) * 0.95
    _over(canvas, inner, roof, 36)
    if rng.random() < 0.5:  # sheets of roofing felt in other tones
        for _ in range(int(rng.integers(1, 5))):
            u0, u1 = np.sort(rng.uniform(0, 1, 2))
            tone = scale_colour(roof, float(rng.uniform(0.85, 1.15)))
            _over(canvas, within(inner, u0, u1, 0, 1), tone, 36)
    span = np.linalg.norm(top[1] - top[0]) / view.ppm
    angle = float(np.arctan2(*(top[1] - top[0])[::-1]))
    for _ in range(int(rng.poisson(span / 6))):
        u, v = rng.uniform(0.12, 0.88, 2)
        size = (float(rng.uniform(0.8, 4.5)), float(rng.uniform(0.8, 2.4)))
        colour = jitter(rng, pick(rng, _BOXES[:2]), 0.15)
        _unit(rng, canvas, view, within(inner, u, u, v, v)[0], size, 1.2, colour, angle)


def _unit(
    rng: Rng, canvas: Canvas, view: View, spot: Points, size: tuple[float, float], high: float,
    colour: Colour, angle: float = 0.0,
) -> None:  # fmt: skip
    """A box of ``size`` metres on a roof, with its shadow."""
    base = rect(spot, np.asarray(size) * view.ppm, angle or view.heading)
    dark = mix((40, 40, 44), colour, 0.25 + 0.5 * view.shade)
    fill(canvas.over, hull(base, view.cast(base, high)), dark)
    fill(canvas.over_alpha, hull(base, view.cast(base, high)), 255)
    _over(canvas, hull(base, view.lift(base, high)), scale_colour(colour, 0.6), 10)
    _over(canvas, view.lift(base, high), colour, 12)


def _window_row(rng: Rng, canvas: Canvas, view: View, top: Points, size: Points) -> None:
    """Evenly spaced skylights or dormers."""
    count = int(size[0] / float(rng.uniform(2.5, 5)))
    pane = jitter(rng, ((205, 208, 210), (48, 54, 62), (190, 188, 180))[int(rng.integers(3))], 0.1)
    width, depth = 1.2 / size[0], float(rng.uniform(1.2, 3.5)) / size[1]
    v = float(rng.uniform(0.12, 0.65))
    for u in np.linspace(0.06, 0.94 - width, max(count, 2)):
        _over(canvas, within(top, u, u + width, v, min(v + depth, 0.95)), pane, 8)


def paint_trees(rng: Rng, canvas: Canvas, view: View, rows: list[Points]) -> None:
    """Trees along ``rows`` (each [N, 2] px) and in loose groups off the roads."""
    extent = view.height * view.width / view.ppm**2
    spots = [p for row in rows for p in row]
    for _ in range(int(rng.poisson(min(extent / 2500, 8)))):
        centre = rng.uniform((0, 0), (view.width, view.height))
        group = rng.normal(0, 8 * view.ppm, (int(rng.integers(1, 9)), 2)) + centre
        spots.extend(p for p in group)
    leaf = _LEAVES[int(rng.integers(len(_LEAVES)))]
    for spot in spots[:130]:
        radius = float(rng.uniform(1.6, 5.5)) * view.ppm
        core = rect(spot, (radius * 0.6, radius * 0.6), 0.0)
        seen = (spot > -radius).all() and (spot < (view.width + radius, view.height + radius)).all()
        if seen and not touches(canvas.blocked, core):
            _tree(rng, canvas, view, spot, radius, jitter(rng, leaf, 0.18))


def _tree(rng: Rng, canvas: Canvas, view: View, spot: Points, radius: float, leaf: Colour) -> None:
    turn = np.linspace(0, 2 * np.pi, 26, endpoint=False)
    shape = np.stack([np.cos(turn), np.sin(turn)], 1) * radius
    shape = shape * (1 + rng.normal(0, 0.1, (26, 1)))
    rise = radius / view.ppm * 1.5
    fill(canvas.shadow, view.cast(spot + shape, rise), 255)
    fill(canvas.shadow, view.cast(spot + shape * 0.8, rise * 0.4), 255)
    crown = view.lift(spot[None], rise)[0]
    _over(canvas, crown + shape, scale_colour(leaf, 0.75), 125)
    sun = -np.asarray(view.sun) / (np.hypot(*view.sun) + 1e-6)
    count = int(np.clip(radius * 1.3, 8, 70))
    for _ in range(count):
        where = rng.normal(0, 0.42, 2)
        where = where / max(1.0, float(np.hypot(*where)) / 0.85)
        lit = 1 + 0.28 * float(np.dot(where, sun)) + float(rng.normal(0, 0.17))
        blob = float(rng.uniform(0.3, 0.9)) * radius / count**0.5
        centre = crown + where * radius
        dot(canvas.over, centre, blob, scale_colour(leaf, lit))
        dot(canvas.over_alpha, centre, blob, 255)
        dot(canvas.over_rough, centre, blob, 125)


def paint_lookalikes(rng: Rng, canvas: Canvas, view: View) -> None:
    """Containers, sheds, bins, kiosks, patches and people: things that are not vehicles."""
    extent = view.height * view.width / view.ppm**2
    for _ in range(int(rng.poisson(min(6 + extent / 500, 70)))):
        spot = rng.uniform((0, 0), (view.width, view.height))
        kind = int(rng.choice(6, p=[0.14, 0.14, 0.2, 0.16, 0.12, 0.24]))
        sizes = ((6.1, 2.4), (4.0, 3.0), (1.2, 0.8), (4.4, 1.8), (3.0, 3.0), (0.5, 0.4))
        highs = (2.6, 2.4, 1.1, 0.0, 0.6, 1.7)
        size = np.asarray(sizes[kind]) * rng.uniform(0.8, 1.3)
        angle = view.heading + float(rng.choice([0, np.pi / 2])) + float(rng.normal(0, 0.05))
        copies = int(rng.integers(1, 6)) if kind in (0, 2, 3) else 1
        side = np.array([-np.sin(angle), np.cos(angle)]) * (size[1] + 0.3) * view.ppm
        colour = jitter(rng, pick(rng, _BOXES), 0.15)
        for k in range(copies):
            base = rect(spot + k * side, size * view.ppm, angle)
            if not touches(canvas.blocked, base):
                _lookalike(rng, canvas, view, base, highs[kind], colour)


def _lookalike(
    rng: Rng, canvas: Canvas, view: View, base: Points, high: float, colour: Colour
) -> None:
    if high > 0:
        fill(canvas.shadow, hull(base, view.cast(base, high)), 255)
        fill(canvas.blocked, base, 1, smooth=False)
    else:
        colour = mix(colour, (120, 118, 114), 0.6)
    top = view.lift(base, high)
    fill(canvas.image, hull(base, top), scale_colour(colour, 0.62))
    fill(canvas.image, top, colour)
    fill(canvas.rough, hull(base, top), 16, smooth=False)
    if high > 2 and rng.random() < 0.6:  # ribs, or a pitched roof
        rib = scale_colour(colour, float(rng.uniform(0.8, 1.15)))
        if rng.random() < 0.5:
            fill(canvas.image, within(top, 0, 1, 0, 0.5), rib)
        else:
            for u in np.arange(0.08, 0.95, 0.12):
                stroke(canvas.image, within(top, u, u, 0, 1)[1:3], 0.1 * view.ppm, rib, colour)


def paint_lamps(rng: Rng, canvas: Canvas, view: View, spots: Points) -> None:
    """Lamp posts at ``spots`` [N, 2] px: thin bright poles that lean with the view."""
    colour = jitter(rng, (176, 178, 178), 0.1)
    for spot in spots:
        pole = np.stack([spot, view.lift(spot[None], 8.0)[0]])
        shade = np.stack([spot, view.cast(spot[None], 8.0)[0]])
        stroke(canvas.shadow, shade, 0.25 * view.ppm, (150, 0, 0), (0, 0, 0))
        stroke(canvas.over, pole, 0.16 * view.ppm, colour)
        stroke(canvas.over_alpha, pole, 0.16 * view.ppm, (255, 0, 0))

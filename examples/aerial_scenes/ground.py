"""Ground, roads and parking lots of a synthetic aerial scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.aerial_scenes.draw import (
    Canvas,
    Colour,
    Image,
    Points,
    Rng,
    View,
    band,
    dot,
    fill,
    jitter,
    mix,
    noise,
    offset_line,
    rect,
    rotation,
    scale_colour,
    stroke,
    touches,
    within,
)

LANE = 3.3  # metres
_GRASS: tuple[Colour, ...] = ((78, 86, 58), (98, 102, 70), (62, 72, 50), (114, 112, 82))
_DIRT: tuple[Colour, ...] = ((134, 118, 96), (112, 98, 80), (150, 138, 116))
_PAVED: tuple[Colour, ...] = ((146, 142, 132), (158, 150, 136), (124, 122, 118), (112, 108, 104))
_ASPHALT: tuple[Colour, ...] = ((92, 92, 92), (112, 111, 109), (74, 75, 77), (126, 123, 118))
_MARKING: Colour = (212, 212, 206)


@dataclass(frozen=True)
class Road:
    """A road: ``line`` [N, 2] px is its centre, ``half`` its half width in px.

    ``lanes`` is the number per direction, ``median`` the width in px of a planted middle strip.
    """

    line: Points
    half: float
    lanes: int
    median: float
    colour: Colour

    def lane_offset(self, lane: int, ppm: float) -> float:
        """Distance in px of the middle of ``lane`` from the centre line."""
        return self.median / 2 + (lane + 0.5) * LANE * ppm


@dataclass(frozen=True)
class Lot:
    """A parking lot: bay centres [B, 2] px and the one angle (rad) at which cars stand in it."""

    bays: Points
    angle: float


def paint_ground(rng: Rng, canvas: Canvas, view: View) -> str:
    """Cover the canvas with soil, lawn or paving; returns the kind of ground."""
    kind = str(rng.choice(["grass", "dirt", "paved", "mixed"], p=[0.24, 0.08, 0.48, 0.2]))
    tables = {"grass": (_GRASS, _GRASS), "dirt": (_DIRT, _GRASS), "paved": (_PAVED, _PAVED),
              "mixed": (_PAVED, _GRASS)}  # fmt: skip
    first, second = (jitter(rng, t[int(rng.integers(len(t)))], 0.12) for t in tables[kind])
    grain = view.ppm * float(rng.uniform(8, 25))
    field = noise(rng, view.height, view.width, grain, 4)
    sharp = {"mixed": 6.0, "dirt": 2.5}.get(kind, 0.5)  # pavements end sharply, lawns fade
    share = np.clip(0.5 + sharp * (field - 0.4), 0, 1).astype(np.float32)
    a, b = np.array(first, np.float32), np.array(second, np.float32)
    for c in range(3):
        canvas.image[..., c] = a[c] + share * (b[c] - a[c])
    wild = {"grass": (72, 72), "dirt": (55, 72), "paved": (28, 28), "mixed": (28, 72)}[kind]
    canvas.rough[:] = wild[0] + share * (wild[1] - wild[0])
    _paint_patches(rng, canvas, view)
    return kind


def _paint_patches(rng: Rng, canvas: Canvas, view: View) -> None:
    """Lawns with kerbs, squares of other paving and worn areas, along the street grid."""
    extent = view.height * view.width / view.ppm**2
    for _ in range(min(24, 2 + int(rng.poisson(extent / 900)))):
        spot = rng.uniform((0, 0), (view.width, view.height))
        size = rng.uniform(5, 32, 2) * view.ppm
        poly = rect(spot, size, view.heading + float(rng.normal(0, 0.03)))
        if rng.random() < 0.15:  # cut a corner, as traffic islands have
            poly = np.delete(poly, int(rng.integers(4)), 0)
        lawn = rng.random() < 0.5
        table = _GRASS if lawn else _PAVED + _ASPHALT
        colour = jitter(rng, table[int(rng.integers(len(table)))], 0.12)
        fill(canvas.image, poly, colour)
        fill(canvas.rough, poly, 72 if lawn else 26)
        if rng.random() < 0.6:
            kerb = jitter(rng, (170, 168, 160), 0.1)
            stroke(canvas.image, np.vstack([poly, poly[:1]]), 0.3 * view.ppm, kerb, colour)
        if not lawn and len(poly) == 4 and rng.random() < 0.4:
            _paint_slabs(rng, canvas, view, poly, colour)


def _paint_slabs(rng: Rng, canvas: Canvas, view: View, poly: Points, colour: Colour) -> None:
    """Joints of large paving slabs, stairs or tracks across ``poly`` [4, 2]."""
    joint = scale_colour(colour, float(rng.uniform(0.8, 1.12)))
    length = float(np.linalg.norm(poly[1] - poly[0]))
    step = view.ppm * float(rng.choice([0.6, 1.5, 3.0]))
    for u in np.arange(step, length, max(step, 3.0)) / length:
        ends = within(poly, u, u, 0, 1)
        stroke(canvas.image, ends[1:3], 0.15 * view.ppm, joint, colour)


def make_roads(rng: Rng, view: View) -> list[Road]:
    """Random straight and bent roads that follow the street grid, crossing the frame."""
    across = max(view.height, view.width) / view.ppm
    count = 1 + int(min(4, rng.poisson(across / 110)))
    roads: list[Road] = []
    skew = float(rng.normal(0, 0.2)) if rng.random() < 0.5 else 0.0
    for k in range(count):
        turned = (k % 2) * (np.pi / 2 + skew)
        angle = view.heading + turned + float(rng.normal(0, 0.03))
        through = rng.uniform((0.1, 0.1), (0.9, 0.9)) * (view.width, view.height)
        line = _centre_line(rng, view, through, angle)
        if any(_runs_along(line, other, view, k, i) for i, other in enumerate(roads)):
            continue
        lanes = int(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1]))
        wide = lanes > 1 and rng.random() < 0.35
        median = float(rng.uniform(1.5, 6.0)) * view.ppm if wide else 0.0
        half = median / 2 + (lanes * LANE + 0.5) * view.ppm
        base = _ASPHALT[int(rng.integers(len(_ASPHALT)))]
        roads.append(Road(line, half, lanes, median, jitter(rng, base, 0.08)))
    return roads


def _runs_along(line: Points, other: Road, view: View, k: int, i: int) -> bool:
    """Whether a new road would lie on a parallel one instead of beside it."""
    if (k - i) % 2:
        return False
    gap = np.abs(line[:, None] - other.line[None, ::4]).sum(-1).min()
    return bool(gap < other.half + 22 * view.ppm)


def _centre_line(rng: Rng, view: View, through: Points, angle: float) -> Points:
    reach = float(np.hypot(view.height, view.width)) + 40 * view.ppm
    s = np.linspace(-reach, reach, 161)
    bend = np.zeros_like(s)
    if rng.random() < 0.4:
        radius = view.ppm * float(rng.uniform(90, 400)) * float(rng.choice([-1, 1]))
        # A parabola near ``through`` that ends in straight arms keeps offsets free of loops.
        knee = min(abs(radius) * 0.6, reach)
        near = np.minimum(np.abs(s), knee)
        bend = (near**2 / 2 + knee * (np.abs(s) - near)) / radius
    out: Points = np.stack([s, bend], 1) @ rotation(angle) + through
    return out


def paint_roads(rng: Rng, canvas: Canvas, view: View, roads: list[Road]) -> None:
    """Paint pavements, carriageways, wear, markings and junctions of ``roads``."""
    walk = jitter(rng, _PAVED[int(rng.integers(len(_PAVED)))], 0.1)
    for road in roads:
        edge = road.half + view.ppm * float(rng.uniform(1.5, 5.0))
        fill(canvas.image, band(road.line, -edge, edge), walk)
        fill(canvas.rough, band(road.line, -edge, edge), 26)
        if rng.random() < 0.3:
            green = band(road.line, edge * 1.02, edge + view.ppm * float(rng.uniform(2, 6)))
            fill(canvas.image, green, jitter(rng, _GRASS[0], 0.15))
            fill(canvas.rough, green, 72)
    for road in roads:
        kerb = road.half + 0.25 * view.ppm
        fill(canvas.image, band(road.line, -kerb, kerb), scale_colour(walk, 1.12))
    count = np.zeros((view.height, view.width), np.uint8)
    for road in roads:
        surface = band(road.line, -road.half, road.half)
        fill(canvas.image, surface, road.colour)
        fill(canvas.rough, surface, 22)
        fill(canvas.blocked, surface, 1, smooth=False)
        own = np.zeros_like(count)
        fill(own, surface, 1, smooth=False)
        count += own
        _paint_wear(rng, canvas, view, road)
    crossing = count > 1
    bare = canvas.image[crossing]
    for road in roads:
        _paint_markings(rng, canvas, view, road)
    canvas.image[crossing] = bare
    for road in roads:
        _paint_entries(rng, canvas, view, road, crossing)


def _paint_wear(rng: Rng, canvas: Canvas, view: View, road: Road) -> None:
    """Darkened or polished tracks, repaired strips, cracks and manholes."""
    for side in (-1, 1):
        for lane in range(road.lanes):
            middle = side * road.lane_offset(lane, view.ppm)
            tone = 128 + float(rng.normal(0, 7))
            stroke(canvas.wear, offset_line(road.line, middle), 1.6 * view.ppm, (tone, 0, 0))
    for _ in range(int(rng.integers(0, 9))):
        i = int(rng.integers(0, len(road.line) - 12))
        left, right = np.sort(rng.uniform(-road.half, road.half, 2))
        piece = road.line[i : i + int(rng.integers(3, 12))]
        if rng.random() < 0.5:
            fill(canvas.wear, band(piece, left, right), 128 + float(rng.normal(0, 14)))
        else:
            stroke(canvas.wear, offset_line(piece, left), 0.3 * view.ppm, (95.0, 0, 0), (128, 0, 0))
    for _ in range(int(rng.integers(0, 14))):
        i = int(rng.integers(0, len(road.line)))
        spot = offset_line(road.line, float(rng.uniform(-1, 1)) * road.half)[i]
        dot(canvas.image, spot, 0.35 * view.ppm, scale_colour(road.colour, 0.7))


def _arc_lengths(line: Points) -> NDArray[np.float64]:
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def along(line: Points, s: NDArray[np.float64]) -> tuple[Points, NDArray[np.float64]]:
    """Points [M, 2] px and headings [M] rad at the distances ``s`` px along ``line`` [N, 2]."""
    arc = _arc_lengths(line)
    xy = np.stack([np.interp(s, arc, line[:, 0]), np.interp(s, arc, line[:, 1])], 1)
    step = np.gradient(line, axis=0)
    turn = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    return xy, np.interp(s, arc, turn)


def _dashes(
    image: Image, view: View, line: Points, width: float, pattern: tuple[float, float],
    colours: tuple[Colour, Colour],
) -> None:  # fmt: skip
    """Broken line; ``pattern`` is (mark, gap) and ``width`` its width, all in metres."""
    mark, gap = pattern[0] * view.ppm, pattern[1] * view.ppm
    s = np.arange(0, _arc_lengths(line)[-1], mark + gap)
    starts, _ = along(line, s)
    ends, _ = along(line, s + mark)
    lo, hi = np.minimum(starts, ends), np.maximum(starts, ends)
    seen = (hi > 0).all(1) & (lo < (view.width, view.height)).all(1)
    for a, b in zip(starts[seen], ends[seen], strict=True):
        stroke(image, np.stack([a, b]), width * view.ppm, *colours)


def _paint_markings(rng: Rng, canvas: Canvas, view: View, road: Road) -> None:
    worn = float(rng.uniform(0.0, 0.6))
    inks = (mix(_MARKING, road.colour, worn), road.colour)
    width = float(rng.uniform(0.14, 0.28))
    pattern = (float(rng.uniform(1.0, 4.0)), float(rng.uniform(1.0, 6.0)))
    for side in (-1, 1):
        for lane in range(1, road.lanes):
            shift = side * (road.median / 2 + lane * LANE * view.ppm)
            _dashes(canvas.image, view, offset_line(road.line, shift), width, pattern, inks)
        if rng.random() < 0.6:
            edge = offset_line(road.line, side * (road.half - 0.4 * view.ppm))
            stroke(canvas.image, edge, width * view.ppm, *inks)
    if road.median > 0:
        _paint_median(rng, canvas, view, road)
    elif rng.random() < 0.4:
        _dashes(canvas.image, view, road.line, width, pattern, inks)
    else:
        for shift in (-0.2, 0.2) if rng.random() < 0.5 else (0.0,):
            line = offset_line(road.line, shift * view.ppm)
            stroke(canvas.image, line, width * view.ppm, *inks)
    if rng.random() < 0.5:
        _paint_arrows(rng, canvas, view, road, inks[0])


def _paint_median(rng: Rng, canvas: Canvas, view: View, road: Road) -> None:
    half = road.median / 2
    green = rng.random() < 0.6
    inner = _GRASS[int(rng.integers(len(_GRASS)))] if green else _PAVED[0]
    fill(canvas.image, band(road.line, -half, half), (165, 163, 156))
    trim = max(half - 0.3 * view.ppm, 0.5)
    fill(canvas.image, band(road.line, -trim, trim), jitter(rng, inner, 0.1))
    fill(canvas.rough, band(road.line, -trim, trim), 72 if green else 26)


def _paint_arrows(rng: Rng, canvas: Canvas, view: View, road: Road, ink: Colour) -> None:
    """Direction arrows on the lanes: white, vehicle-sized, and not vehicles."""
    shape = np.array([[-2.2, -0.12], [0.4, -0.12], [0.4, -0.5], [2, 0], [0.4, 0.5], [0.4, 0.12],
                      [-2.2, 0.12]])  # fmt: skip
    total = _arc_lengths(road.line)[-1]
    for s in rng.uniform(0.3, 0.7, int(rng.integers(2, 7))) * total:
        for side in (-1, 1):
            lane = int(rng.integers(road.lanes))
            line = offset_line(road.line, side * road.lane_offset(lane, view.ppm))
            xy, turn = along(line, np.array([s]))
            angle = float(turn[0]) + (np.pi if side < 0 else 0.0)
            fill(canvas.image, shape @ rotation(angle) * view.ppm + xy[0], ink)


def _paint_entries(
    rng: Rng, canvas: Canvas, view: View, road: Road, crossing: NDArray[np.bool_]
) -> None:
    """Zebra crossings and stop lines where ``road`` enters a junction."""
    s = np.arange(0, _arc_lengths(road.line)[-1], view.ppm)
    xy, turn = along(road.line, s)
    x, y = np.floor(xy).astype(int).T
    seen = (x >= 0) & (y >= 0) & (x < view.width) & (y < view.height)
    inside = np.zeros(len(s), np.int8)
    inside[seen] = crossing[y[seen], x[seen]]
    change = np.diff(inside)
    ink = mix(_MARKING, road.colour, float(rng.uniform(0, 0.5)))
    for i in np.flatnonzero(change):
        away = -1 if change[i] > 0 else 1
        k = int(np.clip(i + away * 5, 0, len(s) - 1))
        if rng.random() < 0.55:
            _paint_zebra(canvas, view, road, xy[k], float(turn[k]), ink)
        k = int(np.clip(i + away * 9, 0, len(s) - 1))
        bar = rect(xy[k], (0.45 * view.ppm, road.half), float(turn[k]))
        side = np.array([[0.0, -away * road.half / 2]]) @ rotation(float(turn[k]))
        fill(canvas.image, bar + side, ink)


def _paint_zebra(
    canvas: Canvas, view: View, road: Road, spot: Points, angle: float, ink: Colour
) -> None:
    step = max(1.1 * view.ppm, 3.0)
    size = (3.5 * view.ppm, step * 0.5)
    for v in np.arange(-road.half + step / 2, road.half, step):
        shift = np.array([[0.0, v]]) @ rotation(angle)
        fill(canvas.image, rect(spot + shift[0], size, angle), ink)


def paint_lots(rng: Rng, canvas: Canvas, view: View) -> list[Lot]:
    """Place and paint parking lots off the roads."""
    extent = view.height * view.width / view.ppm**2
    lots: list[Lot] = []
    for _ in range(min(14, int(rng.poisson(1.0 + extent / 5000)) * 2)):
        rows, bays = int(rng.choice([1, 2, 4])), int(rng.integers(5, 26))
        depth = {1: 6.5, 2: 17.0, 4: 33.0}[rows]
        angle = view.heading + float(rng.choice([0, np.pi / 2]))
        spot = rng.uniform((0, 0), (view.width, view.height))
        area = rect(spot, ((bays * 2.6 + 4) * view.ppm, depth * view.ppm), angle)
        if not touches(canvas.blocked, area):
            lots.append(_paint_lot(rng, canvas, view, spot, angle, (rows, bays, depth)))
    return lots


def _paint_lot(
    rng: Rng, canvas: Canvas, view: View, spot: Points, angle: float,
    plan: tuple[int, int, float],
) -> Lot:  # fmt: skip
    rows, count, depth = plan
    table = _ASPHALT + _PAVED[2:]
    colour = jitter(rng, table[int(rng.integers(len(table)))], 0.1)
    area = rect(spot, ((count * 2.6 + 4) * view.ppm, depth * view.ppm), angle)
    fill(canvas.image, area, colour)
    fill(canvas.rough, area, 24)
    fill(canvas.blocked, area, 1, smooth=False)
    ink = mix(_MARKING, colour, float(rng.uniform(0.1, 0.7)))
    turn, bays = rotation(angle) * view.ppm, []
    # Row middles (m) across the lot: aisles of 6 m between facing rows of 5.2 m bays.
    middles = {1: [0.0], 2: [-5.8, 5.8], 4: [-13.8, -2.7, 2.7, 13.8]}[rows]
    for v in middles:
        for k in range(count + 1):
            u = (k - count / 2) * 2.6
            ends = np.array([[u, v - 2.6], [u, v + 2.6]]) @ turn + spot
            stroke(canvas.image, ends, 0.14 * view.ppm, ink, colour)
            if k < count:
                bays.append(np.array([u + 1.3, v]) @ turn + spot)
    return Lot(np.array(bays), angle + np.pi / 2)

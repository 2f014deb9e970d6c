"""Where the vehicles of a synthetic aerial scene stand and drive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.aerial_scenes.draw import Canvas, Points, Rng, View, fill, offset_line, touches
from examples.aerial_scenes.ground import Lot, Road, along
from examples.aerial_scenes.vehicles import (
    BUS,
    CAR,
    CYCLIST,
    MINIBUS,
    TRUCK,
    Sprite,
    alpha_box,
    vehicle_sprite,
)

MIN_INSIDE = 0.4  # least share of a vehicle's area inside the frame
MAX_COVERED = 0.6  # most of a vehicle that crowns and roofs may hide
_HALF_METRES = {CAR: 2.3, TRUCK: 4.3, BUS: 5.7, MINIBUS: 3.0, CYCLIST: 1.0}


@dataclass(frozen=True)
class Candidate:
    """A wish for a vehicle: class, centre [2] px, heading in rad."""

    label: int
    centre: Points
    angle: float


def _draw_class(rng: Rng, driving: bool) -> int:
    weights = [0.76, 0.08, 0.05, 0.11] if driving else [0.9, 0.01, 0.0, 0.09]
    return int(rng.choice(4, p=weights))


def _frame_span(line: Points, view: View) -> tuple[float, float]:
    """First and last distance (px) along ``line`` that lie in the frame."""
    total = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
    s = np.arange(0.0, total, 2 * view.ppm)
    xy, _ = along(line, s)
    rim = 2 * view.ppm
    seen = ((xy > -rim) & (xy < (view.width + rim, view.height + rim))).all(1)
    hits = np.flatnonzero(seen)
    return (float(s[hits[0]]), float(s[hits[-1]])) if hits.size else (0.0, 0.0)


def lane_traffic(rng: Rng, view: View, line: Points, reverse: bool, gap: float) -> list[Candidate]:
    """Vehicles one behind another along ``line``; ``gap`` is the mean free space in metres."""
    s, end = _frame_span(line, view)
    s += float(rng.uniform(0, 6)) * view.ppm
    labels, places = [], []
    while s < end:
        label = _draw_class(rng, driving=True)
        s += _HALF_METRES[label] * view.ppm
        labels.append(label)
        places.append(s)
        s += (_HALF_METRES[label] + 0.8 + float(rng.exponential(gap))) * view.ppm
    xy, turn = along(line, np.array(places))
    xy = xy + rng.normal(0, 0.18 * view.ppm, xy.shape)
    turn = turn + rng.normal(0, 0.025, len(turn)) + (np.pi if reverse else 0.0)
    return [Candidate(k, p, float(a)) for k, p, a in zip(labels, xy, turn, strict=True)]


def road_traffic(rng: Rng, view: View, road: Road) -> list[list[Candidate]]:
    """Candidates per lane, per parked kerb and for cyclists along ``road``."""
    busy = float(rng.choice([3.0, 12.0, 35.0], p=[0.3, 0.4, 0.3]))
    groups: list[list[Candidate]] = []
    for side in (-1, 1):
        for lane in range(road.lanes):
            line = offset_line(road.line, side * road.lane_offset(lane, view.ppm))
            gap = busy * float(rng.uniform(0.5, 2.0))
            groups.append(lane_traffic(rng, view, line, side < 0, gap))
        if rng.random() < 0.45:
            kerb = offset_line(road.line, side * (road.half + 0.9 * view.ppm))
            groups.append(_parked(rng, view, kerb, side < 0))
        path = offset_line(road.line, side * (road.half - 0.7 * view.ppm))
        groups.append(_cyclists(rng, view, path, side < 0))
    return [g for g in groups if g]


def _parked(rng: Rng, view: View, line: Points, reverse: bool) -> list[Candidate]:
    """Cars parked bumper to bumper along a stretch of kerb."""
    start, end = _frame_span(line, view)
    a, b = np.sort(rng.uniform(start, end, 2))
    s = np.arange(a, b, 5.6 * view.ppm)
    s = s[rng.random(len(s)) < rng.uniform(0.5, 0.95)]
    xy, turn = along(line, s + rng.normal(0, 0.25 * view.ppm, s.shape))
    flip = rng.random(len(s)) < 0.15
    angles = turn + np.pi * (flip ^ reverse) + rng.normal(0, 0.02, len(s))
    return [
        Candidate(_draw_class(rng, driving=False), p, float(t))
        for p, t in zip(xy, angles, strict=True)
    ]


def _cyclists(rng: Rng, view: View, line: Points, reverse: bool) -> list[Candidate]:
    start, end = _frame_span(line, view)
    count = int(rng.poisson(1.2))
    xy, turn = along(line, rng.uniform(start, end, count))
    turn = turn + rng.normal(0, 0.08, count) + (np.pi if reverse else 0.0)
    return [Candidate(CYCLIST, p, float(t)) for p, t in zip(xy, turn, strict=True)]


def lot_traffic(rng: Rng, lot: Lot) -> list[Candidate]:
    """Parked vehicles in the bays of ``lot``, mostly filled."""
    taken = rng.random(len(lot.bays)) < rng.uniform(0.5, 0.98)
    flip = np.pi * rng.integers(0, 2, len(lot.bays))
    return [
        Candidate(_draw_class(rng, driving=False), p, lot.angle + float(f + rng.normal(0, 0.02)))
        for p, f in zip(lot.bays[taken], flip[taken], strict=True)
    ]


def strays(rng: Rng, view: View, count: int) -> list[Candidate]:
    """``count`` vehicles anywhere, so that no scene depends on its roads alone."""
    spots = rng.uniform((0.1, 0.1), (0.9, 0.9), (count, 2)) * (view.width, view.height)
    turns = view.heading + rng.integers(0, 4, count) * (np.pi / 2) + rng.normal(0, 0.3, count)
    labels = rng.choice(5, count, p=[0.4, 0.15, 0.1, 0.15, 0.2])
    return [Candidate(int(k), p, float(t)) for k, p, t in zip(labels, spots, turns, strict=True)]


def place(
    rng: Rng, canvas: Canvas, view: View, groups: list[list[Candidate]], taken: NDArray[np.uint8],
    budget: float,
) -> list[tuple[Sprite, int, NDArray[np.float32]]]:  # fmt: skip
    """Turn candidates into (sprite, label, box [4] px) until boxes cover ``budget`` px.

    Whole groups come first to last, which leaves the other roads and lots empty. ``taken``
    [H, W] marks the ground where no vehicle may stand and is extended in place.
    """
    placed: list[tuple[Sprite, int, NDArray[np.float32]]] = []
    used = 0.0
    for candidate in (c for group in groups for c in group):
        if used >= budget or len(placed) >= 400:
            break
        reach = _HALF_METRES[candidate.label] * 0.7 * view.ppm
        x, y = candidate.centre
        if not (-reach < x < view.width + reach and -reach < y < view.height + reach):
            continue
        sprite = vehicle_sprite(rng, candidate.label, candidate.centre, candidate.angle, view)
        if touches(taken, sprite.footprint):
            continue
        box = visible_box(sprite, canvas.over_alpha)
        if box is None:
            continue
        fill(taken, sprite.footprint, 1, smooth=False)
        placed.append((sprite, candidate.label, box))
        used += float((box[2] - box[0]) * (box[3] - box[1]))
    return placed


def visible_box(sprite: Sprite, cover: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Box [4] px clipped to the frame, or None if too little of the sprite can be seen.

    ``cover`` [H, W] is the opacity of what stands above the vehicles.
    """
    h, w = cover.shape
    x, y = sprite.origin
    body = sprite.alpha > 127
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + body.shape[1], w), min(y + body.shape[0], h)
    total = int(body.sum())
    if total == 0 or x0 >= x1 or y0 >= y1:
        return None
    inside = body[y0 - y : y1 - y, x0 - x : x1 - x]
    count = int(inside.sum())
    hidden = int((inside & (cover[y0:y1, x0:x1] > 127)).sum())
    if count < MIN_INSIDE * total or hidden > MAX_COVERED * count:
        return None
    bx0, by0, bx1, by1 = alpha_box(sprite)
    bounds = (max(bx0, 0), max(by0, 0), min(bx1, w), min(by1, h))
    box = np.array(bounds, np.float32)
    return box if bool((box[2:] > box[:2]).all()) else None

"""Procedural top-down aerial scenes with labelled vehicles.

Extra training data, the data of the demo and of tests. Everything follows from one seed; nothing
is read from disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from examples.aerial_scenes.draw import Canvas, Points, Rng, View, new_canvas, noise, offset_line
from examples.aerial_scenes.ground import (
    Lot,
    Road,
    along,
    make_roads,
    paint_ground,
    paint_lots,
    paint_roads,
)
from examples.aerial_scenes.objects import (
    paint_buildings,
    paint_lamps,
    paint_lookalikes,
    paint_trees,
)
from examples.aerial_scenes.traffic import lot_traffic, place, road_traffic, strays
from examples.aerial_scenes.vehicles import CAR_METRES, Sprite

CLASS_NAMES = ("car", "truck", "bus", "minibus", "cyclist")  # label index = position
SIZES = ((1024, 1024), (768, 1024), (1024, 768))


@dataclass(frozen=True)
class Scene:
    """A labelled scene.

    ``image`` [H, W, 3] is RGB; ``boxes`` [N, 4] are x0, y0, x1, y1 in image px, half-open, tight
    around the painted body (no shadow) and clipped to the image; ``labels`` [N] index
    ``CLASS_NAMES``.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]


def render_scene(
    seed: int, height: int = 1024, width: int = 1024, car_length: float | None = None
) -> Scene:
    """Render the scene of ``seed``, ``height`` x ``width`` px; the same seed gives same bytes.

    ``car_length`` is the length of a car in px; None draws it log-uniformly from 14 to 90.
    """
    rng = np.random.default_rng(seed)
    view = _make_view(rng, height, width, car_length)
    canvas = new_canvas(height, width)
    paint_ground(rng, canvas, view)
    roads = make_roads(rng, view)
    paint_roads(rng, canvas, view, roads)
    lots = paint_lots(rng, canvas, view)
    free = canvas.blocked.copy()  # so far only roads and lots, where vehicles belong
    paint_buildings(rng, canvas, view)
    paint_lookalikes(rng, canvas, view)
    paint_trees(rng, canvas, view, _roadside(rng, view, roads, 12.0))
    lamps = _roadside(rng, view, roads, 30.0)
    paint_lamps(rng, canvas, view, np.concatenate(lamps) if lamps else np.zeros((0, 2)))
    taken = canvas.blocked & (1 - free)
    groups = _shuffled_groups(rng, view, roads, lots)
    budget = height * width * float(rng.uniform(0.012, 0.065))
    placed = place(rng, canvas, view, groups, taken, budget)
    image = _compose(rng, canvas, view, [sprite for sprite, _, _ in placed])
    return Scene(
        image=_finish(rng, image, view),
        boxes=np.array([b for _, _, b in placed], np.float32).reshape(-1, 4),
        labels=np.array([k for _, k, _ in placed], np.int32),
    )


def _make_view(rng: Rng, height: int, width: int, car_length: float | None) -> View:
    drawn = float(np.exp(rng.uniform(np.log(14.0), np.log(90.0))))
    ppm = (drawn if car_length is None else car_length) / CAR_METRES
    sun, lean = rng.uniform(0, 2 * np.pi, 2)
    reach = ppm * float(rng.uniform(0.25, 1.3))
    oblique = ppm * float(np.abs(rng.normal(0, 0.13)))
    overcast = rng.random() < 0.35
    return View(
        height=height,
        width=width,
        ppm=ppm,
        heading=float(rng.uniform(0, np.pi)) if rng.random() < 0.7 else float(rng.normal(0, 0.06)),
        sun=(reach * float(np.cos(sun)), reach * float(np.sin(sun))),
        tilt=(oblique * float(np.cos(lean)), oblique * float(np.sin(lean))),
        shade=float(rng.uniform(0.7, 0.9) if overcast else rng.uniform(0.35, 0.65)),
    )


def _roadside(rng: Rng, view: View, roads: list[Road], step: float) -> list[Points]:
    """Evenly spaced points beside some roads, about ``step`` metres apart."""
    rows: list[Points] = []
    for road in roads:
        for side in (-1, 1):
            if rng.random() < 0.4:
                line = offset_line(road.line, side * (road.half + 2.5 * view.ppm))
                total = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
                s = np.arange(0, total, step * float(rng.uniform(0.6, 1.4)) * view.ppm)
                xy, _ = along(line, s)
                seen = ((xy > 0) & (xy < (view.width, view.height))).all(1)
                rows.append(xy[seen])
    return rows


def _shuffled_groups(rng: Rng, view: View, roads: list[Road], lots: list[Lot]) -> list[Any]:
    groups = [g for road in roads for g in road_traffic(rng, view, road)]
    groups += [lot_traffic(rng, lot) for lot in lots]
    order = rng.permutation(len(groups))
    return [strays(rng, view, 3)] + [groups[i] for i in order] + [strays(rng, view, 6)]


def _compose(rng: Rng, canvas: Canvas, view: View, sprites: list[Sprite]) -> NDArray[np.uint8]:
    """Lay shadows, vehicles and overhead objects over the ground and add texture."""
    image, rough = canvas.image, canvas.rough
    soft = max(0.12 * view.ppm, 0.4) * (1 + 2 * float(view.shade > 0.68))
    under = np.zeros_like(canvas.shadow)
    for sprite in sprites:
        corners = np.round((sprite.shadow - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(under, [corners], (255,), cv2.LINE_AA, 4)
    image = _shade(image, under, soft, view.shade)
    for sprite in sprites:
        _overlay(image, rough, sprite)
    image = _shade(image, canvas.shadow, soft, view.shade)
    rest = cv2.cvtColor(255 - canvas.over_alpha, cv2.COLOR_GRAY2RGB)
    image = cv2.add(cv2.multiply(image, rest, scale=1 / 255), canvas.over).astype(np.uint8)
    np.copyto(rough, canvas.over_rough, where=canvas.over_alpha > 127)
    return _texture(rng, image, rough, canvas.wear, view)


def _shade(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], soft: float, shade: float
) -> NDArray[np.uint8]:
    """Darken ``image`` under ``mask``, a little less in blue: skylight fills shadows."""
    blurred = cv2.GaussianBlur(mask, (0, 0), soft)
    steps = np.arange(256)[:, None] / 255.0
    keep = np.array([shade, shade * 1.02, min(shade * 1.1, 1.0)])
    table = np.round(255 * (1 - steps * (1 - keep))).astype(np.uint8).reshape(1, 256, 3)
    factor = cv2.LUT(cv2.cvtColor(blurred, cv2.COLOR_GRAY2RGB), table)
    return cv2.multiply(image, factor, scale=1 / 255).astype(np.uint8)


def _overlay(image: NDArray[np.uint8], rough: NDArray[np.uint8], sprite: Sprite) -> None:
    """Composite ``sprite`` on ``image`` in place; bodywork has almost no texture."""
    h, w = image.shape[:2]
    x, y = sprite.origin
    sh, sw = sprite.alpha.shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + sw, w), min(y + sh, h)
    part = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
    alpha = sprite.alpha[part]
    keep = (255 - alpha.astype(np.uint16))[..., None]
    under = (image[y0:y1, x0:x1] * keep + 127) // 255
    image[y0:y1, x0:x1] = np.minimum(under + sprite.rgb[part], 255)
    np.copyto(rough[y0:y1, x0:x1], 8, where=alpha > 127)


def _texture(
    rng: Rng, image: NDArray[np.uint8], rough: NDArray[np.uint8], wear: NDArray[np.uint8],
    view: View,
) -> NDArray[np.uint8]:  # fmt: skip
    """Multiply ``image`` by noise of the local strength ``rough`` and by the road ``wear``."""
    h, w = rough.shape
    grain = noise(rng, h, w, max(view.ppm * 2.5, 6), 4)
    broad = noise(rng, h, w, view.ppm * 20, 2)
    tracks = cv2.GaussianBlur(wear, (0, 0), max(0.3 * view.ppm, 0.6))
    amount = cv2.multiply(grain, rough, scale=0.22 / 128, dtype=cv2.CV_32F)
    amount += broad * np.float32(0.03) + tracks.astype(np.float32) * np.float32(1 / 128)
    gain = cv2.cvtColor(np.clip(amount, 0.3, 1.8), cv2.COLOR_GRAY2RGB)
    return cv2.multiply(image, gain, dtype=cv2.CV_8U).astype(np.uint8)


def _finish(rng: Rng, image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """Camera effects: light gradient, colour cast, tone, blur, noise and compression."""
    h, w = image.shape[:2]
    work = image.astype(np.float32)
    slope = rng.normal(0, 0.06, 2).astype(np.float32)
    ramp = slope[0] * np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    ramp = ramp + slope[1] * np.linspace(-1, 1, w, dtype=np.float32)[None]
    work *= (1 + ramp)[..., None]
    grey = rng.random() < 0.12
    saturation = float(rng.uniform(0.05, 0.3) if grey else rng.uniform(0.6, 1.15))
    luma = np.array([0.3, 0.59, 0.11])
    colour = np.eye(3) * saturation + (1 - saturation) * luma[None]
    contrast, lift = float(rng.uniform(0.65, 1.25)), float(rng.normal(0, 12))
    warmth, green = rng.normal(0, 0.04), rng.normal(0, 0.012)
    cast = np.exp([warmth, green, -warmth]) * contrast
    matrix = np.hstack([colour * cast[:, None], np.full((3, 1), lift + 110 * (1 - contrast))])
    work = cv2.transform(work, matrix.astype(np.float32)).astype(np.float32, copy=False)
    # Tiny cars would melt away under the blur that a near view still bears.
    blur = float(rng.uniform(0, min(1.2, 0.2 * view.ppm)))
    if blur > 0.25:
        work = cv2.GaussianBlur(work, (0, 0), blur).astype(np.float32, copy=False)
    sigma = np.float32(rng.uniform(0.5, 6.0))
    static = rng.standard_normal((h, w), dtype=np.float32) * sigma
    work += cv2.GaussianBlur(static, (0, 0), 0.5)[..., None] * np.float32(1.6)
    out = np.clip(work + np.float32(0.5), 0, 255).astype(np.uint8)
    return _compressed(out, int(rng.integers(35, 90))) if rng.random() < 0.5 else out


def _compressed(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError("JPEG encoding failed")
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("JPEG decoding failed")
    return decoded.astype(np.uint8)


def write_dataset(
    root: Path, count: int, seed: int, sizes: Sequence[tuple[int, int]] = SIZES
) -> Path:
    """Write ``count`` scenes under ``root`` and return the path of their COCO file.

    Images go to ``root/images/scene_00000.jpg``, boxes to ``root/annotations.json``. ``sizes``
    are (height, width) in px and are used in turn.
    """
    folder = root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for k in range(count):
        height, width = sizes[k % len(sizes)]
        # Mixing both numbers keeps datasets with neighbouring seeds from sharing scenes.
        scene = render_scene(int(np.random.SeedSequence((seed, k)).generate_state(1)[0]),
                             height, width)  # fmt: skip
        name = f"scene_{k:05d}.jpg"
        bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(folder / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"could not write {folder / name}")
        images.append({"id": k + 1, "file_name": name, "width": width, "height": height})
        notes.extend(_annotations(scene, k + 1, len(notes) + 1))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
    path = root / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return path


def _annotations(scene: Scene, image_id: int, first: int) -> list[dict[str, Any]]:
    """COCO records of ``scene``'s boxes, with ids from ``first`` on."""
    out: list[dict[str, Any]] = []
    for k, (box, label) in enumerate(zip(scene.boxes, scene.labels, strict=True)):
        x0, y0, x1, y1 = (float(v) for v in box)
        size = (x1 - x0, y1 - y0)
        out.append(
            {
                "id": first + k,
                "image_id": image_id,
                "category_id": int(label) + 1,
                "bbox": [x0, y0, *size],
                "area": size[0] * size[1],
                "iscrowd": 0,
            }
        )
    return out

"""How many objects are lost because tiles cut them, by their size: geometry alone, no detector.

python benchmarks/seams.py [--objects 400]

Square and oblong objects (2:1 and 1:2) lie anywhere in images of 9, 45 and 144 megapixels. A tile
answers with the part of each object that it shows, of which a quarter at least must be there. An
object is found when a written box has an IoU of 0.5 with it. One line a case: the share of objects
that are not, by the square root of their area in original px.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_area, iou_matrix
from af_pipeline.core.cascade import Prediction, resolve, stack, start_sized
from af_pipeline.core.chips import Crop, Tile
from af_pipeline.core.lanes import make_lanes
from af_pipeline.core.plan import Plan
from af_pipeline.core.scales import Scale
from af_pipeline.core.schema import ImageRow
from af_pipeline.core.stacking import StackRule

SIDES = (50, 100, 200, 400, 600, 1000, 2000)
# Height, width, factor, lanes.
CASES = {
    "9 MP at 0.5, lanes to 512": (3000, 3000, 0.5, (256, 384, 512)),
    "45 MP at 0.5, lanes to 1536": (5464, 8192, 0.5, (256, 384, 512, 768, 1024, 1536)),
    "144 MP at 0.5, lanes to 1536": (12000, 12000, 0.5, (256, 384, 512, 768, 1024, 1536)),
    "9 MP at 2, lanes to 1536": (3000, 3000, 2.0, (256, 384, 512, 768, 1024, 1536)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=400, help="of each size")
    count = parser.parse_args().objects
    print(f"{'lost objects, %':32}" + "".join(f"{side:>7}" for side in SIDES))
    for name, (height, width, factor, sides) in CASES.items():
        scale = Scale(factor)
        plan = Plan((scale,), (scale,), (), make_lanes(sides), StackRule("hard"))
        shares = [lost(side, count, (height, width), plan) for side in SIDES]
        print(f"{name:32}" + "".join(f"{100 * share:7.1f}" for share in shares))


def lost(side: int, count: int, size: tuple[int, int], plan: Plan) -> float:
    """Share of ``count`` objects of sqrt(area) ``side`` that an image of ``size`` loses."""
    rng = np.random.default_rng(side)
    missed = 0
    for number in range(count):
        ratio = (1.0, 2.0, 0.5)[number % 3]
        own = np.minimum(np.array([side * ratio**0.5, side / ratio**0.5]), size[::-1])
        corner = rng.uniform(0, np.array(size[::-1]) - own)
        missed += not found(np.array([[*corner, *corner + own]]), size, plan)
    return missed / count


def found(box: NDArray, size: tuple[int, int], plan: Plan) -> bool:
    """Whether the object ``box`` [1, 4] (original px) is among what an image of it gives."""

    def answers(tiles: Sequence[Tile], crops: Sequence[Crop], plan: Plan) -> list[Prediction]:
        return [answer(tile, crops[tile.crop]) for tile in tiles]

    def answer(tile: Tile, crop: Crop) -> Prediction:
        x0, y0, x1, y1 = tile.rect
        whole = box * np.array([*crop.factors[::-1]] * 2) - np.array([x0, y0] * 2)
        part = np.clip(whole, 0, np.array([x1 - x0, y1 - y0] * 2))
        seen = box_area(part) >= 0.25 * np.minimum(box_area(whole), (x1 - x0) * (y1 - y0))
        boxes = part[seen].astype(np.float32)
        scores, labels = np.full(len(boxes), 0.9, np.float32), np.zeros(len(boxes), np.int32)
        return Prediction(boxes, scores, labels, np.zeros((1, 1), np.float32))

    row = ImageRow("", "")
    start_sized(row, *size, plan)
    resolve([row], 0, plan, answers)
    stack(row, plan.stack)
    written = row.detections.boxes
    return bool(len(written) and iou_matrix(box, written).max() >= 0.5)


if __name__ == "__main__":
    main()

"""The greedy cover of an image's boxes by chips against a plain Python loop over candidates.

python benchmarks/cover.py --config configs/train/aerial_tiny.yaml --set data.train=FILE
    [--images 78] [--repeats 5] [--output FILE.json]

Both take turns scale by scale and image by image on the same candidates and boxes, and must hold
the same boxes; the loop is the obvious one: one set of boxes a candidate, the largest rest first.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np

from af_pipeline.config import load_config
from af_pipeline.settings.train import TrainConfig
from af_pipeline.sniper.chips import ImageBoxes, creates_chips
from af_pipeline.sniper.cover import Grid, greedy_cover, make_grid
from af_pipeline.training.data import evenly, load_training


def plain_cover(grid: Grid, boxes: list[tuple[float, ...]]) -> list[set[int]]:
    """The boxes that each picked candidate newly holds."""
    candidates = []
    for y in grid.ys.tolist():
        for x in grid.xs.tolist():
            held = set()
            for number, (x0, y0, x1, y1) in enumerate(boxes):
                if x <= x0 and y <= y0 and x1 <= x + grid.span and y1 <= y + grid.span:
                    held.add(number)
            candidates.append(held)
    random.shuffle(candidates)
    todo, picked = set(range(len(boxes))), []
    while True:
        best = max((held & todo for held in candidates), key=len)
        if not best:
            return picked
        picked.append(best)
        todo -= best


def race(
    size: tuple[int, int], span: int, stride: float, boxes: np.ndarray, repeats: int
) -> tuple[float, float]:
    """Best seconds of both, taking turns."""
    rows = [tuple(box) for box in boxes.tolist()]
    own, plain = [], []
    for number in range(repeats):
        began = time.perf_counter()
        grid = make_grid(size, span, stride)
        _, covered = greedy_cover(np.random.default_rng(number), grid, boxes)
        middle = time.perf_counter()
        picked = plain_cover(grid, rows)
        own.append(middle - began)
        plain.append(time.perf_counter() - middle)
        assert set(np.flatnonzero(covered.any(0))) == set().union(*picked)
    return min(own), min(plain)


def main() -> int:
    """Print one row a scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/train/aerial_tiny.yaml")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--images", type=int, default=78)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    config = load_config(TrainConfig, arguments.config, arguments.sets)
    dataset = load_training(config)
    images = evenly(dataset.images, arguments.images)
    stride = sum(config.chips.stride) / 2
    seconds = np.zeros((len(images), len(config.pyramid), 2))
    counts = np.zeros((len(images), len(config.pyramid), 3), int)
    for i, image in enumerate(images):
        size = (image.height, image.width)
        held = ImageBoxes(size, image.boxes, image.crowd)
        for s, level in enumerate(config.pyramid):
            scale = level
            factor = scale.factor_for(*size)
            span = round(config.chips.size / factor)
            boxes = image.boxes[creates_chips(held, scale, 1.0, factor)]
            if len(boxes):
                seconds[i, s] = race(size, span, stride * span, boxes, arguments.repeats)
            grid = make_grid(size, span, stride * span)
            chips = len(greedy_cover(np.random.default_rng(i), grid, boxes)[0])
            counts[i, s] = len(grid.xs) * len(grid.ys), len(boxes), chips
    report(seconds, counts, arguments.output)
    return 0


def report(seconds: np.ndarray, counts: np.ndarray, output: str | None) -> None:
    """Table, and JSON where asked for."""
    rows = []
    print("scale  candidates  boxes  chips   vectorised       plain loop   ratio")
    total = seconds.sum(1)
    for s in range(seconds.shape[1]):
        own, plain = seconds[:, s].mean(0) * 1e3
        c = counts[:, s].mean(0)
        print(
            f"{s:5}  {c[0]:10.0f}  {c[1]:5.1f}  {c[2]:5.1f}  {own:7.2f} ms/image  "
            f"{plain:8.1f} ms/image  {plain / own:5.0f}x"
        )
        rows.append({"scale": s, "ratio": plain / own, "vectorised_ms": own, "plain_ms": plain})
    ratio = total[:, 1] / total[:, 0]
    summary = {
        "images": len(total),
        "ratio_of_sums": float(total[:, 1].sum() / total[:, 0].sum()),
        "ratio_median_image": float(np.median(ratio)),
        "ratio_worst_image": float(ratio.min()),
        "scales": rows,
    }
    print(
        f"per image, all scales: {summary['ratio_of_sums']:.0f}x in sum, median "
        f"{summary['ratio_median_image']:.0f}x, worst {summary['ratio_worst_image']:.0f}x"
    )
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(summary, indent=2))


if __name__ == "__main__":
    sys.exit(main())

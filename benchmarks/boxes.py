"""CPU seconds that merging of rectangles and suppression of boxes take, by their number.

python benchmarks/boxes.py

Rectangles of 16 to 64 px lie anywhere in a square; boxes come in groups of four around an object,
with scores of which most are low. The time is this process's own, so other work on the machine
counts little.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from af_pipeline.core.focus import merge_rects
from af_pipeline.core.stacking import StackRule, suppress


def main() -> None:
    rng = np.random.default_rng(0)
    for count in (1_000, 3_000, 10_000):
        corner = rng.integers(0, 12_000, (count, 2))
        rects = np.concatenate([corner, corner + rng.integers(16, 64, (count, 2))], 1)
        for rule in ("paper", "cost"):
            told(f"merge by {rule}", count, lambda r=rects, k=rule: len(merge_rects(r, k, 4096.0)))
    for count in (20_000, 100_000):
        for classes in (1, 5):
            centre = np.repeat(rng.uniform(0, 10_000, (count // 4, 2)), 4, 0)
            centre += rng.normal(0, 3, (count, 2))
            half = np.repeat(rng.lognormal(2.7, 0.5, (count // 4, 2)), 4, 0)
            boxes = np.concatenate([centre - half, centre + half], 1).astype(np.float32)
            scores = rng.beta(1, 6, count).astype(np.float32)
            labels = rng.integers(0, classes, count).astype(np.int32)
            for method in ("soft", "hard"):
                found = (boxes, scores, labels, StackRule(method))
                name = f"{method} NMS, {classes} classes"
                told(name, count, lambda f=found: len(suppress(*f)[0]))


def told(what: str, count: int, work: Callable[[], int]) -> None:
    """Print how long ``work`` takes and how many it leaves."""
    began = time.process_time()
    left = work()
    print(f"{what:24} {count:7} -> {left:6}  {time.process_time() - began:7.3f} s")


if __name__ == "__main__":
    main()

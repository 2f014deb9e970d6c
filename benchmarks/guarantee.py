"""How often the guarantee of jobs/tune.py holds, over many random splits of real images.

python benchmarks/guarantee.py --config configs/index/aerial.yaml --ground-truth A.json \
    [--ground-truth B.json] --output OUT [--images 1000] [--splits 200] [--alpha 0.2]

Every image is looked at once with the full pyramid and with the cascade at every threshold of the
path that jobs/tune.py tests. Each split certifies on one part of the images and measures on the
others the mean share of the pyramid's confident detections that are lost. Writes OUT/coverage.png
and OUT/coverage.parquet; goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from af_pipeline.config import load_config
from af_pipeline.core.plan import unfocused
from af_pipeline.models.open import open_detector
from af_pipeline.reporting.charts import coverage_figure, save_png
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.tuning.risk import certify
from af_pipeline.tuning.runner import Runner
from af_pipeline.tuning.sample import draw_sample
from af_pipeline.tuning.search import Reference
from af_pipeline.tuning.trials import shift_threshold
from af_pipeline.tuning.tune import SHIFTS


def measure(config: IndexConfig, files: Sequence[str], output: Path, count: int) -> np.ndarray:
    """Shares lost [settings, images] of ``count`` images of each of ``files``, if there are."""

    def progress(items: Sequence, what: str) -> Iterable:
        return track(items, what)

    predict = open_detector(config).predictor()
    plan = build_plan(config)
    rules = [tuple(shift_threshold(rule, shift) for rule in plan.rules) for shift in SHIFTS]
    plans = [replace(plan, rules=one) for one in rules]
    pyramid = unfocused(plan)
    parts = []
    for number, file in enumerate(files):
        images = draw_sample(config, file, count, 0, 0).tune
        runner = Runner(config, predict, output / str(number), progress)
        parts.append(runner.losses(images, pyramid, plans, Reference({}, (), None)))
    return np.concatenate(parts, 1)


def split_risks(
    losses: np.ndarray, splits: int, share: float, alpha: float, delta: float
) -> list[dict]:
    """One record a split: certified setting, its mean loss on the images held out."""
    rng = np.random.default_rng(0)
    count = losses.shape[1]
    own = round(share * count)
    records = []
    for split in range(splits):
        order = rng.permutation(count)
        found = certify(losses[:, order[:own]], alpha, delta)
        held = losses[:, order[own:]].mean(1)
        risk = None if found.index is None else float(held[found.index])
        naive = [
            index for index, mean in enumerate(losses[:, order[:own]].mean(1)) if mean <= alpha
        ]
        records.append(
            {
                "split": split,
                "alpha": alpha,
                "setting": found.index,
                "risk": risk,
                "naive": float(held[naive[-1]]) if naive else None,
            }
        )
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/index/aerial.yaml")
    parser.add_argument("--ground-truth", action="append", required=True)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--images", type=int, default=1000, help="of each file, at most")
    parser.add_argument("--share", type=float, default=0.5, help="of the images, to certify on")
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--delta", type=float, default=0.1)
    arguments = parser.parse_args()
    config = load_config(IndexConfig, arguments.config, arguments.sets)
    losses = measure(config, arguments.ground_truth, arguments.output, arguments.images)
    means = losses.mean(1)
    print(f"{losses.shape[1]} images; mean share lost by setting, safest first:", means.round(4))
    records = split_risks(
        losses, arguments.splits, arguments.share, arguments.alpha, arguments.delta
    )
    kept = [one for one in records if one["risk"] is None or one["risk"] <= arguments.alpha]
    naive = [one for one in records if one["naive"] is None or one["naive"] <= arguments.alpha]
    certified = [one for one in records if one["setting"] is not None]
    chosen = np.bincount([one["setting"] for one in certified], minlength=len(SHIFTS))
    print(f"certified in {len(certified)} of {len(records)} splits; settings chosen: {chosen}")
    print(f"kept to alpha on the images held out: {len(kept) / len(records):.3f}")
    print(f"wanted: {1 - arguments.delta:g} or more")
    print(f"the same for 'mean lost at calibration <= alpha': {len(naive) / len(records):.3f}")
    pq.write_table(pa.Table.from_pylist(records), arguments.output / "coverage.parquet")
    save_png(coverage_figure(records), arguments.output / "coverage.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Choose the focus settings for your images, and draw the paper's figures.

python jobs/tune.py --config configs/index/aerial.yaml --ground-truth FILE --output OUT
python jobs/tune.py --config ... --set source.uri=PHOTOS --output OUT      without ground truth
python jobs/tune.py ... --alpha 0.1 --delta 0.1     thresholds with a guarantee (docs/TUNING.md)

Looks once at everything in a sample, replays focus settings on what was seen, confirms the best
with the real cascade. OUT/config.yaml is the index config to use, OUT/report/index.html the
report. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from af_pipeline.cli import complain, config_parser, stoppable
from af_pipeline.config import ConfigError, load_config
from af_pipeline.settings.index import IndexConfig
from af_pipeline.tuning.search import Grid, Limits

Item = TypeVar("Item")


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; exit code 1 if nothing keeps to the limits, 2 for input that cannot be used."""
    arguments = parse_args(argv)
    try:
        config = load_config(IndexConfig, arguments.config, arguments.sets)
    except ConfigError as error:
        return complain(error, 2)
    from af_pipeline.tuning.tune import TuneRule, tune

    try:
        rule = TuneRule(
            output=Path(arguments.output),
            ground_truth=arguments.ground_truth,
            sample=arguments.sample,
            seed=arguments.seed,
            limits=Limits(arguments.max_loss, arguments.max_lost),
            grid=Grid(
                arguments.thresholds,
                arguments.dilations,
                arguments.contexts,
                arguments.min_sizes,
                arguments.chip_costs,
            ),
            confirm=arguments.confirm,
            workers=arguments.workers,
            alpha=arguments.alpha,
            delta=arguments.delta,
            calibration=arguments.calibration,
        )
        outcome = tune(config, rule, progress)
    except (ValueError, OSError) as error:
        return complain(error, 2)
    print(*outcome.lines, sep="\n")
    return 0 if outcome.kept else 1


def progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """``items`` with a bar on a terminal, with a line for every tenth elsewhere."""
    console = Console(highlight=False)
    if console.is_terminal:
        yield from track(items, f"{what:<16}", console=console)
        return
    step = max(1, len(items) // 10)
    for number, item in enumerate(items, start=1):
        yield item
        if number % step == 0 or number == len(items):
            console.print(f"{what:<16} {number} of {len(items)}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = config_parser(__doc__, "configs/index")
    add = parser.add_argument
    add("--output", required=True, metavar="OUT", help="folder for settings and report")
    add("--ground-truth", metavar="FILE", help="COCO json, VOC image set or Parquet; none: the "
        "full pyramid's confident detections stand for it")  # fmt: skip
    add("--sample", type=_positive, default=100, help="images to search on (100)")
    add("--seed", type=int, default=0, help="of the choice of images (0)")
    add("--max-loss", type=float, default=0.001, help="AP below the full pyramid's (0.001)")
    add("--max-lost", type=float, default=0.05, help="share of its confident detections, "
        "with ground truth of those that are right (0.05)")  # fmt: skip
    add("--confirm", type=_positive, default=5, help="settings to run for real (5)")
    add("--workers", type=_positive, default=2, help="processes that replay (2)")
    add("--thresholds", type=_floats, default=Grid.thresholds, help="probabilities tried")
    add("--dilations", type=_ints, default=Grid.dilations, help="cells")
    add("--contexts", type=_ints, default=Grid.contexts, help="network px of the map's scale")
    add("--min-sizes", type=_ints, default=Grid.min_sizes, help="network px of the map's scale")
    add("--chip-costs", type=_floats, default=(), help="px of area; none: as configured")
    add("--alpha", type=_share, help="certify: mean share of confident detections lost, at most")
    add("--delta", type=_share, default=0.1, help="probability that this does not hold (0.1)")
    add("--calibration", type=_positive, default=100, help="further images to certify on (100)")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, found {value}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, found {value:g}")
    return value


def _floats(text: str) -> tuple[float, ...]:
    return tuple(sorted({float(part) for part in text.split(",")}))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


if __name__ == "__main__":
    sys.exit(stoppable(main))

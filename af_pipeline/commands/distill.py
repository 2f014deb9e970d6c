"""Teach any detector where to look closely, from its own answers, without labels.

python jobs/distill.py --config configs/index/receipts_ppocr.yaml --set detector.path=FILE
    --set source.uri=PHOTOS --output OUT [--alpha 0.1 --delta 0.1]

Looks at a sample in the whole pyramid, trains a small focus network on what was found, chooses
thresholds on further images. OUT/index.yaml is the index config to use, OUT/tune/report/index.html
the report. The same command goes on where it was stopped.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from af_pipeline.commands import complain, config_parser, in_thread, option_error, options_of
from af_pipeline.config import dump_config, load_config
from af_pipeline.data.manifest import SourceImage
from af_pipeline.data.secrets import redact_tree
from af_pipeline.settings.detector import FocusNetworkConfig
from af_pipeline.settings.distill import DistillRule
from af_pipeline.settings.index import IndexConfig, SourceConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Distill; exit code 1 if the graph stopped or no guarantee was given, 2 for unusable input."""
    given = options_of(config_parser(__doc__, "configs/index"), DistillRule, argv)
    try:
        config = load_config(IndexConfig, given.pop("config"), given.pop("sets"))
        rule = DistillRule(**given)
        from af_pipeline.indexing.preflight import check_input

        check_input(config, dry_run=True)  # before Ray is started
        from af_pipeline.indexing.meter import GraphError
        from af_pipeline.indexing.session import ray_session
        from af_pipeline.training.distill import distill

        try:
            with ray_session(config.ray.address):
                done = in_thread(lambda: distill(config, rule))
        except GraphError as error:
            return complain(error, 1)
        print(f"network     {done.network}")
        return choose_settings(config, rule, done.network, done.held)
    except ValidationError as error:
        return complain(option_error(error), 2)
    except (ValueError, OSError) as error:
        return complain(error, 2)


def choose_settings(
    config: IndexConfig, rule: DistillRule, network: Path, held: Sequence[SourceImage]
) -> int:
    """Choose thresholds on ``held`` and write the config to use; returns the exit code."""
    from af_pipeline.tuning.options import TuneRule
    from af_pipeline.tuning.runner import show_progress
    from af_pipeline.tuning.tune import tune

    # Asked first, the network also spares the detector chips in which nothing is to be found.
    first = config.focus.network is None or config.focus.network.first
    section = FocusNetworkConfig(path=str(network), first=first)
    focus = config.focus.model_copy(update={"network": section})
    place = rule.output / "tune"
    asked = {
        "output": place,
        "sample": rule.held,
        "max_lost": rule.max_lost,
        "iou": rule.iou,
        "alpha": rule.alpha,
        "delta": rule.delta,
        "calibration": rule.calibration,
        "workers": rule.workers,
        "seed": rule.seed,
        "thresholds": (0.03, 0.1, 0.2, 0.3, 0.5),
        "contexts": (0, 16, 48),  # a foreign detector was not trained on chips' edges
    }
    images = SourceConfig(
        uri=str(_list(held, rule.output / "held.csv")),
        storage=config.source.storage,
        max_pixels=config.source.max_pixels,
        depth=config.source.depth,
    )
    tuning = config.model_copy(update={"focus": focus, "source": images})
    outcome = tune(tuning, TuneRule(**asked), show_progress)
    chosen: dict[str, Any] = yaml.safe_load((place / "config.yaml").read_text())
    chosen["source"] = redact_tree(dump_config(config.source))
    path = rule.output / "index.yaml"
    path.write_text(yaml.safe_dump(chosen, sort_keys=False))
    print(*outcome.lines, f"use it      --config {path}", sep="\n")
    return 0 if outcome.kept else 1


def _list(images: Sequence[SourceImage], path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "uri"])
        writer.writerows((one.image_id, str(_absolute(one.uri))) for one in images)
    return path


def _absolute(uri: str) -> str | Path:
    return uri if "://" in uri else Path(uri).absolute()

"""Train a detector on SNIPER chips, or look at the data first.

python jobs/train.py --config configs/train/aerial_tiny.yaml --set data.train=FILE [--set a.b=c]
python jobs/train.py --suggest --set data.train=FILE     which scales, ranges and anchors to use

FILE: COCO json, VOC image set (ROOT/ImageSets/Main/trainval.txt), or Parquet of boxes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from af_pipeline.cli import complain, config_parser
from af_pipeline.config import ConfigError, config_from, load_config
from af_pipeline.train_settings import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train and name the checkpoint; exit code 1 if it fails, 2 for input that cannot be used."""
    parser = config_parser(__doc__, "configs/train", required=False)
    parser.add_argument("--suggest", action="store_true", help="report on data.train, no training")
    arguments = parser.parse_args(argv)
    if not arguments.config and not arguments.suggest:
        parser.error("--config is needed, except with --suggest")
    try:
        if arguments.config:
            config = load_config(TrainConfig, arguments.config, arguments.sets)
        else:
            config = config_from(TrainConfig, {"pyramid": [{"factor": 1}]}, arguments.sets, "--set")
        if arguments.suggest:
            return suggest(config)
    except ConfigError as error:
        return complain(error, 2)
    from af_pipeline.dist.session import ray_session
    from af_pipeline.dist.trainer import TrainError, train

    try:
        with ray_session(None, dashboard=True):
            path = train(config)
    except TrainError as error:
        return complain(error, 1)
    except (ValueError, OSError) as error:
        return complain(error, 2)
    print(f"checkpoint: {path}")
    return 0


def suggest(config: TrainConfig) -> int:
    """Print the report on the training data, with settings to paste."""
    from af_pipeline.report.dataset import suggest_for
    from af_pipeline.training_data import load_training

    try:
        dataset = load_training(config)
        if dataset is None:
            raise ValueError("--suggest needs the data: --set data.train=FILE")
        print(suggest_for(dataset, config.chips.size))
    except ValueError as error:
        return complain(error, 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())

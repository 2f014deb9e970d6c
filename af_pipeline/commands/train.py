"""Train a detector on SNIPER chips, or look at the data first.

python jobs/train.py --config configs/train/aerial_tiny.yaml --set data.train=FILE [--set a.b=c]
python jobs/train.py --suggest --set data.train=FILE     which scales, ranges and anchors to use
python jobs/train.py --check --set data.train=FILE       whether every image can be used

FILE: COCO json, VOC image set (ROOT/ImageSets/Main/trainval.txt), or Parquet of boxes.
Without --config the last two take configs/train/own.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from af_pipeline.commands import complain, config_parser, in_thread
from af_pipeline.config import load_config
from af_pipeline.data.annotations.dataset import AnnotationError
from af_pipeline.settings.train import TrainConfig

OWN = Path(__file__).parents[2] / "configs/train/own.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Train and name the checkpoint; exit code 1 if it fails, 2 for input that cannot be used."""
    parser = config_parser(__doc__, "configs/train", required=False)
    parser.add_argument("--suggest", action="store_true", help="report on data.train, no training")
    parser.add_argument("--check", action="store_true", help="decode every image, no training")
    arguments = parser.parse_args(argv)
    look = arguments.suggest or arguments.check
    if not arguments.config and not look:
        parser.error("--config is needed, except with --suggest and --check")
    try:
        config = load_config(TrainConfig, arguments.config or OWN, arguments.sets)
        if look:
            from af_pipeline.training.data import describe

            print(describe(config, arguments.suggest))
            return 0
    except ValueError as error:
        if isinstance(error, AnnotationError):
            print(error)  # all of it; an error line holds the first few
        return complain(error, 2)
    from af_pipeline.indexing.session import ray_session
    from af_pipeline.training.trainer import TrainError, train

    try:
        with ray_session(None, dashboard=True):
            path = in_thread(lambda: train(config))
    except TrainError as error:
        return complain(error, 1)
    except (ValueError, OSError) as error:
        return complain(error, 2)
    print(f"checkpoint: {path}")
    return 0

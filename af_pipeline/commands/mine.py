"""Extract proposals for negative chip mining (SNIPER §3.2).

python jobs/mine.py --config configs/train/aerial_tiny.yaml --set data.train=FILE --output OUT
    [--checkpoint FILE.safetensors]    without it a short training (mining.steps) comes first

Then train with --set data.proposals=OUT/detections. The same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from af_pipeline.commands import complain, config_parser, in_thread
from af_pipeline.config import ConfigError, load_config
from af_pipeline.settings.train import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Mine; exit code 1 if the training or images fail, 2 for input that cannot be used."""
    parser = config_parser(__doc__, "configs/train")
    parser.add_argument("--output", required=True, metavar="OUT", help="folder for the proposals")
    parser.add_argument("--checkpoint", help="detector that proposes; none: train one")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(TrainConfig, arguments.config, arguments.sets)
    except ConfigError as error:
        return complain(error, 2)
    from af_pipeline.indexing.meter import GraphError
    from af_pipeline.indexing.session import ray_session
    from af_pipeline.output.account import summary
    from af_pipeline.training.mining import mine
    from af_pipeline.training.trainer import TrainError

    try:
        with ray_session(config.mining.ray.address, dashboard=not arguments.checkpoint):
            mined = in_thread(lambda: mine(config, arguments.output, arguments.checkpoint))
    except (TrainError, GraphError) as error:
        return complain(error, 1)
    except (ValueError, OSError) as error:
        return complain(error, 2)
    print(summary(mined.outcome))
    images = mined.outcome.totals.images
    negative = mined.chips["negative"]
    print(f"proposals   {mined.outcome.totals.detections / max(1, images):.0f} an image")
    print(f"chips       {mined.chips['positive']:.0f} positive, {negative:.0f} negative an epoch")
    print(f"use them    --set data.proposals={mined.proposals}")
    if mined.outcome.totals.errors:
        return complain(f"{mined.outcome.totals.errors} images failed; see the errors above", 1)
    return 0

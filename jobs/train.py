"""Train a detector: python jobs/train.py --config configs/train/aerial_tiny.yaml [--set a.b=c]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from af_pipeline.config import ConfigError, load_config
from af_pipeline.settings import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, name the checkpoint; exit code 1 if it fails, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see configs/train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(TrainConfig, arguments.config, arguments.sets)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from af_pipeline.dist.session import ray_session
    from af_pipeline.dist.trainer import TrainError, train

    try:
        with ray_session(None, dashboard=True):
            path = train(config)
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"checkpoint: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Index images into Parquet detections.

python jobs/index.py --config configs/index/aerial.yaml \
    --set source.uri=DIR_OR_COCO_JSON --set output.uri=OUT [--set mode=pyramid]
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from af_pipeline.config import ConfigError, load_config
from af_pipeline.settings import IndexConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job: 0 done, 1 more errors than max_error_rate, 2 input that cannot be used."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file, see configs/index")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(IndexConfig, arguments.config, arguments.sets)
    except ConfigError as error:
        return refused(error)
    from af_pipeline.dist.index import index, summary
    from af_pipeline.dist.session import ray_session

    try:
        with ray_session(config.ray.address):
            outcome = index(config)
    except (ValueError, ConnectionError) as error:  # every kind of input that cannot be used
        return refused(error)
    print(summary(outcome))
    if outcome.error_rate > config.max_error_rate:
        print(
            f"error: {outcome.totals.errors} of {outcome.totals.images} images failed, more than "
            f"max_error_rate={config.max_error_rate:g} allows; see the errors above and in "
            f"{outcome.root}/images",
            file=sys.stderr,
        )
        return 1
    return 0


def refused(error: Exception) -> int:
    """Say in one line why; torch's messages have hundreds."""
    print(f"error: {textwrap.shorten(str(error), 600, placeholder=' ...')}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

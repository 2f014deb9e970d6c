"""Index images into Parquet detections.

python jobs/index.py --config configs/index/aerial.yaml \
    --set source.uri=SOURCE --set output.uri=OUT [--set mode=pyramid] [--dry-run]
"""

from __future__ import annotations

from collections.abc import Sequence

from af_pipeline.commands import complain, config_parser
from af_pipeline.config import ConfigError, load_config
from af_pipeline.settings.index import IndexConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job: 0 done, 1 more errors than max_error_rate, 2 input that cannot be used."""
    parser = config_parser(__doc__, "configs/index")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done and what it would cost"
    )
    arguments = parser.parse_args(argv)
    try:
        config = load_config(IndexConfig, arguments.config, arguments.sets)
    except ConfigError as error:
        return complain(error, 2)
    from af_pipeline.indexing.preflight import check_input

    try:
        check_input(config, arguments.dry_run)
    except ValueError as error:
        return complain(error, 2)
    from af_pipeline.indexing.index import dry_run, index
    from af_pipeline.indexing.meter import GraphError
    from af_pipeline.indexing.session import ray_session
    from af_pipeline.output.account import summary

    try:
        with ray_session(config.ray.address):
            if arguments.dry_run:
                print("\n".join(dry_run(config)))
                return 0
            outcome = index(config)
    except (ValueError, ConnectionError) as error:  # every kind of input that cannot be used
        return complain(error, 2)
    except GraphError as error:
        return complain(error, 1)
    print(summary(outcome))
    if outcome.error_rate > config.max_error_rate:
        return complain(
            f"{outcome.totals.errors} of {outcome.totals.images} images failed, more than "
            f"max_error_rate={config.max_error_rate:g} allows; see the errors above and in "
            f"{outcome.uri}/images",
            1,
        )
    return 0

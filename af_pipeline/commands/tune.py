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
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from af_pipeline.commands import complain, config_parser
from af_pipeline.config import load_config
from af_pipeline.settings.index import IndexConfig
from af_pipeline.tuning.options import TuneRule


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; exit code 1 if nothing keeps to the limits, 2 for input that cannot be used."""
    given = parse_args(argv)
    try:
        config = load_config(IndexConfig, given.pop("config"), given.pop("sets"))
        rule = TuneRule(**given)
        from af_pipeline.tuning.runner import show_progress
        from af_pipeline.tuning.tune import tune

        outcome = tune(config, rule, show_progress)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "".join(map(str, problem["loc"][:1])).replace("_", "-")
        return complain(f"--{option}: {problem['msg']}", 2)
    except (ValueError, OSError) as error:
        return complain(error, 2)
    print(*outcome.lines, sep="\n")
    return 0 if outcome.kept else 1


def parse_args(argv: Sequence[str] | None) -> dict[str, str]:
    """What the command line gives, as text."""
    parser = config_parser(__doc__, "configs/index")
    for name, field in TuneRule.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            required=field.is_required(),
            default=argparse.SUPPRESS,
            help=f"{field.description}{_shown(field.default)}",
        )
    return vars(parser.parse_args(argv))


def _shown(default: Any) -> str:
    """A default as help ends with it; nothing where there is none."""
    values = default if isinstance(default, tuple) else (default,)
    words = [str(one) for one in values if one not in (None, PydanticUndefined)]
    return f" ({','.join(words)})" if words else ""

"""Choose mode, scales and focus settings for your images, and draw the paper's figures.

python jobs/tune.py --config configs/index/aerial.yaml --ground-truth FILE --output OUT
python jobs/tune.py --config ... --set source.uri=PHOTOS --output OUT      without ground truth
python jobs/tune.py ... --alpha 0.1 --delta 0.1     thresholds with a guarantee (docs/TUNING.md)

Looks once at everything in a sample, replays scales and focus settings on what was seen, confirms
the best with the real cascade. OUT/config.yaml is the index config to use, OUT/report/index.html
the report. The same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from af_pipeline.commands import complain, config_parser, option_error, options_of
from af_pipeline.config import load_config
from af_pipeline.settings.index import IndexConfig
from af_pipeline.tuning.options import TuneRule


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; exit code 1 if no guarantee could be given, 2 for input that cannot be used."""
    given = options_of(config_parser(__doc__, "configs/index"), TuneRule, argv)
    try:
        config = load_config(IndexConfig, given.pop("config"), given.pop("sets"))
        rule = TuneRule(**given)
        from af_pipeline.tuning.runner import show_progress
        from af_pipeline.tuning.tune import tune

        outcome = tune(config, rule, show_progress)
    except ValidationError as error:
        return complain(option_error(error), 2)
    except (ValueError, OSError) as error:
        return complain(error, 2)
    print(*outcome.lines, sep="\n")
    return 0 if outcome.kept else 1

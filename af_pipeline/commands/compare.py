"""Compare index runs on the same ground truth: accuracy, pixels, and how sure the difference is.

    python jobs/compare.py --detections A B C --ground-truth val.json

The first run is what the others are compared with. Prints a row a run with AP, AP50, pixels and
false positives per image, and the differences of AP and AP50 to the first run with a 95% interval
(paired bootstrap over images); `--output` writes the same as json. docs/EVALUATION.md explains
the figures. Exit code 0, or 2 with one line on stderr when an input is unusable.
"""

import argparse
from collections.abc import Sequence

from af_pipeline.evaluation.compare import compare_runs
from af_pipeline.evaluation.inputs import INPUT_ERRORS, add_input_arguments, refuse, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare index runs on the same ground truth.")
    parser.add_argument(
        "--detections", required=True, nargs="+", metavar="OUT", help="outputs of two runs or more"
    )
    add_input_arguments(parser)
    parser.add_argument("--resamples", type=int, default=1000, help="of the images (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (0)")
    parser.add_argument("--output", metavar="PATH", help="write the comparison as json")
    args = parser.parse_args(argv)
    try:
        text, report = compare_runs(args)
        print(text)
        if args.output:
            write_json(args.output, report)
    except INPUT_ERRORS as error:
        return refuse("compare", error)
    return 0

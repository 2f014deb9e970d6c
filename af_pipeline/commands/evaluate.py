"""Score the detections of an index run against ground truth: COCO json, VOC, Parquet or YOLO.

    python jobs/evaluate.py --detections OUT --ground-truth val.json

Prints COCO's and VOC's scores, what went wrong and what it costs, false positives and what the
pixels cost; writes OUT/metrics.json and OUT/errors.parquet, one row an error. docs/EVALUATION.md
explains the figures. Exit code 0, or 2 with one line on stderr when an input is unusable.
"""

import argparse
from collections.abc import Sequence

from af_pipeline.evaluation.inputs import (
    INPUT_ERRORS,
    add_input_arguments,
    number,
    open_run,
    read_ground_truth,
    refuse,
    write_json,
    write_parquet,
)
from af_pipeline.evaluation.report import score_run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    parser = argparse.ArgumentParser(description="Score an index run against ground truth.")
    parser.add_argument("--detections", required=True, metavar="OUT", help="output of the run")
    add_input_arguments(parser)
    parser.add_argument("--voc-iou", type=number, default=0.5, help="of VOC's AP (0.5)")
    parser.add_argument(
        "--error-score", type=number, default=0.3, help="explain detections from here up (0.3)"
    )
    what = "default: OUT/metrics.json; errors.parquet is written beside it"
    parser.add_argument("--output", metavar="PATH", help=what)
    args = parser.parse_args(argv)
    target = args.output or f"{args.detections.rstrip('/')}/metrics.json"
    folder, slash, _ = target.rpartition("/")
    try:
        run = open_run(args.detections, args.allow_incomplete)
        text, report, errors = score_run(run, read_ground_truth(args), args)
        print(text)
        write_json(target, report)
        write_parquet(f"{folder}{slash}errors.parquet", errors)
    except INPUT_ERRORS as error:
        return refuse("evaluate", error)
    return 0

"""Write the detections of an index run in another format.

    python jobs/export.py --detections OUT --format csv --output detections.csv
    python jobs/export.py ... --format coco --ground-truth image_info_test-dev2017.json

The modules of af_pipeline.exports say what each format holds. Exit code 0, or 2 with one line on
stderr when an input is unusable.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module

from af_pipeline.evaluation.inputs import INPUT_ERRORS, number, open_run, refuse
from af_pipeline.exports import EXPORTERS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the detections of a run otherwise.")
    parser.add_argument("--detections", required=True, metavar="OUT", help="output of the run")
    parser.add_argument("--format", required=True, choices=sorted(EXPORTERS))
    parser.add_argument("--output", required=True, metavar="FILE", help="path or URI to write")
    parser.add_argument("--ground-truth", metavar="JSON", help="COCO json with the ids (coco)")
    parser.add_argument("--min-score", type=number, default=0.0, help="drop lower scores (0)")
    parser.add_argument("--allow-incomplete", action="store_true", help="export a partial run")
    args = parser.parse_args(argv)
    module, _, name = EXPORTERS[args.format].partition(":")
    try:
        run = open_run(args.detections, args.allow_incomplete)
        print(getattr(import_module(module), name)(run, args.output, args))
    except INPUT_ERRORS as error:
        return refuse("export", error)
    return 0

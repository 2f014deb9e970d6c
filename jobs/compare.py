"""Compare index runs on the same ground truth: accuracy, pixels, and how sure the difference is.

    python jobs/compare.py --detections A B C --ground-truth val.json

The first run is what the others are compared with. Prints a row a run with AP, AP50, pixels and
false positives per image, and the differences of AP and AP50 to the first run with a 95% interval
(paired bootstrap over images); `--output` writes the same as json. docs/EVALUATION.md explains
the figures. Exit code 0, or 2 with one line on stderr when an input is unusable.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from af_pipeline.cli import stoppable
from af_pipeline.evaluation.coco import aligned_table, pixel_summary, run_coco
from af_pipeline.evaluation.compare import LEVEL, Estimate, Standing, compare_matches
from af_pipeline.evaluation.inputs import (
    IMAGE_COLUMNS,
    INPUT_ERRORS,
    add_input_arguments,
    open_run,
    read_ground_truth,
    read_inputs,
    refuse,
    warn,
    write_json,
)
from af_pipeline.evaluation.matches import Matches, matches_of
from af_pipeline.evaluation.voc import score_voc

HEADER = ("run", "AP", "AP50", "px/image", "of first", "FP/image", "AP - first", "AP50 - first")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    args = parse_args(argv)
    try:
        report = compare(args)
        if args.output:
            write_json(args.output, report)
    except INPUT_ERRORS as error:
        return refuse("compare", error)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with code 2 on a wrong one."""
    parser = argparse.ArgumentParser(description="Compare index runs on the same ground truth.")
    parser.add_argument(
        "--detections", required=True, nargs="+", metavar="OUT", help="outputs of two runs or more"
    )
    add_input_arguments(parser)
    parser.add_argument("--resamples", type=int, default=1000, help="of the images (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (0)")
    parser.add_argument("--output", metavar="PATH", help="write the comparison as json")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Print the comparison and return it as written."""
    if len(args.detections) < 2 or len(set(args.detections)) < len(args.detections):
        raise ValueError("--detections takes the outputs of two runs or more, each once")
    if args.seed < 0:
        raise ValueError(f"seed is {args.seed}: it must be at least 0")
    ground_truth = read_ground_truth(args)
    scored = [score_run(uri, ground_truth, args) for uri in args.detections]
    standings = compare_matches([matches for matches, _ in scored], args.resamples, args.seed)
    costs = [cost for _, cost in scored]
    first = costs[0]["mean_pixels_processed"]
    rows = []
    for uri, cost, standing in zip(args.detections, costs, standings, strict=True):
        own = cost["mean_pixels_processed"]
        share = own / first if own is not None and first else None
        rows.append({"run": uri, **cost, "pixels_of_first": share, **asdict(standing)})
    print(aligned_rows(rows, standings))
    print(
        f"\nin brackets: {LEVEL:.0%} of {args.resamples} resamples of "
        f"{len(ground_truth['images'])} images"
    )
    resampling = {"resamples": args.resamples, "seed": args.seed, "level": LEVEL}
    return {"runs": rows, "bootstrap": resampling, "ground_truth": args.ground_truth}


def score_run(
    uri: str, ground_truth: dict[str, Any], args: argparse.Namespace
) -> tuple[Matches, dict[str, Any]]:
    """One run's matches with the ground truth, and what it cost."""
    run = open_run(uri, args.allow_incomplete)
    inputs = read_inputs(run, ground_truth, args.min_score)
    images = run.table("images", IMAGE_COLUMNS)
    missing = sorted(set(inputs.image_ids) - set(images["image_id"].to_pylist()))
    warn(f"{uri}: {len(missing)} ground-truth images were not indexed (objects missed)", missing)
    pixels = pixel_summary(images)
    fp_score = max(args.fp_score, args.min_score)  # below it nothing was read
    false = score_voc(inputs, fp_score=fp_score).false_positives_per_image
    cost = {
        "mean_pixels_processed": pixels["mean_pixels_processed"],
        "images": pixels["images"],
        "errors": pixels["errors"],
        "missing_images": missing,
        "false_positives_per_image": {"score": fp_score, "value": false},
    }
    return matches_of(inputs, run_coco(inputs, args.max_dets)), cost


def aligned_rows(rows: Sequence[dict[str, Any]], standings: Sequence[Standing]) -> str:
    """The table; differences of the first run to itself are left out."""
    table = [list(HEADER)]
    for place, (row, standing) in enumerate(zip(rows, standings, strict=True)):
        scores, differences = standing.scores, standing.differences
        table.append(
            [
                row["run"],
                cell(scores["AP"].value, ".3f"),
                cell(scores["AP50"].value, ".3f"),
                cell(row["mean_pixels_processed"], ",.0f"),
                cell(row["pixels_of_first"], ".3f"),
                cell(row["false_positives_per_image"]["value"], ".2f"),
                span(differences["AP"]) if place else "-",
                span(differences["AP50"]) if place else "-",
            ]
        )
    return aligned_table(table, total=False)


def cell(value: float | None, form: str) -> str:
    """A number of the table; '-' is 'not defined'."""
    return "-" if value is None else format(value, form)


def span(estimate: Estimate) -> str:
    """A difference with its interval."""
    low, high = cell(estimate.low, "+.3f"), cell(estimate.high, "+.3f")
    return f"{cell(estimate.value, '+.3f')} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(stoppable(main))

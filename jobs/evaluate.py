"""Score the detections of an index run against COCO ground truth.

    python jobs/evaluate.py --detections OUT --ground-truth val.json

Prints a table of COCO scores and what the pixels cost, and writes OUT/metrics.json.
Exit code 0, or 2 with one line on stderr when an input is unusable.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import fsspec
import pyarrow.dataset as ds

from af_pipeline.data.sources import read_json
from af_pipeline.metrics import DETECTION_COLUMNS, evaluate_detections, pixel_summary
from af_pipeline.report.rundir import RunDir

IMAGE_COLUMNS = ("image_id", "status", "pixels_processed", "pixels_pyramid")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    args = parse_args(argv)
    try:
        report = evaluate(args)
        write_json(args.output or f"{args.detections.rstrip('/')}/metrics.json", report)
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())  # one line, whatever the library wrote
        print(f"evaluate: {message}", file=sys.stderr)
        return 2
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with code 2 on a wrong one."""
    parser = argparse.ArgumentParser(description="Score an index run against COCO ground truth.")
    parser.add_argument("--detections", required=True, metavar="OUT", help="output of the run")
    parser.add_argument("--ground-truth", required=True, metavar="FILE", help="COCO json")
    parser.add_argument("--max-dets", type=int, default=300, help="per image and class (300)")
    parser.add_argument("--min-score", type=float, default=0.0, help="drop lower scores (0)")
    parser.add_argument("--output", metavar="PATH", help="default: OUT/metrics.json")
    parser.add_argument("--allow-incomplete", action="store_true", help="score a partial run")
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Print the scores and return them as written to metrics.json."""
    run = RunDir.open(args.detections)
    if run.manifest() is None and not args.allow_incomplete:
        raise ValueError(
            f"{run.uri} has no run.json, so the run is not complete: run the same jobs/index.py "
            "command again to finish it, or add --allow-incomplete"
        )
    ground_truth = read_json(args.ground_truth)
    above = ds.field("score") >= args.min_score
    detections = run.table("detections", DETECTION_COLUMNS, where=above)
    images = run.table("images", IMAGE_COLUMNS)
    evaluation = evaluate_detections(ground_truth, detections, args.max_dets)
    listed = set(images["image_id"].to_pylist())
    missing = sorted(i["file_name"] for i in ground_truth["images"] if i["file_name"] not in listed)
    pixels = pixel_summary(images)
    print(evaluation.table(), *map(line_of, pixels.items()), sep="\n")
    warn(f"{len(missing)} ground-truth images were not indexed (objects missed)", missing)
    warn("detected classes without a ground-truth category", list(evaluation.unmatched_labels))
    inputs = {key: getattr(args, key) for key in ("detections", "ground_truth", "min_score")}
    return {**evaluation.to_json(), "pixels": pixels, "missing_images": missing, "inputs": inputs}


def line_of(item: tuple[str, float | int | None]) -> str:
    """One aligned line of the pixel summary."""
    value = "-" if item[1] is None else f"{item[1]:,.3f}".removesuffix(".000")
    return f"{item[0]:<24}{value:>16}"


def warn(what: str, names: Sequence[str]) -> None:
    """Name a few on stderr, if there are any."""
    if names:
        print(f"warning: {what}: {', '.join(map(str, names[:5]))}", file=sys.stderr)


def write_json(uri: str, content: dict[str, Any]) -> None:
    """Write to a local path or any fsspec URI."""
    with fsspec.open(uri, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    sys.exit(main())

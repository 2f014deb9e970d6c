"""Score the detections of an index run against ground truth: COCO json, VOC or Parquet.

    python jobs/evaluate.py --detections OUT --ground-truth val.json
    python jobs/evaluate.py ... --ground-truth image_info_test-dev2017.json --export-coco FILE

Prints COCO's and VOC's scores, what went wrong and what it costs, false positives and what the
pixels cost; writes OUT/metrics.json and OUT/errors.parquet, one row an error. docs/EVALUATION.md
explains the figures. Exit code 0, or 2 with one line on stderr when an input is unusable.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from af_pipeline.cli import stoppable
from af_pipeline.evaluation.coco import Inputs, pixel_summary, run_coco, summarise
from af_pipeline.evaluation.errors import Breakdown, break_down
from af_pipeline.evaluation.inputs import (
    IMAGE_COLUMNS,
    INPUT_ERRORS,
    add_input_arguments,
    number,
    open_run,
    read_detections,
    read_ground_truth,
    read_inputs,
    refuse,
    warn,
    where_looked,
    write_json,
    write_parquet,
)
from af_pipeline.evaluation.matches import Matches, matches_of
from af_pipeline.evaluation.tables import error_rows, errors_json, errors_text
from af_pipeline.evaluation.voc import score_voc
from af_pipeline.exports.coco import coco_results, inputs_without_truth
from af_pipeline.output.folder import OutputFolder

INPUTS = ("detections", "ground_truth", "min_score")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    args = parse_args(argv)
    target = args.output or f"{args.detections.rstrip('/')}/metrics.json"
    try:
        run = open_run(args.detections, args.allow_incomplete)
        truth = read_ground_truth(args)
        if args.export_coco and not truth.get("annotations"):
            export_only(run, truth, args)
            return 0
        report, errors, found = evaluate(run, truth, args)
        write_json(target, report)
        write_parquet(beside(target, "errors.parquet"), errors)
        if args.export_coco:
            write_json(args.export_coco, found, indent=None)
    except INPUT_ERRORS as error:
        return refuse("evaluate", error)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with code 2 on a wrong one."""
    parser = argparse.ArgumentParser(description="Score an index run against ground truth.")
    parser.add_argument("--detections", required=True, metavar="OUT", help="output of the run")
    add_input_arguments(parser)
    parser.add_argument("--voc-iou", type=number, default=0.5, help="of VOC's AP (0.5)")
    parser.add_argument(
        "--error-score", type=number, default=0.3, help="explain detections from here up (0.3)"
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="default: OUT/metrics.json; errors.parquet is written beside it",
    )
    parser.add_argument(
        "--export-coco",
        metavar="FILE",
        help="write the detections as COCO's server takes them; of a --ground-truth without "
        "annotations, as image_info_test-dev2017.json, only this",
    )
    return parser.parse_args(argv)


def export_only(run: OutputFolder, info: dict[str, Any], args: argparse.Namespace) -> None:
    """Write the COCO result json of a test set, whose json has no annotations to score against."""
    inputs, others = inputs_without_truth(info, read_detections(run, args.min_score))
    warn(f"{len(others)} images that the json does not list were left out", others)
    warn("detected classes without a category were left out", list(inputs.unmatched_labels))
    found = coco_results(inputs)
    write_json(args.export_coco, found, indent=None)
    images = len({entry["image_id"] for entry in found})
    print(
        f"{len(found)} detections of {images} images written to {args.export_coco}; no scores: "
        f"{args.ground_truth} has no annotations"
    )


def evaluate(
    run: OutputFolder, truth: dict[str, Any], args: argparse.Namespace
) -> tuple[dict[str, Any], pa.Table, list[dict[str, Any]]]:
    """Print the scores; return them as written, the errors, and the detections for export."""
    inputs = read_inputs(run, truth, args.min_score)
    images = run.table("images", IMAGE_COLUMNS)
    coco_eval = run_coco(inputs, args.max_dets)
    coco = summarise(inputs, coco_eval)
    fp_score = max(args.fp_score, args.min_score)  # below it nothing was read
    voc = score_voc(inputs, args.voc_iou, fp_score)
    missing = not_indexed(inputs.image_ids, images)
    pixels = pixel_summary(images)
    false = {"score": fp_score, "value": voc.false_positives_per_image}
    print(coco.table(), voc.table(), sep="\n\n", end="\n\n")
    errors, unknown = explain(run, inputs, matches_of(inputs, coco_eval), images, args)
    print(errors_text(errors), end="\n\n")
    print(f"false positives per image at score >= {fp_score:g}: {false['value']:.3f}")
    print(*map(line_of, pixels.items()), sep="\n")
    warn(f"{len(missing)} ground-truth images were not indexed (objects missed)", missing)
    warn("detected classes without a ground-truth category", list(coco.unmatched_labels))
    report = {
        **coco.to_json(),
        "voc": voc.to_json(),
        "errors": {**errors_json(errors), "chips_unknown": unknown},
        "false_positives_per_image": false,
        "pixels": pixels,
        "missing_images": missing,
        "inputs": {key: getattr(args, key) for key in INPUTS},
    }
    return report, error_rows(errors), coco_results(inputs) if args.export_coco else []


def explain(
    run: OutputFolder, inputs: Inputs, matches: Matches, images: pa.Table, args: argparse.Namespace
) -> tuple[Breakdown, str | None]:
    """The error breakdown, and why it does not know the run's chips if it does not."""
    looked = where_looked(run)
    unknown = looked if isinstance(looked, str) else None
    if unknown:
        warn("why objects were missed is not told apart", [unknown])
    fine = set(images.filter(pc.equal(images["status"], "ok"))["image_id"].to_pylist())
    score = max(args.error_score, args.min_score)
    chips = None if isinstance(looked, str) else looked
    return break_down(inputs, matches, fine, chips, score), unknown


def not_indexed(image_ids: Collection[str], images: pa.Table) -> list[str]:
    """Ground-truth images that the run did not list, sorted."""
    return sorted(set(image_ids) - set(images["image_id"].to_pylist()))


def beside(uri: str, name: str) -> str:
    """A file in the folder of another, local or remote."""
    folder, slash, _ = uri.rpartition("/")
    return f"{folder}{slash}{name}"


def line_of(item: tuple[str, float | int | None]) -> str:
    """One aligned line of the pixel summary."""
    value = "-" if item[1] is None else f"{item[1]:,.3f}".removesuffix(".000")
    return f"{item[0]:<24}{value:>16}"


if __name__ == "__main__":
    sys.exit(stoppable(main))

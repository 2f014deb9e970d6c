"""Score the detections of an index run against ground truth: COCO json, VOC or Parquet.

    python jobs/evaluate.py --detections OUT --ground-truth val.json

Prints COCO's and VOC's scores, false positives and what the pixels cost; writes OUT/metrics.json.
Exit code 0, or 2 with one line on stderr when an input is unusable.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import fsspec
import pyarrow.dataset as ds

from af_pipeline.data.load import load_annotations, to_coco
from af_pipeline.data.sources import read_json
from af_pipeline.metrics import DETECTION_COLUMNS, evaluate_detections, pixel_summary
from af_pipeline.report.rundir import RunDir
from af_pipeline.voc_ap import evaluate_voc

IMAGE_COLUMNS = ("image_id", "status", "pixels_processed", "pixels_pyramid")
INPUTS = ("detections", "ground_truth", "min_score")


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
    parser = argparse.ArgumentParser(description="Score an index run against ground truth.")
    parser.add_argument("--detections", required=True, metavar="OUT", help="output of the run")
    parser.add_argument(
        "--ground-truth",
        required=True,
        metavar="FILE",
        help="COCO json, VOC image set (ROOT/ImageSets/Main/test.txt), or Parquet file or folder",
    )
    parser.add_argument("--images", metavar="DIR", help="image folder of VOC or Parquet")
    parser.add_argument(
        "--on-broken",
        choices=("fail", "drop"),
        default="fail",
        help="broken boxes of VOC or Parquet: refuse the file (fail), or leave them out",
    )
    parser.add_argument("--max-dets", type=int, default=300, help="per image and class (300)")
    parser.add_argument("--min-score", type=float, default=0.0, help="drop lower scores (0)")
    parser.add_argument("--voc-iou", type=float, default=0.5, help="of VOC's AP (0.5)")
    parser.add_argument(
        "--fp-score", type=float, default=0.3, help="count false positives from here up (0.3)"
    )
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
    ground_truth = read_ground_truth(args)
    above = ds.field("score") >= args.min_score
    detections = run.table("detections", DETECTION_COLUMNS, where=above)
    images = run.table("images", IMAGE_COLUMNS)
    coco = evaluate_detections(ground_truth, detections, args.max_dets)
    fp_score = max(args.fp_score, args.min_score)  # below it nothing was read
    voc = evaluate_voc(ground_truth, detections, args.voc_iou, fp_score)
    missing = not_indexed(ground_truth, images["image_id"].to_pylist())
    pixels = pixel_summary(images)
    false = {"score": fp_score, "value": voc.false_positives_per_image}
    print(coco.table(), voc.table(), sep="\n\n", end="\n\n")
    print(f"false positives per image at score >= {fp_score:g}: {false['value']:.3f}")
    print(*map(line_of, pixels.items()), sep="\n")
    warn(f"{len(missing)} ground-truth images were not indexed (objects missed)", missing)
    warn("detected classes without a ground-truth category", list(coco.unmatched_labels))
    return {
        **coco.to_json(),
        "voc": voc.to_json(),
        "false_positives_per_image": false,
        "pixels": pixels,
        "missing_images": missing,
        "inputs": {key: getattr(args, key) for key in INPUTS},
    }


def read_ground_truth(args: argparse.Namespace) -> dict[str, Any]:
    """The content of a COCO json, or what other annotations are as one."""
    if args.ground_truth.lower().endswith(".json"):
        return read_json(args.ground_truth)  # as it is: areas may be those of masks
    dataset = load_annotations([args.ground_truth], args.images, on_broken=args.on_broken)
    warn(f"{len(dataset.dropped)} broken ground-truth boxes were left out", dataset.dropped)
    return to_coco(dataset)


def not_indexed(ground_truth: Mapping[str, Any], listed: Iterable[str]) -> list[str]:
    """Ground-truth images that the run did not list, sorted."""
    return sorted({image["file_name"] for image in ground_truth["images"]} - set(listed))


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

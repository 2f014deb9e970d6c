"""One run scored: COCO's and VOC's figures, its errors, false positives and pixels."""

from __future__ import annotations

import argparse
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.evaluation.coco import pixel_summary, run_coco, summarise
from af_pipeline.evaluation.errors import break_down
from af_pipeline.evaluation.inputs import (
    IMAGE_COLUMNS,
    not_indexed,
    read_inputs,
    warn,
    where_looked,
)
from af_pipeline.evaluation.matches import matches_of
from af_pipeline.evaluation.tables import error_rows, errors_json, errors_text
from af_pipeline.evaluation.voc import score_voc
from af_pipeline.output.read import RunDir

INPUTS = ("detections", "ground_truth", "min_score")


def score_run(
    run: RunDir, truth: AnnotatedDataset, args: argparse.Namespace
) -> tuple[str, dict[str, Any], pa.Table]:
    """What to print, what metrics.json holds, and one row an error.

    ``args``: of jobs/evaluate.py. Warnings go to stderr. Raises ValueError.
    """
    inputs = read_inputs(run, truth, args)
    images = run.table("images", IMAGE_COLUMNS)
    coco_eval = run_coco(inputs, args.max_dets)
    coco, pixels = summarise(inputs, coco_eval), pixel_summary(images)
    fp_score = max(args.fp_score, args.min_score)  # below it nothing was read
    voc = score_voc(inputs, args.voc_iou, fp_score)
    looked = where_looked(run)
    unknown, chips = (looked, None) if isinstance(looked, str) else (None, looked)
    if unknown:
        warn("why objects were missed is not told apart", [unknown])
    fine = set(images.filter(pc.equal(images["status"], "ok"))["image_id"].to_pylist())
    score = max(args.error_score, args.min_score)
    errors = break_down(inputs, matches_of(inputs, coco_eval), fine, chips, score)
    missing = not_indexed(truth, images)
    warn("detected classes without a ground-truth category", list(coco.unmatched_labels))
    false = {"score": fp_score, "value": voc.false_positives_per_image}
    costs = [
        f"false positives per image at score >= {fp_score:g}: {false['value']:.3f}",
        *(f"{name:<24}{_cell(value):>16}" for name, value in pixels.items()),
    ]
    text = "\n\n".join([coco.table(), voc.table(), errors_text(errors), "\n".join(costs)])
    report = {
        **coco.to_json(),
        "voc": voc.to_json(),
        "errors": {**errors_json(errors), "chips_unknown": unknown},
        "false_positives_per_image": false,
        "pixels": pixels,
        "missing_images": missing,
        "inputs": {key: getattr(args, key) for key in INPUTS},
    }
    return text, report, error_rows(errors)


def _cell(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,.3f}".removesuffix(".000")

"""Pyramid against AutoFocus in one process: AP, pixels, wall time, focus recall.

python benchmarks/cascade.py --config configs/index/aerial.yaml --ground-truth VAL.json
    [--set KEY=VALUE ...] [--repeats 3] [--output FILE.json]

Images go in blocks of ray.rows_per_block, as an actor gets them. The modes take turns block by
block, so that a change of the machine's speed meets all alike. In the first repeat the detector
meets shapes it has not seen, for which a CPU makes kernels.
Times are of the cascade itself (resize, forward, chips, stacking), without decoding and Ray.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from af_pipeline.config import load_config
from af_pipeline.core.boxes import intersection_area
from af_pipeline.core.cascade import run_block
from af_pipeline.core.focus import FocusRule, focus_labels
from af_pipeline.core.lanes import Lane
from af_pipeline.core.plan import Plan
from af_pipeline.core.resize import resize
from af_pipeline.core.scales import scaled_size
from af_pipeline.core.schema import ImageRow, rows_to_table
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.evaluation.coco import evaluate_detections
from af_pipeline.models.info import load_info
from af_pipeline.models.open import open_detector
from af_pipeline.models.predictor import TorchPredictor
from af_pipeline.output.tables import detections_table
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.sniper.images import read_image

MODES = ("whole", "pyramid", "autofocus")


def chip_recall(rows: dict[str, ImageRow], truth: dict[str, AnnotatedImage], plan: Plan) -> list:
    """Per fine scale: share of its ground-truth boxes that lie whole in a chip, and chip area."""
    out = []
    for scale in range(1, len(plan.scales)):
        inside = total = area = image_area = chips = 0
        for image_id, row in rows.items():
            image = truth[image_id]
            image_area += image.width * image.height
            boxes = image.boxes[plan.scales[scale].valid(image.boxes) & ~image.crowd]
            rects = np.array([c.box for c in row.chips if c.scale == scale], np.float64)
            chips += len(rects)
            total += len(boxes)
            if len(rects):
                area += union_area(rects, image.height, image.width)
                if len(boxes):
                    own = (boxes[:, 2:] - boxes[:, :2]).prod(1)
                    share = intersection_area(boxes.astype(np.float64), rects) / own[:, None]
                    inside += int((share > 0.999).any(1).sum())
        out.append(
            {
                "scale": scale,
                "recall": inside / max(1, total),
                "boxes": total,
                "area": area / image_area,
                "chips_per_image": chips / len(rows),
            }
        )
    return out


def pixel_recall(
    images: list[tuple[np.ndarray, AnnotatedImage]],
    plan: Plan,
    predict: TorchPredictor,
    rule: FocusRule,
) -> list[dict[str, float]]:
    """Per coarse scale: recall of ground-truth FocusPixels at the plan's threshold, and area.

    Whole images, so that scale 1 is measured by itself and not behind scale 0's misses.
    """
    out = []
    for scale in range(len(plan.scales) - 1):
        threshold = plan.rules[scale].threshold
        found = wanted = above_cells = cells = 0
        for image, annotated in images:
            height, width = image.shape[:2]
            factor = plan.scales[scale].factor_for(height, width)
            rows, columns = scaled_size(height, width, factor)
            crop = resize(image, rows, columns)
            focus = predict([crop], Lane(rows, columns))[0].focus
            labels = focus_labels(annotated.boxes * factor, rows, columns, rule, annotated.crowd)
            above = focus[: labels.shape[0], : labels.shape[1]] >= threshold
            found += int((above & (labels == 1)).sum())
            wanted += int((labels == 1).sum())
            above_cells += int(above.sum())
            cells += labels.size
        out.append(
            {
                "scale": scale,
                "threshold": threshold,
                "recall": found / max(1, wanted),
                "area": above_cells / cells,
                "truth_area": wanted / cells,
            }
        )
    return out


def union_area(rects: np.ndarray, height: int, width: int) -> int:
    mask = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in rects.astype(int):
        mask[y0:y1, x0:x1] = True
    return int(mask.sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/index/aerial.yaml")
    parser.add_argument("--ground-truth", required=True)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="forwards at once; 0: one a core")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    config = load_config(IndexConfig, arguments.config, arguments.sets)
    modes = arguments.modes.split(",")
    plans = {mode: build_plan(config.model_copy(update={"mode": mode})) for mode in modes}
    predict = open_detector(config).predictor(arguments.threads)
    dataset = load_annotations([arguments.ground_truth], config.source.images)
    names = load_info(config.checkpoint).class_names
    seconds = {mode: [0.0] * arguments.repeats for mode in modes}
    rows: dict[str, dict[str, ImageRow]] = {mode: {} for mode in modes}
    images = [(read_image(a.uri), a) for a in dataset.images]
    size = config.ray.rows_per_block
    for block in (images[i : i + size] for i in range(0, len(images), size)):
        for sight in range(arguments.repeats):
            for mode in modes:
                began = time.perf_counter()
                made = [ImageRow(annotated.image_id, annotated.uri) for _, annotated in block]
                run_block(made, [image for image, _ in block], plans[mode], predict)
                seconds[mode][sight] += (time.perf_counter() - began) / len(images)
                rows[mode] |= {row.image_id: row for row in made}
    results = {}
    scored = load_annotations([arguments.ground_truth], scoring=True)
    truth = {image.image_id: image for image in dataset.images}
    for mode in modes:
        results[mode] = report(mode, rows[mode], seconds[mode], names, scored, config)
        if mode == "autofocus":
            results[mode]["focus"] = chip_recall(rows[mode], truth, plans[mode])
            rule = FocusRule.model_validate(
                load_info(config.checkpoint).training["config"]["focus_labels"]
            )
            results[mode]["focus_pixels"] = pixel_recall(images, plans[mode], predict, rule)
            for key in ("focus_pixels", "focus"):
                for entry in results[mode][key]:
                    print(f"   {key}", {k: round(v, 4) for k, v in entry.items()})
    if {"pyramid", "autofocus"} <= set(modes):
        results["ratios"] = ratios(results, seconds)
        for sight, ratio in enumerate(results["ratios"], 1):
            print(
                f"pyramid / autofocus, sight {sight}:", {k: round(v, 3) for k, v in ratio.items()}
            )
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n")
    return 0


def ratios(results: dict[str, Any], seconds: dict[str, list[float]]) -> list[dict[str, float]]:
    """Pixels and wall time of pyramid over autofocus, for each repeat."""
    pixels = results["pyramid"]["pixels"] / results["autofocus"]["pixels"]
    nominal = results["pyramid"]["pyramid_pixels"] / results["autofocus"]["pixels"]
    return [
        {
            "pixels": pixels,
            "pixels_nominal": nominal,
            "wall": whole / cut,
            "wall_over_pixels": whole / cut / pixels,
        }
        for whole, cut in zip(seconds["pyramid"], seconds["autofocus"], strict=True)
    ]


def report(
    mode: str,
    rows: dict[str, ImageRow],
    seconds: list[float],
    names: tuple[str, ...],
    truth: AnnotatedDataset,
    config: IndexConfig,
) -> dict[str, Any]:
    table: pa.Table = detections_table(rows_to_table(list(rows.values()), stored=True), names)
    evaluation = evaluate_detections(truth, table)
    content = evaluation.to_json()
    ledgers = [row.ledger for row in rows.values()]
    pixels = sum(sum(ledger.pixels) for ledger in ledgers) / len(rows)
    result = {
        "mode": mode,
        "evaluation": content,
        "pixels": pixels,
        "padded": sum(sum(ledger.padded) for ledger in ledgers) / len(rows),
        "pyramid_pixels": sum(ledger.pixels_pyramid for ledger in ledgers) / len(rows),
        "seconds_per_image": seconds,
        "dropped_border": sum(ledger.dropped_border for ledger in ledgers),
        "config": config.model_dump(mode="json"),
    }
    overall, car = content["overall"], content["per_class"].get("car", {})
    print(
        f"{mode:10s} AP {_n(overall['AP'])} AP50 {_n(overall['AP50'])}  car AP {_n(car.get('AP'))} "
        f"AP50 {_n(car.get('AP50'))}  {pixels / 1e6:6.3f} MP/image  "
        f"{', '.join(f'{one:.3f}' for one in seconds)} s/image",
        flush=True,
    )
    return result


def _n(value: float | None) -> str:
    return "  -  " if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())

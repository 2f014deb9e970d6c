"""Detectors of other makers: whole, SAHI, tiles, pyramid and AutoFocus with the same weights.

python -m benchmarks.any_detector --data ../shared/data --output runs/any [--steps 600]
    [--images 16] [--only "receipts;scenes, YOLOX"] [--mine FILE.pth]

Each case distils a focus network from photographs without labels (jobs/distill.py), then runs every
method over other photographs, image by image in turns, in one process. `kept`: share of the
pyramid's confident detections (score 0.5, IoU 0.5) found again; `MP`: network px an image without
padding; seconds of CPU time an image, all threads, decoding apart. SAHI (extra `bench`) calls the
same detector with slices of two sizes and the whole image, merged by its default and by NMS.

`scenes` are composites: two photographs of COCO, reduced to 300 to 640 px, on a satellite
photograph of 6.5 MP (blurred: there are aircraft on it), since no real set of large images with
objects of COCO and labels is at hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from af_pipeline.config import load_config
from af_pipeline.core.cascade import run_cascade
from af_pipeline.core.resize import resize
from af_pipeline.core.schema import Detections, ImageRow, rows_to_table
from af_pipeline.core.text_table import align
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.evaluation.coco import evaluate_detections
from af_pipeline.models.foreign import ForeignPredictor
from af_pipeline.models.open import open_detector
from af_pipeline.output.tables import detections_table
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan, fit_lanes
from af_pipeline.sniper.images import read_image
from af_pipeline.tuning.search import Reference, true_positives
from benchmarks.foreign_cases import Case, cases


def distilled(case: Case, folder: Path, steps: int) -> tuple[Path, float]:
    """The config that jobs/distill.py chooses, and its seconds."""
    path, began = folder / "index.yaml", time.perf_counter()
    if not path.exists():
        sets = (*case.sets, f"source.uri={case.learn}", f"source.images={case.images}")
        command = [sys.executable, "jobs/distill.py", "--config", case.config]
        command += [word for one in sets for word in ("--set", one)]
        command += ["--output", str(folder), "--steps", str(steps)]
        command += ["--sample", str(case.sample), "--held", str(case.held)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not path.exists():
            sys.exit(done.stdout + done.stderr)
        (folder / "log.txt").write_text(done.stdout)
    return path, time.perf_counter() - began


COLUMNS = ("method", "AP", "AP50", "kept", "MP", "CPU s", "s")
Method = Callable[[ImageRow, np.ndarray], None]


def cascade(config: IndexConfig) -> Method:
    """A mode of ours."""
    opened = open_detector(config)
    config = fit_lanes(config, opened.shape)
    predict, plan = opened.predictor(), build_plan(config)
    return lambda row, image: run_cascade(row, image, plan, predict)


def sahi(config: IndexConfig, slice_side: int, side: int, merge: str) -> Method:
    """SAHI's sliced prediction of the same detector, as its adapters do it: every slice, and the
    whole image, resized to ``side``. ``merge``: its GREEDYNMM (the default) or NMS."""
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list

    predict = open_detector(config).predictor()
    assert isinstance(predict, ForeignPredictor)
    names, least = predict.class_names, config.stack.min_score
    pixels = [0]

    class Ours(DetectionModel):
        def load_model(self) -> None:
            self.model, self.category_mapping = predict, dict(enumerate(names))

        def perform_inference(self, image: np.ndarray) -> None:
            factor = side / max(image.shape[:2])
            height, width = (max(1, round(one * factor)) for one in image.shape[:2])
            small = resize(np.ascontiguousarray(image), height, width)
            pixels[0] += height * width
            (answer,) = predict([small], None)
            self._original_predictions = (answer, factor, image.shape[:2])

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            answer, factor, size = self._original_predictions
            shift = fix_shift_amount_list(shift_amount_list or [0, 0])[0]
            full = fix_full_shape_list(full_shape_list or list(size))[0]
            boxes = np.clip(answer.boxes / factor, 0, [*size[::-1]] * 2)
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        bbox=box.tolist(),
                        category_id=int(label),
                        score=float(score),
                        category_name=names[label],
                        shift_amount=shift,
                        full_shape=full,
                    )
                    for box, score, label in zip(boxes, answer.scores, answer.labels, strict=True)
                    if score >= least and box[2] - box[0] >= 1 and box[3] - box[1] >= 1
                ]
            ]

    model = Ours(confidence_threshold=least, device="cpu")

    def run(row: ImageRow, image: np.ndarray) -> None:
        pixels[0] = 0
        result = get_sliced_prediction(
            image,
            model,
            slice_height=slice_side,
            slice_width=slice_side,
            overlap_height_ratio=0.2,
            overlap_width_ratio=0.2,
            postprocess_type=merge,
            postprocess_match_metric="IOS" if merge == "GREEDYNMM" else "IOU",
            verbose=0,
        )
        found = result.object_prediction_list
        row.height, row.width = image.shape[:2]
        row.detections = Detections(
            np.array([one.bbox.to_xyxy() for one in found], np.float32).reshape(-1, 4),
            np.array([one.score.value for one in found], np.float32),
            np.array([one.category.id for one in found], np.int32),
            np.zeros(len(found), np.int8),
        )
        row.ledger.pixels = [pixels[0]]

    return run


def measure(
    methods: dict[str, Method],
    dataset: AnnotatedDataset,
    names: Sequence[str],
    right: bool = False,
) -> list[dict[str, Any]]:
    """Each method over all images, in turns; ``right``: what is kept counts only where it is right,
    as in jobs/tune.py with ground truth."""
    rows: dict[str, list[ImageRow]] = {name: [] for name in methods}
    cpu, wall = dict.fromkeys(methods, 0.0), dict.fromkeys(methods, 0.0)
    for image in dataset.images:
        pixels = read_image(image.uri)
        for name, method in methods.items():
            row = ImageRow(image.image_id, image.uri)
            began = time.process_time(), time.perf_counter()
            method(row, pixels)
            cpu[name] += time.process_time() - began[0]
            wall[name] += time.perf_counter() - began[1]
            row.chips = []
            rows[name].append(row)
    count = len(dataset.images)
    full = {row.image_id: row.detections for row in rows["pyramid"]}
    if right:
        full = {
            one.image_id: true_positives(full[one.image_id], names, one, dataset.class_names)
            for one in dataset.images
        }
    reference = Reference(full, tuple(names), None)
    results = []
    for name, own in rows.items():
        table = detections_table(rows_to_table(own, stored=True), names)
        found = evaluate_detections(dataset, table)
        scores = found.overall
        results.append(
            {
                "method": name,
                **{size: _percent(scores[size]) for size in ("AP", "AP50", "APS", "APM", "APL")},
                "kept": reference.score(own)["recall"],
                "MP": sum(sum(row.ledger.pixels) for row in own) / count / 1e6,
                "CPU s": cpu[name] / count,
                "s": wall[name] / count,
                "classes": {one: _percent(its["AP"]) for one, its in found.per_class.items()},
            }
        )
    return results


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def focused_methods(name: str, case: Case, out: Path, steps: int) -> dict[str, Method]:
    """Distil a network, and look with it after and before the detector."""
    chosen, seconds = distilled(case, out / name.replace(", ", "_").lower(), steps)
    print(f"{name}: distilled in {seconds:.0f} s", flush=True)
    sets = [one for one in case.sets if one.startswith("detector.path")]
    focused = load_config(IndexConfig, chosen, sets)
    found = {}
    for ahead, text in ((False, "autofocus, distilled"), (True, "the same, asked first")):
        network = focused.focus.network.model_copy(update={"first": ahead})
        focus = focused.focus.model_copy(update={"network": network})
        found[text] = cascade(focused.model_copy(update={"focus": focus}))
    return found


def run_case(name: str, case: Case, out: Path, steps: int, count: int) -> list[dict[str, Any]]:
    """One case: distil, then measure all methods on the first ``count`` photographs."""
    config = load_config(IndexConfig, case.config, case.sets)
    methods = {
        mode: cascade(config.model_copy(update={"mode": mode}))
        for mode in ("pyramid", "whole", "tiles")
    }
    methods["autofocus, weak"] = cascade(config)
    if steps:
        methods |= focused_methods(name, case, out, steps)
    try:
        methods |= {
            f"SAHI {size} px, {merge}": sahi(config, size, case.side, merge)
            for size in (case.side, case.side // 2)
            for merge in ("GREEDYNMM", "NMS")
        }
    except ImportError as error:
        print(f"without SAHI: {error}")
    dataset = first(load_annotations([str(case.test)], str(case.images)), count)
    names = open_detector(config).class_names
    known = set(dataset.class_names)
    assert known <= set(names), f"the detector does not know {known - set(names)}"
    measure(methods, first(dataset, 1), names)  # warms up
    return measure(methods, dataset, names)


def cell(value: str | float | None) -> str:
    """A value of a table."""
    if isinstance(value, str):
        return value
    return "-" if value is None else f"{value:.3f}"


def first(dataset: AnnotatedDataset, count: int) -> AnnotatedDataset:
    """The first images only."""
    return dataset.with_images(dataset.images[:count])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/any"))
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int, default=600, help="0: no distillation")
    parser.add_argument("--images", type=int, default=1000, help="photographs to score on, at most")
    parser.add_argument("--mine", type=Path, help="what examples/bring_your_own/train.py wrote")
    given = parser.parse_args()
    wanted = [one.strip() for one in given.only.split(";") if one.strip()]
    report: dict[str, Any] = {}
    for name, case in cases(given.data, given.output, given.mine).items():
        if wanted and name not in wanted:
            continue
        report[name] = run_case(name, case, given.output, given.steps, given.images)
        lines = [[name, *COLUMNS]]
        lines += [["", *(cell(one[key]) for key in COLUMNS)] for one in report[name]]
        print("\n".join(align(lines)), flush=True)
        (given.output / f"{name.replace(', ', '_').lower()}.json").write_text(
            json.dumps(report[name], indent=2)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

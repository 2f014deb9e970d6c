"""From what a tuning found to the records of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.annotations import AnnotatedImage
from af_pipeline.focus import FocusRule
from af_pipeline.oracle import focus_recall, ideal_row, speed_up_bound, spent, true_maps
from af_pipeline.plans import Plan
from af_pipeline.replay import Record
from af_pipeline.report.tuning import TuneReport
from af_pipeline.tuning import Reference, frontier

Maps = Sequence[tuple[NDArray[np.float32], ...]]


def build_report(
    records: Sequence[Record],
    truth: Sequence[AnnotatedImage | None],
    focus_rule: FocusRule,
    reference: Reference,
    plans: Mapping[str, Plan],
    points: Sequence[Mapping[str, Any]],
    trials: Sequence[Mapping[str, Any]],
) -> TuneReport:
    """Figures 5 to 7 and Table 1, without notes.

    ``truth``: ground truth of each record, None without any (then there is no Figure 5); ``plans``:
    AutoFocus as it was configured and as it was chosen, by name; ``points``: what was run for
    real; ``trials``: what was replayed.
    """
    plan = next(iter(plans.values()))
    confident = [_confident(record, reference, plan) for record in records]
    recall = focus_recall(records, confident, plan, "confident detections")
    bound: list[dict[str, Any]] = []
    shares: list[dict[str, Any]] = []
    images = [image for image in truth if image is not None]
    if len(images) == len(records):
        objects = [_objects(image, plan) for image in images]
        recall = focus_recall(records, objects, plan, "ground truth") + recall
        maps = [
            true_maps(image.boxes, image.crowd, record.height, record.width, plan, focus_rule)
            for image, record in zip(images, records, strict=True)
        ]
        pyramid = next(one["pixels"] for one in points if one["method"] == "pyramid")
        bound = speed_up_bound(records, maps, plan, pyramid)
        best = max(one["speed_up"] for one in bound)
        shares = [
            _share(name, own, records, maps, points, pyramid, best) for name, own in plans.items()
        ]
    replayed = [
        {**one, "method": "autofocus", "setting": one["key"], "seconds": None, "confirmed": False,
         "chosen": False}
        for one in frontier(trials)
    ]  # fmt: skip
    drawn = [{k: v for k, v in one.items() if k not in ("rules", "key")} for one in replayed]
    real = [{k: v for k, v in one.items() if k != "rules"} for one in points]
    return TuneReport([], recall, [*real, *drawn], bound, shares, shares)


def _confident(record: Record, reference: Reference, plan: Plan) -> list[NDArray]:
    """Boxes of the confident detections that each finer scale made."""
    found = reference.confident(record.image_id)
    return [found.boxes[found.scales == step + 1] for step in range(len(plan.rules))]


def _objects(image: AnnotatedImage, plan: Plan) -> list[NDArray]:
    """Boxes of the objects that each finer scale answers for."""
    boxes = image.boxes[~image.crowd]
    return [boxes[scale.valid(boxes)] for scale in plan.scales[1:]]


def _share(
    name: str,
    plan: Plan,
    records: Sequence[Record],
    maps: Maps,
    points: Sequence[Mapping[str, Any]],
    pyramid: float,
    best: float,
) -> dict[str, Any]:
    """How much of what faultless focus maps allow under ``plan`` its real run ``name`` reaches."""
    own = next(one["pixels"] for one in points if one["setting"] == name)
    ideal = spent([ideal_row(*pair, plan) for pair in zip(records, maps, strict=True)])
    return {
        "name": name,
        "speed_up": pyramid / own,
        "ideal": pyramid / ideal,
        "share": ideal / own,
        "saving": (pyramid - own) / (pyramid - ideal),
        "share_of_best": pyramid / own / best,
    }

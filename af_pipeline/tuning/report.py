"""From what a tuning found to the records of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from af_pipeline.core.focus import FocusRule
from af_pipeline.core.plan import Plan
from af_pipeline.data.annotations.dataset import AnnotatedImage
from af_pipeline.reporting.charts import draw_accuracy_cost, draw_focus_recall, draw_speedup_bound
from af_pipeline.reporting.figures_page import Section, accuracy_table, figures_page, html_table
from af_pipeline.reporting.page import write_page
from af_pipeline.tuning.oracle import focus_recall, ideal_row, speed_up_bound, spent, true_maps
from af_pipeline.tuning.replay import Record
from af_pipeline.tuning.search import Reference, frontier

Records = Sequence[Mapping[str, Any]]

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


@dataclass(frozen=True)
class TuneReport:
    """Records as `af_pipeline.reporting.charts` takes them.

    ``bound``: Figure 5, ``real``: speed-ups of the real cascade to draw there; ``recall``: Figure
    6; ``points``: Figure 7, real ones are also the rows of Table 1; ``shares``: how much of the
    oracle's saving is reached; ``notes``: sentences about the sample, the choice and the guarantee.
    """

    notes: Sequence[str]
    recall: Records
    points: Records
    bound: Records = ()
    real: Records = ()
    shares: Records = ()


def write_report(report: TuneReport, folder: Path) -> Path:
    """Write tables, pictures and index.html into ``folder``; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("bound", "recall", "points", "shares"):
        records = getattr(report, name)
        if records:
            pq.write_table(
                pa.Table.from_pylist([dict(one) for one in records]), folder / f"{name}.parquet"
            )
    draw_focus_recall(report.recall, folder / "recall.png")
    for cost in ("pixels", "seconds"):
        points = [one for one in report.points if one[cost] is not None]
        draw_accuracy_cost(points, folder / f"accuracy_{cost}.png", cost)
    sections = [Section("What was done", report.notes)]
    sections.append(
        Section(
            "Table 1: accuracy and cost",
            [
                "The real cascade, all rows in one process and in turns image by image. Settings: "
                "t threshold, d dilation, c context, m min_size, p chip_cost, for each step "
                "between two scales, coarse to fine."
            ],
            table=accuracy_table([one for one in report.points if one["confirmed"]]),
        )
    )
    if report.bound:
        draw_speedup_bound(report.bound, folder / "bound.png", report.real)
        sections.append(_bound_section(report))
    sections.append(
        Section(
            "Figure 6: what the focus maps find",
            [
                "Recall over the area, maps of whole images, one point a threshold. An object "
                "counts for FocusPixels when one of its cells is above the threshold, for "
                "FocusChips when it lies whole in a chip. Panels by the scale of the map; the "
                "objects are those that the next finer scale answers for."
            ],
            "recall.png",
        )
    )
    sections.append(
        Section(
            "Figure 7: accuracy over pixels",
            ["Pale points were replayed from the recorded look at everything, not run."],
            "accuracy_pixels.png",
        )
    )
    sections.append(Section("Figure 7, over time", [], "accuracy_seconds.png"))
    page = folder / "index.html"
    write_page(figures_page("Tuning of the focus settings", sections), page)
    return page


def _bound_section(report: TuneReport) -> Section:
    rows = [
        [one["name"], f"{one['speed_up']:.2f}", f"{one['ideal']:.2f}", f"{one['share']:.0%}",
         f"{one['saving']:.0%}", f"{one['share_of_best']:.0%}"]
        for one in report.shares
    ]  # fmt: skip
    header = [
        "setting",
        "speed-up",
        "with true FocusPixels",
        "share of it",
        "share of the pixels it saves",
        "share of the highest bound",
    ]
    return Section(
        "Figure 5: bound on the speed-up",
        [
            "Pixels of the full pyramid over those of a cascade whose focus maps are the "
            "ground truth's FocusPixels. The highest bound is that of the smallest chips; the "
            "detector would miss objects at their edges."
        ],
        "bound.png",
        html_table(header, rows),
    )

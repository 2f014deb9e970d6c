"""From what a tuning found to Table 1 and Figures 5 to 7 of the paper, as tables and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from af_pipeline.core.focus import FocusRule
from af_pipeline.core.plan import Plan
from af_pipeline.core.text_table import text_table
from af_pipeline.data.annotations.dataset import AnnotatedImage
from af_pipeline.evaluation.coco import score_cell
from af_pipeline.reporting.charts import (
    accuracy_cost_figure,
    focus_recall_figure,
    save_png,
    speedup_bound_figure,
)
from af_pipeline.reporting.page import Section, Table, write_page
from af_pipeline.tuning.oracle import (
    focus_recall,
    ideal_row,
    mean_pixels,
    speed_up_bound,
    true_maps,
)
from af_pipeline.tuning.replay import Record
from af_pipeline.tuning.search import Reference, Trial

Records = list[dict[str, Any]]

SCORES = ("AP", "AP50", "AP75", "APS", "APM", "APL")
TABLE_TEXT = """The real cascade, all rows in one process and in turns image by image. Settings: t
threshold, d dilation, c context, m min_size, p chip_cost, for each step between two scales, coarse
to fine."""
BOUND_TEXT = """Pixels of the full pyramid over those of a cascade whose focus maps are the ground
truth's FocusPixels. The highest bound is that of the smallest chips; the detector would miss
objects at their edges."""
RECALL_TEXT = """Recall over the area, maps of whole images, one point a threshold. An object counts
for FocusPixels when one of its cells is above the threshold, for FocusChips when it lies whole in
one chip. Panels by the scale of the map; the objects are those that the next finer scale answers
for."""
COST_TEXT = "Pale points were replayed from the recorded look at everything, not run."


def recall_table(
    records: Sequence[Record], truth: Sequence[AnnotatedImage], reference: Reference, plan: Plan
) -> Records:
    """Figure 6, of the ground truth, where there is some, and of the confident detections."""
    found = [reference.confident_detections(reference.pyramid[one.image_id]) for one in records]
    steps = range(len(plan.rules))
    confident = [[one.boxes[one.scales == step + 1] for step in steps] for one in found]
    recall = focus_recall(records, confident, plan, "confident detections")
    if not truth:
        return recall
    boxes = [image.boxes[~image.crowd] for image in truth]
    objects = [[own[scale.valid(own)] for scale in plan.scales[1:]] for own in boxes]
    return focus_recall(records, objects, plan, "ground truth") + recall


def bound_tables(
    records: Sequence[Record],
    truth: Sequence[AnnotatedImage],
    rule: FocusRule,
    plan: Plan,
    trials: Sequence[Trial],
) -> tuple[Records, Records]:
    """Figure 5, and what settings of AutoFocus reach of what faultless focus maps would allow.

    ``truth``: ground truth of each record; ``rule``: of its FocusPixels; ``trials``: the full
    pyramid, then the settings, run for real under ``plan``.
    """
    maps = [
        true_maps(image.boxes, image.crowd, record.height, record.width, plan, rule)
        for image, record in zip(truth, records, strict=True)
    ]
    pyramid, *settings = trials
    bound = speed_up_bound(records, maps, plan, pyramid.pixels)
    best = max(one["speed_up"] for one in bound)
    shares = []
    for trial in settings:
        own = replace(plan, rules=trial.rules)
        ideal = mean_pixels([ideal_row(*pair, own) for pair in zip(records, maps, strict=True)])
        shares.append(
            {
                "name": trial.setting,
                "speed_up": pyramid.pixels / trial.pixels,
                "ideal": pyramid.pixels / ideal,
                "share": ideal / trial.pixels,
                "saving": (pyramid.pixels - trial.pixels) / (pyramid.pixels - ideal),
                "share_of_best": pyramid.pixels / trial.pixels / best,
            }
        )
    return bound, shares


def write_report(tables: Mapping[str, Records], notes: Sequence[str], folder: Path) -> Path:
    """Write tables, pictures and index.html into ``folder``; returns the page.

    ``tables``: recall (Figure 6), points (Figure 7; those run for real are Table 1), bound and
    shares (Figure 5, both empty without ground truth); ``notes``: sentences about the sample, the
    choice and the guarantee.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        if records:
            pq.write_table(pa.Table.from_pylist(records), folder / f"{name}.parquet")
    points, shares = tables["points"], tables["shares"]
    save_png(focus_recall_figure(tables["recall"]), folder / "recall.png")
    for cost in ("pixels", "seconds"):
        save_png(accuracy_cost_figure(points, cost), folder / f"accuracy_{cost}.png")
    table = accuracy_table([one for one in points if one["confirmed"]])
    sections = [
        Section("What was done", notes),
        Section("Table 1: accuracy and cost", [TABLE_TEXT], table=table),
        Section("Figure 6: what the focus maps find", [RECALL_TEXT], "recall.png"),
        Section("Figure 7: accuracy over pixels", [COST_TEXT], "accuracy_pixels.png"),
        Section("Figure 7, over time", [], "accuracy_seconds.png"),
    ]
    if tables["bound"]:
        save_png(speedup_bound_figure(tables["bound"], shares), folder / "bound.png")
        header = ("setting", "speed-up", "with true FocusPixels", "share of it",
                  "share of the pixels it saves", "share of the highest bound")  # fmt: skip
        rows = [
            [one["name"], f"{one['speed_up']:.2f}", f"{one['ideal']:.2f}", f"{one['share']:.0%}",
             f"{one['saving']:.0%}", f"{one['share_of_best']:.0%}"]
            for one in shares
        ]  # fmt: skip
        heading = "Figure 5: bound on the speed-up"
        sections.insert(2, Section(heading, [BOUND_TEXT], "bound.png", Table(header, rows)))
    page = folder / "index.html"
    write_page(page, "figures.html", "Tuning of the focus settings", sections=sections)
    return page


def accuracy_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Table 1 of the AutoFocus paper for a page, with the costs; ``records``: of trials.

    The paper's unit of pixels is the side of a square of as many: 1175². The ratios are those of
    the first record of method "pyramid" to the row: how many times dearer the pyramid is.
    """
    header = ["method", "setting", *SCORES, "MP per image", "pixels (paper's unit)"]
    header += ["s per image", "pixels, pyramid / row", "time, pyramid / row"]
    rows = [
        [
            one["method"],
            one["setting"] or None,
            *(None if one.get(score) is None else f"{one[score]:.3f}" for score in SCORES),
            f"{one['pixels'] / 1e6:.3f}",
            f"{math.sqrt(one['pixels']):.0f}²",
            f"{one['seconds']:.3f}",
            *_times_cheaper(one, records),
        ]
        for one in records
    ]
    return Table(header, rows, [place for place, one in enumerate(records) if one["chosen"]])


def accuracy_lines(trials: Sequence[Trial]) -> list[str]:
    """Table 1 as text."""
    header = ["method", "AP", "AP50", "recall", "MP", "pyramid / it", "s/image", "pyramid / it"]
    records = [trial.record() for trial in trials]
    rows = [header]
    for trial, one in zip(trials, records, strict=True):
        pixels, seconds = _times_cheaper(one, records)
        scores = [score_cell(one[name]) for name in ("AP", "AP50", "recall")]
        costs = [f"{trial.pixels / 1e6:.3f}", pixels, f"{trial.seconds:.3f}", seconds]
        rows.append([trial.name + (" *" if trial.chosen else ""), *scores, *costs])
    return text_table(rows, total=False).splitlines()


def _times_cheaper(one: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many times as many pixels and seconds the full pyramid takes."""
    pyramid = next(record for record in records if record["method"] == "pyramid")
    # Where a network sees nothing to be found, no pixel is looked at.
    return [f"{pyramid[cost] / max(one[cost], 1e-9):.2f}" for cost in ("pixels", "seconds")]

"""What a tuning leaves for people: Figures 5 to 7 and Table 1 as Parquet, PNG and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from af_pipeline.report.charts import (
    draw_accuracy_cost,
    draw_focus_recall,
    draw_speedup_bound,
)
from af_pipeline.report.figures_page import Section, accuracy_table, figures_page, html_table
from af_pipeline.report.page import write_page

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TuneReport:
    """Records as `af_pipeline.report.charts` takes them.

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

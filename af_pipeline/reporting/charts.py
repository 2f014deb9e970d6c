"""Charts of the AutoFocus paper (Najibi, Singh, Davis, ICCV 2019, Figures 5 to 7) as PNG.

Each chart is drawn from plain records, which its docstring names with their units. `*_figure` makes
the matplotlib Figure, `draw_*` saves it; pyplot and its global state stay untouched. A chart
without records says "no data". Shares are 0..1 in the records, per cent on the axes; AP stays 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from af_pipeline.reporting.plotting import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    Label,
    columns_of,
    legend_below,
    log_axis,
    new_axes,
    new_figure,
    place_labels,
    save_png,
    whole_numbers,
    without_data,
)

Record = Mapping[str, Any]

PANELS_PER_ROW = 3
METHODS = ("whole", "two scales", "pyramid", "autofocus", "tiles")

_METHOD_LOOK = {  # colour, marker
    "whole": (ORANGE, "s"),
    "two scales": (GREEN, "D"),
    "pyramid": (BLACK, "^"),
    "tiles": (PINK, "v"),
    "autofocus": (BLUE, "o"),
}
_MOST_LABELS = 4  # of one method; more points get one label
_COSTS = {
    "pixels": (1e6, "network pixels per image [MP]"),
    "seconds": (1.0, "time per image [s]"),
}
_ACCURACIES = {
    "AP": (1.0, "AP, IoU 0.50 to 0.95"),
    "AP50": (1.0, "AP50, IoU 0.50"),
    "recall": (100.0, "pyramid's confident detections found again [%]"),
}


def draw_speedup_bound(
    records: Sequence[Record], path: Path, real: Sequence[Record] | None = None
) -> None:
    """Save `speedup_bound_figure` as a PNG at ``path``."""
    save_png(speedup_bound_figure(records, real), path)


def speedup_bound_figure(records: Sequence[Record], real: Sequence[Record] | None = None) -> Figure:
    """Figure 5: the speed-up that faultless FocusPixels allow over the smallest chip.

    Args:
        records: dilation (cells), min_size (network px), speed_up (pyramid px / px looked at).
        real: name and speed_up of real cascades, drawn as level lines.
    """
    figure = new_figure(5.2)
    axes = new_axes(
        figure, "smallest chip side [network px]", "speed-up [pyramid px / px looked at]"
    )
    dilations = sorted({record["dilation"] for record in records})
    for place, dilation in enumerate(dilations):
        points = [(r["min_size"], r["speed_up"]) for r in records if r["dilation"] == dilation]
        color = colormaps["viridis"](0.85 * place / max(1, len(dilations) - 1))
        axes.plot(
            *columns_of(sorted(points)), "o-", color=color, label=f"bound, dilation {dilation:g}"
        )
    for line, dashes in zip(real or (), cycle(("--", ":", "-.")), strict=False):
        label = f"{shorten(line['name'], 60)}: {line['speed_up']:.2f}×"
        axes.axhline(line["speed_up"], color=RED, linestyle=dashes, linewidth=2, label=label)
    if not records and not real:
        without_data(axes)
        return figure
    axes.set_ylim(bottom=min(1.0, axes.get_ylim()[0]))  # 1: as dear as the pyramid
    if sizes := sorted({record["min_size"] for record in records}):
        shown = sizes if len(sizes) <= 12 else sizes[:: -(-len(sizes) // 12)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(shown, [f"{size:g}" for size in shown])
        axes.set_xticks([], minor=True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    return figure


def draw_focus_recall(records: Sequence[Record], path: Path) -> None:
    """Save `focus_recall_figure` as a PNG at ``path``."""
    save_png(focus_recall_figure(records), path)


def focus_recall_figure(records: Sequence[Record]) -> Figure:
    """Figure 6: what share of the objects lies in the area that would be looked at, per scale.

    Args:
        records: scale, of ("FocusPixels" or "FocusChips"), reference ("ground truth" or "confident
            detections"), threshold, area (share of the image, 0..1), recall (0..1).
    """
    scales = sorted({record["scale"] for record in records})
    columns = 2 if len(scales) == 4 else min(PANELS_PER_ROW, max(1, len(scales)))
    rows = max(1, -(-len(scales) // columns))
    figure = new_figure(1.0 + (4.3 if columns == 1 else 3.4) * rows)
    if not scales:
        without_data(new_axes(figure, "area looked at [% of the image]", "recall [%]"))
        return figure
    widest = max(100 * record["area"] for record in records)
    for place, scale in enumerate(scales, start=1):
        axes = new_axes(
            figure,
            "area looked at [% of the image]",
            "recall [%]" if place % columns == 1 or columns == 1 else "",
            (rows, columns, place),
        )
        axes.set_title(f"scale {scale}", fontsize=12)
        _recall_lines(axes, [record for record in records if record["scale"] == scale])
        axes.set_xlim(0, max(1e-3, 1.04 * widest))
        axes.set_ylim(0, 104)
    legend_below(figure, ncols=2)
    return figure


def _recall_lines(axes: Axes, records: Sequence[Record]) -> None:
    for of, color, marker in (("FocusPixels", ORANGE, "o"), ("FocusChips", BLUE, "s")):
        for reference, dashes in (("ground truth", "-"), ("confident detections", "--")):
            points = [
                (100 * r["area"], 100 * r["recall"])
                for r in records
                if (r["of"], r["reference"]) == (of, reference)
            ]
            if points:
                axes.plot(
                    *columns_of(sorted(points)),
                    color=color,
                    linestyle=dashes,
                    marker=marker,
                    markersize=4,
                    label=f"{of}, {reference}",
                )


def draw_accuracy_cost(records: Sequence[Record], path: Path, cost: str) -> None:
    """Save `accuracy_cost_figure` as a PNG at ``path``."""
    save_png(accuracy_cost_figure(records, cost), path)


def accuracy_cost_figure(records: Sequence[Record], cost: str) -> Figure:
    """Figure 7: accuracy over cost; AP beside AP50, or recall alone where no record has an AP.

    Points without the value of a panel or its cost are left out. The AutoFocus line joins the
    points that no cheaper one reaches.

    Args:
        records: method (one of `METHODS`), setting, AP and AP50 (0..1 or None), recall (share of
            the pyramid's confident detections found again, 0..1), pixels (mean network px per
            image), seconds (per image, or None), confirmed (a real cascade; False: replayed from
            recorded maps), chosen.
        cost: "pixels" or "seconds".
    """
    if cost not in _COSTS:
        raise ValueError(f"cost must be one of {', '.join(_COSTS)}, not {cost!r}")
    if unknown := {record["method"] for record in records} - set(METHODS):
        raise ValueError(f"unknown methods: {', '.join(sorted(unknown))}")
    measured = any(record.get("AP") is not None for record in records)
    panels = ("AP", "AP50") if measured or not records else ("recall",)
    figure = new_figure(5.4)
    labels = []
    for place, accuracy in enumerate(panels, start=1):
        axes = new_axes(figure, _COSTS[cost][1], _ACCURACIES[accuracy][1], (1, len(panels), place))
        shown = _points(records, cost, accuracy)
        if shown:
            labels.append((axes, _method_points(axes, shown)))
            log_axis(axes, [x for x, _, _ in shown])
        else:
            without_data(axes)
    legend_below(figure, ncols=3)
    place_labels(figure, labels)
    return figure


def _points(
    records: Iterable[Record], cost: str, accuracy: str
) -> list[tuple[float, float, Record]]:
    """(cost, accuracy, record) in the units of the axes, by rising cost."""
    found = [
        (record[cost] / _COSTS[cost][0], record[accuracy] * _ACCURACIES[accuracy][0], record)
        for record in records
        if record.get(cost) and record.get(accuracy) is not None
    ]
    return sorted(found, key=lambda point: point[:2])


def _method_points(axes: Axes, points: Sequence[tuple[float, float, Record]]) -> list[Label]:
    """Draw all points; the labels to be placed, the chosen setting's first."""
    labels = _autofocus_points(axes, [p for p in points if p[2]["method"] == "autofocus"])
    for method in METHODS:
        color, marker = _METHOD_LOOK[method]
        own = [point for point in points if point[2]["method"] == method]
        if method == "autofocus" or not own:
            continue
        xs, ys, _ = zip(*own, strict=True)
        axes.plot(xs, ys, marker, color=color, markersize=10, markeredgecolor="white", zorder=4)
        if len(own) > _MOST_LABELS:
            labels.append((*max(own, key=lambda point: point[1])[:2], method))
        else:
            named = f"{method} {{}}" if len(own) > 1 else method
            labels += [(x, y, fill(named.format(_setting(r)).strip(), 18)) for x, y, r in own]
    return labels


def _autofocus_points(axes: Axes, points: Sequence[tuple[float, float, Record]]) -> list[Label]:
    best = [p for i, p in enumerate(points) if all(p[1] > earlier[1] for earlier in points[:i])]
    axes.plot(*columns_of([p[:2] for p in best]), color=BLUE, linewidth=1.6, alpha=0.55, zorder=2)
    kinds: tuple[tuple[bool, dict[str, Any], str], ...] = (
        (False, {"markersize": 5, "alpha": 0.35}, "autofocus, replayed from recorded maps"),
        (True, {"markersize": 8, "markeredgecolor": "white"}, "autofocus, real cascade"),
    )
    for confirmed, look, label in kinds:
        of_kind = [p[:2] for p in points if bool(p[2].get("confirmed")) == confirmed]
        if of_kind:
            axes.plot(*columns_of(of_kind), "o", color=BLUE, label=label, zorder=3, **look)
    chosen = [p for p in points if p[2].get("chosen")]
    if chosen:
        ring: dict[str, Any] = {"markeredgecolor": RED, "markeredgewidth": 2, "markersize": 15}
        label = fill(f"chosen: {shorten(_setting(chosen[0][2]), 60) or 'autofocus'}", 36)
        at = columns_of([p[:2] for p in chosen])
        axes.plot(*at, "o", markerfacecolor="none", label=label, zorder=5, **ring)
    return [(x, y, "chosen") for x, y, _ in chosen]


def _setting(record: Record) -> str:
    return shorten(str(record.get("setting") or ""), 200)


def draw_coverage(records: Sequence[Record], path: Path) -> None:
    """Save `coverage_figure` as a PNG at ``path``."""
    save_png(coverage_figure(records), path)


def coverage_figure(records: Sequence[Record]) -> Figure:
    """Histogram of the mean loss on the images held out, over random splits.

    Args:
        records: split, risk (mean loss on the held-out images, 0..1; None where no setting was
            certified, which counts as not above), alpha (the risk allowed).
    """
    figure = new_figure(4.4)
    axes = new_axes(figure, "mean loss on the held-out images [%]", "random splits")
    found = [record for record in records if record["risk"] is not None]
    if not found:
        without_data(axes)
        return figure
    risks = [100 * record["risk"] for record in found]
    alphas = sorted({100 * record["alpha"] for record in records})
    high = 1.08 * max(*risks, *alphas, 1e-3)
    axes.hist(risks, bins=_bins(high, alphas[0]), color=BLUE, edgecolor="white", linewidth=0.5)
    for alpha in alphas:
        axes.axvline(alpha, color=RED, linewidth=2)
    above = sum(record["risk"] > record["alpha"] for record in found)
    allowed = ", ".join(f"{alpha:g} %" for alpha in alphas)
    share = f"{above} of {len(records)} splits ({100 * above / len(records):.1f} %)"
    title = f"allowed: {allowed}; above it: {share}"
    if missing := len(records) - len(found):
        title += f"; nothing certified in {missing}"
    axes.set_title(title, fontsize=12, loc="left", color=RED)
    axes.set_xlim(0, high)
    whole_numbers(axes)
    return figure


def _bins(high: float, edge: float) -> list[float]:
    """About 30 bins from 0 to ``high``, one of which begins at ``edge``."""
    step = edge / max(1, round(30 * edge / high))
    if 200 * step < high:
        step = high / 30
    return [step * place for place in range(round(np.ceil(high / step)) + 1)]

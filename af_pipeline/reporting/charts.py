"""Charts of the AutoFocus paper (Najibi, Singh, Davis, ICCV 2019, Figures 5 to 7).

Each chart is a matplotlib Figure of plain records, which its docstring names with their units;
pyplot and its global state stay untouched. A chart without records says "no data". Shares are 0..1
in the records, per cent on the axes; AP stays 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredText
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

Record = Mapping[str, Any]

# Okabe & Ito 2008: told apart with every kind of colour blindness.
BLACK, GREY = "#000000", "#6b6f76"
ORANGE, GREEN, BLUE, RED, PINK = "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7"

MOST_BINS = 200
_METHOD_LOOK = {  # colour, marker
    "pyramid": (BLACK, "^"),
    "whole": (ORANGE, "s"),
    "fewer scales": (GREEN, "D"),
    "tiles": (PINK, "v"),
    "autofocus": (BLUE, "o"),
}
_COSTS = {
    "pixels": (1e6, "network pixels per image [MP]"),
    "seconds": (1.0, "time per image [s]"),
}
_ACCURACIES = {
    "AP": (1.0, "AP, IoU 0.50 to 0.95"),
    "AP50": (1.0, "AP50, IoU 0.50"),
    "recall": (100.0, "pyramid's confident detections found again [%]"),
}


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure; equal figures give equal bytes."""
    figure.savefig(path, format="png", dpi="figure", metadata={"Software": None})


def speedup_bound_figure(records: Sequence[Record], real: Sequence[Record] = ()) -> Figure:
    """Figure 5: the speed-up that faultless FocusPixels allow over the smallest chip.

    Args:
        records: dilation (cells), min_size (network px), speed_up (pyramid px / px looked at).
        real: name and speed_up of real cascades, drawn as level lines.
    """
    figure = _new_figure(5.2)
    axes = _new_axes(
        figure, "smallest chip side [network px]", "speed-up [pyramid px / px looked at]"
    )
    if not records and not real:
        return _without_data(figure)
    dilations = sorted({record["dilation"] for record in records})
    for place, dilation in enumerate(dilations):
        points = [(r["min_size"], r["speed_up"]) for r in records if r["dilation"] == dilation]
        color = colormaps["viridis"](0.85 * place / max(1, len(dilations) - 1))
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=color,
                  label=f"bound, dilation {dilation:g}")  # fmt: skip
    for line, dashes in zip(real, cycle(("--", ":", "-.")), strict=False):
        label = f"{_plain(line['name'], 60)}: {line['speed_up']:.2f}×"
        axes.axhline(line["speed_up"], color=RED, linestyle=dashes, linewidth=2, label=label)
    axes.set_ylim(bottom=min(1.0, axes.get_ylim()[0]))  # 1: as dear as the pyramid
    if records:
        axes.set_xscale("log", base=2)
        _set_ticks(axes, LogLocator(base=2, subs=(1, 1.5)))
    _legend_below(figure, ncols=2)
    return figure


def focus_recall_figure(records: Sequence[Record]) -> Figure:
    """Figure 6: what share of the objects lies in the area that would be looked at, per scale.

    Args:
        records: scale, of ("FocusPixels" or "FocusChips"), reference ("ground truth" or "confident
            detections"), threshold, area (share of the image, 0..1), recall (0..1).
    """
    scales = sorted({record["scale"] for record in records})
    columns = 2 if len(scales) == 4 else min(3, max(1, len(scales)))
    rows = max(1, -(-len(scales) // columns))
    figure = _new_figure(1.0 + (4.3 if columns == 1 else 3.4) * rows)
    area = "area looked at [% of the image]"
    if not scales:
        _new_axes(figure, area, "recall [%]")
        return _without_data(figure)
    widest = max(100 * record["area"] for record in records)
    for place, scale in enumerate(scales):
        label = "" if place % columns else "recall [%]"
        axes = _new_axes(figure, area, label, (rows, columns, place + 1))
        axes.set_title(f"scale {scale}", fontsize=12)
        for of, color, marker in (("FocusPixels", ORANGE, "o"), ("FocusChips", BLUE, "s")):
            for reference, dashes in (("ground truth", "-"), ("confident detections", "--")):
                kind = (scale, of, reference)
                points = [
                    (100 * r["area"], 100 * r["recall"])
                    for r in records
                    if (r["scale"], r["of"], r["reference"]) == kind
                ]
                if points:
                    axes.plot(*zip(*sorted(points), strict=True), color=color, linestyle=dashes,
                              marker=marker, markersize=4, label=f"{of}, {reference}")  # fmt: skip
        axes.set_xlim(0, max(1e-3, 1.04 * widest))
        axes.set_ylim(0, 104)
    _legend_below(figure, ncols=2)
    return figure


def accuracy_cost_figure(records: Sequence[Record], cost: str) -> Figure:
    """Figure 7: accuracy over cost; AP beside AP50, or recall alone where no record has an AP.

    Points without the value of a panel or its cost are left out. The AutoFocus line joins the
    points that no cheaper one reaches.

    Args:
        records: method ("whole", "fewer scales", "pyramid", "autofocus" or "tiles"), setting, AP
            and AP50 (0..1 or None), recall (share of the pyramid's confident detections found
            again, 0..1), pixels (mean network px per image), seconds (an image, or None), confirmed
            (a real cascade; False: replayed from recorded maps), chosen.
        cost: "pixels" or "seconds".
    """
    if cost not in _COSTS:
        raise ValueError(f"cost must be one of {', '.join(_COSTS)}, not {cost!r}")
    if unknown := {record["method"] for record in records} - set(_METHOD_LOOK):
        raise ValueError(f"unknown methods: {', '.join(sorted(unknown))}")
    measured = any(record["AP"] is not None for record in records)
    panels = ("AP", "AP50") if measured or not records else ("recall",)
    figure = _new_figure(5.4)
    unit, cost_label = _COSTS[cost]
    for place, accuracy in enumerate(panels, start=1):
        height, label = _ACCURACIES[accuracy]
        axes = _new_axes(figure, cost_label, label, (1, len(panels), place))
        shown = [r for r in records if r[cost] and r[accuracy] is not None]
        points = sorted(
            ((r[cost] / unit, r[accuracy] * height, r) for r in shown), key=lambda point: point[:2]
        )
        if points:
            _method_points(axes, points)
            _log_axis(axes, [point[0] for point in points])
    _legend_below(figure, ncols=3)
    return _without_data(figure)


def _method_points(axes: Axes, points: Sequence[tuple[float, float, Record]]) -> None:
    """Draw points (x, y, record) by rising x, a look a method; the chosen one has a ring."""

    def draw(own: Sequence[tuple[float, float, Record]], *look: str, **options: Any) -> None:
        if own:
            axes.plot([point[0] for point in own], [point[1] for point in own], *look, **options)

    for method, (color, marker) in _METHOD_LOOK.items():
        own = [point for point in points if point[2]["method"] == method]
        if method != "autofocus":
            settings = {point[2]["setting"] for point in own}
            named = f"{method} {_plain(settings.pop(), 40)}" if len(settings) == 1 else method
            draw(own, marker, color=color, markersize=10, markeredgecolor="white", zorder=4,
                 label=named.strip())  # fmt: skip
            continue
        best = [p for i, p in enumerate(own) if all(p[1] > earlier[1] for earlier in own[:i])]
        draw(best, "-", color=color, linewidth=1.6, alpha=0.55, zorder=2)
        replayed = [point for point in own if not point[2]["confirmed"]]
        draw(replayed, marker, color=color, markersize=5, alpha=0.35, zorder=3,
             label="autofocus, replayed from recorded maps")  # fmt: skip
        real = [point for point in own if point[2]["confirmed"]]
        draw(real, marker, color=color, markersize=8, markeredgecolor="white", zorder=3,
             label="autofocus, real cascade")  # fmt: skip
        chosen = [point for point in own if point[2]["chosen"]]
        if chosen:
            name = f"chosen: {_plain(chosen[0][2]['setting'], 60) or 'autofocus'}"
            draw(chosen, "o", markerfacecolor="none", markeredgecolor=RED, markeredgewidth=2,
                 markersize=15, zorder=5, label=fill(name, 36))  # fmt: skip


def coverage_figure(records: Sequence[Record]) -> Figure:
    """Histogram of the mean loss on the images held out, over random splits.

    Args:
        records: split, risk (mean loss on the held-out images, 0..1; None where no setting was
            certified, which counts as not above), alpha (the risk allowed).
    """
    figure = _new_figure(4.4)
    axes = _new_axes(figure, "mean loss on the held-out images [%]", "random splits")
    found = [record for record in records if record["risk"] is not None]
    if not found:
        return _without_data(figure)
    risks = [100 * record["risk"] for record in found]
    alphas = sorted({100 * record["alpha"] for record in records})
    high = 1.08 * max(*risks, *alphas, 1e-3)
    step = alphas[0] / max(1, round(30 * alphas[0] / high))  # a bin begins at the allowed loss
    if MOST_BINS * step < high:
        step = high / 30
    bins = step * np.arange(np.ceil(high / step) + 1)
    axes.hist(risks, bins=bins.tolist(), color=BLUE, edgecolor="white", linewidth=0.5)
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
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _plain(name: Any, length: int) -> str:
    """A name in one short line that matplotlib takes for no formula."""
    return shorten(str(name), length).replace("$", r"\$")


def _new_figure(height: float) -> Figure:
    """An empty figure of the charts' width, ``height`` in inches."""
    return Figure(figsize=(10.0, height), dpi=150, layout="constrained", facecolor="white")


def _new_axes(
    figure: Figure, xlabel: str, ylabel: str, place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    """Axes with a faint grid at ``place`` (rows, columns, number from 1) of the figure."""
    axes = figure.add_subplot(*place)
    axes.set_xlabel(xlabel, fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    axes.tick_params(labelsize=11, color=GREY)
    axes.grid(color="#e4e4e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _without_data(figure: Figure) -> Figure:
    """Let panels that hold nothing say "no data" instead of ticks."""
    for axes in figure.axes:
        if not axes.has_data():
            axes.set_xticks([])
            axes.set_yticks([])
            axes.add_artist(AnchoredText("no data", "center", frameon=False, prop={"size": 16}))
    return figure


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log x axis with room beside the values; 1, 2, 5 of a decade as ticks where that is few."""
    low, high = min(values) / 1.25, max(values) * 1.25
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 3 else (1.0, 2.0, 5.0)
    _set_ticks(axes, LogLocator(subs=subs) if decades > 1 else MaxNLocator(6))


def _set_ticks(axes: Axes, locator: LogLocator | MaxNLocator) -> None:
    """Tick the x axis where ``locator`` says, with plain numbers and nothing between."""
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _legend_below(figure: Figure, ncols: int) -> None:
    """One legend for all panels, each name once."""
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    named = {label: handle for handles, labels in reversed(found)
             for handle, label in zip(handles, labels, strict=True)}  # fmt: skip
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=ncols,
                      frameon=False, fontsize=11)  # fmt: skip

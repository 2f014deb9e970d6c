"""What the charts share: empty axes, log axes with round ticks, one legend, labels side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredText
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from af_pipeline.core.boxes import intersection_area

Label = tuple[float, float, str]  # x, y in data units, text

WIDTH = 10.0  # inches
DPI = 150

# Okabe & Ito 2008: told apart with every kind of colour blindness.
BLACK, GREY = "#000000", "#6b6f76"
ORANGE, GREEN, BLUE, RED, PINK = "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7"

_STEPS: tuple[tuple[float, ...], ...] = (  # ticks of a decade
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    tuple(np.arange(1, 10, 0.5).tolist()),
    tuple(np.arange(1, 10, 0.2).tolist()),
)
_GAPS = (16.0, 34.0, 60.0, 90.0)  # from a point to its label, px of the figure
_LEADER = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}


class _PlainFigure(Figure):
    """A figure whose texts are what they say: no name in it is a formula."""

    def draw(self, renderer: Any) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
        super().draw(renderer)


def new_figure(height: float) -> Figure:
    """An empty figure of the charts' width, ``height`` in inches."""
    return _PlainFigure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")


def new_axes(
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


def without_data(axes: Axes) -> None:
    """Say "no data" instead of ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.add_artist(AnchoredText("no data", "center", frameon=False, prop={"size": 16}))


def whole_numbers(axes: Axes) -> None:
    """Tick the y axis at whole numbers only."""
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def columns_of(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The x and the y of points."""
    return [x for x, _ in points], [y for _, y in points]


def legend_below(figure: Figure, ncols: int) -> None:
    """One legend for all panels, each name once."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=ncols,
            frameon=False,
            fontsize=11,
        )


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log x axis with room beside the values and round numbers as ticks."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.08, 1.25)
    low, high = low / room, high * room**3  # labels go to the right first
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(ticks := _round_numbers(low, high), [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _round_numbers(low: float, high: float) -> list[float]:
    """About 4 to 9 round numbers from ``low`` to ``high``, even on a log axis."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        found = [step * 10.0**power for power in tens for step in steps]
        inside = [round(value, 12) for value in found if low <= value <= high]
        if len(inside) >= 4:
            return inside
    return [float(f"{value:.3g}") for value in (low, high)]


def place_labels(figure: Figure, panels: Sequence[tuple[Axes, list[Label]]]) -> None:
    """Write each label beside its point where it covers no other label, point, line or edge."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels must not move what they were fitted to
    for axes, labels in panels:
        edge = np.array([axes.get_window_extent().extents])
        taken = _drawn(axes)
        for x, y, text in labels:
            point = axes.transData.transform((x, y))
            note = axes.annotate(text, (x, y), fontsize=11, zorder=6, parse_math=False)
            box = note.get_window_extent()
            note.remove()
            boxes, gaps = _boxes_around(point, (box.width, box.height))
            area = box.width * box.height
            covered = intersection_area(boxes, taken).sum(1) / area
            outside = 1 - intersection_area(boxes, edge)[:, 0] / area
            costs = 4 * covered + 5 * outside + gaps / 200
            best = int(np.argmin(np.round(costs, 6)))  # the first of equal ones
            axes.annotate(
                text,
                (x, y),
                xytext=((boxes[best, :2] + boxes[best, 2:]) / 2).tolist(),
                textcoords="figure pixels",
                ha="center",
                va="center",
                linespacing=1.0,
                fontsize=11,
                zorder=6,
                arrowprops=_LEADER if gaps[best] > _GAPS[0] else None,
            )
            taken = np.concatenate([taken, boxes[best : best + 1]])


def _boxes_around(point: NDArray, size: tuple[float, float]) -> tuple[NDArray, NDArray]:
    """Places [C, 4] for a label of ``size`` px around a point [2], and their gaps to it [C]."""
    ways = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)])
    ways = np.concatenate([ways, ways[4:] * (1, 0.5)])
    gaps = np.repeat(_GAPS, len(ways))
    half = np.array(size) / 2
    centre = point + np.tile(ways, (len(_GAPS), 1)) * (half + gaps[:, None])
    return np.concatenate([centre - half, centre + half], 1), gaps


def _drawn(axes: Axes) -> NDArray:
    """Boxes [M, 4] px over all points of an axes and along its lines."""
    places = [np.zeros((0, 2))]
    for line in axes.lines:
        at = axes.transData.transform(np.column_stack(line.get_data()))
        places.append(at)
        if line.get_linestyle() != "None" and len(at) > 1:
            steps = np.linspace(0, len(at) - 1, 20 * len(at))
            places.append(
                np.stack([np.interp(steps, range(len(at)), at[:, axis]) for axis in (0, 1)], 1)
            )
    spots = np.concatenate(places)
    return np.concatenate([spots - 9, spots + 9], 1)


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure; equal figures give equal bytes."""
    figure.savefig(path, format="png", dpi="figure", metadata={"Software": None})

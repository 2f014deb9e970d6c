"""Charts: drawn from any number of records, labelled, nothing cut off."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from af_pipeline.reporting.charts import (
    accuracy_cost_figure,
    coverage_figure,
    focus_recall_figure,
    save_png,
    speedup_bound_figure,
)
from tests.helpers.pictures import HOSTILE_NAMES

Records = list[dict[str, Any]]
KINDS = [
    (of, by)
    for of in ("FocusPixels", "FocusChips")
    for by in ("ground truth", "confident detections")
]


def bounds(count: int) -> Records:
    return [
        {"dilation": 1 + i % 3, "min_size": 64 * (1 + i // 3), "speed_up": 5 / (1 + i)}
        for i in range(count)
    ]


def recalls(count: int) -> Records:
    return [
        {"scale": i % 3, "area": 0.004 * i, "recall": min(1, 0.02 * i)}
        | {"of": KINDS[i % 4][0], "reference": KINDS[i % 4][1]}
        for i in range(count)
    ]


def point(method: str, pixels: float, ap: float | None, **more: Any) -> dict[str, Any]:
    ap50 = None if ap is None else min(1.0, 1.5 * ap)
    record = {"method": method, "setting": "", "AP": ap, "AP50": ap50, "recall": 0.9}
    costs = {"pixels": pixels, "seconds": pixels / 1e7, "confirmed": True, "chosen": False}
    return record | costs | more


def methods(count: int) -> Records:
    records = [
        point("pyramid", 4e6, 0.4),
        point("whole", 0.5e6, 0.2),
        point("fewer scales", 2e6, 0.33),
        point("tiles", 3e6, 0.35, setting="640 px"),
        point("autofocus", 1.5e6, 0.38, setting="0.2, 0.3", chosen=True),
    ]
    rng = np.random.default_rng(0)
    records += [
        point("autofocus", 10 ** rng.uniform(5.8, 6.5), rng.uniform(0.25, 0.39), confirmed=False)
        for _ in range(count)
    ]
    return records[:count]


def splits(count: int) -> Records:
    return [{"split": i, "risk": 0.0006 * i, "alpha": 0.05} for i in range(count)]


FIGURES: dict[str, Callable[[int], Figure]] = {
    "speedup": lambda count: speedup_bound_figure(bounds(count)),
    "recall": lambda count: focus_recall_figure(recalls(count)),
    "pixels": lambda count: accuracy_cost_figure(methods(count), "pixels"),
    "seconds": lambda count: accuracy_cost_figure(methods(count), "seconds"),
    "coverage": lambda count: coverage_figure(splits(count)),
}


def texts(figure: Figure) -> list[str]:
    """All that is written outside the data: axis labels, titles, legends."""
    found = []
    for axes in figure.axes:
        found += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), axes.get_title("left")]
    return found + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def says_no_data(figure: Figure) -> bool:
    said = [[artist.txt.get_text() for artist in axes.artists] for axes in figure.axes]  # type: ignore[attr-defined]
    return all(one == ["no data"] for one in said) and all(a.get_xlabel() for a in figure.axes)


@pytest.mark.parametrize("count", [0, 1, 7, 100])
@pytest.mark.parametrize("name", list(FIGURES))
def test_a_picture_for_any_number_of_records(name: str, count: int, tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        figure = FIGURES[name](count)
        save_png(figure, path)
    assert says_no_data(figure) == (not count)
    image = cv2.imread(str(paths[0]))
    assert image is not None
    assert image.shape[1] == 1500
    assert 500 <= image.shape[0] <= 1500
    assert image.std() > 2  # not blank
    edges = [image[0], image[-1], image[:, 0], image[:, -1]]
    assert all(np.all(edge == 255) for edge in edges), "something is cut off"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_speedup_has_a_line_per_dilation_and_per_real_cascade() -> None:
    real = [{"name": "before", "speed_up": 2.0}, {"name": "after", "speed_up": 3.14159}]
    figure = speedup_bound_figure(bounds(9), real)
    (axes,) = figure.axes
    assert len(axes.lines) == 5
    wanted = {"bound, dilation 1", "bound, dilation 3", "before: 2.00×", "after: 3.14×"}
    assert wanted | {"smallest chip side [network px]"} <= set(texts(figure))
    assert axes.get_ylim()[0] <= min(record["speed_up"] for record in bounds(9))
    figure.draw_without_rendering()
    assert {"64", "128", "192"} <= {label.get_text() for label in axes.get_xticklabels()}
    assert speedup_bound_figure([], real).axes[0].lines  # real ones alone are drawn as well


def test_recall_has_a_panel_per_scale_and_a_line_per_kind() -> None:
    figure = focus_recall_figure(recalls(100))
    assert [axes.get_title() for axes in figure.axes] == ["scale 0", "scale 1", "scale 2"]
    for axes in figure.axes:
        assert len(axes.lines) == 4
        assert all(np.all(np.diff(np.asarray(one.get_xdata(), float)) >= 0) for one in axes.lines)
    named = [text for text in texts(figure) if "Focus" in text]
    assert sorted(named) == sorted(f"{of}, {by}" for of, by in KINDS)
    assert len(focus_recall_figure([r | {"scale": i} for i, r in enumerate(recalls(7))]).axes) == 7


def test_accuracy_cost_names_methods_settings_and_units() -> None:
    figure = accuracy_cost_figure(methods(60), "pixels")
    assert sorted(texts(figure)) == sorted(
        ["network pixels per image [MP]"] * 2
        + ["AP, IoU 0.50 to 0.95", "AP50, IoU 0.50", "pyramid", "whole", "fewer scales"]
        + ["tiles 640 px", "chosen: 0.2, 0.3", "autofocus, real cascade"]
        + ["autofocus, replayed from recorded maps", *[""] * 4]
    )
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert "time per image [s]" in texts(accuracy_cost_figure(methods(60), "seconds"))
    assert says_no_data(accuracy_cost_figure([point("tiles", 1e6, 0.4, seconds=None)], "seconds"))
    several = [point("tiles", 1e6 * i, 0.3, setting=str(i)) for i in (1, 2)]
    assert "tiles" in texts(accuracy_cost_figure(several, "pixels"))
    with pytest.raises(ValueError, match="cost must be one of"):
        accuracy_cost_figure([], "money")
    with pytest.raises(ValueError, match="unknown methods: guess"):
        accuracy_cost_figure([point("guess", 1e6, 0.1)], "pixels")


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[1:20])
def test_a_name_is_no_formula(name: str, tmp_path: Path) -> None:
    records = [point("tiles", 1e6, 0.3, setting=name)]
    records += [point("autofocus", 1e6, 0.2, setting=name, chosen=True)]
    save_png(accuracy_cost_figure(records, "pixels"), tmp_path / "a.png")
    save_png(speedup_bound_figure([], [{"name": name, "speed_up": 2.0}]), tmp_path / "b.png")
    for path in tmp_path.iterdir():
        assert cv2.imread(str(path)).shape[1] == 1500


def test_the_legend_of_a_long_setting_lies_in_the_figure() -> None:
    setting = "t0.1 d1 c16 m128 p16384 | t0.55 d3 c16 m128 p32768"
    records = [point("autofocus", 1e6, 0.2, setting=setting, chosen=True)]
    figure = accuracy_cost_figure(records + methods(60), "pixels")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y0 >= 0


def test_accuracy_cost_falls_back_to_recall() -> None:
    records = [point("pyramid", 4e6, None), point("autofocus", 1e6, None, recall=0.95)]
    (axes,) = accuracy_cost_figure(records, "pixels").axes
    assert axes.get_ylabel() == "pyramid's confident detections found again [%]"
    assert max(y for line in axes.lines for y in np.asarray(line.get_ydata())) == 95


def test_the_autofocus_line_joins_the_best_of_each_cost() -> None:
    places = ((3, 0.3), (1, 0.2), (2, 0.1), (4, 0.3))
    records = [point("autofocus", p * 1e6, ap) for p, ap in places]
    line = accuracy_cost_figure(records, "pixels").axes[0].lines[0]
    assert np.asarray(line.get_xdata()).tolist() == [1, 3]
    assert np.asarray(line.get_ydata()).tolist() == [0.2, 0.3]


@pytest.mark.parametrize("pixels", [[1e6], [1e6, 1.01e6], [3e3, 9e8], [2.2e6, 7e6], [4e5, 9e6]])
def test_a_log_axis_has_enough_round_ticks(pixels: list[float]) -> None:
    axes = accuracy_cost_figure([point("tiles", p, 0.3) for p in pixels], "pixels").axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 3 <= len(ticks) <= 12
    assert all(len(f"{tick:g}") <= 6 for tick in ticks)


def test_coverage_counts_the_splits_above_and_those_without_a_setting() -> None:
    figure = coverage_figure(splits(100))  # 0 to 0.0594, so 84 to 99 lie above 0.05
    (axes,) = figure.axes
    assert "allowed: 5 %; above it: 16 of 100 splits (16.0 %)" in texts(figure)
    assert sum(patch.get_height() for patch in axes.patches) == 100  # type: ignore[attr-defined]
    lefts = [patch.get_x() for patch in axes.patches]  # type: ignore[attr-defined]
    assert min(abs(x - 5) for x in lefts) < 1e-9  # a bar begins at the allowed loss
    none = {"split": 9, "risk": None, "alpha": 0.05}
    found = texts(coverage_figure([*splits(100), none]))
    assert "allowed: 5 %; above it: 16 of 101 splits (15.8 %); nothing certified in 1" in found
    assert says_no_data(coverage_figure([none]))
    for risk, alpha in ((0.0, 0.05), (1.0, 1e-6), (0.0, 0.0)):
        assert coverage_figure([{"split": 0, "risk": risk, "alpha": alpha}]).axes[0].patches


def test_pyplot_stays_out() -> None:
    code = "import sys, af_pipeline.reporting.charts; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

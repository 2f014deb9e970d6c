"""Charts and their page: drawn from any number of records, labelled, escaped."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from af_pipeline.reporting.charts import (
    accuracy_cost_figure,
    coverage_figure,
    draw_accuracy_cost,
    draw_coverage,
    draw_focus_recall,
    draw_speedup_bound,
    focus_recall_figure,
    speedup_bound_figure,
)
from af_pipeline.reporting.figures_page import Section, accuracy_table, figures_page, html_table
from tests.helpers.pictures import HOSTILE_NAMES, PAGE_TAGS

PAGE_ATTRIBUTES = {"lang", "charset", "name", "content", "href", "src", "alt", "loading", "class"}

Records = list[dict[str, Any]]


def bounds(count: int) -> Records:
    return [
        {
            "dilation": 1 + i % 3,
            "min_size": 64 * (1 + i // 3),
            "pixels": 1e6,
            "speed_up": 5 / (1 + i),
        }
        for i in range(count)
    ]


def recalls(count: int) -> Records:
    kinds = [(of, by) for of in ("FocusPixels", "FocusChips") for by in REFERENCES]
    return [
        {
            "scale": i % 3,
            "of": kinds[i % 4][0],
            "reference": kinds[i % 4][1],
            "threshold": 0.5,
            "area": 0.004 * i,
            "recall": min(1.0, 0.02 * i),
        }
        for i in range(count)
    ]


REFERENCES = ("ground truth", "confident detections")


def point(method: str, pixels: float, ap: float | None, **more: Any) -> dict[str, Any]:
    ap50 = None if ap is None else min(1.0, 1.5 * ap)
    record = {"method": method, "setting": "", "AP": ap, "AP50": ap50, "recall": 0.9}
    return record | {"pixels": pixels, "seconds": pixels / 1e7, "confirmed": True} | more


def methods(count: int) -> Records:
    records = [
        point("pyramid", 4e6, 0.4),
        point("whole", 0.5e6, 0.2),
        point("two scales", 2e6, 0.33),
        point("tiles", 3e6, 0.35, setting="640 px"),
        point("tiles", 3.1e6, 0.351, setting="1024 px"),
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


DRAW: dict[str, tuple[Callable[[int], Records], Callable[[Any, Path], None]]] = {
    "speedup": (bounds, draw_speedup_bound),
    "recall": (recalls, draw_focus_recall),
    "pixels": (methods, lambda records, path: draw_accuracy_cost(records, path, "pixels")),
    "seconds": (methods, lambda records, path: draw_accuracy_cost(records, path, "seconds")),
    "coverage": (splits, draw_coverage),
}


def texts(figure: Figure) -> list[str]:
    """All that is written outside the data: axis labels, titles, legends, labels of points."""
    found = []
    for axes in figure.axes:
        found += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), axes.get_title("left")]
        found += [text.get_text() for text in axes.texts]
    return found + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def notes(axes: Axes) -> list[Annotation]:
    return [text for text in axes.texts if isinstance(text, Annotation)]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("name", list(DRAW))
def test_a_picture_for_any_number_of_records(name: str, count: int, tmp_path: Path) -> None:
    records, draw = DRAW[name]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        draw(records(count), path)
    image = cv2.imread(str(paths[0]))
    assert image is not None
    height, width = image.shape[:2]
    assert width == 1500
    assert 500 <= height <= 1500
    assert image.std() > 2  # not blank
    edges = [image[0], image[-1], image[:, 0], image[:, -1]]
    assert all(np.all(edge == 255) for edge in edges), "something is cut off"
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    "figure",
    [
        speedup_bound_figure([]),
        focus_recall_figure([]),
        accuracy_cost_figure([], "pixels"),
        accuracy_cost_figure([point("pyramid", 1e6, 0.4, seconds=None)], "seconds"),
        coverage_figure([]),
    ],
)
def test_without_records_it_says_no_data(figure: Figure) -> None:
    for axes in figure.axes:
        assert [a.txt.get_text() for a in axes.artists] == ["no data"]  # type: ignore[attr-defined]
        assert axes.get_xlabel()


def test_speedup_has_a_line_per_dilation_and_per_real_cascade() -> None:
    real = [{"name": "before", "speed_up": 2.0}, {"name": "after", "speed_up": 3.14159}]
    figure = speedup_bound_figure(bounds(9), real)
    (axes,) = figure.axes
    assert len(axes.lines) == 5
    assert {"bound, dilation 1", "bound, dilation 3", "before: 2.00×", "after: 3.14×"} <= set(
        texts(figure)
    )
    assert "smallest chip side [network px]" in texts(figure)
    assert axes.get_ylim()[0] <= min(record["speed_up"] for record in bounds(9))
    assert speedup_bound_figure([], real).axes[0].lines  # real ones alone are drawn as well


def test_recall_has_a_panel_per_scale_and_a_line_per_kind() -> None:
    figure = focus_recall_figure(recalls(100))
    assert [axes.get_title() for axes in figure.axes] == ["scale 0", "scale 1", "scale 2"]
    assert all(len(axes.lines) == 4 for axes in figure.axes)
    for axes in figure.axes:
        for line in axes.lines:
            assert np.all(np.diff(np.asarray(line.get_xdata(), float)) >= 0)
    named = [text for text in texts(figure) if "Focus" in text]
    assert sorted(named) == sorted(
        f"{of}, {by}" for of in ("FocusPixels", "FocusChips") for by in REFERENCES
    )
    assert len(focus_recall_figure([r | {"scale": i} for i, r in enumerate(recalls(7))]).axes) == 7


def test_accuracy_cost_names_methods_settings_and_units() -> None:
    figure = accuracy_cost_figure(methods(60), "pixels")
    found = texts(figure)
    for text in (
        "network pixels per image [MP]",
        "AP, IoU 0.50 to 0.95",
        "AP50, IoU 0.50",
        "pyramid",
        "whole",
        "two scales",
        "tiles 640 px",
        "tiles 1024 px",
        "chosen",
        "chosen: 0.2, 0.3",
        "autofocus, replayed from recorded maps",
        "autofocus, real cascade",
    ):
        assert text in found
    left, right = figure.axes
    assert left.get_xscale() == right.get_xscale() == "log"
    assert "time per image [s]" in texts(accuracy_cost_figure(methods(60), "seconds"))
    with pytest.raises(ValueError, match="cost must be one of"):
        accuracy_cost_figure([], "money")
    with pytest.raises(ValueError, match="unknown methods: guess"):
        accuracy_cost_figure([point("guess", 1e6, 0.1)], "pixels")


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[1:20])
def test_a_name_is_no_formula(name: str, tmp_path: Path) -> None:
    records = [point("tiles", 1e6 * i, 0.3, setting=f"{i} {name}") for i in (1, 2)]
    records += [point("autofocus", 1e6, 0.2, setting=name, chosen=True)]
    draw_accuracy_cost(records, tmp_path / "a.png", "pixels")
    draw_speedup_bound([], tmp_path / "b.png", [{"name": name, "speed_up": 2.0}])
    for path in tmp_path.iterdir():
        assert cv2.imread(str(path)).shape[1] == 1500
    tags = parsed(
        figures_page(name, [Section(name, [name], "a.png", html_table([name], [[name]]))])
    )
    assert {tag for tag, _ in tags.found} <= PAGE_TAGS
    assert {key for _, attributes in tags.found for key in attributes} <= PAGE_ATTRIBUTES


def test_the_legend_of_a_long_setting_lies_in_the_figure() -> None:
    setting = "t0.1 d1 c16 m128 p16384 | t0.55 d3 c16 m128 p32768"
    records = [point("autofocus", 1e6, 0.2, setting=setting, chosen=True)]
    records += [point("autofocus", 2e6, 0.2, confirmed=False), point("pyramid", 4e6, 0.3)]
    figure = accuracy_cost_figure(records, "pixels")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0


def test_accuracy_cost_falls_back_to_recall() -> None:
    records = [point("pyramid", 4e6, None), point("autofocus", 1e6, None, recall=0.95)]
    (axes,) = accuracy_cost_figure(records, "pixels").axes
    assert axes.get_ylabel() == "pyramid's confident detections found again [%]"
    assert max(y for line in axes.lines for y in np.asarray(line.get_ydata())) == 95


def test_the_autofocus_line_joins_the_best_of_each_cost() -> None:
    records = [
        point("autofocus", p * 1e6, ap) for p, ap in ((3, 0.3), (1, 0.2), (2, 0.1), (4, 0.3))
    ]
    line = accuracy_cost_figure(records, "pixels").axes[0].lines[0]
    assert np.asarray(line.get_xdata()).tolist() == [1, 3]
    assert np.asarray(line.get_ydata()).tolist() == [0.2, 0.3]


def test_labels_of_points_lie_inside_and_apart() -> None:
    close = [
        point("pyramid", 3.4e6, 0.354),
        point("whole", 3.3e6, 0.3538),
        point("two scales", 3.35e6, 0.3541),
        point("tiles", 3.42e6, 0.3539, setting="640 px"),
        point("tiles", 3.41e6, 0.354, setting="1024 px"),
        point("autofocus", 3.38e6, 0.3543, setting="0.1, 0.2", chosen=True),
    ]
    for records in (methods(100), close):
        figure = accuracy_cost_figure(records, "pixels")
        figure.draw_without_rendering()
        for axes in figure.axes:
            boxes = [note.get_window_extent() for note in notes(axes)]
            assert len(boxes) == 6
            edge = axes.get_window_extent()
            for box in boxes:
                assert edge.x0 <= box.x0 < box.x1 <= edge.x1
            for a, b in combinations(boxes, 2):
                assert not a.overlaps(b)


def test_many_points_of_a_method_get_one_label() -> None:
    records = [point("tiles", 1e6 + 1e5 * i, 0.3 + 0.001 * i, setting=str(i)) for i in range(30)]
    (left, _) = accuracy_cost_figure(records, "pixels").axes
    assert [note.get_text() for note in notes(left)] == ["tiles"]


@pytest.mark.parametrize("pixels", [[1e6], [1e6, 1.01e6], [3e3, 9e8], [2.2e6, 7e6]])
def test_a_log_axis_has_enough_round_ticks(pixels: Sequence[float]) -> None:
    axes = accuracy_cost_figure([point("tiles", p, 0.3) for p in pixels], "pixels").axes[0]
    low, high = axes.get_xlim()
    ticks = axes.get_xticks()
    assert 3 <= len(ticks) <= 12
    assert all(low <= tick <= high for tick in ticks)
    assert all(a < b for a, b in pairwise(ticks))


def test_coverage_counts_the_splits_above() -> None:
    figure = coverage_figure(splits(100))  # 0 to 0.0594, so 84 to 99 lie above 0.05
    (axes,) = figure.axes
    assert "allowed: 5 %; above it: 16 of 100 splits (16.0 %)" in texts(figure)
    assert sum(patch.get_height() for patch in axes.patches) == 100  # type: ignore[attr-defined]
    lefts = [patch.get_x() for patch in axes.patches]  # type: ignore[attr-defined]
    assert min(abs(x - 5) for x in lefts) < 1e-9  # a bar begins at the allowed loss


def test_splits_without_a_certified_setting_are_counted_apart() -> None:
    none = {"split": 9, "risk": None, "alpha": 0.05}
    found = texts(coverage_figure([*splits(100), none]))
    assert "allowed: 5 %; above it: 16 of 101 splits (15.8 %); nothing certified in 1" in found
    assert coverage_figure([none]).axes[0].artists  # no data


def test_odd_losses_are_drawn() -> None:
    for risk, alpha in ((0.0, 0.05), (1.0, 1e-6), (0.0, 0.0)):
        assert coverage_figure([{"split": 0, "risk": risk, "alpha": alpha}]).axes[0].patches


def test_pyplot_stays_out() -> None:
    code = "import sys, af_pipeline.reporting.charts; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Tags(HTMLParser):
    """Start tags with their attributes, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


EVIL = '<script>alert("1")</script> & "x"'


def test_the_page_escapes_all_text() -> None:
    table = accuracy_table([point(EVIL, 1e6, 0.4, setting=EVIL)]) + html_table([EVIL], [[EVIL]])
    page = figures_page(EVIL, [Section(EVIL, [EVIL, EVIL], 'a "b"<.png', table)])
    tags = parsed(page)
    assert not any(tag == "script" for tag, _ in tags.found)
    assert page.count("&lt;script&gt;") == 10
    (image,) = [attributes for tag, attributes in tags.found if tag == "img"]
    assert image["src"] == "a%20%22b%22%3C.png"
    assert image["alt"] == EVIL


def test_the_page_is_self_contained_and_in_order() -> None:
    sections = [
        ("Costs", ["One.", "Two."], "costs.png", None),
        ("Table", [], None, "<table></table>"),
    ]
    page = figures_page("Run", sections)
    order = ["<h1>Run</h1>", "<h2>Costs</h2>", "<p>One.</p>", "<p>Two.</p>", 'src="costs.png"']
    order += ["<h2>Table</h2>", "<table></table>"]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert "http" not in page
    parsed(figures_page("Empty", []))


def cells(table: str) -> list[list[str]]:
    rows = table.replace("<tr class", "<tr><tr class").split("<tr")[1:]
    split = [[cell.split("</td>")[0] for cell in row.split("<td")[1:]] for row in rows]
    return [[cell.split(">", 1)[1] for cell in row] for row in split if row]


def test_accuracy_table_by_hand() -> None:
    records = [
        point("pyramid", 4e6, 0.4) | {"AP75": 0.35, "APS": None, "APM": 0.5, "APL": 0.25},
        point("autofocus", 1.380625e6, 0.39, setting="0.1", confirmed=False, chosen=True),
        point("tiles", 2e6, None, seconds=None),
    ]
    table = accuracy_table(records)
    first, second, third = cells(table)
    assert first[:8] == ["pyramid", "-", "0.400", "0.600", "0.350", "-", "0.500", "0.250"]
    assert first[8:] == ["4.000", "2000²", "0.400", "1.00", "1.00"]
    assert second[:2] == ["autofocus (replayed)", "0.1"]
    assert second[8:] == ["1.381", "1175²", "0.138", "2.90", "2.90"]
    assert third[2:8] == ["-"] * 6
    assert third[8:] == ["2.000", "1414²", "-", "2.00", "-"]
    assert table.count('class="marked"') == 1
    assert 'class="marked"><td>autofocus' in table
    assert table.count("<th>") == 13
    without = cells(accuracy_table(records[1:]))
    assert without[0][-2:] == ["-", "-"]
    assert cells(accuracy_table([])) == []

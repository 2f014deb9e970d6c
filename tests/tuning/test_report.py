"""Table 1: scores, costs and ratios of what was run, for a page and as text."""

from typing import Any

from af_pipeline.tuning.report import SCORES, accuracy_lines, accuracy_table
from af_pipeline.tuning.search import Trial


def trial(method: str, pixels: float, seconds: float, *scores: float | None, **more: Any) -> Trial:
    named = dict(zip(SCORES, scores, strict=True))
    return Trial(method, scores={**named, "recall": 0.9, "pixels": pixels}, seconds=seconds,
                 confirmed=True, **more)  # fmt: skip


TRIALS = [
    trial("pyramid", 4e6, 0.4, 0.4, 0.6, 0.35, None, 0.5, 0.25),
    trial("autofocus", 1.380625e6, 0.138, *[0.39] * 6, setting="t0.1", chosen=True),
    trial("tiles", 2e6, 0.8, *[None] * 6),
]


def test_the_table_by_hand() -> None:
    table = accuracy_table([one.record() for one in TRIALS])
    assert len(table.header) == 13
    assert table.marked == [1]
    first, second, third = table.rows
    assert first[:8] == ["pyramid", None, "0.400", "0.600", "0.350", None, "0.500", "0.250"]
    assert first[8:] == ["4.000", "2000²", "0.400", "1.00", "1.00"]
    assert second[:3] == ["autofocus", "t0.1", "0.390"]
    assert second[8:] == ["1.381", "1175²", "0.138", "2.90", "2.90"]
    assert third[2:] == [None] * 6 + ["2.000", "1414²", "0.800", "2.00", "0.50"]
    assert table.is_number == [False, False, *[True] * 11]


def test_the_same_as_text() -> None:
    cells = [line.split() for line in accuracy_lines(TRIALS)]
    assert cells[2:] == [
        ["pyramid", "0.400", "0.600", "0.900", "4.000", "1.00", "0.400", "1.00"],
        ["autofocus", "t0.1", "*", "0.390", "0.390", "0.900", "1.381", "2.90", "0.138", "2.90"],
        ["tiles", "-", "-", "0.900", "2.000", "2.00", "0.800", "0.50"],
    ]

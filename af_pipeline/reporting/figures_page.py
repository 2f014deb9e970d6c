"""The page of a run's charts and tables: one HTML file beside its pictures, everything escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple
from urllib.parse import quote

from af_pipeline.reporting.page import html_page

_STYLE = """tr.marked td { font-weight: 600; background: #fbeee4; }
.wide { overflow-x: auto; }
"""
_SCORES = ("AP", "AP50", "AP75", "APS", "APM", "APL")


class Section(NamedTuple):
    """A part of the page; ``table`` is HTML as `html_table` makes it, all else is plain text."""

    heading: str
    paragraphs: Sequence[str] = ()
    picture: str | None = None  # file name beside the page
    table: str | None = None


def figures_page(
    title: str, sections: Sequence[Section | tuple[str, Sequence[str], str | None, str | None]]
) -> str:
    """The page as HTML: per section its heading, text, picture and table, where it has them."""
    return html_page(title, (_section(Section(*section)) for section in sections), _STYLE)


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    if section.picture is not None:
        link = escape(quote(section.picture))
        image = f'<img src="{link}" alt="{escape(section.heading)}" loading="lazy">'
        parts.append(f'<figure><a href="{link}">{image}</a></figure>')
    if section.table is not None:
        parts.append(f'<div class="wide">{section.table}</div>')
    return "\n".join(parts)


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str | None]], marked: Sequence[int] = ()
) -> str:
    """A table of plain text, '-' for None; ``marked`` rows (numbers from 0) stand out.

    Columns whose cells all begin with a digit, or are None, are set as numbers to the right.
    """
    numbers = [
        all(cell is None or cell[:1].isdigit() for cell in column)
        for column in zip(*rows, strict=True)
    ]
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>"]
    for place, row in enumerate(rows):
        cells = "".join(map(_cell, row, numbers))
        lines.append(('<tr class="marked">' if place in marked else "<tr>") + cells + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cell(text: str | None, number: bool) -> str:
    kind = ' class="number"' if number else ""
    return f"<td{kind}>{escape('-' if text is None else text)}</td>"


def accuracy_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Table 1 of the AutoFocus paper as HTML, with the costs, in the order of the records.

    The paper's unit of pixels is the side of a square of as many: 1175². The ratios are those of
    the first record of method "pyramid" to the row: how many times dearer the pyramid is.

    Args:
        records: method, setting, AP to APL (0..1 or None), pixels (mean network px per image),
            seconds (per image), confirmed (False: replayed, not run), chosen (the row stands out).
            What is missing or None becomes '-'.
    """
    pyramid = next((record for record in records if record.get("method") == "pyramid"), {})
    header = ["method", "setting", *_SCORES, "MP per image", "pixels (paper's unit)"]
    header += ["s per image", "pixels, pyramid / row", "time, pyramid / row"]
    chosen = [place for place, record in enumerate(records) if record.get("chosen")]
    return html_table(header, [_accuracy_row(record, pyramid) for record in records], chosen)


def _accuracy_row(record: Mapping[str, Any], pyramid: Mapping[str, Any]) -> list[str | None]:
    pixels, seconds = record.get("pixels"), record.get("seconds")
    replayed = " (replayed)" if record.get("confirmed") is False else ""
    return [
        f"{record['method']}{replayed}",
        str(record.get("setting") or "") or None,
        *(_number(record.get(score), 3) for score in _SCORES),
        _number(None if pixels is None else pixels / 1e6, 3),
        None if pixels is None else f"{math.sqrt(pixels):.0f}²",
        _number(seconds, 3),
        _number(_ratio(pyramid.get("pixels"), pixels), 2),
        _number(_ratio(pyramid.get("seconds"), seconds), 2),
    ]


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _ratio(whole: float | None, part: float | None) -> float | None:
    return whole / part if whole is not None and part else None

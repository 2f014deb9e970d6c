"""The HTML around every page of a report: self-contained, one look."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px;
       padding: 0 1rem; color: #1c1e22; background: #f6f6f4; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 0 0 1.5rem; background: #fff; }
td, th { border: 1px solid #ddd; padding: .25rem .7rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 0 0 2rem; } img { max-width: 100%; height: auto; display: block; }
"""


def html_page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A whole page: ``title`` is plain text, ``parts`` are HTML, ``style`` further CSS."""
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(part for part in parts if part),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def write_page(page: str, path: Path) -> None:
    """Write a page; what is not valid Unicode, as in names of files, is shown as unknown."""
    path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")

"""Pages of a report, made from the templates beside this file: self-contained, all text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Table:
    """Plain text for a page, None for nothing; rows numbered in ``marked`` stand out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    marked: Sequence[int] = ()

    @property
    def is_number(self) -> list[bool]:
        """Per column whether all its cells begin with a digit or are None: set to the right."""
        return [
            all(cell is None or cell[:1].isdigit() for cell in column)
            for column in zip(*self.rows, strict=True)
        ]


@dataclass(frozen=True)
class Section:
    """A part of `figures.html`: plain text, the name of a picture beside the page, a table."""

    heading: str
    paragraphs: Sequence[str] = ()
    picture: str | None = None
    table: Table | None = None


def render_page(template: str, title: str, **content: Any) -> str:
    """The HTML of a page from a template of templates/."""
    environment = Environment(
        loader=PackageLoader("af_pipeline.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(title=title, **content)


def write_page(path: Path, template: str, title: str, **content: Any) -> None:
    """Write a page; what is not valid Unicode, as in names of files, is shown as unknown."""
    page = render_page(template, title, **content)
    path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")

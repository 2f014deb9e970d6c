"""The index.html of a folder of pictures: self-contained, relative links, everything escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from af_pipeline.reporting.page import html_page

_STYLE = """figcaption { padding: .35rem 0; } .warning { color: #a02010; font-weight: 600; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery: its file name beside index.html, and the image it shows."""

    file_name: str
    image_id: str


def gallery_page(
    title: str,
    manifest: Mapping[str, Any] | None,
    pictures: Sequence[Picture],
    failures: Sequence[tuple[str, str]],
    num_failed: int,
) -> str:
    """The page as HTML. `manifest` is run.json (None: incomplete run), `failures` are
    (image_id, error) pairs of images without a picture, out of `num_failed` in the run."""
    parts = [_summary(manifest), *map(_figure, pictures), _failures(failures, num_failed)]
    return html_page(title, parts, _STYLE)


def _summary(manifest: Mapping[str, Any] | None) -> str:
    if manifest is None:
        return '<p class="warning">The run is not complete: it has no run.json yet.</p>'
    totals = manifest.get("totals")
    if not isinstance(totals, Mapping) or not totals:
        return ""
    rows = [
        f'<tr><th>{escape(str(key))}</th><td class="number">{escape(_value(value))}</td></tr>'
        for key, value in totals.items()
    ]
    return "<h2>Totals of the run</h2>\n<table>\n" + "\n".join(rows) + "\n</table>"


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _figure(picture: Picture) -> str:
    link, name = escape(quote(picture.file_name)), escape(picture.image_id)
    return (
        f'<figure><a href="{link}"><img src="{link}" alt="{name}" loading="lazy"></a>'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _failures(failures: Sequence[tuple[str, str]], num_failed: int) -> str:
    if not failures:
        return ""
    rows = [f"<tr><td>{escape(i)}</td><td>{escape(error)}</td></tr>" for i, error in failures]
    rest = num_failed - len(failures)
    more = f"<p>and {rest:,} more with status 'error' in the images table</p>" if rest > 0 else ""
    return (
        "<h2>Images without a picture</h2>\n<table>\n<tr><th>image</th><th>error</th></tr>\n"
        + "\n".join(rows)
        + f"\n</table>\n{more}"
    )

"""Pages: whole, self-contained, in order, and no text is markup."""

from html.parser import HTMLParser

import pytest

from af_pipeline.reporting.page import Section, Table, render_page
from tests.helpers.pictures import HOSTILE_NAMES, PAGE_TAGS

ATTRIBUTES = {"lang", "charset", "name", "content", "href", "src", "alt", "loading", "class"}
EVIL = '<script>alert("1")</script> & "x"'


class Parsed(HTMLParser):
    """Start tags with their attributes, and texts; every tag must be closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def figures(title: str, *sections: Section) -> str:
    return render_page("figures.html", title, sections=sections)


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, EVIL], ids=lambda name: ascii(name)[1:20])
def test_no_text_is_markup(name: str) -> None:
    section = Section(name, [name], 'a "b"<.png', Table([name], [[name]]))
    page = Parsed(figures(name, section))
    assert {tag for tag, _ in page.found} <= PAGE_TAGS
    assert {key for _, attributes in page.found for key in attributes} <= ATTRIBUTES
    (image,) = [attributes for tag, attributes in page.found if tag == "img"]
    assert image["src"] == "a%20%22b%22%3C.png"
    if name == EVIL:
        assert image["alt"] == EVIL
        assert page.texts.count(EVIL) == 6  # title, h1, h2, p, th, td


def test_a_page_is_self_contained_and_in_order() -> None:
    page = figures(
        "Run",
        Section("Costs", ["One.", "Two."], "costs.png"),
        Section("Numbers", table=Table(["a", "b"], [["1", None], [None, "x"]], marked=[1])),
    )
    order = ["<h1>Run</h1>", "<h2>Costs</h2>", "<p>One.</p>", "<p>Two.</p>", 'src="costs.png"']
    order += ["<h2>Numbers</h2>", "<th>a</th><th>b</th>", '<td class="number">1</td>', "<td>-</td>"]
    order += ['<tr class="marked">', '<td class="number">-</td>', "<td>x</td>"]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert "http" not in page
    assert page.count("marked") == 2  # in the style and in the row
    Parsed(page)
    Parsed(figures("Empty"))

"""A page that is whole by itself, is accessible, and lets no name do anything."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pages
import pytest

from samtl.report.page import Cell, Part, Section, render
from samtl.report.style import GRID, INK


class Read(HTMLParser):
    """Elements in order, each with its attributes and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_startendtag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in {tag}"
        self.found.append((tag, dict(attributes)))

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in {"meta", "link", "img"}:
            self.open.append((tag, len(self.found) - 1))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, place in self.open:
            self.text[place] = self.text.get(place, "") + data

    def all(self, tag):
        """Return (attributes, text) of every such element."""
        return [(a, self.text.get(i, "")) for i, (name, a) in enumerate(self.found) if name == tag]

    def links(self, start):
        return [a["href"] for a, _ in self.all("a") if a["href"].startswith(start)]


@pytest.fixture(scope="module")
def text():
    return pages.page()


@pytest.fixture(scope="module")
def read(text):
    return Read(text)


def test_names_do_nothing_and_code_is_code(read, text):
    assert len(read.all("script")) == 1
    assert read.all("b") == []
    assert not [a for _, attributes in read.found for a in attributes if a.startswith("on")]
    for tag in ("title", "h1", "footer", "figcaption", "li", "td", "text"):  # the last is a chart's
        assert any(pages.NASTY in text for _, text in read.all(tag)), tag
    assert any(pages.NASTY in svg["aria-label"] for svg, _ in read.all("svg"))
    assert "<li><code>b&lt;</code></li>" in text
    assert "<p><code>code</code> &lt;/title&gt;" in text


def test_nothing_is_fetched_and_no_other_script_runs(read):
    for _, attributes in read.found:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:", "figures/")), value
    ((_, style),) = read.all("style")
    assert not re.search(r"url\(|@import", style)
    (policy,) = (a["content"] for a, _ in read.all("meta") if "http-equiv" in a)
    digest = hashlib.sha256(read.all("script")[0][1].encode()).digest()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_ids_are_unique_and_references_lead_somewhere(read):
    ids = [a["id"] for _, a in read.found if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [a["aria-labelledby"] for _, a in read.found if "aria-labelledby" in a]
    for _, attributes in read.found:
        for name, value in attributes.items():
            if name in ("href", "xlink:href") and value.startswith("#"):
                wanted.append(value[1:])
            wanted += re.findall(r"url\(#(.+?)\)", value or "")
    assert len(wanted) > 50
    assert set(wanted) <= set(ids)


def test_landmarks_and_headings_are_in_order(read):
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(read.all(tag)) == 1, tag
    levels = [int(tag[1]) for tag, _ in read.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    sections = ("found", "training", "title-script-alert-1-script-quoted-b")
    assert read.links("#section") == [f"#section-{name}" for name in sections]


def test_charts_are_in_the_pages_colours_and_have_their_numbers_beside_them(read, text):
    charts = [a for a, _ in read.all("svg")]
    assert [a["role"] for a in charts] == ["img", "img"]
    assert all("table" in a["aria-label"] for a in charts)
    assert len(read.all("details")) == 3
    body = text[text.index("<body>") :].lower()
    for name, colour in (("ink", INK), ("grid", GRID)):
        assert f"var(--{name})" in body
        assert colour not in body


def test_pictures_are_embedded_and_files_beside_the_page_linked_to(read):
    ((picture, _),) = read.all("img")
    assert picture["src"] == f"data:image/png;base64,{base64.b64encode(pages.PICTURE).decode()}"
    assert (picture["width"], picture["height"]) == ("1600", "320")
    curves = [f"figures/curves.{kind}" for kind in ("png", "svg", "csv")]
    assert read.links("figures/")[:4] == ["figures/scores.csv", *curves]
    assert "figures/samples.svg" not in read.links("figures/")


def test_tables_carry_the_values_they_are_sorted_by(read):
    heads = [(a.get("class"), text.strip()) for a, text in read.all("th")[:5]]
    numbers = ("accuracy", "low", "seconds")
    assert heads == [(None, "model"), *(("n", name) for name in numbers), (None, "note")]
    row = read.all("td")[15:20]
    assert [a.get("data-value") for a, _ in row] == [None, "0.712", "-1.25", None, None]
    assert [text for _, text in row] == ["floor", "0.712", "-1.25", "", pages.NASTY]
    scrolls = [a for a, _ in read.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["aria-labelledby"] for a in scrolls)
    assert len(scrolls) == len(read.all("table")) == 6


def page(rows, **look):
    return render("Title", "", [Section("One", [Part("t", "T", "", rows, **look)])], {}, "")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((83.796, 9.5, None, float("nan"), 100.0), ("83.8", "9.5", "", "", "100.0")),
        ((0.5, 0.03125, 1.5e-7, 0.0), ("0.500", "0.031", "1.5e-07", "0.000")),
        ((1640.4, 275.25), ("1,640", "275")),
        ((80.0, 20.0), ("80", "20")),
        ((27_000, 2026, "as it is", True), ("27,000", "2026", "as it is", "True")),
        ((Cell(0.5, "50.0 ± 1.0", best=True), None), ("50.0 ± 1.0", "")),
    ],
)
def test_the_numbers_of_a_column_have_as_many_decimals_and_are_sorted_by_value(values, texts):
    found = Read(page([{"a. b": value} for value in values])).all("td")
    assert tuple(text for _, text in found) == texts
    for value, (attributes, _) in zip(values, found, strict=True):
        number = value.value if isinstance(value, Cell) else value
        known = isinstance(number, int | float) and number == number
        assert attributes.get("data-value") == (str(number) if known else None)
        assert ("best" in attributes.get("class", "")) == isinstance(value, Cell)


def test_a_table_may_show_other_rows_than_its_file_and_a_long_one_is_cut():
    found = Read(page([{"long": 1.0}], shown=[{"short": 2.0}]))
    assert [text for _, text in found.all("th")] == ["short"]
    assert [text for _, text in found.all("td")] == ["2"]
    text = page([{"i": i} for i in range(3234)])
    assert text.count("<td") == 2000
    assert "1,234 more rows" in text
    assert Read(page([])).all("td") == []

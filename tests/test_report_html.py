"""A page that is whole by itself, says everything to everyone, and lets no name do anything."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pages
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtl.report.content import Page, Section, Table
from samtl.report.page import (
    MOST_ROWS,
    render,
    sort_value,
    written,
)
from samtl.report.style import GRID, INK

ELEMENTS_WITHOUT_END = {"meta", "link", "img"}


class Read(HTMLParser):
    """Elements in order, each with its attributes and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in {tag}"
        self.found.append((tag, dict(attributes)))
        if tag not in ELEMENTS_WITHOUT_END:
            self.open.append((tag, len(self.found) - 1))

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, place in self.open:
            self.text[place] = self.text.get(place, "") + data

    def all(self, tag):
        """Give (attributes, text) of every such element."""
        return [
            (attributes, self.text.get(i, ""))
            for i, (name, attributes) in enumerate(self.found)
            if name == tag
        ]


@pytest.fixture(scope="module")
def text():
    page, images = pages.page()
    return render(page, images, made=f"Made by {pages.NASTY}")


@pytest.fixture(scope="module")
def read(text):
    return Read(text)


def test_names_do_nothing(read):
    assert len(read.all("script")) == 1
    assert read.all("b") == []
    assert not [a for _, attributes in read.found for a in attributes if a.startswith("on")]
    for tag in ("title", "h1"):
        assert pages.NASTY in read.all(tag)[0][1]
    assert any(pages.NASTY in cell for _, cell in read.all("td"))
    assert pages.NASTY in read.all("footer")[0][1]
    assert any(pages.NASTY in (svg["aria-label"] or "") for svg, _ in read.all("svg"))


def test_nothing_is_fetched(read):
    for _, attributes in read.found:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:", "figures/")), value
    style = read.all("style")
    assert len(style) == 1
    assert "url(" not in style[0][1]
    assert "@import" not in style[0][1]


def test_the_policy_lets_only_the_pages_own_script_run(read):
    (policy,) = (
        a["content"]
        for a, _ in read.all("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    script = read.all("script")[0][1].encode()
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_ids_are_unique_and_references_lead_somewhere(read):
    ids = [a["id"] for _, a in read.found if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [a[key] for _, a in read.found for key in ("aria-labelledby",) if key in a]
    wanted += [a["href"][1:] for _, a in read.found if a.get("href", "").startswith("#")]
    for _, attributes in read.found:
        for value in filter(None, attributes.values()):
            wanted += re.findall(r"url\(#(.+?)\)", value)
    assert len(wanted) > 50
    assert set(wanted) <= set(ids)


def test_landmarks_and_headings_are_in_order(read):
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(read.all(tag)) == 1, tag
    levels = [int(tag[1]) for tag, _ in read.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert read.all("html")[0][0]["lang"] == "en"
    contents = [a["href"] for a, _ in read.all("a") if a["href"].startswith("#section")]
    assert contents == ["#section-found", "#section-training", "#section-provenance"]


def test_charts_are_drawings_with_words_in_the_pages_colours(read, text):
    charts = [a for a, _ in read.all("svg")]
    assert len(charts) == 2
    for chart in charts:
        assert chart["role"] == "img"
        assert chart["aria-label"] == f'Loss falls from 0.5 to 0.1. "{pages.NASTY}"'
    assert "var(--ink)" in text
    assert "var(--grid)" in text
    body = text[text.index("<body>") :].lower()
    assert INK not in body
    assert GRID not in body


def test_pictures_are_embedded_with_words(read):
    ((picture, _),) = read.all("img")
    kind, data = picture["src"].split(",")
    assert kind == "data:image/webp;base64"
    assert base64.b64decode(data) == pages.webp()
    assert picture["alt"] == "Forests."
    assert (picture["width"], picture["height"]) == ("200", "40")


def test_files_beside_the_page_are_linked_to_or_not(read):
    links = [a["href"] for a, _ in read.all("a") if a["href"].startswith("figures/")]
    assert links[:4] == [
        "figures/scores.csv", "figures/curves.png", "figures/curves.svg", "figures/curves.csv",
    ]  # fmt: skip
    assert "figures/samples.svg" not in links
    page, images = pages.page()
    assert "figures/" not in render(page, images, files=None)


def test_tables_carry_the_values_they_are_sorted_by(read):
    heads = [(a.get("class"), text) for a, text in read.all("th")[:5]]
    assert heads == [
        (None, "model"), ("n", "accuracy"), ("n", "interval"), ("n", "seconds"), (None, "note"),
    ]  # fmt: skip
    row = read.all("td")[15:20]
    assert [a.get("data-value") for a, _ in row] == [None, "0.712", "-1.2", None, None]
    assert [text for _, text in row] == ["floor", "0.712", "\u22121.2 ± 0.5", "", pages.NASTY]
    scrolls = [a for a, _ in read.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["aria-labelledby"] for a in scrolls)
    assert len(scrolls) == len(read.all("table")) == 6


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("83.8 [82.7, 84.9]", 83.8), ("0.826 to 0.850", 0.826), ("1.2 ± 0.3", 1.2), ("97 %", 97), ("1,640", 1640),
        ("-0.5", -0.5), (".5", 0.5), ("1e-3", 0.001), (True, 1), (3, 3), (0.25, 0.25), ("", None), (None, None),
        ("never", None), ("3 nearest neighbours", None), ("e1cef44f", None), ("2026-11-20", None), ("5 of 9", None),
        (float("nan"), None), (float("inf"), None),
    ],
)  # fmt: skip
def test_what_a_cell_is_sorted_by(cell, value):
    assert sort_value(cell) == value


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_intervals_are_sorted_by_their_value(value, low):
    assert sort_value(f"{value:,.2f} [{low:,.2f}, {low:,.2f}]") == float(f"{value:.2f}")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (0.83796, "0.838"), (275.25, "275.2"), (1640.4, "1,640"), (27_000, "27,000"), (2026, "2026"), (None, ""),
        (float("nan"), ""), ("as it is", "as it is"), (1.5e-7, "1.5e-07"),
    ],
)  # fmt: skip
def test_how_a_cell_is_written(cell, text):
    assert written(cell) == text


def with_parts(*parts):
    return Page("Title", "", (Section("one", "One", parts=parts),))


def test_a_long_table_is_cut_and_says_so():
    long = Table("long", "Long", "", ("i",), tuple((i,) for i in range(MOST_ROWS + 1234)))
    text = render(with_parts(long), {})
    assert text.count("<td") == MOST_ROWS
    assert "1,234 more rows are in the CSV file" in text


def test_a_table_without_rows_is_written():
    assert Read(render(with_parts(Table("t", "T", "", ("a", "b"), ())), {})).all("td") == []


def test_names_that_occur_twice_are_a_mistake():
    with pytest.raises(ValueError, match="occur twice on a page: scores"):
        render(with_parts(pages.table(), pages.table()), {})
    assert render(with_parts(pages.table(), replace(pages.table(), name="other")), {})


def test_a_row_that_is_too_short_is_a_mistake():
    with pytest.raises(ValueError, match="table t: 1 cells under 2 names"):
        render(with_parts(Table("t", "T", "", ("a", "b"), (("x",),))), {})


def test_paragraphs_lists_and_code():
    section = Section("one", "One", ("First.", "- a", "- `b<`", "Last."))
    text = render(Page("Title", "", (section,)), {})
    assert "<p>First.</p>\n<ul><li>a</li><li><code>b&lt;</code></li></ul>\n<p>Last.</p>" in text

"""Whatever text the data holds, a page shows it and nothing of it becomes markup: on every page, in every place that takes a value."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from tests.pages.samples import PAGES, Texts
from thinktwice.pages.charts import Mark, Series, dot_chart, line_chart
from thinktwice.pages.charts_bars import bars, timeline_chart
from thinktwice.pages.charts_scatter import Point, scatter_chart
from thinktwice.pages.drawing import Drawing, picture, text
from thinktwice.pages.templates import KIT, render, visible

VOID = {"meta", "br", "link", "img", "input"}
ATTACKS = (
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style></svg><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}{% raw %}{# x #}",
    "${7*7} {% include 'page.html' %}",
    "&lt;b&gt; &amp;amp; ]]> <!-- -->",
    "\x00\x1b[31m\x08\x7f\x85\u202e\u2028\ufeff\ud800\r\n\t",
)
hostile = st.one_of(
    st.sampled_from(ATTACKS),
    st.text(st.sampled_from("<>&'\"{}%#\\/=`;ab \x00\x1b\n\u202e\ud800"), max_size=20),
    st.text(st.characters(codec=None), max_size=12),
)


class Seen(HTMLParser):
    """Every element with its attributes, and every text: what a browser makes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: Counter[tuple[str, str]] = Counter()
        self.values: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.others: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes.update((tag, name) for name, _ in attrs)
        self.values += [value or "" for _, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def unknown_decl(self, data: str) -> None:
        self.others.append(data)

    handle_pi = unknown_decl


def shape(page: str) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """What the page is made of; the page is whole and has no markup but elements."""
    seen = Seen(page)
    assert seen.open == [] and seen.others == []
    return seen.elements, seen.attributes


@pytest.mark.parametrize("name", PAGES)
@given(text=hostile)
@settings(max_examples=40, deadline=None)
def test_text_stays_text_in_every_place(name: str, text: str) -> None:
    texts = Texts(text)
    page = PAGES[name](texts)
    page.encode("utf-8")  # a lone surrogate would break the file
    assert shape(page) == shape(PAGES[name](Texts("")))
    seen = Seen(page)
    shown = "\n".join([*seen.words, *seen.values])
    for expected in texts.expected:
        assert expected in shown
    assert all(c == "\n" or visible(c) == c for c in page)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_runs_nothing_and_says_so(name: str) -> None:
    page = PAGES[name](Texts(""))
    seen = Seen(page)
    assert (
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        in page
    )
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in page
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(seen.elements)
    assert not {a for _, a in seen.attributes if a in ("src", "href", "srcset") or a.startswith("on")}
    assert not re.search(r"https?:|@import|url\(", page)


@pytest.mark.parametrize("name", PAGES)
def test_wide_tables_and_charts_scroll_inside_their_box(name: str) -> None:
    """What is wider than a narrow window stands in a box that scrolls; the page itself does not."""
    page = PAGES[name](Texts(""))
    for tag in ("<table", "<svg viewBox"):
        places = [m.start() for m in re.finditer(tag, page)]
        assert places or (tag, name) in (("<table", "load"), ("<svg viewBox", "drift"), ("<svg viewBox", "skew"))
        assert all(page[:at].rstrip().endswith('<div class="scroll">') for at in places)


@given(text=hostile)
@settings(max_examples=60, deadline=None)
def test_a_drawing_and_a_picture_are_valid_whatever_they_name(text: str) -> None:
    series = [Series(text, "#111111", [Mark(0.0, 1.0, tip=text), Mark(1.0, 2.0, 0.5, 3.0, text)])]
    drawings = [
        line_chart(series, x_label=text, y_label=text, categories=[text, text]),
        dot_chart([(text, text)], [Series(text, "#111111", [Mark(0.5, 0, 0.4, 0.6, text)])], x_label=text),
        scatter_chart([Point(text, 1.0, 1.0, 0.5, 1.5, tip=text)], x_label=text, y_label=text, title=text),
        timeline_chart([(text, 3, 0.5), (text, 4, 0.2)]),
    ]
    words = str(visible(text))
    for drawing in drawings:
        root = ET.fromstring(str(drawing))
        assert {e.tag for e in root.iter()} <= {
            "div",
            "svg",
            "g",
            "title",
            "text",
            "line",
            "circle",
            "rect",
            "polyline",
        }
        assert any(words in (e.text or "") for e in root.iter("text"))
        assert any(words in (e.text or "") for e in root.iter("title"))
    root = ET.fromstring(picture(drawings, [(text, "#111111")]))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    ET.fromstring(str(bars([text], [(text, "#111111", [0.5])])))


def test_a_value_that_was_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render(KIT, "page.html", subtitles=())


def test_only_markup_of_the_kit_is_markup(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("{{ text }}|{{ drawing }}|{{ number }}")
    drawing = bars(["a"], [("b", "#111111", [1.0])])
    shown = render(tmp_path, "page.html", text="<b>\x07", drawing=drawing, number=1.5)
    text, svg, number = shown.split("|")
    assert text == "&lt;b&gt;\\x07" and svg.startswith("<svg") and number == "1.5"


@given(st.lists(st.text("abcdefgh ", min_size=1, max_size=40), min_size=1, max_size=12))
def test_a_legend_stays_inside_its_picture_and_above_the_drawings(names: list[str]) -> None:
    drawing = Drawing(400, 50, "", [text(0, 10, "drawing", "start", "#111111")])
    root = ET.fromstring(picture([drawing], [(name, "#111111") for name in names]))
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(circles) == len(names)
    assert all(float(one.attrib["cx"]) < 400 for one in circles)
    (below,) = [
        one.attrib["transform"] for one in root.iter() if one.attrib.get("transform", "").startswith("translate(0")
    ]
    assert max(float(one.attrib["cy"]) for one in circles) < float(below.split()[1].rstrip(")"))

"""Points with names that can be read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

from thinktwice.pages.charts_scatter import LABEL_HEIGHT, Point, best_of, scatter_chart

POINTS = [
    Point("plain", 1.0, 0.0),
    Point("gate", 1.0, -1.0, -1.5, -0.5, tip="<better>"),
    Point("filter", 1.0, -0.98),
    Point("members", 1.2, -2.0),
    Point("matt & co", 8.0, 1.0),
]


def test_the_drawing_is_valid_and_shows_every_name_once() -> None:
    svg = str(scatter_chart(POINTS, x_label="passes", y_label="change"))
    root = ET.fromstring(svg)
    shown = [e.text for e in root.iter("text")]
    for p in POINTS:
        assert shown.count(p.name) == 1
    assert len(list(root.iter("circle"))) == len(POINTS)


def test_names_do_not_stand_on_one_another() -> None:
    crowd = [Point(f"mode {i}", 1.0, -0.01 * i) for i in range(12)]
    svg = str(scatter_chart(crowd, x_label="passes", y_label="change"))
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start" fill="#3b6fd4"', svg))
    assert len(heights) == 12
    assert min(b - a for a, b in pairwise(heights)) >= LABEL_HEIGHT - 0.2


def test_the_frontier_holds_what_nothing_cheaper_beats() -> None:
    assert [p.name for p in best_of(POINTS)] == ["gate", "members"]


def test_nothing_to_draw_is_said() -> None:
    assert "Nothing to draw" in str(scatter_chart([], x_label="x", y_label="y"))

"""Lines with whiskers or with bands."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from thinktwice.pages.charts import Mark, Series, line_chart

MARKS = [Mark(0.0, 0.0, 0.0, 0.0), Mark(0.5, -2.0, -3.0, -1.0), Mark(1.0, -1.0, -2.5, 0.5)]


def drawn(*series: Series) -> ET.Element:
    return ET.fromstring(str(line_chart(series, x_label="share", y_label="change")))[0]


def places(shape: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in shape.get("points", "").split())]


def test_a_band_goes_out_along_the_low_ends_and_back_along_the_high_ones() -> None:
    root = drawn(Series("plain", "#111111", MARKS, band=True))
    (band,) = root.iter("polygon")
    (line,) = root.iter("polyline")
    there, back = places(band)[:3], places(band)[3:][::-1]
    for low, high, (x, y) in zip(there, back, places(line), strict=True):
        assert low[0] == high[0] == x
        assert high[1] <= y <= low[1]  # a drawing counts downwards
    assert there[1][1] - back[1][1] > 50
    whiskers = [e for e in root.iter("line") if e.get("stroke") == "#111111"]
    assert whiskers == []


def test_bands_lie_behind_all_lines_and_other_series_keep_their_whiskers() -> None:
    root = drawn(Series("first", "#111111", MARKS), Series("second", "#222222", MARKS, band=True))
    shapes = [e.tag for e in root if e.tag in ("polygon", "polyline")]
    assert shapes == ["polygon", "polyline", "polyline"]
    assert len([e for e in root.iter("line") if e.get("stroke") == "#111111"]) == len(MARKS)


def test_a_band_without_ends_is_a_line() -> None:
    bare = Series("plain", "#111111", [Mark(0.0, 0.0), Mark(1.0, 1.0)], band=True)
    assert list(drawn(bare).iter("polygon")) == []

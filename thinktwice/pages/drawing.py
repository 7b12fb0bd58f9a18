"""SVG drawings without scripts, font files or external resources. Hovering over a mark shows its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from thinktwice.pages.templates import KIT, render

GRID, INK, FAINT, AXIS = "#e6e8ec", "#30343b", "#7a818c", "#9aa1ac"
LEGEND_ROW = 18.0  # of a legend that needs more than one
LEGEND_HEIGHT = 30.0
CHARACTER = 6.4  # mean width of a character at the size of the charts


@dataclass(frozen=True)
class Shape:
    """One element: its attributes, its text, the text shown on hover, and its child elements."""

    tag: str
    attributes: dict[str, str]
    words: str = ""
    tip: str = ""
    inside: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """Shapes on a canvas of ``width`` by ``height`` pixels. A page scales it to the width of its box, except a ``fixed``
    one."""

    width: float
    height: float
    label: str
    shapes: Sequence[Shape]
    fixed: bool = False

    def __html__(self) -> Markup:
        return render(KIT, "drawing.html", drawing=self)

    __str__ = __html__


def picture(panels: Sequence[Drawing], names: Sequence[tuple[str, str]] = ()) -> str:
    """A standalone SVG file: drawings of equal width below one another, with (name, color) as a legend on top."""
    width = max(p.width for p in panels)
    shapes, rows = legend_shapes(names, 12, 18, width)
    at = LEGEND_HEIGHT + (rows - 1) * LEGEND_ROW if names else 0.0
    for panel in panels:
        shapes.append(shape("g", transform=f"translate(0 {at:.0f})", inside=tuple(panel.shapes)))
        at += panel.height + 10
    combined = Drawing(width, at, "; ".join(p.label for p in panels), shapes)
    return str(render(KIT, "picture.svg", drawing=combined))


def shape(tag: str, words: str = "", tip: str = "", inside: tuple[Shape, ...] = (), **attributes: str | float) -> Shape:
    """One element; ``stroke_width`` is the attribute ``stroke-width``, and a number has one decimal."""
    written = {
        name.replace("_", "-"): value if isinstance(value, str) else f"{value:.1f}"
        for name, value in attributes.items()
        if value != ""
    }
    return Shape(tag, written, words, tip, inside)


def line(x1: float, y1: float, x2: float, y2: float, color: str, dash: str = "") -> Shape:
    """A straight line."""
    return shape("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=color, stroke_dasharray=dash)


def text(
    x: float,
    y: float,
    words: str,
    anchor: str,
    color: str,
    turn: float = 0.0,
    *,
    bold: bool = False,
    halo: bool = False,
) -> Shape:
    """Text at a point, anchored at its start, middle or end, rotated by degrees around the point; a ``halo`` keeps it
    legible over lines."""
    turned = f"rotate({turn:.0f} {x:.1f} {y:.1f})" if turn else ""
    weight, order, stroke, width = "600" if bold else "", *(("stroke", "#fff", "3") if halo else ("", "", ""))
    return shape(
        "text", words, x=x, y=y, text_anchor=anchor, fill=color, transform=turned,
        font_weight=weight, paint_order=order, stroke=stroke, stroke_width=width,
    )  # fmt: skip


def polyline(points: Sequence[tuple[float, float]], color: str, dash: str = "", width: float = 2.0) -> Shape:
    """Straight lines from point to point."""
    return shape(
        "polyline", points=corners(points), fill="none", stroke=color, stroke_width=width, stroke_opacity="0.8", stroke_dasharray=dash
    )  # fmt: skip


def corners(points: Sequence[tuple[float, float]]) -> str:
    """Points as SVG writes them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def group(tip: str, *inside: Shape) -> Shape:
    """Shapes that show one text on hover."""
    return shape("g", tip=tip, inside=inside)


def legend_shapes(names: Sequence[tuple[str, str]], left: float, y: float, width: float) -> tuple[list[Shape], int]:
    """(name, color) side by side, in as many rows as the width needs; and the number of rows."""
    out, x, rows = list[Shape](), left, 1
    for name, color in names:
        taken = 30 + CHARACTER * len(name)
        if x > left and x + taken > width:
            x, y, rows = left, y + LEGEND_ROW, rows + 1
        out += [shape("circle", cx=x, cy=y - 4, r=4.0, fill=color), text(x + 9, y, name, "start", color)]
        x += taken
    return out, rows

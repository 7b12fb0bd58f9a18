"""Values with intervals, one line each, as text beside a strip on a shared scale. Unlike a drawing it needs no width: on a narrow
screen the strip goes below its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from thinktwice.pages.charts import nice_ticks, number
from thinktwice.pages.templates import KIT, render

TICKS = 4


@dataclass(frozen=True)
class Strip:
    """One line: a name with a remark, and a value with its interval as ``figure`` and ``detail``.

    Without a value only the text is shown. ``kind`` is "good", "bad" or "" and colours the line; a ``head`` line is set apart from those
    below it.
    """

    name: str
    figure: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    remark: str = ""
    detail: str = ""
    kind: str = ""
    head: bool = False


@dataclass(frozen=True)
class Placed:
    """A strip with positions in percent of its width; None for what is not drawn."""

    strip: Strip
    at: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Strips:
    """Lines on one scale, with the names of both columns beside it, the position of a reference value, and (position, text) of the
    ticks."""

    lines: Sequence[Placed]
    label: str
    reference: float | None
    ticks: Sequence[tuple[float, str]]

    def __html__(self) -> Markup:
        return render(KIT, "strips.html", strips=self)

    __str__ = __html__


def strips(lines: Sequence[Strip], *, label: str, reference: float | None = None) -> Strips:
    """Place the lines on a scale that contains all their intervals and the reference."""
    ends = [v for one in lines for v in (one.value, one.low, one.high) if v is not None]
    if not ends:
        return Strips([Placed(one, None, None, None) for one in lines], label, None, ())
    ticks = nice_ticks(min([*ends, *_known(reference)]), max([*ends, *_known(reference)]), TICKS)
    first, reach = ticks[0], ticks[-1] - ticks[0]

    def place(value: float | None) -> float | None:
        return None if value is None else (value - first) / reach * 100

    placed = [
        Placed(one, place(one.value), place(one.low), place(one.high))
        if one.value is not None
        else Placed(one, None, None, None)
        for one in lines
    ]
    shown = [((tick - first) / reach * 100, number(tick, ticks)) for tick in ticks]
    return Strips(placed, label, place(reference), shown)


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]

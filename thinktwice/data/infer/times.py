"""The time of the impression: which column has it, and how it is written."""

from __future__ import annotations

from thinktwice.data.infer import names
from thinktwice.data.infer.measure import ColumnFacts, Measured
from thinktwice.data.infer.roles import TimeRole
from thinktwice.schema.times import TEXT

EPOCH = {"s": (5e8, 4.1e9), "ms": (5e11, 4.1e12), "us": (5e14, 4.1e15)}  # 1985 to 2099


def find_time(measured: Measured) -> TimeRole:
    """The impression's time: by its values, then its name, then how fine it is."""
    best: tuple[tuple[int, int, int], TimeRole] | None = None
    for of in measured.facts.values():
        form = time_format(measured, of)
        if form is None:
            continue
        position = names.rank(of.name, names.TIME)
        if position is None and form in ("s", "yymmddhh"):
            continue  # integers are only times if their name says so
        distinct = min(measured.text(of.name).n_unique(), 1000)
        score = (int(position is not None or of.is_time), distinct, -(position if position is not None else 99))
        reason = f"{form}: " + (
            "its type" if of.is_time else "its values and its name" if position is not None else "its values"
        )
        if best is None or score > best[0]:
            zoneless = form in ("datetime", "yymmddhh") and not _has_zone(measured, of)
            best = (score, TimeRole(of.name, form, reason, zoneless))
    return best[1] if best else TimeRole(None, "order", "no column looks like a time: the order of the rows is used")


def time_format(measured: Measured, of: ColumnFacts) -> str | None:
    """How a column writes times; None if it has none."""
    if of.present == 0 or of.is_list:
        return None
    if of.is_time:
        return "datetime"
    if not of.numeric:
        head = measured.text(of.name).drop_nulls()
        sample = head.sample(min(2000, len(head)), seed=0) if len(head) else head
        return "datetime" if len(sample) and float(sample.str.contains(TEXT).mean() or 0) > 0.99 else None  # type: ignore[arg-type]
    if not of.whole and of.maximum < 1e8:
        return None
    for form, (low, high) in EPOCH.items():
        if low <= of.minimum and of.maximum <= high:
            return form
    if of.whole and of.minimum >= 70_00_00_00 and of.maximum <= 99_12_31_23:
        return None
    hours = {"hour", "time", "date", "timestamp"} & set(names.glued(of.name))
    if of.whole and hours and of.minimum >= 10_01_01_00 and of.maximum <= 70_12_31_23:
        text = measured.text(of.name).drop_nulls().head(5000)
        good = text.str.contains(r"^[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[01][0-9]|2[0-3])$")
        return "yymmddhh" if bool(good.all()) and len(text) else None
    return None


def _has_zone(measured: Measured, of: ColumnFacts) -> bool:
    zone = getattr(of.type, "tz", None)
    if of.is_time:
        return zone is not None
    head = measured.text(of.name).drop_nulls().head(100)
    return bool(head.str.contains(r"(?:[zZ]|UTC|[+-][0-9]{2}(?::?[0-9]{2})*)$").all()) and not bool(
        head.str.contains(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$").any()
    )

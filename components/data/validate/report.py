"""The validation report: a self-contained HTML file without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from thinktwice.pages import templates
from thinktwice.pages.charts import Series
from thinktwice.pages.charts_bars import LIVE, SOFT, STRONG, bars, timeline_chart
from thinktwice.pages.drawing import Drawing
from thinktwice.validate.drift import MISSING, OTHER
from thinktwice.validate.profile import WHOLE, LogProfile

if TYPE_CHECKING:
    from components.data.validate.verdict import DataVerdict

FIRST, SECOND = Series("first half", SOFT, ()), Series("second half", STRONG, ())


def render(
    verdict: DataVerdict,
    profile: LogProfile,
    info: Mapping[str, Any],
    samples: Mapping[str, list[str]],
    times: str,
    words: Mapping[str, str],
    crosses: Sequence[str] = (),
) -> str:
    """Render the page.

    Args:
        info: clean.json.
        samples: row ids per reason.
        times: what the times of the log are.
        words: field -> its kind, unit and origin.
        crosses: a sentence for each cross, which has no column in the log.
    """
    html = templates.render(
        Path(__file__).parent,
        "report.html",
        title=f"Validation of {info['schema_name']}",
        subtitles=[_facts(info), f"times: {times}", *crosses, *info.get("read", [])],
        verdict=verdict,
        headline=verdict.headline.partition(": ")[2],
        split=verdict.split,
        info=info,
        broken=[f for f in verdict.findings if not f.passed],
        held=[f for f in verdict.findings if f.passed],
        tiles=_tiles(verdict, profile),
        reasons=sorted(verdict.split.reasons.items(), key=lambda item: (-item[1], item[0])),
        budget=next((f.bound for f in verdict.findings if f.rule == "ledger:budget"), ""),
        samples=samples,
        rows_and_rate=[Series("rows", SOFT, ()), Series("click rate", LIVE, ())],
        timeline=_timeline(profile.table),
        halves=[FIRST, SECOND],
        fields=_fields(profile),
        words=words,
    )
    return str(html)


def _facts(info: Mapping[str, Any]) -> str:
    span = ""
    if info["first_event"] and not info["last_event"].startswith("1970"):  # relative times are not informative
        span = f" · events from {info['first_event'][:10]} to {info['last_event'][:10]}"
    return f"snapshot {info['snapshot_id'] or 'unnamed'} · {info['rule_set_version']}{span}"


def _tiles(verdict: DataVerdict, profile: LogProfile) -> list[tuple[str, str]]:
    split, metrics = verdict.split, verdict.metrics
    fields = profile.table.filter(pl.col("partition") == WHOLE)
    rate = f"{metrics['click_rate']:.2%}" if "click_rate" in metrics else "–"
    return [
        (f"{split.rows_in:,}", "rows in"),
        (f"{split.rows_clean:,}", "clean"),
        (f"{split.rows_quarantined:,}", f"quarantined ({metrics['quarantined_share']:.3%})"),
        (rate, "click rate"),
        (str(fields.height), "fields profiled"),
        (f"{metrics['critical']:.0f} / {metrics['warnings']:.0f}", "critical / warnings"),
    ]


def _timeline(table: pl.DataFrame) -> Drawing | None:
    """Rows and click rate per slice of the log; None for a single slice."""
    if not table.height:
        return None
    first = table["feature"][0]
    slices = table.filter((pl.col("feature") == first) & (pl.col("partition") != WHOLE))
    if slices.height < 2:
        return None
    return timeline_chart(slices.select("partition", "rows", "click_rate").rows())


def _fields(profile: LogProfile) -> list[tuple[dict[str, Any], Drawing | None]]:
    """Profile row of every field, and the distribution of its values in both halves."""
    rows = profile.table.filter(pl.col("partition") == WHOLE).iter_rows(named=True)
    return [(row, None if row["kind"] == "key" else _spread(profile.histograms[row["feature"]])) for row in rows]


def _spread(histogram: Mapping[str, Any]) -> Drawing | None:
    """Distributions of both halves side by side, without the bin of all other values, which would dominate."""
    bins = [
        b
        for b in zip(histogram["labels"], histogram["first"], histogram["second"], strict=True)
        if b[0] != OTHER and (b[0] != MISSING or b[1] or b[2])
    ]
    if not bins:
        return None
    labels, first, second = zip(*bins, strict=True)
    return bars(labels, [("first half", FIRST.color, first), ("second half", SECOND.color, second)])

"""The result of an evaluation in plain words."""

from __future__ import annotations

from thinktwice.evaluate.evaluation import Measures, MetricName
from thinktwice.stats.metrics import UNDEFINED
from thinktwice.testtime.report import TestTimeReport

JUDGED: tuple[tuple[MetricName, str, int], ...] = (
    ("auc", "AUC", 1),
    ("logloss", "logloss", -1),
)  # direction of improvement


def verdict_lines(measures: Measures, report: TestTimeReport, shipped: str, headline: str = "") -> list[str]:
    """One sentence each: what ships (``shipped``, the key of a column), ``headline`` (is it good), the effect of pre-training, the
    effect of test-time work."""
    labels = {c.key: c.label for c in measures.columns}
    auc = measures.column(shipped).metrics.auc
    quality = (
        f"it puts a click above a non-click in {auc:.1%} of pairs" if auc is not None else f"its AUC is {UNDEFINED}"
    )
    tail = "" if shipped == "test_time" else ", without test-time work"
    lines = [f"The {labels[shipped]} model ships{tail}: on {measures.rows:,} test rows {quality}."]
    if headline:
        lines.append(headline)
    if "pretrained" in labels:
        lines.append(compared(measures, "pretrained", "plain", "Pre-training"))
    lines.append(report.sentence)
    if report.best is not None:
        subject = f"On the test rows the best test-time candidate ({report.best_name})"
        lines.append(compared(measures, "test_time", report.trunk, subject))
    return lines


def compared(measures: Measures, column: str, against: str, subject: str) -> str:
    """The difference of two columns in AUC and logloss, as a sentence that starts with ``subject``."""
    words = []
    for metric, name, better in JUDGED:
        difference = measures.difference(column, against, metric)
        if difference is None or difference.value is None:
            continue
        judged = (
            ("better" if difference.value * better > 0 else "worse")
            if difference.significant
            else "no more than chance"
        )
        words.append(f"{name} by {difference.value:+.4f} ({judged})")
    return f"{subject} changed {' and '.join(words)}." if words else f"{subject} could not be compared."

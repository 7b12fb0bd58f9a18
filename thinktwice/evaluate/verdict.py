"""The finding in words a product owner understands."""

from __future__ import annotations

from thinktwice.evaluate.evaluation import Measures, MetricName
from thinktwice.stats.metrics import UNDEFINED
from thinktwice.testtime.report import TestTimeReport

JUDGED: tuple[tuple[MetricName, str, int], ...] = (("auc", "AUC", 1), ("logloss", "logloss", -1))  # which way is better


def verdict_lines(measures: Measures, report: TestTimeReport, shipped: str) -> list[str]:
    """What ships (the key of a column), what pre-training brought, what test-time work brought; each one sentence."""
    labels = {c.key: c.label for c in measures.columns}
    auc = measures.column(shipped).metrics.auc
    quality = (
        f"it puts a click above a non-click in {auc:.1%} of pairs" if auc is not None else f"its AUC is {UNDEFINED}"
    )
    tail = "" if shipped == "test_time" else ", without test-time work"
    lines = [f"The {labels[shipped]} model ships{tail}: on {measures.rows:,} test rows {quality}."]
    if "pretrained" in labels:
        lines.append(compared(measures, "pretrained", "plain", "Pre-training"))
    lines.append(report.sentence)
    if report.best is not None:
        subject = f"On the test rows the best test-time candidate ({report.best_name})"
        lines.append(compared(measures, "test_time", report.trunk, subject))
    return lines


def compared(measures: Measures, column: str, against: str, subject: str) -> str:
    """How one column differs from another in AUC and logloss, as a sentence that starts with ``subject``."""
    words = []
    for metric, name, better in JUDGED:
        found = measures.difference(column, against, metric)
        if found is None or found.value is None:
            continue
        judged = ("better" if found.value * better > 0 else "worse") if found.significant else "no more than chance"
        words.append(f"{name} by {found.value:+.4f} ({judged})")
    return f"{subject} changed {' and '.join(words)}." if words else f"{subject} could not be compared."

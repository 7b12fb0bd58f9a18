"""The finding in words a product owner understands."""

from __future__ import annotations

from typing import Any

from thinktwice.stats.metrics import UNDEFINED


def difference(content: dict[str, Any], column: str, against: str, metric: str) -> dict[str, Any] | None:
    """One paired difference of an evaluation, or None."""
    for found in content["differences"]:
        if (found["column"], found["against"], found["metric"]) == (column, against, metric):
            return found
    return None


def verdict_lines(content: dict[str, Any]) -> list[str]:
    """What ships, what pre-training brought, what test-time work brought; each one sentence."""
    labels = {c["key"]: c["label"] for c in content["columns"]}
    metrics = {c["key"]: c["metrics"] for c in content["columns"]}
    shipped = content["shipped"]
    auc = metrics[shipped]["auc"]
    quality = (
        f"it puts a click above a non-click in {auc:.1%} of pairs" if auc is not None else f"its AUC is {UNDEFINED}"
    )
    tail = "" if shipped == "test_time" else ", without test-time work"
    lines = [f"The {labels[shipped]} model ships{tail}: on {content['rows']:,} test rows {quality}."]
    if "pretrained" in labels:
        lines.append(compared(content, "pretrained", "plain", "Pre-training"))
    lines.append(content["test_time"]["sentence"])
    if content["test_time"]["best"] is not None:
        trunk = content["trunk"]
        name = content["test_time"]["best_name"]
        lines.append(compared(content, "test_time", trunk, f"On the test rows the best test-time candidate ({name})"))
    return lines


def compared(content: dict[str, Any], column: str, against: str, trial_model: str) -> str:
    """How one column differs from another in AUC and logloss, as a sentence that starts with ``trial_model``."""
    words = []
    for metric, better in (("auc", 1), ("logloss", -1)):
        found = difference(content, column, against, metric)
        if found is None:
            continue
        good = found["value"] * better > 0
        judged = ("better" if good else "worse") if found["significant"] else "no more than chance"
        shown = {"auc": "AUC", "logloss": "logloss"}[metric]
        words.append(f"{shown} by {found['value']:+.4f} ({judged})")
    return f"{trial_model} changed {' and '.join(words)}." if words else f"{trial_model} could not be compared."

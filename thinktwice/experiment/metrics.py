"""Metrics of an experiment by name, and the sums per unit they are computed from. Defined only in this module."""

from __future__ import annotations

import re
from typing import Literal

from thinktwice.stats.difference import Metric

Direction = Literal["increase", "decrease"]

#: Sums of every unit, in the order of all files of sums per unit.
SUMS = ("requests", "errors", "fallbacks", "impressions", "clicks", "escalated", "probability", "paths")

RATIOS = {
    "ctr": Metric("clicks", "impressions"),  # clicks per impression
    "clicks_per_unit": Metric("clicks"),
    "impressions_per_unit": Metric("impressions"),
    "requests_per_unit": Metric("requests"),
    "error_rate": Metric("errors", "requests"),  # answers that are not 2xx
    "fallback_share": Metric("fallbacks", "requests"),  # answered by an arm other than the assigned one
    "escalation_rate": Metric("escalated", "impressions"),  # escalated rows
    "paths_per_impression": Metric("paths", "impressions"),
    "calibration": Metric("probability", "clicks"),  # expected clicks over clicks; 1 is calibrated
}
_QUANTILE = re.compile(r"latency_p(\d{1,2}(?:\.\d+)?)")


def is_metric(name: str) -> bool:
    return name in RATIOS or quantile_share(name) is not None


def quantile_share(name: str) -> float | None:
    """0.99 for ``latency_p99``; None for other metrics. Latencies are milliseconds at the gateway."""
    match = _QUANTILE.fullmatch(name)
    share = float(match.group(1)) / 100 if match else 0.0
    return share if 0 < share < 1 else None


def metric_names() -> str:
    """All names, for messages."""
    return ", ".join((*RATIOS, "latency_p50", "latency_p99 (any percentile)"))

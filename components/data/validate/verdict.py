"""Verdict of the validation of a log."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.data.validate.suite import Finding
from thinktwice.validate.split import SplitResult


@dataclass(frozen=True)
class DataVerdict:
    """Verdict on a log, with reasons. ``passed`` is false if and only if a critical rule is broken."""

    passed: bool
    headline: str
    reasons: list[str]  # one sentence per broken rule, critical ones first
    findings: list[Finding]
    split: SplitResult
    metrics: dict[str, float]
    not_evaluated: dict[str, str] = field(default_factory=dict)  # rule -> reason

"""What became of a log that was validated."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.data.validate.suite import Finding
from thinktwice.validate.split import SplitResult


@dataclass(frozen=True)
class DataVerdict:
    """What became of a log, and why. ``passed`` is false when, and only when, a critical rule is broken."""

    passed: bool
    headline: str
    reasons: list[str]  # one sentence per broken rule, critical ones first
    findings: list[Finding]
    split: SplitResult
    metrics: dict[str, float]
    not_evaluated: dict[str, str] = field(default_factory=dict)  # rule -> why; neither held nor broken

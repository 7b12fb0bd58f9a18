"""Formatting of numbers on pages."""

from __future__ import annotations

from typing import Protocol


class Estimate(Protocol):
    """A difference with its interval; None for a number that is not finite. ``significant``: the interval excludes 0."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def significant(self) -> bool: ...


def number(value: float | None, decimals: int) -> str:
    """The number, or a dash if it is undefined."""
    return "–" if value is None else f"{value:.{decimals}f}".replace("-", "−")


def change(value: float | None, decimals: int) -> str:
    """A difference with its sign."""
    return "–" if value is None else f"{value:+.{decimals}f}".replace("-", "−")


def interval(estimate: Estimate, decimals: int) -> str:
    """The bounds of a difference; empty if the interval is unbounded."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"({change(estimate.low, decimals)} … {change(estimate.high, decimals)})"


def signed(estimate: Estimate, decimals: int) -> str:
    """A difference and its interval in one line."""
    return f"{change(estimate.value, decimals)} {interval(estimate, decimals)}".rstrip()


def judged(estimate: Estimate, better: int) -> str:
    """The class of a difference: ``good`` or ``bad`` if it is significant, otherwise empty."""
    if estimate.value is None or not estimate.significant or not better:
        return ""
    return "good" if estimate.value * better > 0 else "bad"

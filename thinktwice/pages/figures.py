"""Numbers as the pages write them."""

from __future__ import annotations

from typing import Any


def number(value: float | None, decimals: int) -> str:
    """The number, or a dash where it is not defined."""
    return "–" if value is None else f"{value:.{decimals}f}".replace("-", "−")


def change(value: float | None, decimals: int) -> str:
    """A difference with its sign."""
    return "–" if value is None else f"{value:+.{decimals}f}".replace("-", "−")


def interval(found: dict[str, Any], decimals: int) -> str:
    """From where to where a difference reaches; empty where chance has no bound."""
    if found["low"] is None or found["high"] is None:
        return ""
    return f"({change(found['low'], decimals)} … {change(found['high'], decimals)})"


def signed(found: dict[str, Any], decimals: int) -> str:
    """A difference and its interval in one line."""
    return f"{change(found['value'], decimals)} {interval(found, decimals)}".rstrip()


def judged(found: dict[str, Any], better: int) -> str:
    """The class of a difference: ``good`` or ``bad`` where chance is excluded, else empty."""
    if not found["significant"] or not better:
        return ""
    return "good" if found["value"] * better > 0 else "bad"

"""What is left of an experiment, in what its plan counts: users where a number of users is planned, time otherwise.

The only place that decides this: the command line, the report and the screen of the demonstration show these words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from thinktwice.experiment.file import ExperimentFile

#: Units of time from the largest, with their number in a day; a duration of at least two of one is given in it.
_TIMES = (("days", 1.0), ("hours", 24.0), ("minutes", 1_440.0), ("seconds", 86_400.0))


def standing(file: ExperimentFile, status: str, days: float, units: Sequence[int]) -> str:
    """The status of a decision in words; while the experiment goes on, what is left of its plan.

    Args:
        status: of :class:`thinktwice.experiment.decision.Decision`.
        days: since the first unit was enrolled.
        units: enrolled units of every arm.
    """
    return _left(file, days, units) if status == "days_left" else status.replace("_", " ")


def days_left(file: ExperimentFile, days: float, units: Sequence[int]) -> float | None:
    """Days until the minimums are reached or, with a horizon, until its end; None if unknown."""
    fewest = min(units, default=0)
    remaining = max(0.0, file.minimum.days - days)
    if fewest < file.minimum.units:
        remaining = max(remaining, days * (file.minimum.units / fewest - 1)) if fewest else math.inf
    if file.horizon is not None:
        left = file.horizon.days - days
        if (fraction := units_fraction(file, units)) is not None and fraction > 0:
            left = min(left, days * max(0.0, 1 / fraction - 1))
        remaining = max(remaining, left)
    return remaining if math.isfinite(remaining) and (file.horizon is not None or remaining > 0) else None


def units_fraction(file: ExperimentFile, units: Sequence[int]) -> float | None:
    """Enrolled share of the planned units; None if the plan does not count units."""
    if file.horizon is None or file.horizon.units is None:
        return None
    return sum(units) / file.horizon.units


def _left(file: ExperimentFile, days: float, units: Sequence[int]) -> str:
    missing = sum(max(0, file.minimum.units - number) for number in units)
    wait = file.minimum.days - days
    if file.horizon is None:
        if missing:
            return f"{missing:,} users left to the minimum"
        return f"about {_duration(wait)} left to the minimum" if wait > 0 else "no end is planned"
    if file.horizon.units is not None:
        left = max(missing, file.horizon.units - sum(units))
        return f"{left:,} users left" if left > 0 or wait <= 0 else f"about {_duration(wait)} left"
    expected = days_left(file, days, units)
    return f"{missing:,} users left to the minimum" if expected is None else f"about {_duration(expected)} left"


def _duration(days: float) -> str:
    name, scale = next(((name, scale) for name, scale in _TIMES if days * scale >= 2), _TIMES[-1])
    number = f"{days * scale:.1f}" if name == "days" else f"{days * scale:.0f}"
    return f"{number} {name}"

"""The required figures, each with its bound. One that is not met, or was not measured, stays in the list, marked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import ge, le
from typing import Any

from benchmarks.evidence.measure import METHODS

NOW, SOON, LATE = "at once", "ten minutes", "a day"
FIRST, CONTROL = METHODS["correction"], METHODS["other counters"]
GAIN = {  # least gain of AUC by the first look
    ("ml_time", SOON): 0.018,
    ("ml_time", LATE): 0.008,
    ("ml_user", NOW): 0.010,
    ("sim", SOON): 0.008,
}
OVER_DEFAULT = {("ml_time", LATE): 0.005}
LEAST_ANYWHERE, MOST_BY_CONTROL = -0.0005, 0.0005
SHARE, KEPT, OVER_RANDOM = 0.4, 0.45, 1.25
TIME = {"first look": 1.2, f"second look for {SHARE:.0%} of rows": 1.5}
SECOND_LOOK = ("ml_time", "sim")

Bar = dict[str, Any]


def of(result: dict[str, Any]) -> list[Bar]:
    """All bars of a result; of the short form only those that its small logs can meet."""
    logs = result["logs"]
    out = _anywhere(logs) + _controls(logs)
    return out if result["quick"] else _gains(logs) + out + _second(logs) + _time(result["time"])


def row_of(log: dict[str, Any] | None, method: str, delay: str) -> dict[str, Any] | None:
    """The row of a method in the table of a log."""
    rows = [] if log is None else log["methods"]
    return next((r for r in rows if (r["method"], r["delay"]) == (method, delay)), None)


def _bar(name: str, value: float | None, bound: str, meets: Callable[[float], bool], seeds: int = 0) -> Bar:
    holds = value is not None and bool(meets(value))
    return {
        "name": name,
        "value": None if value is None else float(value),
        "bound": bound,
        "holds": holds,
        "seeds": seeds,
    }


def _gains(logs: dict[str, Any]) -> list[Bar]:
    out = []
    for (name, delay), bound in GAIN.items():
        row = row_of(logs.get(name), FIRST, delay)
        value, seeds = (None, 0) if row is None else (row["auc"]["value"], row["trained_seeds"])
        title = f"{name}, labels known {_after(delay)}: AUC gain of the first look"
        out.append(_bar(title, value, f">= {bound}", partial(le, bound), seeds))
    for delay in (SOON, LATE):
        found = logs.get("ml_time", {}).get("beyond_trunks", {}).get(delay)
        title = f"ml_time, labels known {_after(delay)}: gain minus 5 times that of a second trunk, lower end"
        low, seeds = (None, 0) if found is None else (found["low"], len(found["seeds"]))
        out.append(_bar(title, low, "> 0", lambda v: v > 0, seeds))
    for (name, delay), bound in OVER_DEFAULT.items():
        found = logs.get(name, {}).get("over_default", {}).get(delay)
        title = f"{name}, labels known {_after(delay)}: AUC gain over the trunk with statistics of whole days"
        value, seeds = (None, 0) if found is None else (found["auc"]["value"], len(found["auc"]["seeds"]))
        out.append(_bar(title, value, f">= {bound}", partial(le, bound), seeds))
    row = row_of(logs.get("ml_random"), FIRST, NOW)
    low, seeds = (None, 0) if row is None else (row["auc"]["low"], row["trained_seeds"])
    title = f"ml_random, labels known {_after(NOW)}: AUC gain of the first look, lower end"
    out.append(_bar(title, low, "> 0", lambda v: v > 0, seeds))
    row = row_of(logs.get("sim"), FIRST, SOON)
    value, seeds = (None, 0) if row is None else (row["truth_distance"]["value"], row["trained_seeds"])
    title = f"sim, labels known {_after(SOON)}: distance to the true probability, change by the first look"
    out.append(_bar(title, value, "< 0", lambda v: v < 0, seeds))
    return out


def _anywhere(logs: dict[str, Any]) -> list[Bar]:
    """The first look is nowhere worse than the trunk."""
    rows = [(name, r) for name, log in logs.items() for r in log["methods"] if r["method"] == FIRST]
    worst = min(rows, key=lambda found: found[1]["auc"]["value"], default=None)
    where = "" if worst is None else f": {worst[0]}, labels known {_after(worst[1]['delay'])}"
    value, seeds = (None, 0) if worst is None else (worst[1]["auc"]["value"], worst[1]["trained_seeds"])
    return [
        _bar(
            f"least AUC gain of the first look{where}",
            value,
            f">= {LEAST_ANYWHERE}",
            lambda v: v >= LEAST_ANYWHERE,
            seeds,
        )
    ]


def _controls(logs: dict[str, Any]) -> list[Bar]:
    out = []
    for name, log in logs.items():
        rows = [r for r in log["methods"] if r["method"] == CONTROL]
        most = max(rows, key=lambda r: abs(r["auc"]["value"]), default=None)
        value, seeds = (None, 0) if most is None else (abs(most["auc"]["value"]), most["trained_seeds"])
        title = f"{name}: largest AUC change by counters of other rows"
        out.append(_bar(title, value, f"<= {MOST_BY_CONTROL}", lambda v: v <= MOST_BY_CONTROL, seeds))
    return out


def _second(logs: dict[str, Any]) -> list[Bar]:
    """The second look for a share of the rows, by the trigger that validation chooses."""
    out = []
    for name in SECOND_LOOK:
        found = logs.get(name, {}).get("second_look", {}).get(SOON)
        low, kept, over_random, seeds = None, None, None, 0
        if found is not None:
            chosen = share_of(found, "rows", found["trigger"], SHARE)
            low, kept, seeds = chosen["over_first_look"]["low"], chosen["kept"], found["seeds"]
            random = share_of(found, "rows", "random", SHARE)["kept"]
            over_random = kept / random if kept is not None and random is not None and random > 0 else None
        title = f"{name}, labels known {_after(SOON)}: second look for {SHARE:.0%} of rows"
        out += [
            _bar(f"{title}, AUC over the first, lower end", low, "> 0", lambda v: v > 0, seeds),
            _bar(f"{title}, share kept of what all rows add", kept, f">= {KEPT}", lambda v: v >= KEPT, seeds),
            _bar(
                f"{title}, kept over what random rows keep",
                over_random,
                f">= {OVER_RANDOM}",
                lambda v: v >= OVER_RANDOM,
                seeds,
            ),
        ]
    return out


def share_of(found: dict[str, Any], unit: str, trigger: str, share: float) -> dict[str, Any]:
    """The entry of a share of the rows or requests."""
    return next(s for s in found["shares"] if (s["unit"], s["trigger"], s["share"]) == (unit, trigger, share))


def _time(time: dict[str, Any] | None) -> list[Bar]:
    methods = {} if time is None else time["methods"]
    return [
        _bar(
            f"time of encode and engine for 100 rows, {name}",
            methods[name]["ratio"] if name in methods else None,
            f"<= {bound}",
            partial(ge, bound),
        )
        for name, bound in TIME.items()
    ]


def _after(delay: str) -> str:
    return delay if delay == NOW else f"after {delay}"

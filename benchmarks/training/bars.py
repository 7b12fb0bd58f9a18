"""The required figures, each with its bound and the seeds it rests on. One that is not met, or was not measured, stays in the list."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import ge, gt, le
from typing import Any

from benchmarks.training.plan import MOVIELENS, RECIPE_LOGS, SHARES
from benchmarks.training.quality import SHARED

Bar = dict[str, Any]
WITHIN, BEYOND, COST, SPEED = -0.001, 0.002, 1 / 3, 2.0
ROOF = {1_000_000: 0.8, 10_000_000: 0.5}  # share by values of the tables


def of(result: dict[str, Any]) -> list[Bar]:
    """All bars of a result; those of the short form are of what it runs."""
    out = _recipe(result["recipe"], ("ml_100k_time",) if result["quick"] else ("ml_100k_random", *RECIPE_LOGS))
    if result["quick"]:
        return out
    quality = _quality(result["quality"]) + out + _logistic(result["recipe"])
    return quality + _pretraining(result["pretraining"]["rows"]) + _roof(result["roof"])


def bar(name: str, value: float | None, bound: str, meets: Callable[[float], bool], seeds: int = 0) -> Bar:
    """A bar; one without a value does not hold."""
    holds = value is not None and bool(meets(value))
    return {"name": name, "value": value, "bound": bound, "holds": holds, "seeds": seeds}


def _quality(logs: dict[str, Any]) -> list[Bar]:
    out = []
    for log in MOVIELENS:
        table = logs.get(log)
        for model in SHARED:
            found = next((c for c in table["same_model"] if c["model"] == model), None) if table else None
            value, seeds = _value(found, "auc")
            peer = f" ({found['peer']})" if found else ""
            title = f"{log}: AUC of our {model} minus that of the best peer's{peer}"
            out.append(bar(title, value, f">= {WITHIN}", partial(le, WITHIN), seeds))
        found = table["best"] if table else None
        value, seeds = _value(found, "auc")
        which = f" ({found['ours']} against {found['peer']})" if found else ""
        title = f"{log}: AUC of our best backbone minus that of the best peer model{which}"
        out.append(bar(title, value, f">= {BEYOND}", partial(le, BEYOND), seeds))
        ratio, seeds = _speed(table)
        title = f"{log}: rows per CPU second, our deepfm over FuxiCTR's"
        out.append(bar(title, ratio, f">= {SPEED:g}", partial(le, SPEED), seeds))
    return out


def _speed(table: dict[str, Any] | None) -> tuple[float | None, int]:
    rows = {} if table is None else {(r["side"], r["model"]): r for r in table["models"]}
    ours, peer = rows.get(("thinktwice", "deepfm")), rows.get(("FuxiCTR", "deepfm"))
    if ours is None or peer is None:
        return None, 0
    return ours["rows_per_cpu_s"] / peer["rows_per_cpu_s"], min(ours["seeds"], peer["seeds"])


def _recipe(logs: dict[str, Any], names: tuple[str, ...]) -> list[Bar]:
    out = []
    for log in names:
        table = logs.get(log)
        seeds = table["seeds"] if table else 0
        ratio = table["ratio"] if table else None
        title = f"{log}: CPU time of `default` over that of the commit before"
        out.append(bar(title, ratio, f"<= {COST:.3f}", partial(ge, COST), seeds))
        change, seeds = _value(table, "valid_logloss")
        title = f"{log}: validation logloss of `default` minus that of the commit before"
        out.append(bar(title, change, "<= 0", partial(ge, 0.0), seeds))
    return out


def _logistic(logs: dict[str, Any]) -> list[Bar]:
    out = []
    for log in ("ml_100k_time", "ml_100k_random"):
        found = logs.get(log, {}).get("over_logistic_regression")
        low, seeds = (None, 0) if found is None else (found["low"], found["seeds"])
        title = f"{log}: AUC of `default` minus that of one-hot logistic regression, lower end"
        out.append(bar(title, low, "> 0", partial(_below, 0.0), seeds))
    return out


def _pretraining(rows: list[dict[str, Any]]) -> list[Bar]:
    """The published claim, as far as it can be a bar: more labels or fewer, pre-training does not lose."""
    out = []
    for share in SHARES:
        found = next((r for r in rows if r["mode"] == "dgenctr" and not r["settings"] and r["share"] == share), None)
        low, seeds = (None, 0) if found is None else (found["auc"]["low"], found["seeds"])
        title = f"pre-training (dgenctr) at {share:.0%} of the labels: AUC gain, lower end"
        out.append(bar(title, low, "> 0", partial(_below, 0.0), seeds))
    return out


def _roof(tables: list[dict[str, Any]]) -> list[Bar]:
    share = {table["values"]: table["share"] for table in tables}
    return [
        bar(
            f"share of the machine's speed at matrix products, {values // 1_000_000} M ids",
            share.get(values),
            f">= {least:g}",
            partial(le, least),
            1 if values in share else 0,
        )
        for values, least in ROOF.items()
    ]


def _below(bound: float, value: float) -> bool:
    return gt(value, bound)


def _value(found: dict[str, Any] | None, key: str) -> tuple[float | None, int]:
    return (None, 0) if found is None else (found[key]["value"], found[key]["seeds"])

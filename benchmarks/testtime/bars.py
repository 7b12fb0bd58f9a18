"""The required figures, each with its bound; those that are not met stay in the list, marked."""

from __future__ import annotations

from typing import Any

import numpy as np

from thinktwice.stats.multiple import holm

SIMS = ("sim_strong", "sim_weak", "sim_shift", "sim_fresh", "sim_quick")


def of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """All bars of a result."""
    out = _cost(result) + _not_worse(result) + _recovery(result) + _ensembles(result) + _masking(result)
    return out + result["combinations"]["bars"]


def _bar(name: str, value: float, bound: str, holds: bool, **more: Any) -> dict[str, Any]:
    return {"name": name, "value": float(value), "bound": bound, "holds": bool(holds)} | more


def _cost(result: dict[str, Any]) -> list[dict[str, Any]]:
    lean = [c for c in result["cost"] if c["mode"] == "lean" and c["rows"] == 100]
    worst = max(lean, key=lambda c: c["ratio"])
    tail = max(lean, key=lambda c: c["p99_ratio"])
    where = "{data} {backbone} {regime}"
    return [
        _bar("lean: wall time per request of 100 rows, worst case", worst["ratio"], "<= 1.2", worst["ratio"] <= 1.2)
        | {"where": where.format(**worst)},
        _bar("lean: p99 at 100 rows, worst case", tail["p99_ratio"], "<= 1.15", tail["p99_ratio"] <= 1.15)
        | {"where": where.format(**tail)},
    ]


def _not_worse(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Regimes and slices in which lean is worse than a rival: its interval excludes 0 on the wrong side."""
    out = []
    for rival in ("plain", "uttsi", "matt"):
        slices = [s | {"d": s["lean_against"][rival]} for s in result["slices"]]
        worse = [s for s in slices if s["d"]["low"] is not None and s["d"]["low"] > 0]
        adjusted = holm(np.array([s["d"]["p"] for s in slices]))
        significant = [s for s, p in zip(slices, adjusted, strict=True) if s["d"]["value"] > 0 and p < 0.05]
        out.append(
            _bar(f"lean worse than {rival}: regimes and slices", len(worse), "== 0", not worse)
            | {
                "of": len(slices),
                "after_holm": len(significant),
                "where": [
                    f"{s['data']} {s['backbone']} {s['regime']}: {s['slice']} {s['d']['value']:+.5f}" for s in worse
                ],
            }
        )
    return out


def _recovery(result: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for found in result["recovered"]:
        if found["data"] not in SIMS:
            continue
        share = found["share"]["lean"]
        name = f"over-trained {found['data']} {found['backbone']}: share of the AUC gap that lean recovers"
        out.append(_bar(name, float(np.mean(share)), ">= 0.9", np.mean(share) >= 0.9) | {"seeds": share})
    for table in result["tables"]:
        if table["data"] in SIMS and table["regime"] == "overtrained":
            row = next(m for m in table["methods"] if m["method"] == "control: gate, shuffled counts")
            name = f"over-trained {table['data']} {table['backbone']}: AUC that the gate gains with shuffled counts"
            out.append(
                _bar(name, row["auc"]["value"], "interval not above 0", (row["auc"]["low"] or 0) <= 0) | row["auc"]
            )
            found = table["gate_against_shuffled"]["auc"]
            name = f"over-trained {table['data']} {table['backbone']}: AUC of the gate minus that with shuffled counts"
            out.append(_bar(name, found["value"], "interval above 0", (found["low"] or -1) > 0) | found)
    return out


def _ensembles(result: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for shares in result["shares"]:
        if shares["regime"] != "tuned":
            continue
        where = f"tuned {shares['data']} {shares['backbone']}"
        member = shares["2 seeds"]["members, 25% by entropy"]
        out.append(
            _bar(
                f"{where}: share of the ensemble's gain at {member['passes']:.2f} passes",
                member["value"],
                ">= 0.3",
                member["value"] >= 0.3,
            )
            | {"se": member["se"]}
        )
        distilled = {m: v for m, v in shares["3 seeds"].items() if m.startswith("distilled")}
        if distilled:
            best = max(distilled, key=lambda m: distilled[m]["value"])
            value = distilled[best]["value"]
            out.append(
                _bar(f"{where}: share of the ensemble's gain, {best}", value, ">= 0.6", value >= 0.6)
                | {"se": distilled[best]["se"]}
            )
    return out


def _masking(result: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for table in result["tables"]:
        if table["data"] != "ml_time":
            continue
        for words, differences in table["block_against_loo"].items():
            change = differences["auc"]
            name = f"ML-1M by time: AUC of masking{words} by block-time counts minus by leave-one-out"
            out.append(_bar(name, change["value"], "interval above 0", (change["low"] or -1) > 0) | change)
    return out

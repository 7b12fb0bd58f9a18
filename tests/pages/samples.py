"""Every page with a text of the test's choice in every place that takes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import polars as pl

from components.data.validate.report import render as data_page
from components.data.validate.suite import Finding
from components.data.validate.verdict import DataVerdict
from serving.load.drive import Measured
from serving.load.report import Step, plot
from thinktwice.evaluate.report import METRICS
from thinktwice.evaluate.report import render as evaluation_page
from thinktwice.evaluate.report_extra import CONTROLS
from thinktwice.monitor.drift import DriftReport, Shift
from thinktwice.monitor.drift_page import render as drift_page
from thinktwice.monitor.skew import FieldSkew, SkewReport
from thinktwice.monitor.skew_page import render as skew_page
from thinktwice.pages.templates import visible
from thinktwice.stats.distances import Distance
from thinktwice.validate.profile import PROFILE_SCHEMA, WHOLE, LogProfile
from thinktwice.validate.rules import Severity
from thinktwice.validate.split import SplitResult


class Texts:
    """Gives every place a name of its own followed by one text, and knows what a reader must see there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.expected: list[str] = []

    def __call__(self, name: str, most: int | None = None) -> str:
        """The text of a place; the page shows its first ``most`` characters."""
        value = f"Zq{len(self.expected)}{self.text}{name}"
        self.expected.append(str(visible(value[:most])))
        return value

    def stored(self, name: str) -> str:
        """The same for a text of a table, which holds no lone surrogate."""
        value = f"Zq{len(self.expected)}{self.text}{name}".encode("utf-8", "replace").decode()
        self.expected.append(str(visible(value)))
        return value


def change(value: float = -0.01) -> dict[str, Any]:
    return {"value": value, "low": value - 0.005, "high": value + 0.005, "significant": True, "p_holm": 0.0001}


def evaluation(t: Texts) -> str:
    columns = [
        {
            "key": key,
            "label": t("label"),
            "cost": {"passes": 1.0},
            "metrics": {m[0]: 0.5 for m in METRICS},
            "calibration": [{"predicted": p, "observed": p, "rows": 9} for p in (0.1, 0.4)],
        }
        for key in ("plain", "test_time")
    ]
    auc = {"value": 0.7, "low": 0.6, "high": 0.8}
    sliced = {c["key"]: {"auc": auc, "logloss": 0.6, "logloss_change": change()} for c in columns}

    def slices(name: str) -> list[dict[str, Any]]:
        return [
            {"name": t(f"{name}{i}"), "rows": 9, "share": 0.1, "click_rate": 0.2, "columns": sliced} for i in range(2)
        ]

    candidates = [
        {
            "name": t("candidate"),
            "passes": 1.0 + i,
            "cost": 2.0,
            "ships": i == 0,
            "ece": 0.1,
            "change": change(-0.01 * i),
            "auc_change": change(),
            "detectable": {"logloss": 0.01, "auc": 0.02},
            "slices": {},
            "truth_distance_change": change(),
            "validation": {
                "accepted": i < 2,
                "reasons": [t("reason")] if i == 2 else [],
                "change": change(),
                "controls": {name: change() for name in CONTROLS},
            },
        }
        for i in range(3)
    ]
    where = [{"name": t("where"), "rows": 9}]
    for c in candidates:
        c["slices"] = {where[0]["name"]: change()}
    curve = {"change": [0.0, -0.1], "area": 0.1}
    found = {
        "rows": 9,
        "off": {"logloss": 0.6, "auc": 0.7, "ece": 0.1, "truth_distance": 0.1},
        "candidates": candidates,
        "slices": where,
        "references": [
            {"name": name, "candidate": t("of"), "passes": 1.0, "change": change(), "candidate_against": change()}
            for name in CONTROLS
        ],
        "uplift": {
            "candidate": t("asked"),
            "share": 0.2,
            "shares": [0.0, 1.0],
            "change": change(),
            "base_change": change(),
            "everybody": change(),
            "curves": dict.fromkeys(("entropy", "dual", "random", "oracle"), curve),
        },
    }
    split = {"kind": t("split")}
    return evaluation_page(
        {
            "mode": "gate",
            "rows": 9,
            "users": 3,
            "click_rate": 0.2,
            "shipped": "test_time",
            "verdict": [t("verdict"), t("second")],
            "data": {
                "schema": t("schema"),
                "split": split,
                "parts": {"test": {"window": [t("from", 10), t("to", 10)]}},
            },
            "columns": columns,
            "differences": [{"column": "test_time", "against": "plain", "metric": "auc", **change()}],
            "novelty": {"valid": {"user": 0.9, "item": 0.1}, "test": {"user": 0.1, "item": 0.1}},
            "deciles": slices("decile"),
            "slices": slices("slice"),
            "scenarios": slices("scenario"),
            "curves": {"plain": [{"epoch": e, "valid_logloss": 0.6, "train_logloss": 0.5} for e in (0.0, 1.0)]},
            "extra_work": found,
            "test_time": {
                "sentence": t("sentence"),
                "warnings": [t("warning")],
                "rows": {"accept": 9},
                "count_auc": {t("count"): 0.6},
            },
        },
        {"plain": 1.0},
    )


def drift(t: Texts) -> str:
    far = Distance(psi=1.0, expected=0.1, noise=0.2, js=0.3)
    moved = [
        Shift(
            name=t("field"), what=what, kind=t("kind"), from_train=far, from_valid=far, unjudged=unjudged,
            labels=(t("bin"), t("other bin")), train=(0.5, 0.5), valid=(0.4, 0.6), live=(0.1, 0.9), facts=((t("fact"), 0.1, 0.2),),
        )
        for what in ("values", "support", "score")
        for unjudged in ("", t("unjudged"))
    ]  # fmt: skip
    return drift_page(
        DriftReport(
            model_version=t("version"), bundle_hash=t("hash", 12), rows=9, matching=9, others={t("other"): 3}, requests=3,
            clusters=3, window=(t("from", 16), t("to", 16)), threshold=0.1, moved=tuple(moved),
        )
    )  # fmt: skip


def skew(t: Texts) -> str:
    fields = tuple(
        FieldSkew(t("field"), t("entity"), rows=9, mismatches=n, only_served=n, only_later=0, defaulted=1, cold=1)
        for n in (5, 0)
    )
    return skew_page(
        SkewReport(
            fields, rows=9, defaulted={t("defaulted"): 1}, cold_known={t("cold"): 1}, matching=9, others={t("other"): 1},
            versions={t("version"): 9}, window=(t("from", 16), t("to", 16)),
        ),
        0.01,
    )  # fmt: skip


def data(t: Texts) -> str:
    def finding(severity: Severity, passed: bool, rule: str) -> Finding:
        shown = (t(f"description {rule}"), passed, t("observed"), t("bound"))
        return Finding(rule, "rows", severity, *shown, [t("sample")] if not passed else [], t("example") if not passed else "", t("fix"))  # fmt: skip

    findings = [finding(severity, False, t("rule")) for severity in get_args(Severity)]
    findings += [finding("critical", True, "ledger:budget")]
    rows: list[Mapping[str, Any]] = []
    numbers: dict[str, dict[str, Any]] = {}
    for kind, feature in (("categorical", t.stored("feature")), ("numeric", t.stored("number"))):
        numeric: dict[str, Any] = {"minimum": 0.0, "median": 1.0, "maximum": 2.0} if kind == "numeric" else {}
        shared = {
            "feature": feature,
            "kind": kind,
            "rows": 9,
            "click_rate": 0.2,
            "null_share": 0.0,
            "distinct": 2,
        } | numeric
        top = {} if numeric else {"top_value": t.stored("top"), "top_share": 0.5}
        # The first field's slices are the bars over time.
        names = [t.stored("slice") for _ in range(2)] if not rows else ["a", "b"]
        rows += [shared | top | {"partition": part} for part in (WHOLE, *names)]
        numbers[feature] = {"labels": [t("bin"), t("bin")], "first": [0.4, 0.6], "second": [0.5, 0.5]}
    table = pl.DataFrame([{name: row.get(name) for name in PROFILE_SCHEMA} for row in rows], schema=PROFILE_SCHEMA)
    reason = t("reason")
    split = SplitResult(9, 6, 3, "", "", {reason: 3}, "")
    verdict = DataVerdict(False, f"failed: {t('headline')}", [], findings, split, _METRICS, {t("idle"): t("why")})
    info = {
        "schema_name": t("schema"),
        "snapshot_id": t("snapshot"),
        "rule_set_version": t("rules"),
        "first_event": t("first", 10),
        "last_event": t("last", 10),
        "key_hash_in": t("in"),
        "key_hash_out": t("out"),
        "read": [t("read")],
    }
    return data_page(verdict, LogProfile(table, {}, numbers), info, {reason: [t("row id")]})


_METRICS = {"click_rate": 0.2, "quarantined_share": 0.1, "critical": 1.0, "warnings": 1.0}


def load(t: Texts) -> str:
    return plot([Step(t("load"), 10.0, Measured(1.0, np.array([0.1, 0.2]), ["ok", "ok"]))])


PAGES = {"evaluation": evaluation, "drift": drift, "skew": skew, "data": data, "load": load}

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
from tests.evaluate import samples
from thinktwice.data.splits import SplitSpec
from thinktwice.evaluate.evaluation import DataFacts
from thinktwice.evaluate.extra_work_record import SliceSize
from thinktwice.evaluate.report import render as evaluation_page
from thinktwice.evaluate.report_extra import CONTROLS
from thinktwice.evaluate.report_findings import SHOWN_FIELDS, SHOWN_SLICES
from thinktwice.monitor.drift import DriftReport, Shift
from thinktwice.monitor.drift_page import render as drift_page
from thinktwice.monitor.skew import FieldSkew, SkewReport
from thinktwice.monitor.skew_page import render as skew_page
from thinktwice.pages.templates import visible
from thinktwice.stats.distances import Distance
from thinktwice.testtime.report import Evidence
from thinktwice.validate.column_rules import Severity
from thinktwice.validate.profile import PROFILE_SCHEMA, WHOLE, LogProfile
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


def evaluation(t: Texts) -> str:
    keys = ("plain", "test_time")
    candidates = tuple(
        samples.candidate(
            t("candidate"),
            passes=1.0 + i,
            ships=i == 0,
            change=samples.TESTED.model_copy(update={"value": -0.01 * i}),
            validation=Evidence(
                change=samples.CHANGE,
                controls=dict.fromkeys(CONTROLS, samples.CHANGE),
                accepted=i < 2,
                reasons=(t("reason"),) if i == 2 else (),
            ),
        )
        for i in range(3)
    )
    where = t("where")
    work = samples.EXTRA_WORK.model_copy(
        update={
            "slices": (SliceSize(name=where, rows=9),),
            "candidates": tuple(c.model_copy(update={"slices": {where: samples.CHANGE}}) for c in candidates),
            "references": tuple(samples.reference(name, t("of")) for name in CONTROLS),
            "uplift": samples.uplift(t("asked")),
        }
    )
    window = (t("from", 10), t("to", 10))
    facts = samples.FACTS.model_copy(update={"window": window})
    data = DataFacts(schema=t("schema"), split=SplitSpec(), parts={"test": facts})
    report = samples.REPORT.model_copy(
        update={"sentence": t("sentence"), "warnings": (t("warning"),), "count_auc": {t("count"): 0.6}}
    )
    slices = {
        kind: tuple(samples.part(t(f"{kind}{i}")) for i in range(2)) for kind in ("deciles", "slices", "scenarios")
    }
    known = samples.FINDINGS
    assert known.pretraining is not None
    found = known.model_copy(
        update={
            "headline": t("headline"),
            "comparison": known.comparison.model_copy(update={"missing": (t("missing"),), "sentence": t("against")}),
            "learning": tuple(one.model_copy(update={"sentence": t("learned")}) for one in known.learning),
            "importance": known.importance.model_copy(
                update={
                    "sentence": t("matter"),
                    "groups": (samples.importance(t("group")),),
                    "fields": tuple(samples.importance(t("field")) for _ in range(SHOWN_FIELDS + 2)),
                }
            ),
            "weakness": known.weakness.model_copy(
                update={
                    "sentence": t("weak"),
                    "slices": tuple(samples.weak_slice(t("slice")) for _ in range(SHOWN_SLICES + 2)),
                }
            ),
            "pretraining": known.pretraining.model_copy(
                update={
                    "fields": tuple(samples.restored(t("restored"), loss=1.0 + i) for i in range(2)),
                    "by_class": {t("class"): {"click": 1.0}},
                    **{name: t(name) for name in ("summary", "classes", "equilibrium", "sign")},
                }
            ),
        }
    )
    return evaluation_page(
        samples.EVALUATION.model_copy(
            update={
                "verdict": (t("verdict"), t("second")),
                "data": data,
                "columns": tuple(samples.column(key, t("label")) for key in keys),
                "extra_work": work,
                "test_time": report,
                "findings": found,
                **slices,
            }
        ),
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
    return data_page(
        verdict,
        LogProfile(table, {}, numbers),
        info,
        {reason: [t("row id")]},
        t("times"),
        {next(iter(numbers)): t("words")},
    )


_METRICS = {"click_rate": 0.2, "quarantined_share": 0.1, "critical": 1.0, "warnings": 1.0}


def load(t: Texts) -> str:
    return plot([Step(t("load"), 10.0, Measured(1.0, np.array([0.1, 0.2]), ["ok", "ok"]))])


PAGES = {"evaluation": evaluation, "drift": drift, "skew": skew, "data": data, "load": load}

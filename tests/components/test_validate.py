from __future__ import annotations

import html
import json
import re
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from components.data.validate import run as validate_run
from components.data.validate.run import validate_log
from components.data.validate.suite import (
    CheckBrokenError,
    Expected,
    check_ledger,
    check_rows,
    check_table,
    row_expectations,
    run_suite,
)
from components.data.validate.verdict import DataVerdict
from tests.data.shop_tables import impressions, items, prepared, users
from tests.validate.raw import SHOP, START, broken_shop, row_id, shop_columns, write_raw
from thinktwice.files import read_json
from thinktwice.schema.describe import field_words
from thinktwice.schema.log import load_schema, parse_schema
from thinktwice.schema.numbers import NUMBER
from thinktwice.validate.column_rules import Rule
from thinktwice.validate.profile import read_reference
from thinktwice.validate.profile_rules import profile_rules
from thinktwice.validate.rules import row_rules
from thinktwice.validate.split import split_log

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:great_expectations"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:marshmallow"),
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]

LEDGER = {
    "rows_lost": 0,
    "keys_differ": 0,
    "columns_wrong": 0,
    "rows_clean": 995,
    "rows_quarantined": 5,
    "quarantined_share": 0.005,
}


def run(tmp_path: Path, columns: dict[str, list[Any]], **options: Any) -> DataVerdict:
    raw = write_raw(tmp_path / "raw", columns, **options)
    return validate_log(
        raw, tmp_path / "clean", tmp_path / "bad", tmp_path / "report.html", tmp_path / "verdict", run_id="run-1"
    )


def raw_column(rule: Rule, log: pd.DataFrame) -> pd.Series:
    """What GX reads for one rule, prepared with pandas alone: independent of how the splitter parses."""
    raw = log[rule.source]
    number = pd.to_numeric(raw, errors="coerce")
    if rule.check in ("missing", "allowed", "number"):
        return raw.where(raw != "", None)
    if rule.check in ("time", "window", "future"):
        micros = number * 1e6
        return (
            micros.where(micros < 4.2e15) if rule.check == "future" else micros
        )  # beyond 2100 is not the future's rule
    if rule.check == "text":
        return raw.where(raw != "", None).map(lambda v: v if v is None else -1 if "\0" in v else len(v))
    if rule.check == "vector":
        return raw.map(lambda v: v if v is None else len(v) if np.isfinite(np.asarray(v, float)).all() else -1)
    return number.where(np.isfinite(number))


def test_gx_finds_the_rows_that_the_splitter_quarantines(tmp_path: Path) -> None:
    columns, wrong = broken_shop()
    raw = write_raw(tmp_path / "raw", columns)
    schema = load_schema(raw / "schema.yaml")
    as_of = datetime.fromtimestamp(START + 20 * 86_400, tz=timezone.utc)
    split_log(raw, tmp_path / "clean", tmp_path / "bad", run_id="r", as_of=as_of)
    bad = pl.read_parquet(tmp_path / "bad/quarantine.parquet").explode("reasons").group_by("reasons").agg("row_id")
    quarantined = {reason: set(ids) for reason, ids in bad.iter_rows()}

    log = pl.read_parquet(raw / "log.parquet").to_pandas()
    rules = {rule.id: rule for rule in row_rules(schema)}
    expected = {e.rule: e for e in row_expectations(schema, tuple(rules.values()))}
    for rule in rules.values():  # what a clean file shows by its types, raw text shows by its form
        if rule.check == "number":
            form = NUMBER.replace("^", r"^\s*", 1)
            arguments = {"column": rule.column, "regex": form}
            expected[rule.id] = Expected(rule.id, "critical", "", "ExpectColumnValuesToMatchRegex", arguments)
    frame = pd.DataFrame({"row_id": log["row_id"]})
    asked = []
    for rule_id, e in expected.items():
        frame[rule_id] = raw_column(rules[rule_id], log)
        asked.append(e._replace(arguments={**e.arguments, "column": rule_id}))
    originals = [c for c in log.columns if c not in ("row_id", "source_row")]
    for column in originals:
        frame[column] = log[column].map(str)
    unique = {"column_list": originals, "ignore_row_if": "never"}
    asked.append(Expected("row:duplicate", "critical", "", "ExpectCompoundColumnsToBeUnique", unique))

    outcome = run_suite("raw", frame, asked, parameters={"as_of": int(as_of.timestamp() * 1e6)}, row_ids=True)
    found = {r: {x["row_id"] for x in o["result"].get("unexpected_index_list") or []} for r, o in outcome.items()}
    # GX names every member of a duplicate group; the splitter keeps the first.
    found["row:duplicate"] -= {row_id(40), row_id(41)}
    assert {r: ids for r, ids in found.items() if ids} == quarantined
    assert set(quarantined) == set(wrong)


def test_gx_sees_bad_rows_in_a_clean_file(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", shop_columns(200))
    split_log(raw, tmp_path / "clean", tmp_path / "bad", run_id="r")
    path = tmp_path / "clean/clean.parquet"
    clean = pl.read_parquet(path)
    spoiled = clean.with_columns(
        device=pl.when(pl.col("row_id") == row_id(1)).then(pl.lit("fridge")).otherwise("device"),
        user_id=pl.when(pl.col("row_id") == row_id(2)).then(None).otherwise("user_id"),
    )
    spoiled.write_parquet(path)
    broken = {
        f.rule: f.samples for f in check_rows(tmp_path / "clean", load_schema(raw / "schema.yaml")) if not f.passed
    }
    assert broken == {"device:allowed": [row_id(1)], "user_id:missing": [row_id(2)]}


def test_gx_sees_truth_values_that_the_clean_file_does_not_spell_so(tmp_path: Path) -> None:
    words = {"gift": [("Yes", "0", "f", "ON", "perhaps", "")[i % 6] for i in range(200)]}
    schema = SHOP.replace("vectors:", "- {name: gift, kind: boolean}\nvectors:")
    raw = write_raw(tmp_path / "raw", shop_columns(200) | words, schema)
    split = split_log(raw, tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert split.reasons == {"gift:boolean": 33}
    path = tmp_path / "clean/clean.parquet"
    clean = pl.read_parquet(path)
    assert sorted(clean["gift"].unique().to_list(), key=str) == [None, "false", "true"]
    described = load_schema(raw / "schema.yaml")
    assert all(f.passed for f in check_rows(tmp_path / "clean", described))
    spoiled = pl.when(pl.col("row_id") == row_id(3)).then(pl.lit("ON")).otherwise("gift").alias("gift")
    clean.with_columns(spoiled).write_parquet(path)
    broken = {f.rule: f.samples for f in check_rows(tmp_path / "clean", described) if not f.passed}
    assert broken == {"gift:boolean": [row_id(3)]}


def test_a_check_that_breaks_is_no_verdict() -> None:
    frame = pd.DataFrame({"row_id": ["a"], "x": [1]})
    missing = Expected("x:rule", "critical", "", "ExpectColumnValuesToNotBeNull", {"column": "no_such_column"})
    with pytest.raises(CheckBrokenError, match=r"the check 'x:rule' .* could not be computed"):
        run_suite("rows", frame, [missing], parameters={})


def test_gx_draws_no_progress_bars(capfd: pytest.CaptureFixture[str]) -> None:
    """GX draws them on standard error, where a step's log would fill with them."""
    frame = pd.DataFrame({"row_id": ["a"], "x": [1]})
    rule = Expected("x:rule", "critical", "", "ExpectColumnValuesToNotBeNull", {"column": "x"})
    assert run_suite("rows", frame, [rule], parameters={})["x:rule"]["success"]
    assert capfd.readouterr().err == ""


def test_clean_log_passes(tmp_path: Path) -> None:
    verdict = run(tmp_path, shop_columns(300))
    assert verdict.passed and verdict.headline.startswith("passed: 300 of 300 rows are clean")
    assert {f.rule for f in verdict.findings} >= {"ledger:conserved", "label:binary", "log:click_rate"}
    assert all(np.isfinite(v) for v in verdict.metrics.values())
    saved = read_json(tmp_path / "verdict/verdict.json")
    assert saved["passed"] is True and saved["split"]["rows_clean"] == 300
    assert sorted(p.name for p in (tmp_path / "verdict").iterdir()) == [
        "profile.parquet",
        "profile_reference.json",
        "verdict.json",
    ]


def test_few_bad_rows_are_a_warning_and_many_are_critical(tmp_path: Path) -> None:
    columns = shop_columns(300)
    columns["price"][7] = "free"
    few = run(tmp_path / "few", columns)
    assert few.passed
    (finding,) = [f for f in few.findings if f.rule == "price:number"]
    assert (finding.severity, finding.passed, finding.samples) == ("warning", False, [row_id(7)])
    columns["price"][:4] = ["free"] * 4
    many = run(tmp_path / "many", columns)
    assert not many.passed and "ledger:budget" in many.headline
    assert many.findings[0].rule == "ledger:budget" and many.findings[0].observed == "1.667%"


@pytest.mark.parametrize("column", ["rows_lost", "keys_differ", "columns_wrong"])
def test_a_broken_ledger_is_critical(column: str) -> None:
    assert all(f.passed for f in check_ledger(LEDGER, budget=0.01))
    (broken,) = [f for f in check_ledger({**LEDGER, column: 1}, budget=0.01) if not f.passed]
    assert broken.severity == "critical"


def test_a_leaking_field_fails_the_log(tmp_path: Path) -> None:
    columns = shop_columns(600)
    columns["price"] = [str(50 * int(y)) for y in columns["clicked"]]
    verdict = run(tmp_path, columns)
    assert not verdict.passed
    leak = next(f for f in verdict.findings if f.rule == "field:leak")
    assert leak.observed == "1 (price)" and leak.samples == ["whole / price"]


def test_one_kind_of_label_fails_the_log(tmp_path: Path) -> None:
    verdict = run(tmp_path, {**shop_columns(50), "clicked": ["0"] * 50})
    assert not verdict.passed and "log:click_rate" in verdict.headline


def test_nothing_clean_still_gives_a_verdict_and_a_report(tmp_path: Path) -> None:
    verdict = run(tmp_path, {**shop_columns(20), "clicked": ["maybe"] * 20}, unparsable=("junk",))
    assert not verdict.passed and "ledger:clean" in verdict.headline
    assert "There is no clean row" in (tmp_path / "report.html").read_text()


def test_report_is_one_offline_file_without_user_ids(tmp_path: Path) -> None:
    columns, _ = broken_shop()
    columns["uid"] = [u and f"jane.doe{u}@example.org" for u in columns["uid"]]
    columns["name"][0] = "<script>alert(1)</script>"
    verdict = run(tmp_path, columns, schema=SHOP.replace("[phone, desk]", '[phone, desk, "<b>"]'))
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<script|https?://|src=|@import|url\(|<link", page)
    assert "default-src 'none'" in page
    assert "jane.doe" not in page and "jane.doe" not in (tmp_path / "verdict/verdict.json").read_text()
    split = verdict.split
    assert (
        f"{split.rows_in:,} in &nbsp;=&nbsp; {split.rows_clean:,} clean &nbsp;+&nbsp; {split.rows_quarantined:,}"
        in page
    )
    assert "Failed" in page and "price:number" in page and row_id(18) in page
    assert page.index("ledger:budget") < page.index("price:number"), "critical findings come first"
    assert len(page) < 200_000


def test_validation_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("validation opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert run(tmp_path, shop_columns(60)).passed


def test_a_broken_check_fails_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: Any, **__: Any) -> None:
        raise CheckBrokenError("the check could not be computed")

    monkeypatch.setattr(validate_run, "check_rows", break_down)
    with pytest.raises(CheckBrokenError):
        run(tmp_path, shop_columns(20))


def test_the_step_as_a_function(tmp_path: Path) -> None:
    from kfp import dsl

    from components.data.validate.component import validate

    columns = shop_columns(300)
    columns["clicked"][0] = "9"
    log = dsl.Dataset(name="log", uri=str(write_raw(tmp_path / "raw", columns)))
    clean = dsl.Dataset(name="clean", uri=str(tmp_path / "clean"))
    quarantine = dsl.Dataset(name="quarantine", uri=str(tmp_path / "quarantine"))
    report = dsl.HTML(name="report", uri=str(tmp_path / "report"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    verdict = dsl.Artifact(name="verdict_file", uri=str(tmp_path / "verdict"))
    passed = validate.python_func(log, "1.0", clean, quarantine, report, metrics, verdict)
    assert passed is True
    assert metrics.metadata["rows_in"] == 300 and metrics.metadata["rows_quarantined"] == 1
    assert (clean.metadata["rows"], quarantine.metadata["rows"]) == (299, 1)
    assert (tmp_path / "report").read_text().startswith("<!doctype html>")
    assert verdict.metadata["headline"].startswith("passed: 299 of 300 rows are clean, 1 in quarantine")
    assert json.loads((tmp_path / "quarantine/quarantine.json").read_text())["run_id"] == "0123456789abcdef@1.0"


def future_columns() -> dict[str, list[Any]]:
    """500 rows; two of them of the year 2090."""
    columns = shop_columns(500)
    columns["ts"][7] = columns["ts"][8] = "3786912000"
    return columns


def test_the_step_quarantines_rows_from_the_future(tmp_path: Path) -> None:
    from kfp import dsl

    from components.data.validate.component import validate

    log = dsl.Dataset(name="log", uri=str(write_raw(tmp_path / "raw", future_columns())))
    names = {"clean": dsl.Dataset, "quarantine": dsl.Dataset, "report": dsl.HTML, "metrics": dsl.Metrics}
    outputs = {name: kind(name=name, uri=str(tmp_path / name)) for name, kind in names.items()}
    verdict = dsl.Artifact(name="verdict_file", uri=str(tmp_path / "verdict"))
    assert validate.python_func(log, "1.0", **outputs, verdict_file=verdict) is True
    bad = pl.read_parquet(tmp_path / "quarantine/quarantine.parquet").sort("source_row")
    assert bad.select("source_row", "reasons").rows() == [(7, ["time:future"]), (8, ["time:future"])]
    assert bad["ingested_at"].null_count() == 0
    saved = read_json(tmp_path / "verdict/verdict.json")
    (future,) = [f for f in saved["findings"] if f["rule"] == "time:future"]
    assert future["observed"] == "2 rows quarantined"
    assert "time:future" not in saved["not_evaluated"]


def test_a_rule_that_was_not_evaluated_is_not_reported_as_held(tmp_path: Path) -> None:
    verdict = run(tmp_path, future_columns())  # no moment, no reference
    held = {f.rule for f in verdict.findings}
    assert not held & {"time:future", "drift:psi_from_reference", "volume:from_reference"}
    assert verdict.not_evaluated["time:future"] == "no moment of the check was given"
    assert verdict.not_evaluated["volume:from_reference"] == "no earlier profile"
    every = {r.id for r in row_rules(load_schema(tmp_path / "raw/schema.yaml"))} | {r.id for r in profile_rules()}
    assert every <= held | set(verdict.not_evaluated) and not held & set(verdict.not_evaluated)
    page = (tmp_path / "report.html").read_text()
    assert "not evaluated: no earlier profile" in page and "drift:psi_from_reference" in page


def test_an_earlier_profile_is_compared_with(tmp_path: Path) -> None:
    run(tmp_path / "old", shop_columns(3000))
    reference = read_reference(tmp_path / "old/verdict/profile_reference.json")
    raw = write_raw(tmp_path / "new/raw", shop_columns(300))
    places = [tmp_path / "new" / name for name in ("clean", "bad", "report.html", "verdict")]
    verdict = validate_log(raw, *places, run_id="run-2", reference=reference)
    assert "volume:from_reference" not in verdict.not_evaluated
    assert not verdict.passed and "volume:from_reference" in verdict.headline


@pytest.mark.parametrize(("budget", "passes"), [(0.02, True), (0.0, False), (0.005, False)])
def test_the_schema_sets_the_quarantine_budget(tmp_path: Path, budget: float, passes: bool) -> None:
    columns = shop_columns(300)
    columns["price"][:4] = ["free"] * 4
    verdict = run(tmp_path, columns, schema=SHOP + f"quarantine_budget: {budget}\n")
    assert verdict.passed is passes
    (finding,) = [f for f in verdict.findings if f.rule == "ledger:budget"]
    assert (finding.passed, finding.bound) == (passes, f"at most {100 * budget:g}%")
    assert f"Budget: {finding.bound} of the rows" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("zone", "words"), [("", "zone UTC (none is set)"), (", zone: Asia/Tokyo", "zone Asia/Tokyo")])
def test_the_report_says_what_every_field_is(tmp_path: Path, zone: str, words: str) -> None:
    text = SHOP.replace("format: s", f"format: s{zone}").replace("kind: numeric", "kind: numeric, unit: <EUR>")
    schema = parse_schema(text, where="test")
    run(tmp_path, shop_columns(300), schema=text)
    page = html.unescape((tmp_path / "report.html").read_text())
    assert f"times: column ts, Unix time in seconds, {words}" in page
    described = field_words(schema)
    profiled = [*described][: 2 + len(schema.fields)]
    assert [name for name in profiled if f"<b>{name}</b><small>{described[name]}</small>" not in page] == []
    assert (
        "number in <EUR>" in page
        and f"the hour of the impression's time (column ts, Unix time in seconds, {words})" in page
    )


def test_the_report_says_what_a_truth_value_and_a_cross_are(tmp_path: Path) -> None:
    schema = SHOP.replace("vectors:", "- {name: gift, kind: boolean}\ncrosses: [[device, gift]]\nvectors:")
    run(tmp_path, shop_columns(300) | {"gift": ["yes", "no"] * 150}, schema=schema)
    page = html.unescape((tmp_path / "report.html").read_text())
    assert "<b>gift</b><small>truth value (true or false), context of the impression, from column gift</small>" in page
    assert "device_x_gift: pair of device and gift, computed from them" in page


def test_doubtful_values_are_warnings_by_name(tmp_path: Path) -> None:
    """Ids that were rounded, and hours of times without a zone: GX judges their counts, and no row is lost."""
    columns = shop_columns(300)
    columns["uid"] = [1.7e18 + 1000 * (i % 7) for i in range(300)]
    columns["ts"] = [datetime.fromtimestamp(int(ts), timezone.utc).replace(tzinfo=None) for ts in columns["ts"]]
    verdict = run(tmp_path, columns, schema=SHOP.replace("format: s", "format: datetime"))
    assert verdict.passed and verdict.split.rows_clean == 300
    assert verdict.headline.startswith("passed: 300 of 300 rows are clean; ")
    told = {f.rule: f for f in verdict.findings if f.suite == "notes"}
    assert set(told) == {"user_id:inexact", "item_id:inexact", "device:inexact", "time:zone"}
    assert [rule for rule, f in told.items() if not f.passed] == ["user_id:inexact", "time:zone"]
    for rule in ("user_id:inexact", "time:zone"):
        assert rule in verdict.headline and told[rule].severity == "warning" and "300 clean rows" in told[rule].observed
    assert "was rounded before this log was written" in told["user_id:inexact"].description
    assert "hour, weekday" in told["time:zone"].description and "zone: Asia/Tokyo" in told["time:zone"].description
    assert "time:zone" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_reason_shows_a_value_that_breaks_the_rule(tmp_path: Path) -> None:
    columns = shop_columns(300)
    columns["clicked"][7] = "maybe"
    verdict = run(tmp_path, columns)
    (reason,) = [r for r in verdict.reasons if r.startswith("label:number")]
    assert "1 row quarantined, for example 'maybe'; expected: the label is a number, or true or false" in reason
    assert "&#39;maybe&#39;" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_great_expectations_judges_the_rows_of_side_tables(tmp_path: Path) -> None:
    of_items = [{**row, "color": "green"} if row["item"] == 3 else row for row in items()]
    prepared(tmp_path, impressions(), users()[1:], of_items)
    verdict = validate_log(
        tmp_path / "raw", tmp_path / "c", tmp_path / "q", tmp_path / "r.html", tmp_path / "v", run_id="run-1"
    )
    findings = {f.rule: f for f in verdict.findings}
    assert findings["items.color:allowed"].observed == "1 row quarantined"
    assert len(findings["items.color:allowed"].samples) == 1 and findings["items.color:allowed"].example == "'green'"
    assert findings["users:unmatched"].observed == "12 clean rows break it"
    assert findings["items.price:minimum"].passed and findings["ledger:columns"].passed
    assert not findings["ledger:budget"].passed  # 1 of 11 rows of the table, 0 of the log
    clean = pl.read_parquet(tmp_path / "c" / "clean_items.parquet")
    clean.with_columns(price=-pl.col("price") - 1).write_parquet(tmp_path / "c" / "clean_items.parquet")
    broken = {
        f.rule for f in check_table(tmp_path / "c", load_schema(tmp_path / "c" / "schema.yaml"), "item") if not f.passed
    }
    assert broken == {"items.price:minimum"}

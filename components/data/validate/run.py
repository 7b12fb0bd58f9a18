"""Validation of one raw log: split, profile, check, judge, report. Always ends with a verdict, unless a check fails to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from components.data.validate.report import render
from components.data.validate.suite import (
    MAX_SAMPLES,
    Finding,
    check_ledger,
    check_notes,
    check_profile,
    check_rows,
    check_table,
)
from components.data.validate.verdict import DataVerdict
from thinktwice.data.ingest import Snapshot
from thinktwice.files import atomic_dir, atomic_file, read_json, write_json
from thinktwice.parquet import read_schema, read_table, write_frame
from thinktwice.progress import note, tell
from thinktwice.schema.describe import cross_words, field_words, time_words
from thinktwice.schema.fields import ROW_ID
from thinktwice.schema.log import LogSchema, load_schema
from thinktwice.validate.column_rules import Rule
from thinktwice.validate.layout import arrow_schema, clean_columns, clean_table_columns
from thinktwice.validate.profile import LogProfile, profile_log
from thinktwice.validate.profile_rules import profile_rules
from thinktwice.validate.raw_rows import STAGE, frame_of
from thinktwice.validate.rules import UNSPLITTABLE, noted_rules, row_rules, table_rules
from thinktwice.validate.side_tables import TableSplit, clean_table, quarantined_table, share_quarantined
from thinktwice.validate.split import SplitResult, split_log

MAX_TOLD = 3  # maximum warnings on the console; the report has all of them


def validate_log(
    raw_dir: Path | str,
    clean_dir: Path | str,
    quarantine_dir: Path | str,
    report_path: Path | str,
    verdict_dir: Path | str,
    *,
    run_id: str,
    as_of: datetime | None = None,
    ingested_at: datetime | None = None,
    reference: Mapping[str, Any] | None = None,
) -> DataVerdict:
    """Validate the raw log in ``raw_dir``. Writes the clean log, the quarantine, one HTML file and the verdict folder.

    The verdict folder contains ``verdict.json``, ``profile.parquet`` and ``profile_reference.json``, with which a later log can be
    compared (``reference``, see :func:`thinktwice.validate.profile.read_reference`). Without ``as_of`` future times are not checked;
    without ``reference`` the log is not compared with an earlier one. The verdict lists rules that were not evaluated.

    Raises:
        SchemaError, DataError, RowsLostError: see :func:`thinktwice.validate.split.split_log`.
        CheckBrokenError: a check could not be computed.
    """
    clean_dir, quarantine_dir = Path(clean_dir), Path(quarantine_dir)
    split = split_log(raw_dir, clean_dir, quarantine_dir, run_id=run_id, as_of=as_of, ingested_at=ingested_at)
    schema = load_schema(clean_dir / "schema.yaml")
    profile = profile_log(clean_dir, reference=reference)
    samples = sample_rows(quarantine_dir, schema)
    as_of_us = None if as_of is None else int(as_of.timestamp() * 1_000_000)
    clean = check_rows(clean_dir, schema, as_of_us=as_of_us) if split.rows_clean else []
    of_tables = [
        finding
        for side, table in split.tables.items()
        for finding in _with_quarantined(
            check_table(clean_dir, schema, side), table, table_rules(schema, side), samples, future_checked=False
        )
    ]
    findings = [
        *check_ledger(_ledger(split, clean_dir, schema), budget=schema.quarantine_budget),
        *_with_quarantined(clean, split, row_rules(schema), samples, future_checked=as_of is not None),
        *of_tables,
        *check_notes(split.notes, noted_rules(schema)),
        *check_profile(profile.table),
    ]
    verdict = judge(_with_fixes(findings, schema), split, profile)
    verdict = replace(verdict, not_evaluated=_not_evaluated(findings, schema, reference is not None))
    _write(Path(verdict_dir), verdict, profile)
    info = read_json(clean_dir / "clean.json") | {"read": _what_was_read(Path(raw_dir) / "snapshot.json")}
    page = render(verdict, profile, info, samples, time_words(schema), field_words(schema), cross_words(schema))
    with atomic_file(report_path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    note(STAGE, verdict.headline)
    for line in [*warning_lines(verdict), *info_lines(verdict)]:
        tell(STAGE, line)
    return verdict


def warning_lines(verdict: DataVerdict) -> list[str]:
    """Console lines about the warnings of a log that passed: their number, and the first few with a fix."""
    warnings = [f for f in verdict.findings if not f.passed and f.severity == "warning"]
    if not verdict.passed or not warnings:
        return []
    number = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    first = f"{number}, the first {MAX_TOLD}:" if len(warnings) > MAX_TOLD else f"{number}:"
    return [
        first,
        *(f"  {f.rule}: {f.observed}; expected: {f.description}. {_sentence(f.fix)}" for f in warnings[:MAX_TOLD]),
    ]


def info_lines(verdict: DataVerdict) -> list[str]:
    """Console lines about what was counted and is as the schema allows."""
    counted = [f for f in verdict.findings if not f.passed and f.severity == "info"]
    return [f"{f.rule}: {f.observed.removesuffix(' break it')}; expected: {f.description}" for f in counted]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _with_fixes(findings: list[Finding], schema: LogSchema) -> list[Finding]:
    tables = [rule for side in schema.side_tables for rule in table_rules(schema, side)]
    fixes = {r.id: r.fix for r in (*row_rules(schema), *tables)} | {r.id: r.fix for r in profile_rules()}
    fixes |= {
        "ledger:budget": "correct the rows or the rules that quarantine them, or raise quarantine_budget in the schema",
        "ledger:clean": "every row broke a rule: read the reasons, and correct the schema or the log",
    }
    return [f if f.passed else f._replace(fix=fixes.get(f.rule, "")) for f in findings]


def _what_was_read(snapshot: Path) -> list[str]:
    try:
        return Snapshot.model_validate(read_json(snapshot)).what_was_read()
    except (OSError, ValueError):  # a simulated or custom log
        return []


def judge(findings: list[Finding], split: SplitResult, profile: LogProfile) -> DataVerdict:
    """Severity policy: one broken critical rule fails the log; warnings are reported and do not fail it."""
    order = {"critical": 0, "warning": 1, "info": 2}
    findings = sorted(
        findings, key=lambda f: (f.passed, order[f.severity])
    )  # stable: catalogue order within each group
    critical = [f for f in findings if not f.passed and f.severity == "critical"]
    warnings = [f for f in findings if not f.passed and f.severity == "warning"]
    reasons = [
        f"{f.rule} ({f.severity}): {f.observed}{f', for example {f.example}' if f.example else ''}; "
        f"expected: {f.description} ({f.bound})" + (f"; {f.fix}" if f.fix else "")
        for f in critical + warnings
    ]
    warnings_text = (
        f"{len(warnings)} warning{'s' if len(warnings) != 1 else ''} ({_named(warnings)})" if warnings else ""
    )
    if critical:
        headline = (
            f"failed: {len(critical)} critical rule{'s' if len(critical) != 1 else ''} broken ({_named(critical)})"
        )
        headline += f" and {warnings_text}" if warnings_text else ""
    else:
        quarantined = f", {split.rows_quarantined:,} in quarantine" if split.rows_quarantined else ""
        headline = f"passed: {split.rows_clean:,} of {split.rows_in:,} rows are clean{quarantined}" + (
            f"; {warnings_text}" if warnings_text else ""
        )
    return DataVerdict(
        not critical, headline, reasons, findings, split, _metrics(split, profile, len(critical), len(warnings))
    )


def _named(findings: list[Finding]) -> str:
    return ", ".join(f.rule for f in findings)


def sample_rows(quarantine_dir: Path, schema: LogSchema) -> dict[str, list[str]]:
    """Up to ten row ids per quarantine reason."""
    columns = read_json(quarantine_dir / "quarantine.json")["columns"]
    out: dict[str, list[str]] = {}
    # Read through Arrow, because other source columns may have types that polars does not support.
    quarantined = frame_of(read_table(quarantine_dir / "quarantine.parquet", [ROW_ID, columns["reasons"]]))
    unparsable = frame_of(read_table(quarantine_dir / "unparsable.parquet", [ROW_ID]))
    for rule in row_rules(schema):
        matching = quarantined.filter(pl.col(columns["reasons"]).list.contains(rule.id))
        if rule.id == UNSPLITTABLE.id:
            matching = unparsable
        row_ids = matching[ROW_ID].head(MAX_SAMPLES).to_list()
        if row_ids:
            out[rule.id] = row_ids
    for side in schema.side_tables:
        file = quarantined_table(quarantine_dir, side)
        reasons = read_schema(file).names[-4]  # the first of our columns, which come last
        bad = frame_of(read_table(file, [ROW_ID, reasons]))
        for rule in table_rules(schema, side):
            row_ids = bad.filter(pl.col(reasons).list.contains(rule.id))[ROW_ID].head(MAX_SAMPLES).to_list()
            if row_ids:
                out[rule.id] = row_ids
    return out


def _ledger(split: SplitResult, clean_dir: Path, schema: LogSchema) -> dict[str, float]:
    expected = {clean_dir / "clean.parquet": clean_columns(schema)}
    expected |= {clean_table(clean_dir, side): clean_table_columns(schema, side) for side in split.tables}
    parts: list[SplitResult | TableSplit] = [split, *split.tables.values()]
    return {
        "rows_lost": sum(part.rows_in - part.rows_clean - part.rows_quarantined for part in parts),
        "keys_differ": float(any(part.key_hash_in != part.key_hash_out for part in parts)),
        "columns_wrong": sum(_wrong_columns(path, arrow_schema(schema, names)) for path, names in expected.items()),
        "rows_clean": split.rows_clean,
        "rows_quarantined": split.rows_quarantined,
        "quarantined_share": max(split.rows_quarantined / split.rows_in, share_quarantined(split.tables)),
    }


def _wrong_columns(path: Path, expected: pa.Schema) -> int:
    actual = read_schema(path)
    wrong = {f.name for f in expected if f.name not in actual.names or actual.field(f.name).type != f.type}
    return len(wrong | (set(actual.names) - set(expected.names)))


def _with_quarantined(
    clean: list[Finding],
    split: SplitResult | TableSplit,
    rules: tuple[Rule, ...],
    samples: Mapping[str, list[str]],
    *,
    future_checked: bool,
) -> list[Finding]:
    """One finding per row rule: critical if clean rows break it, a warning if it sent rows to the quarantine."""
    by_rule = {f.rule: f for f in clean}
    findings = []
    for rule in rules:
        if rule.check == "future" and not future_checked:
            continue
        checked = by_rule.get(rule.id)
        if checked is not None and not checked.passed:
            findings.append(checked)
            continue
        count = split.reasons.get(rule.id, 0)
        findings.append(
            Finding(
                rule=rule.id,
                suite="rows",
                severity="warning" if count else rule.severity,
                description=rule.description,
                passed=count == 0,
                observed=f"{count:,} row{'s' if count > 1 else ''} quarantined" if count else "no row breaks it",
                bound="0 rows",
                samples=list(samples.get(rule.id, [])),
                example=split.examples.get(rule.id, ""),
            )
        )
    return findings


def _not_evaluated(findings: list[Finding], schema: LogSchema, has_reference: bool) -> dict[str, str]:
    """Rules of the catalogue without a finding, and the reason."""
    evaluated = {f.rule for f in findings}
    out = {r.id: "no moment of the check was given" for r in row_rules(schema) if r.id not in evaluated}
    for rule in profile_rules():
        if rule.id not in evaluated:
            earlier = rule.column in ("psi_from_reference", "volume_ratio") and not has_reference
            out[rule.id] = "no earlier profile" if earlier else "too few rows, or no field of this kind"
    return out


def _metrics(split: SplitResult, profile: LogProfile, num_critical: int, num_warnings: int) -> dict[str, float]:
    metrics = {
        "rows_in": float(split.rows_in),
        "rows_clean": float(split.rows_clean),
        "rows_quarantined": float(split.rows_quarantined),
        "quarantined_share": split.rows_quarantined / split.rows_in,
        "critical": float(num_critical),
        "warnings": float(num_warnings),
    }
    if split.rows_clean:
        metrics["click_rate"] = float(profile.reference["click_rate"])
        for name, column in (("psi_max", "judged_psi"), ("field_auc_max", "judged_auc")):
            values = profile.table[column].drop_nulls()
            if values.len():  # KFP refuses NaN, so values that were not judged are not logged
                metrics[name] = max(values.to_list())
    return metrics


def _write(folder: Path, verdict: DataVerdict, profile: LogProfile) -> None:
    with atomic_dir(folder) as temporary:
        value = asdict(verdict)
        value["findings"] = [f._asdict() for f in verdict.findings]
        write_json(temporary / "verdict.json", value)
        write_json(temporary / "profile_reference.json", profile.reference)
        write_frame(profile.table, temporary / "profile.parquet")

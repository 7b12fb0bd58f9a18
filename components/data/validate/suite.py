"""Great Expectations suites, generated from the rule catalogue, and their findings.

There are four small suites instead of one large one, for speed and coverage:

* **rows**: every row rule, on all rows of the *clean* log as written, in chunks (bounded memory). GX reads the same file as the
  rest of the pipeline, not the splitter's view of it; each rule must hold in every row. No failures are expected, so the cheap
  BOOLEAN_ONLY format is used, and only failed expectations are run again for row ids.
* **ledger**: one row of counts: conservation of rows, the key hashes and the quarantine budget.
* **notes**: one row of counts of clean rows whose values are doubtful: rounded ids, times without a zone.
* **profile**: the distribution rules on the profile table, in milliseconds at any data size, with bounds as run-time parameters.

The invalid rows are found by the vectorized splitter (GX caps its lists of failing values and flags both copies of a duplicate).
A test ensures that GX, on all raw rows, finds for every rule exactly the rows that the splitter quarantines.

A check that could not be computed is an error (`CheckBrokenError`), never a failed verdict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from thinktwice.errors import DataError
from thinktwice.schema.fields import EVENT_TIME, LABEL, ROW_ID, VALID_FROM
from thinktwice.schema.limits import EARLIEST_US, LATEST_US, MAX_TEXT
from thinktwice.schema.log import LogSchema
from thinktwice.validate.column_rules import NEGATIVE, NO_NUMBER, UNEVEN, WEIGHT_CHECKS, Rule, Severity
from thinktwice.validate.profile import profiled
from thinktwice.validate.profile_rules import ProfileRule, profile_rules
from thinktwice.validate.raw_rows import parquet_file
from thinktwice.validate.rules import row_rules, table_rules
from thinktwice.validate.side_tables import Side, clean_table

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 500_000
MAX_SAMPLES = 10


#: Profile columns about the whole log instead of one field, and the format of their values.
_OF_THE_LOG: dict[str, Callable[[float], str]] = {
    "both_labels": lambda value: "both" if value else "one kind only",
    "click_rate_ratio": lambda value: f"{value:.3f} times",
    "volume_ratio": lambda value: f"{value:.2f} times",
    "first_year": lambda value: f"{value:.0f}",
}


class CheckBrokenError(DataError):
    """A check could not be computed: nothing is known about the data."""


class Finding(NamedTuple):
    """The outcome of one rule."""

    rule: str
    suite: str  # rows | ledger | notes | profile
    severity: Severity
    description: str
    passed: bool
    observed: str
    bound: str
    samples: list[str]  # row ids, or "partition / feature"
    example: str = ""  # a value that breaks the rule
    fix: str = ""  # how to fix it


class Expected(NamedTuple):
    """An expectation to create: GX class name and arguments, and its rule."""

    rule: str
    severity: Severity
    description: str
    kind: str
    arguments: dict[str, Any]


def row_expectations(schema: LogSchema, rules: tuple[Rule, ...]) -> list[Expected]:
    """The row rules as expectations on the frame of :func:`row_frame`."""
    out = []
    for rule in rules:
        expectation = _row_expectation(schema, rule)
        if expectation is not None:
            kind, arguments = expectation
            out.append(Expected(rule.id, rule.severity, rule.description, kind, arguments))
    return out


def _row_expectation(schema: LogSchema, rule: Rule) -> tuple[str, dict[str, Any]] | None:
    if rule.separator is not None and rule.check != "text":
        return _list_expectation(rule)
    if rule.check in ("missing", "time"):
        return "ExpectColumnValuesToNotBeNull", {"column": rule.column}
    if rule.check == "binary":
        return "ExpectColumnValuesToBeInSet", {"column": LABEL, "value_set": [0, 1]}
    if rule.check == "window":
        return "ExpectColumnValuesToBeBetween", {
            "column": rule.column,
            "min_value": EARLIEST_US,
            "max_value": LATEST_US,
        }
    if rule.check == "future":
        return "ExpectColumnValuesToBeBetween", {"column": EVENT_TIME, "max_value": {"$PARAMETER": "as_of"}}
    if rule.check == "text":
        return "ExpectColumnValuesToBeBetween", {
            "column": _length_of(rule.column),
            "min_value": 1,
            "max_value": MAX_TEXT,
        }
    if rule.check == "allowed":
        return "ExpectColumnValuesToBeInSet", {"column": rule.column, "value_set": list(rule.allowed or ())}
    if rule.check == "boolean":
        return "ExpectColumnValuesToBeInSet", {"column": rule.column, "value_set": ["true", "false"]}
    if rule.check in ("minimum", "maximum"):
        return "ExpectColumnValuesToBeBetween", {"column": rule.column, f"{rule.check[:3]}_value": rule.bound}
    if rule.check == "vector":
        return "ExpectColumnValuesToBeInSet", {"column": rule.column, "value_set": [int(rule.bound or 0)]}
    if rule.check in WEIGHT_CHECKS:
        bounds = {"min_value": 0} if rule.check == NEGATIVE else {"max_value": 0}
        return "ExpectColumnValuesToBeBetween", {"column": _weights_of(rule), **bounds}
    # "number" is ensured by the type of the clean column, checked against the Arrow schema; "splittable" and "duplicate" are in the ledger.
    return None


def _list_expectation(rule: Rule) -> tuple[str, dict[str, Any]] | None:
    if rule.check == "separator":
        return None  # a property of the text in the log; the clean list has none
    if rule.check == "allowed":
        return "ExpectColumnValuesToBeBetween", {"column": _others_of(rule.column), "max_value": 0}
    bounds = {"min_value": 1} if rule.check == "missing" else {"max_value": rule.bound}
    return "ExpectColumnValuesToBeBetween", {"column": rule.column, **bounds}


def _others_of(column: str) -> str:
    """The column of :func:`row_frame` with the number of elements of a list that are not allowed."""
    return f"{column} not allowed"


def _weights_of(rule: Rule) -> str:
    """The column of :func:`row_frame` with what a rule on the weights of a list is about: the smallest weight, the number of weights that
    are no finite numbers, or by how many weights and elements differ."""
    return f"{rule.column} {rule.check}"


def _length_of(column: str) -> str:
    """The column of :func:`row_frame` with the number of characters of ``column``; no field name contains a space."""
    return f"{column} characters"


def row_frame(frame: pl.DataFrame, schema: LogSchema, expected: list[Expected]) -> pd.DataFrame:
    """The columns of a clean log that the row suite reads, converted for the suite.

    Times are microseconds since the epoch, vectors their number of finite entries, texts also their number of characters (-1 if one is
    NUL). Missing values are null.
    """
    used = {e.arguments["column"] for e in expected} | {ROW_ID}
    columns: list[pl.Expr] = []
    vectors = {v.name for v in schema.vectors}
    weighted = {f.weights.name: f.name for f in schema.fields if f.weights is not None}
    allowed = {f.name: list(f.allowed or ()) for f in schema.fields}
    for name in frame.columns:
        if name in weighted:
            columns += _weight_columns(name, weighted[name], used)
            continue
        if name not in vectors and isinstance(frame.schema[name], pl.List):
            columns += _list_columns(name, used, allowed.get(name, []))
            continue
        if _length_of(name) in used:
            text = pl.col(name)
            length = (
                pl.when(text.str.contains("\x00", literal=True)).then(-1).otherwise(text.str.len_chars().cast(pl.Int64))
            )
            columns.append(length.alias(_length_of(name)))
        if name not in used:
            continue
        if name in (EVENT_TIME, VALID_FROM):
            columns.append(pl.col(name).cast(pl.Int64))
        elif name in vectors:
            finite = pl.col(name).list.eval(pl.element().filter(pl.element().is_finite())).list.len()
            same = finite == pl.col(name).list.len()
            columns.append(
                pl.when(same).then(finite.cast(pl.Int64)).when(pl.col(name).is_not_null()).then(-1).alias(name)
            )
        else:
            columns.append(pl.col(name))
    return frame.select(columns).to_pandas()


def _list_columns(name: str, used: set[str], allowed: list[str]) -> list[pl.Expr]:
    """Number of elements, number of those that are not allowed, and the longest one, of a list of categories."""
    lists, element = pl.col(name), pl.element()
    length = (
        pl.when(element.str.contains("\x00", literal=True)).then(-1).otherwise(element.str.len_chars().cast(pl.Int64))
    )
    lengths = lists.list.eval(length)
    longest = pl.when(lengths.list.min() < 0).then(-1).otherwise(lengths.list.max())
    out = {
        _length_of(name): longest,
        name: lists.list.len().cast(pl.Int64).fill_null(0),
        _others_of(name): lists.list.eval((~element.is_in(allowed)).cast(pl.Int64)).list.sum().fill_null(0),
    }
    return [values.alias(column) for column, values in out.items() if column in used]


def _weight_columns(name: str, lists: str, used: set[str]) -> list[pl.Expr]:
    """See :func:`_weights_of`; null for a row without weights."""
    weights, element = pl.col(name), pl.element()
    differ = weights.list.len().cast(pl.Int64) - pl.col(lists).list.len().cast(pl.Int64).fill_null(0)
    out = {
        UNEVEN: pl.when(weights.list.len() > 0).then(differ.abs()),
        NO_NUMBER: weights.list.eval((~element.is_finite().fill_null(False)).cast(pl.Int64)).list.sum(),
        NEGATIVE: weights.list.min(),
    }
    return [values.alias(column) for check, values in out.items() if (column := f"{name} {check}") in used]


def check_rows(clean_dir: Path, schema: LogSchema, *, as_of_us: int | None = None) -> list[Finding]:
    """Run the row suite on every row of the clean log. One finding per rule that GX can check on clean rows."""
    return _check(clean_dir / "clean.parquet", schema, row_rules(schema), as_of_us=as_of_us)


def check_table(clean_dir: Path, schema: LogSchema, side: Side) -> list[Finding]:
    """Run the suite of a side table on every clean row of it."""
    return _check(clean_table(clean_dir, side), schema, table_rules(schema, side), as_of_us=None)


def _check(path: Path, schema: LogSchema, rules: tuple[Rule, ...], *, as_of_us: int | None) -> list[Finding]:
    expected = [e for e in row_expectations(schema, rules) if as_of_us is not None or not e.rule.endswith(":future")]
    failed: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    rows = 0
    parameters = {"as_of": as_of_us}
    columns = {rule.column for rule in rules} | {ROW_ID}
    for frame in _clean_chunks(path, columns):
        rows += frame.height
        pandas = row_frame(frame, schema, expected)
        outcome = run_suite("rows", pandas, expected, parameters=parameters)
        failing = [e for e in expected if not outcome[e.rule]["success"]]
        if failing:
            detail = run_suite("rows", pandas, failing, parameters=parameters, row_ids=True)
            for e in failing:
                result = detail[e.rule]["result"]
                counts[e.rule] = counts.get(e.rule, 0) + int(result.get("unexpected_count", 0))
                sample_ids = failed.setdefault(e.rule, [])
                sample_ids.extend(_row_ids(result)[: MAX_SAMPLES - len(sample_ids)])
    return [
        Finding(
            rule=e.rule,
            suite="rows",
            severity=e.severity,
            description=e.description,
            passed=e.rule not in failed,
            observed=f"{counts.get(e.rule, 0):,} of {rows:,} clean rows break it",
            bound="0 rows",
            samples=failed.get(e.rule, []),
        )
        for e in expected
    ]


def ledger_expectations() -> list[Expected]:
    """Conservation and budget, on a frame of one row."""

    def between(rule: str, description: str, column: str, severity: Severity = "critical", **bounds: Any) -> Expected:
        return Expected(rule, severity, description, "ExpectColumnValuesToBeBetween", {"column": column, **bounds})

    return [
        between(
            "ledger:conserved",
            "every row of the log is either clean or quarantined",
            "rows_lost",
            min_value=0,
            max_value=0,
        ),
        between(
            "ledger:keys",
            "the hash over all row ids is the same before and after",
            "keys_differ",
            min_value=0,
            max_value=0,
        ),
        between(
            "ledger:columns", "the clean log has the columns and types of its schema", "columns_wrong", max_value=0
        ),
        between("ledger:clean", "at least one row is clean", "rows_clean", min_value=1),
        between(
            "ledger:budget",
            "the share of quarantined rows is within the budget",
            "quarantined_share",
            max_value={"$PARAMETER": "quarantine_budget"},
        ),
    ]


def check_ledger(ledger: Mapping[str, float], *, budget: float) -> list[Finding]:
    """Run the ledger suite on ``{rows_lost, keys_differ, columns_wrong, rows_clean, rows_quarantined, quarantined_share}``.

    ``budget``: maximum share of quarantined rows of a log that passes.
    """
    import pandas as pd

    expected = ledger_expectations()
    frame = pd.DataFrame([{**ledger, ROW_ID: "ledger"}])
    outcome = run_suite("ledger", frame, expected, parameters={"quarantine_budget": budget})
    shown = {"quarantine_budget": budget}
    findings = []
    for e in expected:
        value = ledger[e.arguments["column"]]
        text = f"{value:.3%}" if e.arguments["column"] == "quarantined_share" else f"{value:,.0f}"
        bound = f"at most {100 * budget:g}%" if e.rule == "ledger:budget" else _bound(e.arguments, shown)
        passed = bool(outcome[e.rule]["success"])
        findings.append(Finding(e.rule, "ledger", e.severity, e.description, passed, text, bound, []))
    return findings


def check_notes(notes: Mapping[str, int], rules: tuple[Rule, ...]) -> list[Finding]:
    """Run the rules that do not quarantine rows: ``notes`` are the numbers of clean rows that break each of them."""
    import pandas as pd

    expected = [
        Expected(r.id, r.severity, r.description, "ExpectColumnValuesToBeBetween", {"column": r.id, "max_value": 0})
        for r in rules
    ]
    frame = pd.DataFrame([{**{r.id: notes.get(r.id, 0) for r in rules}, ROW_ID: "notes"}])
    outcome = run_suite("notes", frame, expected, parameters={})
    return [
        Finding(
            rule=e.rule,
            suite="notes",
            severity=e.severity,
            description=e.description,
            passed=bool(outcome[e.rule]["success"]),
            observed=f"{notes.get(e.rule, 0):,} clean rows break it",
            bound="0 rows",
            samples=[],
        )
        for e in expected
    ]


def profile_expectations(rules: tuple[ProfileRule, ...]) -> list[Expected]:
    """The profile rules as expectations on the profile table; bounds are run-time parameters (:func:`_parameter`)."""
    out = []
    for rule in rules:
        arguments: dict[str, Any] = {"column": rule.column}
        for side in ("minimum", "maximum"):
            if getattr(rule, side) is not None:
                arguments[f"{side[:3]}_value"] = {"$PARAMETER": _parameter(rule.id, side)}
        out.append(Expected(rule.id, rule.severity, rule.description, "ExpectColumnValuesToBeBetween", arguments))
    return out


def check_profile(table: pl.DataFrame) -> list[Finding]:
    """Run the profile suite. Samples are ``partition / feature`` of the rows that break a rule; none on an empty table."""
    if not table.height:
        return []
    rules = profile_rules()
    expected = profile_expectations(rules)
    bounds = {
        _parameter(r.id, s): getattr(r, s) for r in rules for s in ("minimum", "maximum") if getattr(r, s) is not None
    }
    # A column with nothing to judge is all null; GX treats it as numeric only if its type is numeric.
    frame = table.with_columns(pl.format("{} / {}", "partition", "feature").alias(ROW_ID)).to_pandas()
    outcome = run_suite("profile", frame, expected, parameters=bounds, row_ids=True)
    findings = []
    for e in expected:
        column = e.arguments["column"]
        judged = table.filter(pl.col(column).is_not_null())
        if not judged.height:
            continue  # no finding without values to judge
        samples = _row_ids(outcome[e.rule]["result"])
        values = judged[column].to_list()
        # The most extreme value: the smallest if the rule has only a minimum, else the largest.
        worst = (
            min(values)
            if "max_value" not in e.arguments or min(values) < bounds.get(_parameter(e.rule, "minimum"), min(values))
            else max(values)
        )
        worst_row = judged.filter(pl.col(column) == worst).row(0, named=True)
        worst_field = profiled(worst_row["feature"], worst_row["kind"])
        observed = _OF_THE_LOG[column](worst) if column in _OF_THE_LOG else f"{worst:.4g} ({worst_field})"
        passed = bool(outcome[e.rule]["success"])
        findings.append(
            Finding(
                e.rule,
                "profile",
                e.severity,
                e.description,
                passed,
                observed,
                _bound(e.arguments, bounds),
                samples[:MAX_SAMPLES],
            )
        )
    return findings


def run_suite(
    name: str, frame: pd.DataFrame, expected: list[Expected], *, parameters: Mapping[str, Any], row_ids: bool = False
) -> dict[str, dict[str, Any]]:
    """Run expectations on a frame with GX. Returns per rule ``{success, result}``; with ``row_ids``, complete lists of failing ids.

    Raises:
        CheckBrokenError: GX could not compute an expectation.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations.expectations as gxe
    from great_expectations import ExpectationSuite

    if not expected:
        return {}
    batch = _batch(frame)  # also creates the context that GX needs for a suite
    suite = ExpectationSuite(
        name=name,
        expectations=[
            getattr(gxe, e.kind)(**e.arguments, severity=e.severity, description=e.description, meta={"rule": e.rule})
            for e in expected
        ],
    )
    result_format: Any = "BOOLEAN_ONLY"
    if row_ids:
        result_format = {"result_format": "COMPLETE", "unexpected_index_column_names": [ROW_ID]}
    result = batch.validate(suite, result_format=result_format, expectation_parameters=dict(parameters))
    outcome: dict[str, dict[str, Any]] = {}
    for expectation_result in result.results:
        rule = expectation_result.expectation_config.meta["rule"]
        raised = _raised(expectation_result.exception_info)
        if raised is not None:
            raise CheckBrokenError(
                f"the check {rule!r} of suite {name!r} could not be computed ({raised}): this says nothing about the data, report it as a bug"
            )
        outcome[rule] = {
            "success": bool(expectation_result.success),
            "result": expectation_result.to_json_dict()["result"] if row_ids else {},
        }
    absent = [e.rule for e in expected if e.rule not in outcome]
    if absent:
        raise CheckBrokenError(f"suite {name!r} gave no answer for {', '.join(absent)}: report it as a bug")
    return outcome


def _batch(frame: pd.DataFrame) -> Any:
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset("frame")
    return asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})


def _parameter(rule: str, side: str) -> str:
    return f"{rule.replace(':', '_')}_{side}"  # GX parses a parameter's name as an expression


def _raised(info: Any) -> str | None:
    """The message of an exception in a result. GX stores either one exception, or one per failed metric."""
    info = info or {}
    entries = [info] if "raised_exception" in info else list(info.values())
    for entry in entries:
        if isinstance(entry, Mapping) and entry.get("raised_exception"):
            return str(entry.get("exception_message"))
    return None


def _row_ids(result: Mapping[str, Any]) -> list[str]:
    return [str(entry[ROW_ID]) for entry in result.get("unexpected_index_list") or []]


def _bound(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    def value(side: str) -> Any:
        bound_or_parameter = arguments.get(side)
        return (
            parameters.get(bound_or_parameter["$PARAMETER"])
            if isinstance(bound_or_parameter, dict)
            else bound_or_parameter
        )

    low, high = value("min_value"), value("max_value")
    if low is not None and high is not None:
        return f"exactly {low:g}" if low == high else f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def _clean_chunks(path: Path, columns: set[str]) -> Iterator[pl.DataFrame]:
    with parquet_file(path) as file:
        names = [name for name in file.schema_arrow.names if name in columns]
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=names):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame

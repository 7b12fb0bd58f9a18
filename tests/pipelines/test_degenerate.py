"""Logs of every odd kind end in a run or in one sentence that says what to do; no figure is shown that does not exist."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from tests.pipelines.steps import Outcome, run_steps
from thinktwice.evaluate.table import print_metrics, print_results
from thinktwice.stats.metrics import UNDEFINED

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]

START = datetime(2024, 3, 1, tzinfo=timezone.utc)
ROWS = 300
TRAIN, VALID = slice(0, 240), slice(240, 270)
TEST = slice(270, 300)
HEAD = "name: shop\ntime: {column: t, format: datetime}\nlabel: {column: y}\n"
ENTITIES = "entities:\n  user: {key: user, column: u}\n  item: {key: item, column: i}\n"
SCHEMA = (
    HEAD + ENTITIES + "fields:\n  - {name: dev}\n  - {name: price, kind: numeric, entity: item}\n"
    "sequences:\n  - {name: before, of: item, length: 5}\nstatistics: {windows_days: [1], entities: [item]}\n"
)
TYPES = {
    "t": pl.Datetime("us", "UTC"),
    "y": pl.Int64,
    "u": pl.String,
    "i": pl.String,
    "dev": pl.String,
    "price": pl.Float64,
}

Columns = dict[str, list[Any]]


def columns() -> Columns:
    draw = np.random.default_rng(1)
    items = draw.integers(0, 10, ROWS)
    return {
        "t": [START + timedelta(minutes=40 * k) for k in range(ROWS)],
        "y": (draw.random(ROWS) < np.where(items % 3 == 0, 0.7, 0.2)).astype(int).tolist(),
        "u": [f"c{x}" for x in draw.integers(0, 15, ROWS)],
        "i": [f"s{x}" for x in items],
        "dev": draw.choice(["a", "b"], ROWS).tolist(),
        "price": (10.0 + items).tolist(),
    }


def every(**values: Any) -> Callable[[Columns], None]:
    """Every row has this value."""

    def change(log: Columns) -> None:
        for name, value in values.items():
            log[name] = [value] * ROWS

    return change


def unique(*names: str) -> Callable[[Columns], None]:
    """Every row has a value of its own."""

    def change(log: Columns) -> None:
        for name in names:
            log[name] = [f"{name}{k}" for k in range(ROWS)]

    return change


def numbers(of: Callable[[int], float]) -> Callable[[Columns], None]:
    return lambda log: log.update(price=[of(k) for k in range(ROWS)])


def times(of: Callable[[int], timedelta], start: datetime = START) -> Callable[[Columns], None]:
    return lambda log: log.update(t=[start + of(k) for k in range(ROWS)])


def labels(rows: slice, value: int) -> Callable[[Columns], None]:
    def change(log: Columns) -> None:
        log["y"][rows] = [value] * len(log["y"][rows])

    return change


def first(rows: int) -> Callable[[Columns], None]:
    return lambda log: log.update({name: values[:rows] for name, values in log.items()})


class Kind(NamedTuple):
    """What is odd about a log, and how it ends: words of the sentence, or "" where all steps up to the blessing run."""

    change: Callable[[Columns], object] = lambda log: None
    ends: str = ""
    schema: str = SCHEMA
    split: str = "time"
    undefined: bool = False  # whether the AUC of the result does not exist


KINDS = {
    "ordinary": Kind(),
    "no rows": Kind(first(0), "contains no rows: give the whole file"),
    "one row": Kind(first(1), "log:click_rate (critical): one kind only"),
    "five rows": Kind(first(5), "the time split of 5 rows leaves no rows for"),
    "five rows at random": Kind(first(5), "random split of 5 rows leaves no rows for test: give a log of more rows", split="random"),
    "thirty rows": Kind(first(30)),
    "one class": Kind(labels(slice(0, ROWS), 0), "check the label's column and threshold in the schema: a click model needs"),
    "clicks only": Kind(labels(slice(0, ROWS), 1), "log:click_rate (critical): one kind only"),
    "one class in train": Kind(labels(TRAIN, 0), "all 240 training rows have the same label (0), and a click model needs clicks and"),
    "one class in validation": Kind(labels(VALID, 0)),
    "clicks only in validation": Kind(labels(VALID, 1)),
    "one class in test": Kind(labels(TEST, 0), "all 30 test rows have the same label, so nothing can be judged", undefined=True),
    "clicks only in test": Kind(labels(TEST, 1), "all 30 test rows have the same label", undefined=True),
    "one class in validation and test": Kind(labels(slice(240, 300), 0), "all 30 test rows have the same label", undefined=True),
    "one click": Kind(lambda log: log.update(y=[1] + [0] * (ROWS - 1)), "all 30 test rows have the same", undefined=True),
    "one user": Kind(every(u="c1"), "all 30 test rows are of one user, so chance cannot be excluded"),
    "one item": Kind(every(i="s1", price=1.0)),
    "one instant": Kind(lambda log: (every(t=START)(log), unique("u")(log)), "leaves no rows for train, valid: give a log of more different times, or split it with --split random"),
    "one instant at random": Kind(lambda log: (every(t=START)(log), unique("u")(log)), split="random"),
    "one day": Kind(times(lambda k: timedelta(seconds=k))),
    "since the epoch": Kind(times(lambda k: timedelta(minutes=k), datetime(1970, 1, 1, tzinfo=timezone.utc))),
    "over a century": Kind(times(lambda k: timedelta(days=60 * k), datetime(1971, 1, 1, tzinfo=timezone.utc))),
    "a constant field": Kind(every(dev="x")),
    "a constant number": Kind(every(price=3.0)),
    "fields without values": Kind(every(dev=None, price=None)),
    "empty texts": Kind(every(dev="")),
    "no user ids": Kind(every(u=None), "to train on rows without a user id, as those of visitors who are not logged in, add 'anonymous: true'"),
    "some user ids": Kind(lambda log: log.update(u=[None if k % 3 else u for k, u in enumerate(log["u"])]), "add 'anonymous: true' to entities.user"),
    "no item ids": Kind(every(i=None), "to train on rows without a item id, leave the item out of the schema"),
    "no labels": Kind(every(y=None), "fill the labels, or leave these rows out of the log"),
    "no times": Kind(every(t=None), "time:parsable (warning): 300 rows quarantined"),
    "all rows quarantined within the budget": Kind(every(u=None), "ledger:clean (critical): 0", SCHEMA + "quarantine_budget: 1\n"),
    "a vocabulary as large as the log": Kind(unique("u", "i", "dev")),
    "no fields but keys": Kind(schema=HEAD + ENTITIES),
    "a user alone": Kind(schema=HEAD + "entities: {user: {key: user, column: u}}\n"),
    "one field": Kind(schema=HEAD + "fields: [{name: dev}]\n"),
    "one field of one value": Kind(every(dev="x"), schema=HEAD + "fields: [{name: dev}]\n"),
    "one number": Kind(schema=HEAD + "fields: [{name: price, kind: numeric}]\n"),
    "one derived field": Kind(schema=HEAD + "fields: [{name: h, derived: hour}]\n"),
    "keys that are no fields": Kind(schema=HEAD + ENTITIES.replace("}\n", ", as_field: false}\n") + "fields: [{name: dev}]\n"),
    "no statistics windows": Kind(schema=SCHEMA.replace("windows_days: [1]", "windows_days: []")),
    "windows longer than the log": Kind(schema=SCHEMA.replace("windows_days: [1]", "windows_days: [0, 100000]")),
    "huge numbers": Kind(numbers(lambda k: (-1) ** k * 1e297 * (k + 1))),
    "numbers beyond the limit": Kind(numbers(lambda k: (-1) ** k * 1e300 * (k + 1)), "price:number (warning): 300 rows quarantined"),
    "the smallest numbers": Kind(numbers(lambda k: 5e-324 * (k % 3))),
    "negative numbers": Kind(numbers(lambda k: -float(k))),
    "infinities": Kind(numbers(lambda k: math.inf if k % 2 else 1.0), "price:number (warning): 150 rows quarantined"),
    "numbers that are none": Kind(numbers(lambda k: math.nan)),
    "copies of one row": Kind(every(t=START + timedelta(seconds=1), u="a", i="b", dev="c", price=1.0, y=1), "row:duplicate (warning): 299 rows"),
    "copies of two rows": Kind(
        lambda log: (every(t=START + timedelta(seconds=1), u="a", i="b", dev="c", price=1.0)(log), log.update(y=[k % 2 for k in range(ROWS)])),
        "give the log a column that differs, such as an impression id",
    ),
    "equal rows of one hour": Kind(lambda log: (every(u="a", i="b", dev="c", price=1.0)(log), log.update(t=[START + timedelta(hours=k // 9) for k in range(ROWS)]))),
    "a copy of the label": Kind(lambda log: log.update(dev=[str(y) for y in log["y"]]), "leave the field out: it repeats the label"),
}  # fmt: skip


def write(folder: Path, kind: Kind) -> tuple[Path, Path]:
    log = columns()
    kind.change(log)
    pl.DataFrame(log, schema=TYPES).write_parquet(folder / "log.parquet")
    (folder / "shop.yaml").write_text(kind.schema)
    return folder / "log.parquet", folder / "shop.yaml"


def finite(value: Any) -> bool:
    """Whether no number in a document is NaN or infinite."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def shown(outcome: Outcome) -> str:
    """All that a user sees of a result: the console, the table of ``evaluate``, and the page."""
    console = Console(width=200, record=True, file=io.StringIO())
    print_results(console, outcome.evaluation)
    print_metrics(console, outcome.evaluation)
    return console.export_text() + (outcome.folder / "page").read_text() + "\n".join(outcome.told)


@pytest.mark.parametrize("name", KINDS)
def test_a_log_ends_in_a_run_or_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    outcome = run_steps(tmp_path / "work", *write(tmp_path, kind), monkeypatch, split=kind.split)
    if kind.ends:
        assert kind.ends in outcome.sentence, (outcome.step, outcome.sentence)
    else:
        assert outcome.step in ("bless", "package"), outcome.sentence
    assert "\n" not in outcome.sentence and not {"nan", "inf", "None"} & set(outcome.sentence.replace(",", " ").split())
    assert all(finite(metrics) for metrics in outcome.metrics.values())
    if outcome.step not in ("bless", "package"):
        return
    assert finite(json.loads((outcome.folder / "bundle/report/evaluation.json").read_text()))
    said = shown(outcome)
    auc = [c.metrics.auc for c in outcome.evaluation.columns]
    assert all((value is None) == kind.undefined for value in auc)
    assert (f"AUC is {UNDEFINED}" in said) == kind.undefined
    assert not {"nan", "nan%", "inf", "-inf"} & set(said.replace("<", " ").replace(">", " ").lower().split())
    one_class = "in validation" in name or name == "one click"
    assert (f"valid AUC {UNDEFINED}" in said) == one_class and (
        "valid_auc" in outcome.metrics["metrics_plain"]
    ) != one_class


def test_warnings_of_a_log_that_passes_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(log: Columns) -> None:
        log["dev"] = ["x"] * ROWS
        log["y"][5] = 7
        log["price"][:2] = [math.inf, math.inf]

    kind = Kind(odd, schema=SCHEMA + "quarantine_budget: 0.05\n")
    outcome = run_steps(tmp_path / "work", *write(tmp_path, kind), monkeypatch)
    (first_line,) = [i for i, text in enumerate(outcome.told) if text.endswith("warnings:")]
    lines = outcome.told[first_line : first_line + 4]
    assert lines[0] == "3 warnings:"
    assert lines[1].startswith(
        "  label:binary: 1 row quarantined; expected: the label is 0 or 1 (or true or false); for other numbers set in the schema"
    )
    assert lines[2].startswith("  price:number: 2 rows quarantined") and "`thinktwice data replay`" in lines[2]
    assert (
        lines[3]
        == "  field:constant: 1 (dev); expected: the field has at least two values. Leave the field out of the schema: a constant carries no information."
    )
    assert "Leave the field out" not in (outcome.folder / "report").read_text()  # there in the words of a table
    assert "leave the field out of the schema" in (outcome.folder / "report").read_text()

"""The experiment file: what it accepts, what it refuses and how it says so, and what may change while it runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.experiment.files import coverages, experiment, grouped, repeatable
from thinktwice.errors import ExperimentError
from thinktwice.experiment.changes import check_together, conflicts, forbidden_changes
from thinktwice.experiment.file import ExperimentFile, load_experiment, parse_experiment

GOOD = """
version: 1
name: fresh-evidence
salt: fresh-evidence-1
arms:
  - {name: control, bundle: 4f1c}
  - {name: fresh, bundle: 9e2a, mode: lean}
coverage: 0.05
ramp:
  - {coverage: 0.05}
  - {coverage: 1.0, after_days: 2, after_units: 5000}
primary: {metric: ctr, better: increase}
guardrails:
  - {metric: error_rate, worse: increase, margin: 0.001}
  - {metric: latency_p99, worse: increase, margin: 0.1, relative: true}
horizon: {days: 14, looks: 14}
testers: {fresh: [me@example.org]}
checks: {sample_ratio: roll_back}
"""


def test_a_good_file() -> None:
    file = parse_experiment(GOOD, "x.yaml")
    assert (
        file.test == "group_sequential" and file.control.name == "control" and file.checks.sample_ratio == "roll_back"
    )
    assert file.arm_width == 5000 and file.enrolled_width == 250
    assert parse_experiment(GOOD.replace("coverage: 0.05\n", "coverage: 0.5\n", 1), "x").identity() == file.identity()
    assert parse_experiment(GOOD.replace("fresh-evidence-1", "fresh-evidence-2"), "x").identity() != file.identity()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("version: 1", "version: 2", "version is 2"),
        ("version: 1\n", "", "version is None"),
        ("name: fresh-evidence\n", "name: Fresh Evidence\n", "a-z, 0-9 and '-'"),
        ("name: fresh-evidence\n", "name: holdout\n", "reserved"),
        ("salt: fresh-evidence-1", "salt: 'a\\1b'", "a-z, 0-9 and '-'"),
        ("salt: fresh-evidence-1", "salt: fresh-evidence-1\nsalt: other", "the key 'salt' twice, at lines 4 and 5"),
        ("mode: lean}", "mode: lean, mode: gate}", "the key 'mode' twice, at lines 7 and 7"),
        ("name: control,", "name: base,", "must be named 'control'"),
        ("name: fresh, bundle", "name: control, bundle", "appears twice"),
        ("mode: lean", "mode: true", "put quotes around it"),
        ("coverage: 0.05\nramp", "coverage: 5\nramp", "for 5 % write 0.05"),
        ("coverage: 0.05\nramp", "coverage: 0.00001\nramp", "multiple of 0.0001"),
        ("coverage: 0.05\nramp", "coverage: .nan\nramp", "coverage"),
        ("coverage: 0.05\nramp", "coverage: 0.0001\nramp", "enrols no users"),
        ("{coverage: 1.0, after_days", "{coverage: 0.01, after_days", "must increase"),
        ("metric: ctr", "metric: revenue", "no metric 'revenue'"),
        ("metric: ctr", "metric: latency_p99", "not a primary metric"),
        ("metric: latency_p99", "metric: error_rate", "appears twice"),
        ("margin: 0.001", "margin: -1", "greater than or equal to 0"),
        ("worse: increase, margin: 0.001", "worse: sideways, margin: 0.001", "'increase', 'decrease' or 'either'"),
        ("horizon: {days: 14, looks: 14}", "horizon: {days: 3, looks: 3}", "ends before minimum.days"),
        ("horizon: {days: 14, looks: 14}", "method: group_sequential", "needs a horizon"),
        ("{fresh: [me@example.org]}", "{other: [me]}", "no arm 'other'"),
        ("{fresh: [me@example.org]}", "{fresh: ['a b']}", "must be 1 to 256 of"),
        ("{fresh: [me@example.org]}", "{fresh: [a], control: [a]}", "appears twice"),
        ("sample_ratio: roll_back", "sample_ratio: ignore", "'hold', 'roll_back' or 'warn'"),
        ("primary:", "unknown_field: 1\nprimary:", "unknown_field: Extra inputs are not permitted"),
        ("primary:", "buckets: [0, 5000]\nprimary:", "need an exclusive_group"),
        ("primary:", "buckets: [0, 20000]\nprimary:", "must be a range"),
        ("primary:", "holdout: 1000\nbuckets: [0, 10000]\nexclusive_group: g\nprimary:", "reach into the holdout"),
        ("primary:", "buckets: [5, 6]\nexclusive_group: g\nprimary:", "fewer than one bucket"),
        ("arms:", "arms: [", "line"),
        (GOOD, "- 1", "contains a list instead of a mapping"),
        (GOOD, "a: &x [1, *x]", "an alias at line 1 that refers to itself"),
        (GOOD, "{? [1]: 2}", "key"),
    ],
)  # fmt: skip
def test_what_is_refused(old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(ExperimentError) as error:
        parse_experiment(GOOD.replace(old, new, 1), "x.yaml")
    assert words in str(error.value) and str(error.value).startswith("x.yaml")


def numbers_of(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all numbers."""
    entries: Any = (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    found = [path] if isinstance(content, int | float) and not isinstance(content, bool) else []
    return found + [place for key, value in entries for place in numbers_of(value, (*path, key))]


@pytest.mark.parametrize("value", [True, False, "0.1", "1", math.nan, math.inf, -math.inf, 10**400, [], {}], ids=repr)
def test_a_number_is_a_finite_number_wherever_it_stands(value: Any) -> None:
    """Else ``coverage: true`` would enrol everybody, and a margin of infinity would leave a record that cannot be read again."""
    content = experiment(
        coverage=0.1, ramp=[{"coverage": 0.2, "after_days": 1.5, "after_units": 3}], pre_period={"days": 3},
        guardrails=[{"metric": "error_rate", "worse": "increase", "margin": 0.1}],
        horizon={"days": 14, "looks": 14, "units": 9000},
    ).model_dump(mode="json")  # fmt: skip
    for version in (True, "1", 1.5, None):
        with pytest.raises(ExperimentError, match="reads version 1"):
            parse_experiment(json.dumps(content | {"version": version}), "x.yaml")
    paths = [path for path in numbers_of(content) if path != ("version",)]
    assert len(paths) > 20
    for path in paths:
        changed = json.loads(json.dumps(content))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ValidationError):
            ExperimentFile.model_validate(changed)
    text = json.dumps(content | {"coverage": value}).replace("Infinity", ".inf").replace("NaN", ".nan")
    with pytest.raises(ExperimentError, match="coverage") as error:
        parse_experiment(text, "x.yaml")
    assert "put quotes" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slices": ["device", "device"]}, "slices: 'device' appears twice"),
        ({"guardrails": [{"metric": m, "worse": "increase", "margin": 1} for m in ("latency_p99", "latency_p99.0")]}, "twice"),
        ({"horizon": {"days": 14, "looks": 4, "units": 1999}}, "plan 2,000 units or more"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        experiment(**fields)


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ExperimentError) as error:
        parse_experiment(GOOD.replace("looks: 14", "looks: 0").replace("margin: 0.1", "margin: x"), "x.yaml")
    assert "horizon.looks" in str(error.value) and "guardrails.1.margin" in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no experiment file"):
        load_experiment(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ExperimentError, match="not UTF-8"):
        load_experiment(tmp_path / "latin.yaml")
    with pytest.raises(ExperimentError, match="at most 1,048,576 are read"):
        parse_experiment("a" * (1 << 21), "x")
    with pytest.raises(ExperimentError):
        parse_experiment("[" * 5000, "x")


@repeatable
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert isinstance(parse_experiment(text, "x.yaml"), ExperimentFile)
    except ExperimentError as error:
        assert str(error).startswith("x.yaml")


CHANGES = {
    "name": "other",
    "salt": "other",
    "unit": "session_id",
    "exclusive_group": "g",
    "holdout": 100,
    "primary": {"metric": "clicks_per_unit"},
    "guardrails": [{"metric": "error_rate", "worse": "increase", "margin": 0.1}],
    "horizon": {"days": 20, "looks": 20},
    "alpha": 0.1,
    "guardrail_alpha": 0.1,
    "minimum": {"days": 1, "units": 10},
    "checks": {"sample_ratio": "warn"},
    "limits": {"fallback_share": 0.5},
    "slices": ["device"],
    "ramp": [{"coverage": 0.5}],
    "testers": {"t1": ["me"]},
    "pre_period": {"days": 7},
    "arms": [{"name": "control", "bundle": "b0"}, {"name": "t1", "bundle": "another"}],
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_but_that_of_the_coverage_is_named(name: str) -> None:
    base = experiment(coverage=0.1, horizon={"days": 14, "looks": 14}).model_dump(mode="json")
    running = ExperimentFile.model_validate(base)
    changed = {**base, name: CHANGES[name]} | ({"buckets": (0, 9900)} if name == "holdout" else {})
    problems = forbidden_changes(running, ExperimentFile.model_validate(changed))
    assert any(p.startswith(name) for p in problems) and all(" changed from " in p for p in problems)


def test_every_field_is_either_tried_above_or_known() -> None:
    assert set(ExperimentFile.model_fields) - set(CHANGES) == {"version", "coverage", "buckets", "method"}


@repeatable
@given(coverages, coverages, coverages)
def test_coverage_grows_or_stops(highest: float, old: float, new: float) -> None:
    running = experiment().model_copy(update={"coverage": old})
    changed = experiment().model_copy(update={"coverage": new})
    assert bool(forbidden_changes(running, changed, highest)) == (new < max(highest, old))
    stopped = experiment()
    assert forbidden_changes(running, stopped, highest) == []
    assert "stopped" in forbidden_changes(stopped, changed, highest)[-1]
    assert forbidden_changes(stopped, changed) == []  # never started


def test_what_stands_beside_one_another() -> None:
    one, two = grouped("one", 0, 4000), grouped("two", 4000, 9000)
    assert conflicts([one, two, experiment("three"), experiment("four")]) == []
    assert "two experiments are named" in conflicts([experiment("a"), experiment("a")])[0]
    assert "use the salt 'a'" in conflicts([experiment("a"), experiment("b", salt="a")])[0]
    assert "use the salt" in conflicts([one, experiment("b", salt="g-1")])[0]
    assert "overlap in the buckets 3000 to 4000" in conflicts([one, grouped("b", 3000, 5000)])[0]
    assert "need one salt" in conflicts([one, grouped("b", 4000, 5000).model_copy(update={"salt": "g-2"})])[0]
    assert "need one holdout" in conflicts([one, grouped("b", 4000, 5000, holdout=5)])[0]
    assert "need one unit" in conflicts([one, grouped("b", 4000, 5000, unit="session_id")])[0]
    other = grouped("b", 4000, 5000, arms=2)
    arms = (other.arms[0].model_copy(update={"bundle": "new"}), other.arms[1])
    assert "one control" in conflicts([one, other.model_copy(update={"arms": arms})])[0]
    with pytest.raises(ExperimentError, match="salt"):
        check_together([experiment("a"), experiment("b", salt="a")])

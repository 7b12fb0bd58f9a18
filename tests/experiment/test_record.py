"""The record: append-only, chained, replayable; and the report made from it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from tests.experiment.evidence import T0, evidence
from tests.experiment.files import experiment
from thinktwice.errors import ExperimentError
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.record import (
    append_decision,
    append_effect,
    append_start,
    read_lines,
    read_record,
    replay,
    state_of,
)
from thinktwice.experiment.report import ExperimentReport, report_of, write_report

FILE = experiment(
    coverage=0.5,
    horizon={"days": 14, "looks": 14},
    minimum={"days": 3, "units": 500},
    guardrails=[{"metric": "latency_p99", "worse": "increase", "margin": 0.2, "relative": True}],
)


def recorded(path: Path, days: tuple[float, ...] = (1, 3, 5, 7), **rates: dict[str, float]) -> Path:
    for day in days:
        append_decision(path, FILE, evidence(FILE, day, **rates))
    return path


def test_a_replay_decides_the_same(tmp_path: Path) -> None:
    path = recorded(tmp_path / "record.jsonl", t1={"lift": 0.3})
    records = read_record(path)
    assert [r.number for r in records] == [1, 2, 3, 4]
    assert records[-1].verdict.decision.action == "promote"
    assert all(before == again for before, again in replay(records))
    assert [r.verdict for r in read_record(path)] == [r.verdict for r in records]


def test_lines_are_added_and_never_changed(tmp_path: Path) -> None:
    path = recorded(tmp_path / "record.jsonl", (1, 3))
    before = path.read_bytes()
    recorded(path, (4,))
    assert path.read_bytes().startswith(before)
    with pytest.raises(ExperimentError, match="not newer"):
        append_decision(path, FILE, evidence(FILE, 4))
    ramped = FILE.model_copy(update={"coverage": 1.0})
    append_decision(path, ramped, evidence(ramped, 5))
    other = experiment(coverage=0.5, alpha=0.1, horizon={"days": 14, "looks": 14})
    with pytest.raises(ExperimentError, match=r"alpha changed from 0\.05 to 0\.1"):
        append_decision(path, other, evidence(other, 6))
    with pytest.raises(ExperimentError, match=r"coverage falls from 1\.0 to 0\.5"):
        append_decision(path, FILE, evidence(FILE, 6))
    with pytest.raises(ExperimentError, match=r"the evidence is of coverage 0\.5"):
        append_decision(path, ramped, evidence(FILE, 6))
    three = experiment(arms=3, coverage=1.0)
    with pytest.raises(ExperimentError, match="the arm 't2'"):
        append_decision(path, ramped, evidence(three, 6))
    assert len(read_record(path)) == 4


@pytest.mark.parametrize("damage", ["cut", "lost", "changed", "swapped", "version", "other", "bytes", "json"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    path = recorded(tmp_path / "record.jsonl", (1, 3, 5))
    lines = path.read_text().splitlines()
    if damage == "cut":
        lines[-1] = lines[-1][:-40]
    elif damage == "lost":
        del lines[1]
    elif damage == "changed":
        lines[0] = lines[0].replace('"days_left"', '"ready_for_review"')
    elif damage == "swapped":
        lines[0], lines[1] = lines[1], lines[0]
    elif damage == "version":
        lines[2] = lines[2].replace('"format":1', '"format":2', 1)
    elif damage == "other":
        lines[2] = lines[2].replace('"alpha":0.05', '"alpha":0.04', 1)
    elif damage == "json":
        lines[1] = "{}"
    path.write_text("\n".join(lines) + "\n")
    if damage == "bytes":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(ExperimentError, match=r"record\.jsonl"):
        read_record(path)


def test_two_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    looks = [evidence(FILE, 3).model_copy(update={"at": evidence(FILE, 3).at + timedelta(minutes=i)}) for i in range(8)]

    def add(found: Evidence) -> bool:
        try:
            append_decision(path, FILE, found)
        except ExperimentError as error:
            assert "not newer" in str(error)
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(add, looks))
    assert len(read_record(path)) == sum(added) >= 1


def test_nothing_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none.jsonl") == ()
    with pytest.raises(ExperimentError, match="empty"):
        report_of(())


def test_the_report_holds_all_and_is_json(tmp_path: Path) -> None:
    path = recorded(tmp_path / "record.jsonl", t1={"lift": 0.3})
    report = report_of(read_record(path))
    write_report(report, tmp_path / "report.json")
    assert ExperimentReport.model_validate_json((tmp_path / "report.json").read_text()) == report
    assert report.format == 1 and report.decision.action == "promote" and len(report.points) == 4
    assert [p.counted for p in report.points] == [False, True, True, True]
    control, treatment = report.arms
    values = {m.metric: m.value for m in treatment.metrics}
    before = {m.metric: m.value for m in control.metrics}
    assert values["ctr"] / before["ctr"] == pytest.approx(1.3, abs=0.1)  # type: ignore[operator]
    assert {"error_rate", "fallback_share", "escalation_rate", "calibration", "latency_p99"} <= set(values)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["experiment"]["name"] == "exp1" and content["method"] == "group_sequential"


def test_a_file_survives_json() -> None:
    again = ExperimentFile.model_validate_json(FILE.model_dump_json())
    assert again == FILE and again.identity() == FILE.identity()


def test_evidence_that_does_not_fit_together_is_refused() -> None:
    good = evidence(FILE, 3).model_dump(mode="json")
    Evidence.model_validate(good)
    first = good["arms"][0]
    for wrong, words in [
        ({"arms": [first, first]}, "repeated"),
        ({"arms": [{**first, "sums": {**first["sums"], "mean": [1.0]}}]}, "need"),
        (
            {"arms": [{**first, "sums": {"names": ["a"], "num_units": 1, "mean": [1.0], "scatter": [[1.0]]}}]},
            "same sums",
        ),
        ({"format": 2}, "1"),
        ({"days": -1}, "greater"),
        ({"at": "2026-01-01T00:00:00"}, "timezone"),
    ]:
        with pytest.raises(ValueError, match=words):
            Evidence.model_validate({**good, **wrong})


def started(path: Path, coverage: float = 0.5) -> ExperimentFile:
    file = FILE.model_copy(update={"coverage": coverage})
    append_start(path, file, T0)
    return file


def test_a_start_is_the_first_line_and_the_same_start_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    started(path)
    before = path.read_bytes()
    append_start(path, FILE, T0 + timedelta(days=1))
    assert path.read_bytes() == before
    other = experiment(coverage=0.5, alpha=0.1, horizon={"days": 14, "looks": 14})
    with pytest.raises(ExperimentError, match="started with another file"):
        append_start(path, other, T0)
    with pytest.raises(ExperimentError, match="has decisions already"):
        append_start(recorded(tmp_path / "other" / "record.jsonl", (1,)), FILE, T0)
    state = state_of(read_lines(path))
    assert (state.started, state.coverage_since, state.file.coverage, state.runs) == (T0, T0, 0.5, True)
    assert read_record(path) == ()


def test_a_decision_is_pending_until_its_effect_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    started(path)
    recorded(path, (1, 3, 5), t1={"lift": 0.5})
    state = state_of(read_lines(path))
    assert state.pending is not None and state.pending.verdict.decision.action == "promote" and state.runs
    number = state.pending.number
    done = append_effect(path, "promote", 0.0, T0 + timedelta(days=6), decision=number, arm="t1")
    ended = state_of(read_lines(path))
    assert (ended.ended, ended.pending, ended.file.coverage, ended.runs) == ("promote", None, 0.0, False)
    assert append_effect(path, "promote", 0.0, T0 + timedelta(days=7), decision=number, arm="t1") == done
    with pytest.raises(ExperimentError, match="has ended"):
        append_effect(path, "ramp", 1.0, T0 + timedelta(days=7))
    assert all(before == again for before, again in replay(read_record(path)))


def test_only_the_recorded_coverage_is_decided_on_and_it_never_falls_but_to_zero(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    started(path, 0.2)
    with pytest.raises(ExperimentError, match=r"runs with coverage 0\.2, not 0\.5"):
        recorded(path, (1,))
    with pytest.raises(ExperimentError, match=r"coverage falls from 0\.2 to 0\.1"):
        append_effect(path, "ramp", 0.1, T0 + timedelta(days=1))
    append_effect(path, "ramp", 0.5, T0 + timedelta(days=1), why="all is well")
    recorded(path, (2,))
    state = state_of(read_lines(path))
    assert (state.coverage_since, state.decisions) == (T0 + timedelta(days=1), 1)
    append_effect(path, "stop", 0.0, T0 + timedelta(days=3))
    assert state_of(read_lines(path)).ended == "stop"


def test_an_effect_needs_a_start(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="the record is empty"):
        append_effect(tmp_path / "none.jsonl", "ramp", 0.5, T0)
    path = recorded(tmp_path / "record.jsonl", (1,))
    with pytest.raises(ExperimentError, match="was not started"):
        append_effect(path, "ramp", 1.0, T0)


def test_a_line_of_an_earlier_version_is_a_decision(tmp_path: Path) -> None:
    path = recorded(tmp_path / "record.jsonl", (1,))
    text = path.read_text()
    assert '"kind":"decision",' in text
    path.write_text(text.replace('"kind":"decision",', ""))
    assert len(read_record(path)) == 1

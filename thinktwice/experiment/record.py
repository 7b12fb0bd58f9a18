"""The record of an experiment: all evidence with its verdicts, one JSON line each, never changed.

Each line contains the hash of the previous line, so a lost or altered line is detected. A line is added by writing the
whole file under a temporary name and renaming it: a kill leaves the old record or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from thinktwice.errors import ExperimentError, reason
from thinktwice.experiment.changes import forbidden_changes
from thinktwice.experiment.decision import Decision, Verdict, decide
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.file import ExperimentFile
from thinktwice.files import atomic_file
from thinktwice.frozen import Frozen

FIRST = ""  # previous hash of the first line


class DecisionRecord(Frozen):
    """One line. ``file`` is the experiment as declared at that time."""

    format: Literal[1] = 1
    number: int
    previous: str
    file: ExperimentFile
    evidence: Evidence
    verdict: Verdict


def read_record(path: Path | str) -> tuple[DecisionRecord, ...]:
    """All lines, oldest first; empty if there is no record yet.

    Raises:
        ExperimentError: a line is damaged, of another version, out of place, or of another experiment.
    """
    path = Path(path)
    if not path.exists():
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ExperimentError(f"the record {path} is not UTF-8 text: restore it from a copy") from None
    records: list[DecisionRecord] = []
    previous = FIRST
    for number, line in enumerate(lines, start=1):
        try:
            record = DecisionRecord.model_validate_json(line)
        except ValidationError as error:
            raise ExperimentError(
                f"line {number} of the record {path} cannot be read ({reason(error)}): restore it from a copy"
            ) from None
        if record.number != number or record.previous != previous:
            raise ExperimentError(
                f"line {number} of the record {path} does not follow the one before: a line was lost or changed"
            )
        if records and record.file.identity() != records[0].file.identity():
            raise ExperimentError(f"line {number} of the record {path} is of another experiment than line 1")
        records.append(record)
        previous = _hash(line)
    return tuple(records)


def append_decision(path: Path | str, file: ExperimentFile, evidence: Evidence) -> DecisionRecord:
    """Decide on new evidence and append the line. Concurrent callers are serialised.

    Raises:
        ExperimentError: the record is damaged or of another experiment, the file changed in more than its coverage, or the evidence is
            older than the last line or of another coverage or other arms.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        before = read_record(path)
        if before:
            highest = max(r.file.coverage for r in before)
            if problems := forbidden_changes(before[-1].file, file, highest):
                raise ExperimentError(f"the file of {file.name} is not the one of its record: " + "; ".join(problems))
        if before and evidence.at <= before[-1].evidence.at:
            raise ExperimentError(
                f"the evidence of {evidence.at} is not newer than the last line of {path} ({before[-1].evidence.at})"
            )
        if evidence.coverage != file.coverage:
            raise ExperimentError(
                f"the evidence is of coverage {evidence.coverage}, the file says {file.coverage}: collect it again"
            )
        if unknown := sorted({a.arm for a in evidence.arms} - {a.name for a in file.arms}):
            raise ExperimentError(f"the evidence contains the arm {unknown[0]!r}, which {file.name} does not have")
        old = path.read_text(encoding="utf-8") if before else ""
        verdict = decide(file, evidence, [r.verdict for r in before])
        previous = _hash(old.splitlines()[-1]) if before else FIRST
        record = DecisionRecord(
            number=len(before) + 1, previous=previous, file=file, evidence=evidence, verdict=verdict
        )
        with atomic_file(path) as temporary:
            temporary.write_text(old + record.model_dump_json() + "\n", encoding="utf-8")
    return record


def ended_experiments(records: Path) -> set[str]:
    """Names of the experiments of a folder of records that were decided; all others may still run."""
    ended = set()
    for path in records.glob("*/record.jsonl"):
        lines = read_record(path)
        if lines and lines[-1].verdict.decision.action in ("promote", "roll_back"):
            ended.add(lines[-1].file.name)
    return ended


def replay(records: Sequence[DecisionRecord]) -> Iterator[tuple[Decision, Decision]]:
    """(recorded decision, recomputed decision) of every line; they differ only if the code has changed."""
    verdicts: list[Verdict] = []
    for record in records:
        verdicts.append(decide(record.file, record.evidence, verdicts))
        yield record.verdict.decision, verdicts[-1].decision


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

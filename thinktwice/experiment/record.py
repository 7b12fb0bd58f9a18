"""The record of an experiment: its start, all evidence with its verdicts, and what was done about them; never changed.

Each line is JSON and contains the hash of the previous line, so a lost or altered line is detected. A line is added by
writing the whole file under a temporary name and renaming it: a kill leaves the old record or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, Discriminator, Field, Tag, TypeAdapter, ValidationError

from thinktwice.errors import ExperimentError, reason
from thinktwice.experiment.changes import forbidden_changes
from thinktwice.experiment.decision import Decision, Verdict, decide
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.file import ExperimentFile
from thinktwice.files import atomic_file
from thinktwice.frozen import Frozen

RECORD = "record.jsonl"
FIRST = ""  # previous hash of the first line

Effect = Literal["ramp", "promote", "roll_back", "stop"]


class _Line(Frozen):
    format: Literal[1] = 1
    number: int
    previous: str


class StartRecord(_Line):
    """The first line: the experiment as started; ``file`` has its first coverage."""

    kind: Literal["start"] = "start"
    at: AwareDatetime
    file: ExperimentFile


class DecisionRecord(_Line):
    """A look. ``file`` is the experiment as declared at that time."""

    kind: Literal["decision"] = "decision"
    file: ExperimentFile
    evidence: Evidence
    verdict: Verdict


class EffectRecord(_Line):
    """A change of the roll-out that is complete.

    Attributes:
        decision: number of the line whose decision was applied; null if a person changed the coverage.
        coverage: from now on; 0 after the end of the experiment.
        arm: the promoted arm.
        why: reason given by a person.
    """

    kind: Literal["effect"] = "effect"
    at: AwareDatetime
    effect: Effect
    coverage: float = Field(ge=0, le=1)
    decision: int | None = None
    arm: str | None = None
    why: str = ""


Line = StartRecord | DecisionRecord | EffectRecord
L = TypeVar("L", StartRecord, DecisionRecord, EffectRecord)


def _kind(content: Any) -> str:
    # Lines of earlier versions are decisions without a kind.
    return str(content.get("kind", "decision")) if isinstance(content, dict) else str(content.kind)


_LINE: TypeAdapter[Line] = TypeAdapter(
    Annotated[
        Annotated[StartRecord, Tag("start")]
        | Annotated[DecisionRecord, Tag("decision")]
        | Annotated[EffectRecord, Tag("effect")],
        Discriminator(_kind),
    ]
)


class ExperimentState(Frozen):
    """Where an experiment stands, as its record says.

    Attributes:
        file: with the current coverage.
        started: null if its decisions were made from evidence of a roll-out that is not ours.
        coverage_since: when the coverage last changed.
        ended: how it ended; null while it runs.
        pending: the last decision, if its effect is not recorded yet: a run that was killed in between applies it again.
        decisions: number of decisions.
    """

    file: ExperimentFile
    started: AwareDatetime | None
    coverage_since: AwareDatetime | None
    ended: Literal["promote", "roll_back", "stop"] | None
    pending: DecisionRecord | None
    decisions: int

    @property
    def runs(self) -> bool:
        return self.started is not None and self.ended is None


def state_of(lines: Sequence[Line]) -> ExperimentState:
    """The state after all lines.

    Raises:
        ExperimentError: the record is empty.
    """
    if not lines:
        raise ExperimentError("the record is empty: start the experiment first")
    started = since = ended = pending = None
    file, decisions = None, 0
    for line in lines:
        if isinstance(line, StartRecord):
            file, started, since = line.file, line.at, line.at
        elif isinstance(line, DecisionRecord):
            decisions += 1
            file = line.file if file is None or started is None else file
            if ended is None:
                pending = line if line.verdict.decision.action != "hold" else None
        elif file is not None:
            pending = None
            file, since = file.model_copy(update={"coverage": line.coverage}), line.at
            ended = line.effect if line.effect != "ramp" else ended
    if file is None:
        raise ExperimentError("the record starts with an effect: restore the lost line from a backup")
    return ExperimentState(
        file=file, started=started, coverage_since=since, ended=ended, pending=pending, decisions=decisions
    )


def read_lines(path: Path | str) -> tuple[Line, ...]:
    """All lines, oldest first; empty if there is no record yet.

    Raises:
        ExperimentError: a line is damaged, of another version, out of place, or of another experiment.
    """
    path = Path(path)
    if not path.exists():
        return ()
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ExperimentError(f"the record {path} is not UTF-8 text: restore it from a copy") from None
    lines: list[Line] = []
    previous, identity = FIRST, None
    for number, text in enumerate(texts, start=1):
        try:
            line = _LINE.validate_json(text)
        except ValidationError as error:
            raise ExperimentError(
                f"line {number} of the record {path} cannot be read ({reason(error)}): restore it from a copy"
            ) from None
        if line.number != number or line.previous != previous:
            raise ExperimentError(
                f"line {number} of the record {path} does not follow the one before: a line was lost or changed, restore the record from a backup"
            )
        if isinstance(line, StartRecord) and number > 1:
            raise ExperimentError(
                f"line {number} of the record {path} starts the experiment a second time: restore the record from a backup"
            )
        if not isinstance(line, EffectRecord):
            identity = identity or line.file.identity()
            if line.file.identity() != identity:
                raise ExperimentError(
                    f"line {number} of the record {path} is of another experiment than line 1: restore the record from a backup"
                )
        lines.append(line)
        previous = _hash(text)
    return tuple(lines)


def read_record(path: Path | str) -> tuple[DecisionRecord, ...]:
    """The decisions of a record, oldest first; empty if there is none.

    Raises:
        ExperimentError: see :func:`read_lines`.
    """
    return decisions_of(read_lines(path))


def decisions_of(lines: Sequence[Line]) -> tuple[DecisionRecord, ...]:
    return tuple(line for line in lines if isinstance(line, DecisionRecord))


def append_start(path: Path | str, file: ExperimentFile, at: datetime) -> StartRecord:
    """Begin the record. Doing it again with the same experiment returns the first line.

    Raises:
        ExperimentError: the record is damaged, of another experiment, or began without a start.
    """

    def make(lines: Sequence[Line], chain: dict[str, Any]) -> StartRecord:
        if not lines:
            return StartRecord(**chain, at=at, file=file)
        first = lines[0]
        if not isinstance(first, StartRecord):
            raise ExperimentError(f"{file.name} has decisions already: start it under a new name and salt")
        if problems := forbidden_changes(first.file, file.model_copy(update={"coverage": first.file.coverage})):
            raise ExperimentError(f"{file.name} was started with another file: " + "; ".join(problems))
        return first

    return _append(Path(path), make)


def append_decision(path: Path | str, file: ExperimentFile, evidence: Evidence) -> DecisionRecord:
    """Decide on new evidence and append the line. Concurrent callers are serialised.

    Raises:
        ExperimentError: the record is damaged or of another experiment, the file changed in more than its coverage, or the evidence is
            older than the last line or of another coverage or other arms.
    """

    def make(lines: Sequence[Line], chain: dict[str, Any]) -> DecisionRecord:
        _check_file(lines, file)
        before = decisions_of(lines)
        if before and evidence.at <= before[-1].evidence.at:
            raise ExperimentError(
                f"the evidence of {evidence.at} is not newer than the last line of {path} ({before[-1].evidence.at}): collect it again"
            )
        if evidence.coverage != file.coverage:
            raise ExperimentError(
                f"the evidence is of coverage {evidence.coverage}, the file says {file.coverage}: collect it again"
            )
        if unknown := sorted({a.arm for a in evidence.arms} - {a.name for a in file.arms}):
            raise ExperimentError(
                f"the evidence contains the arm {unknown[0]!r}, which {file.name} does not have: collect it again with this file"
            )
        return DecisionRecord(
            **chain, file=file, evidence=evidence, verdict=decide(file, evidence, [r.verdict for r in before])
        )

    return _append(Path(path), make)


def append_effect(path: Path | str, effect: Effect, coverage: float, at: datetime, **fields: Any) -> EffectRecord:
    """Record a change of the roll-out that is complete. Recording the same end again returns the recorded line.

    Args:
        fields: ``decision``, ``arm``, ``why`` of :class:`EffectRecord`.

    Raises:
        ExperimentError: the experiment was not started, has ended otherwise, or the coverage would fall to another value than 0.
    """

    def make(lines: Sequence[Line], chain: dict[str, Any]) -> EffectRecord:
        state = state_of(lines)
        if state.started is None:
            raise ExperimentError(f"{state.file.name} was not started: `thinktwice experiment start` does")
        last = lines[-1]
        if state.ended is not None:
            if isinstance(last, EffectRecord) and (last.effect, last.decision) == (effect, fields.get("decision")):
                return last
            raise ExperimentError(
                f"{state.file.name} has ended ({state.ended.replace('_', ' ')}): start a new experiment with a new name and salt"
            )
        moved = state.file.model_copy(update={"coverage": coverage})
        if problems := forbidden_changes(state.file, moved):
            raise ExperimentError("; ".join(problems))
        return EffectRecord(**chain, at=at, effect=effect, coverage=coverage, **fields)

    return _append(Path(path), make)


def ended_experiments(records: Path) -> set[str]:
    """Names of the experiments of a folder of records that have ended; all others may still run."""
    names = set()
    for path in records.glob("*/record.jsonl"):
        lines = read_lines(path)
        state = state_of(lines) if lines else None
        if state is None:
            continue
        # A roll-out that is not ours records no effects: its last decision is what happened.
        decided = state.pending.verdict.decision.action if state.pending and state.started is None else "hold"
        if state.ended is not None or decided in ("promote", "roll_back"):
            names.add(state.file.name)
    return names


def replay(records: Sequence[DecisionRecord]) -> Iterator[tuple[Decision, Decision]]:
    """(recorded decision, recomputed decision) of every line; they differ only if the code has changed."""
    verdicts: list[Verdict] = []
    for record in records:
        verdicts.append(decide(record.file, record.evidence, verdicts))
        yield record.verdict.decision, verdicts[-1].decision


def _check_file(lines: Sequence[Line], file: ExperimentFile) -> None:
    if not lines:
        return
    state = state_of(lines)
    if state.started is not None:
        if problems := forbidden_changes(state.file, file.model_copy(update={"coverage": state.file.coverage})):
            raise ExperimentError(f"the file of {file.name} is not the one of its record: " + "; ".join(problems))
        if file.coverage != state.file.coverage:
            raise ExperimentError(
                f"{file.name} runs with coverage {state.file.coverage}, not {file.coverage}: "
                "`thinktwice experiment ramp` changes it"
            )
        return
    before = decisions_of(lines)
    highest = max(r.file.coverage for r in before)
    if problems := forbidden_changes(before[-1].file, file, highest):
        raise ExperimentError(f"the file of {file.name} is not the one of its record: " + "; ".join(problems))


def _append(path: Path, make: Callable[[Sequence[Line], dict[str, Any]], L]) -> L:
    """Add the line that ``make`` returns, unless it is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        lines = read_lines(path)
        old = path.read_text(encoding="utf-8") if lines else ""
        previous = _hash(old.splitlines()[-1]) if lines else FIRST
        line = make(lines, {"number": len(lines) + 1, "previous": previous})
        if line.number > len(lines):
            with atomic_file(path) as temporary:
                temporary.write_text(old + line.model_dump_json() + "\n", encoding="utf-8")
    return line


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

"""The parts ``extra_work`` and ``thought_twice`` of ``evaluation.json``: whether extra work pays.

All changes are of logloss against one plain pass of the same trunk (``off``), below 0 is better.
"""

from __future__ import annotations

from thinktwice.choices import Mode
from thinktwice.testtime.report import Evidence
from thinktwice.testtime.triggers import TriggerKind
from thinktwice.versioned import MeasuredInterval, Record, SparseRecord

STEPS = tuple(step / 20 for step in range(21))  # shares of rows at which :attr:`ThoughtTwice.moved` is recorded


class TestQuality(SparseRecord):
    """Metrics on test rows; ``truth_distance`` if the log has true click probabilities."""

    __test__ = False  # not a test, despite the name

    logloss: float
    auc: float | None  # None: only one class
    ece: float
    truth_distance: float | None = None


class TestedChange(MeasuredInterval):
    """A change with its p-value, alone and adjusted for the number of candidates (Holm)."""

    __test__ = False

    p_value: float
    p_holm: float


class Detectable(Record):
    """The change that these rows would have shown with 80 % power; None if the interval is unbounded."""

    logloss: float | None
    auc: float | None


class CandidateOnTest(TestQuality):
    """A candidate on test rows with its results on validation; ``slices`` by name, the truth if the log has it."""

    name: str
    mode: Mode
    passes: float  # forward passes per row
    cost: float | None = None  # estimated, in files of earlier versions
    change: TestedChange
    auc_change: TestedChange
    detectable: Detectable
    slices: dict[str, MeasuredInterval]
    truth_distance_change: MeasuredInterval | None = None
    truth_logloss_change: MeasuredInterval | None = None
    ships: bool
    validation: Evidence


class SliceSize(Record):
    """A slice of test rows."""

    name: str
    rows: int


class Reference(Record):
    """A control or bound of a candidate; ``candidate_against`` is the candidate minus it."""

    candidate: str
    name: str
    passes: float
    change: MeasuredInterval
    candidate_against: MeasuredInterval


class UpliftCurve(Record):
    """Change of logloss when a growing share of rows is escalated, and its area relative to a random order."""

    change: tuple[float, ...]
    area: float


class Uplift(Record):
    """One candidate with a second look at every row, against its base pass; ``curves`` by order of escalation."""

    candidate: str
    base_change: MeasuredInterval
    everybody: MeasuredInterval
    trigger: TriggerKind | None
    share: float  # of rows that its own trigger escalates
    change: MeasuredInterval
    shares: tuple[float, ...]
    curves: dict[str, UpliftCurve]


class ExtraWork(Record):
    """Every candidate that validation tried, on test rows; ``uplift`` is of the best one with a second look."""

    rows: int
    users: int
    slices: tuple[SliceSize, ...]
    off: TestQuality
    candidates: tuple[CandidateOnTest, ...]
    references: tuple[Reference, ...]
    uplift: Uplift | None


class ThoughtTwice(Record):
    """One configuration on test rows, against the plain model.

    Attributes:
        candidate, ships: its name, and whether the bundle contains it.
        rows, looked, counted: test rows, those with a second look, and those whose counters were known and used.
        requests, requests_looked: rows of one user within an hour, and those of them with a second look at some row.
        first_change: of logloss by the first look (correction or another base pass) on all rows.
        second_change: of logloss by the second look, over the first, on the rows that got it; None without any.
        moved: by how much the second look (or, without one, the first) changed the probability of the rows that it read, at the
            quantiles :data:`STEPS`; empty without any.
    """

    candidate: str
    ships: bool
    rows: int
    looked: int
    counted: int
    requests: int
    requests_looked: int
    first_change: MeasuredInterval
    second_change: MeasuredInterval | None
    moved: tuple[float, ...]

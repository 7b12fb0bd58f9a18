"""The test-time report, part of ``test_time.json``: what was tried on validation, and why the shipped configuration was chosen.

All changes are of logloss, candidate minus baseline, on the same rows: below 0 is better.
"""

from __future__ import annotations

from typing import Literal

from thinktwice.choices import Mode
from thinktwice.data.training_set_info import Novelty
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.versioned import MeasuredInterval, Record, SparseRecord

TrunkName = Literal["plain", "pretrained"]


class Quality(Record):
    """A model on validation rows."""

    logloss: float
    auc: float | None  # None: only one class


class TrunkChoice(SparseRecord):
    """The trunks on validation rows; ``logloss_change`` is pre-trained minus plain."""

    plain: Quality
    pretrained: Quality | None = None
    logloss_change: MeasuredInterval | None = None


class HalfRows(Record):
    """Rows of the halves of validation: parameters are fitted on ``fit``, candidates accepted on ``accept``."""

    fit: int
    accept: int


class Evidence(Record):
    """Results of a candidate on the later validation rows: its change against ``off`` and against each control by name."""

    change: MeasuredInterval
    controls: dict[str, MeasuredInterval]
    accepted: bool
    reasons: tuple[str, ...]  # why it was not accepted


class TriedCandidate(Evidence, SparseRecord):
    """A configuration that was tried; ``fit_logloss`` is of the earlier rows, all other numbers are of the later ones."""

    name: str
    config: TestTimeConfig
    fit_logloss: float
    logloss: float
    auc: float
    passes: float  # forward passes per row
    cost: float | None = (
        None  # estimated, in files of earlier versions; :mod:`thinktwice.testtime.cost` has measured costs
    )
    auc_change: MeasuredInterval


class ModeChoice(SparseRecord):
    """The configuration that one trunk ships with; ``best`` is the best candidate, shipped or not. ``off``: the plain model on
    the later rows, if anything was tried."""

    mode: Mode
    accepted: bool
    candidates: tuple[TriedCandidate, ...]
    best: TestTimeConfig | None
    best_name: str | None
    rows: HalfRows
    off: Quality | None = None
    sentence: str


class NetworkReport(Record):
    """Summary of a network over evidence (:class:`thinktwice.train.logit_network.FittedNetwork`), and the number of
    ``examples`` that it was trained on."""

    examples: int
    epochs: int
    scale: float
    gain: float
    error: float


class Frontier(Record):
    """Share of the gain of a second look at all rows that remains when only a share of them, in the order of ``trigger``, gets
    one."""

    trigger: str
    shares: tuple[float, ...]
    kept: tuple[float, ...]


class EvidenceReport(Record):
    """How evidence was fitted; ``reason`` says why there is none. ``frontiers``: the gain that remains when only a share of
    rows gets a second look."""

    correction: NetworkReport | None = None
    retrieval: NetworkReport | None = None
    frontiers: tuple[Frontier, ...] = ()
    reason: str = ""


class TestTimeReport(ModeChoice):
    """The whole report.

    ``count_auc`` is the AUC of the training count alone by field, with ``warnings`` where it predicts the label. ``evidence`` is
    absent from reports of earlier versions.
    """

    __test__ = False  # not a test, despite the name

    trunk: TrunkName
    trunks: TrunkChoice
    novelty: Novelty
    count_auc: dict[str, float]
    warnings: tuple[str, ...]
    evidence: EvidenceReport | None = None

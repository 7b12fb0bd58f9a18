"""``evaluation.json``: every number of an evaluation, for the report and the tables."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from thinktwice.choices import Mode
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set_info import Novelty, PartName
from thinktwice.errors import BundleError
from thinktwice.evaluate.extra_work_record import ExtraWork, ThoughtTwice
from thinktwice.evaluate.findings.record import Findings
from thinktwice.release.bundle import EVALUATION_FILE, REPORT
from thinktwice.testtime.report import TestTimeReport, TrunkName
from thinktwice.versioned import MeasuredInterval, Record, ResultFile, SparseRecord, read_result

MetricName = Literal["auc", "gauc", "logloss", "ece", "calibration_ratio", "truth_distance", "truth_excess_logloss"]


class ColumnMetrics(SparseRecord):
    """Metrics of one column; None where a metric is not defined (one class, no users). The last two need a log with true click
    probabilities."""

    auc: float | None
    logloss: float | None
    gauc: float | None
    ece: float | None
    calibration_ratio: float | None
    truth_distance: float | None = None
    truth_excess_logloss: float | None = None

    def of(self, name: MetricName) -> float | None:
        value: float | None = getattr(self, name)
        return value


class CalibrationBin(Record):
    """Mean prediction and click rate of a group of rows."""

    predicted: float
    observed: float
    rows: int


class Cost(Record):
    """``passes``: forward passes per row."""

    passes: float


class MeasuredColumn(Record):
    """One model on all rows."""

    key: str
    label: str
    metrics: ColumnMetrics
    cost: Cost
    calibration: tuple[CalibrationBin, ...]


class Difference(MeasuredInterval):
    """A metric of ``column`` minus that of ``against``, paired."""

    column: str
    against: str
    metric: MetricName


class SliceColumn(Record):
    """One model on a slice; ``logloss_change`` is against the first column, None for the first column."""

    auc: MeasuredInterval
    logloss: float
    ece: float
    logloss_change: MeasuredInterval | None


class Slice(Record):
    """A subset of the rows; ``columns`` by key."""

    name: str
    rows: int
    share: float
    click_rate: float
    columns: dict[str, SliceColumn]


class Measures(Record):
    """Several columns of scores on the same rows. The first column is the baseline of the others."""

    rows: int
    users: int
    click_rate: float
    columns: tuple[MeasuredColumn, ...]
    differences: tuple[Difference, ...]
    slices: tuple[Slice, ...]  # by occurrence in training
    scenarios: tuple[Slice, ...]  # by place of the impression
    deciles: tuple[Slice, ...]  # by support

    def column(self, key: str) -> MeasuredColumn:
        return next(c for c in self.columns if c.key == key)

    def difference(self, column: str, against: str, metric: MetricName) -> Difference | None:
        """One paired difference; None where it is not defined."""
        key = (column, against, metric)
        return next((d for d in self.differences if (d.column, d.against, d.metric) == key), None)


class PartFacts(Record):
    """Size, click rate and window (first and last instant, ISO 8601 UTC) of a part of the training set."""

    rows: int
    click_rate: float
    window: tuple[str, str]


class DataFacts(Record):
    """The training set of an evaluation."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_name: str = Field(alias="schema")
    split: SplitSpec
    parts: dict[PartName, PartFacts]


class Evaluation(Measures, ResultFile):
    """An evaluation of finished bundles. ``shipped`` is the key of the column that the bundle contains, ``mode`` its test-time
    mode,
    ``verdict`` the finding in sentences."""

    FORMAT: ClassVar[int] = 1

    shipped: str
    mode: Mode
    novelty: Novelty
    data: DataFacts
    verdict: tuple[str, ...]


class OperatingPoint(Record):
    """ROC points (false positive rate, true positive rate, threshold), and the confusion counts at ``threshold``: rows are the
    label (no click, click), columns the prediction."""

    roc: tuple[tuple[float, float, float], ...]
    threshold: float
    confusion: tuple[tuple[int, int], tuple[int, int]]


class CurvePoint(SparseRecord):
    """An evaluation on validation during training; ``valid_auc`` is absent with one class, and from files of earlier versions."""

    epoch: float
    train_logloss: float
    valid_logloss: float
    valid_auc: float | None = None


class TrainingEvaluation(Evaluation):
    """The evaluation of a training run, part of its bundle. ``trunk`` names the weights that ship; ``curves`` by trunk, if its
    training was recorded. ``thought_twice`` is of the best candidate; None if there is none, and in files of earlier versions. So is
    ``findings``, what the report says first, in the latter."""

    trunk: TrunkName
    test_time: TestTimeReport
    extra_work: ExtraWork
    operating_point: OperatingPoint
    curves: dict[TrunkName, tuple[CurvePoint, ...]]
    thought_twice: ThoughtTwice | None = None
    findings: Findings | None = None


def recorded_evaluation(bundle_dir: Path | str) -> TrainingEvaluation:
    """The evaluation in a bundle, measured when the model was trained.

    Raises:
        BundleError: it is missing, damaged, of another format, or not of a training run.
    """
    return read_evaluation(Path(bundle_dir) / REPORT / EVALUATION_FILE)


def read_evaluation(path: Path, fix: str = "train and package the model again") -> TrainingEvaluation:
    """The evaluation of a training run in a file; errors like :func:`recorded_evaluation`, ending with ``fix``."""
    return read_result(path, TrainingEvaluation, BundleError, fix)

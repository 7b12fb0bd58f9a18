"""The part ``findings`` of ``evaluation.json``: the model that ships, measured on test rows.

Intervals are clustered by user. Where a metric is not defined (one class) its values are None.
"""

from __future__ import annotations

from typing import Literal

from thinktwice.evaluate.extra_work_record import TestedChange
from thinktwice.pretrain.config import Balancing
from thinktwice.pretrain.record import DifficultyRecord
from thinktwice.testtime.report import TrunkName
from thinktwice.versioned import MeasuredInterval, Record

FieldGroup = Literal["user", "item", "context", "sequences", "counters"]
Metric = Literal["auc", "logloss"]
SliceKind = Literal["novelty", "support", "category", "hour"]


class Baseline(Record):
    """A simple model on the same test rows.

    ``strength`` was best on validation (popularity: rows of the mean click rate added to each item; logistic regression: prior variance
    of a weight); it is fitted on ``rows`` training rows. Changes are what ships minus the baseline: an AUC above 0 and a
    logloss below 0 are in favour of the model.
    """

    name: Literal["popularity", "logistic regression"]
    rows: int
    strength: float
    auc: MeasuredInterval
    logloss: float
    auc_change: MeasuredInterval
    logloss_change: MeasuredInterval


class Comparison(Record):
    """What ships against baselines; ``missing`` says why one of them does not exist."""

    auc: MeasuredInterval
    logloss: float
    baselines: tuple[Baseline, ...]
    missing: tuple[str, ...]
    sentence: str


class PartQuality(Record):
    """The kept weights on (a sample of) one part."""

    rows: int
    auc: float | None
    logloss: float


class Learning(Record):
    """Training of one trunk: the epoch whose weights were kept, the steps of an epoch, and the quality of these weights on
    each part. The curve itself is in ``curves`` of the evaluation."""

    trunk: TrunkName
    kept: float
    steps_per_epoch: int
    train: PartQuality
    valid: PartQuality
    test: PartQuality
    sentence: str


class Importance(Record):
    """Loss of quality when the values of a field, or of all fields of a group, are exchanged between rows: logloss rises by
    ``logloss``, AUC falls by ``auc``."""

    name: str
    group: FieldGroup
    auc: MeasuredInterval
    logloss: MeasuredInterval

    def by(self, metric: Metric) -> MeasuredInterval:
        """The loss of quality in one metric."""
        return self.auc if metric == "auc" else self.logloss

    def matters(self, metric: Metric) -> bool:
        """Whether the quality falls beyond chance."""
        found = self.by(metric)
        return found.significant and (found.value or 0.0) > 0


class FieldImportance(Record):
    """Permutation importance on ``rows`` test rows, mean of ``repeats`` exchanges. The intervals of all fields hold together with
    95 % (Bonferroni), and so do those of all groups. Most important first, by ``metric``: logloss where AUC is not defined."""

    metric: Metric
    rows: int
    repeats: int
    groups: tuple[Importance, ...]
    fields: tuple[Importance, ...]
    sentence: str


class WeakSlice(Record):
    """Some of the test rows.

    ``auc_gap`` is its AUC minus that of all other rows; ``bias`` the mean prediction minus the click rate. Both have p-values
    adjusted for all slices and both questions (Holm).
    """

    name: str
    kind: SliceKind
    rows: int
    click_rate: float
    predicted: float
    logloss: float
    auc: MeasuredInterval
    auc_gap: TestedChange | None
    bias: TestedChange


class Weakness(Record):
    """All slices, those that are most certainly worse than the other rows first; measured on ``rows`` test rows."""

    rows: int
    slices: tuple[WeakSlice, ...]
    sentence: str


class RestoredField(Record):
    """A field in pre-training: its mean loss (None: it was not masked) and weight at each point; ``entropy`` of its values in nats,
    None where the loss only separates values of the same batch."""

    name: str
    losses: tuple[float | None, ...]
    weights: tuple[float, ...]
    entropy: float | None
    difficulty: DifficultyRecord | None


class Pretraining(Record):
    """Pre-training that the pre-trained trunk started from. ``by_class``: loss of the fields of rows of a class under the token of each
    class. ``correlation``: rank correlation of the fields' losses and weights at the end. Sentences are empty where there is
    nothing to say."""

    kind: Literal["dgenctr", "hetegenctr"]
    balancing: Balancing | None
    epochs: tuple[float, ...]
    label: tuple[float, ...]
    fields: tuple[RestoredField, ...]
    by_class: dict[str, dict[str, float]]
    correlation: float | None
    summary: str
    classes: str
    equilibrium: str
    sign: str


class Findings(Record):
    """What the report says first. ``headline``: is the model good; ``good`` if its AUC is above chance and above every baseline, beyond
    chance."""

    headline: str
    good: bool
    comparison: Comparison
    learning: tuple[Learning, ...]
    importance: FieldImportance
    weakness: Weakness
    pretraining: Pretraining | None

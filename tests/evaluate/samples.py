"""A test-time report and an evaluation with a value in every field, and without those that exist in some runs only."""

from __future__ import annotations

from typing import Any

from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set_info import Novelty
from thinktwice.evaluate.evaluation import (
    CalibrationBin,
    ColumnMetrics,
    Cost,
    CurvePoint,
    DataFacts,
    Difference,
    MeasuredColumn,
    OperatingPoint,
    PartFacts,
    Slice,
    SliceColumn,
    TrainingEvaluation,
)
from thinktwice.evaluate.extra_work_record import (
    CandidateOnTest,
    Detectable,
    ExtraWork,
    Reference,
    SliceSize,
    TestedChange,
    TestQuality,
    Uplift,
    UpliftCurve,
)
from thinktwice.evaluate.findings.record import (
    Baseline,
    Comparison,
    FieldGroup,
    FieldImportance,
    Findings,
    Importance,
    Learning,
    PartQuality,
    Pretraining,
    RestoredField,
    SliceKind,
    Weakness,
    WeakSlice,
)
from thinktwice.pretrain.record import DifficultyRecord
from thinktwice.stats.significance import Interval
from thinktwice.testtime.modes import preset
from thinktwice.testtime.report import Evidence, HalfRows, Quality, TestTimeReport, TriedCandidate, TrunkChoice
from thinktwice.versioned import MeasuredInterval

INTERVAL = Interval(-0.01, -0.015, -0.005)
CHANGE = MeasuredInterval.of(INTERVAL)
TESTED = TestedChange.of(INTERVAL, p_value=0.0001, p_holm=0.0002)
NOVELTY = Novelty(valid={"user": 0.9, "item": 0.1}, test={"user": 0.1, "item": 0.1})
GATE = preset("gate")

REPORT = TestTimeReport(
    mode="gate",
    accepted=True,
    candidates=(
        TriedCandidate(
            name="gate",
            config=GATE,
            fit_logloss=0.5,
            logloss=0.5,
            auc=0.7,
            passes=1.0,
            cost=1.0,
            change=CHANGE,
            auc_change=CHANGE,
            controls={"recalibrated": CHANGE},
            accepted=True,
            reasons=(),
        ),
    ),
    best=GATE,
    best_name="gate",
    rows=HalfRows(fit=9, accept=9),
    off=Quality(logloss=0.6, auc=None),
    sentence="Test-time work ships on.",
    trunk="plain",
    trunks=TrunkChoice(
        plain=Quality(logloss=0.6, auc=0.7), pretrained=Quality(logloss=0.6, auc=0.7), logloss_change=CHANGE
    ),
    novelty=NOVELTY,
    count_auc={"item": 0.63},
    warnings=("the training count of 'item' alone predicts the label",),
)
NOTHING_TRIED = REPORT.model_copy(
    update={
        "mode": "off", "accepted": False, "candidates": (), "best": None, "best_name": None, "off": None,
        "trunks": TrunkChoice(plain=Quality(logloss=0.6, auc=0.7)), "sentence": "Test-time work ships off.",
    }
)  # fmt: skip


def column(key: str, label: str, auc: float | None = 0.7) -> MeasuredColumn:
    return MeasuredColumn(
        key=key,
        label=label,
        metrics=ColumnMetrics(
            auc=auc,
            logloss=0.5,
            gauc=None,
            ece=0.1,
            calibration_ratio=1.0,
            truth_distance=0.1,
            truth_excess_logloss=0.1,
        ),
        cost=Cost(passes=1.0),
        calibration=(
            CalibrationBin(predicted=0.1, observed=0.1, rows=9),
            CalibrationBin(predicted=0.4, observed=0.4, rows=9),
        ),
    )


def part(
    name: str, share: float = 0.1, auc: float | None = 0.7, keys: tuple[str, ...] = ("plain", "test_time")
) -> Slice:
    interval = MeasuredInterval(value=auc, low=0.6, high=0.8, significant=True)
    columns = {
        key: SliceColumn(auc=interval, logloss=0.6, ece=0.1, logloss_change=CHANGE if index else None)
        for index, key in enumerate(keys)
    }
    return Slice(name=name, rows=9, share=share, click_rate=0.2, columns=columns)


def candidate(name: str, **more: Any) -> CandidateOnTest:
    """A candidate on test rows; ``more`` are other fields of it."""
    known: dict[str, Any] = {
        "name": name, "logloss": 0.5, "auc": 0.7, "ece": 0.1, "truth_distance": 0.1, "mode": "gate", "passes": 1.0,
        "cost": 2.0, "change": TESTED, "auc_change": TESTED, "detectable": Detectable(logloss=0.01, auc=0.02),
        "slices": {"cold user": CHANGE}, "truth_distance_change": CHANGE, "truth_logloss_change": CHANGE, "ships": True,
        "validation": Evidence(change=CHANGE, controls={"recalibrated": CHANGE}, accepted=True, reasons=()),
    }  # fmt: skip
    return CandidateOnTest(**(known | more))


def reference(name: str, of: str) -> Reference:
    return Reference(candidate=of, name=name, passes=1.0, change=CHANGE, candidate_against=CHANGE)


def uplift(of: str) -> Uplift:
    curve = UpliftCurve(change=(0.0, -0.1), area=0.1)
    return Uplift(
        candidate=of, base_change=CHANGE, everybody=CHANGE, trigger="entropy", share=0.2, change=CHANGE, shares=(0.0, 1.0),
        curves=dict.fromkeys(("entropy", "dual", "random", "oracle"), curve),
    )  # fmt: skip


EXTRA_WORK = ExtraWork(
    rows=9,
    users=3,
    slices=(SliceSize(name="cold user", rows=9),),
    off=TestQuality(logloss=0.6, auc=0.7, ece=0.1, truth_distance=0.1),
    candidates=(candidate("gate"),),
    references=(reference("shuffled_counts", "gate"),),
    uplift=uplift("gate"),
)
NO_INTERVAL = MeasuredInterval(value=None, low=None, high=None, significant=False)


def importance(name: str, group: FieldGroup = "user") -> Importance:
    return Importance(name=name, group=group, auc=CHANGE, logloss=CHANGE)


def weak_slice(name: str, kind: SliceKind = "category") -> WeakSlice:
    return WeakSlice(
        name=name, kind=kind, rows=9, click_rate=0.2, predicted=0.3, logloss=0.5, auc=CHANGE, auc_gap=TESTED, bias=TESTED,
    )  # fmt: skip


def restored(name: str, *, loss: float = 1.0, weight: float = 2.0) -> RestoredField:
    difficulty = DifficultyRecord(start=1.0, end=0.5, weight=weight, equilibrium=0.5)
    return RestoredField(
        name=name, losses=(2.0, None, loss), weights=(1.0, 1.1, weight), entropy=2.0, difficulty=difficulty
    )


BASELINE = Baseline(
    name="popularity", rows=9, strength=3.0, auc=CHANGE, logloss=0.6, auc_change=CHANGE, logloss_change=CHANGE
)
PART = PartQuality(rows=9, auc=0.7, logloss=0.5)
FINDINGS = Findings(
    headline="The model beats both baselines.",
    good=True,
    comparison=Comparison(
        auc=MeasuredInterval(value=0.7, low=0.6, high=0.8, significant=True),
        logloss=0.5,
        baselines=(BASELINE, BASELINE.model_copy(update={"name": "logistic regression"})),
        missing=("There is no popularity.",),
        sentence="Against popularity it is better.",
    ),
    learning=(
        Learning(trunk="plain", kept=1.0, steps_per_epoch=3, train=PART, valid=PART, test=PART, sentence="Kept."),
    ),
    importance=FieldImportance(
        metric="auc",
        rows=9,
        repeats=2,
        groups=(importance("user"), importance("item", "item")),
        fields=(importance("user_id"), importance("age"), importance("item_id", "item")),
        sentence="The model relies on user_id.",
    ),
    weakness=Weakness(
        rows=9, slices=(weak_slice("new user", "novelty"), weak_slice("site = s1")), sentence="1 of 2 slices."
    ),
    pretraining=Pretraining(
        kind="hetegenctr",
        balancing="kendall",
        epochs=(0.5, 1.0, 1.5),
        label=(0.7, 0.6, 0.6),
        fields=(restored("user_id"), restored("item_id", loss=3.0, weight=0.5)),
        by_class={"click": {"click": 1.0, "no click": 1.1, "hidden": 1.0}},
        correlation=-1.0,
        summary="Fields are restored.",
        classes="Classes differ.",
        equilibrium="Weights are near.",
        sign="Hard fields get less weight.",
    ),
)
FACTS = PartFacts(rows=9, click_rate=0.2, window=("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"))
EVALUATION = TrainingEvaluation(
    format=TrainingEvaluation.FORMAT,
    rows=10_000,
    users=3,
    click_rate=0.2,
    columns=(column("plain", "plain"), column("test_time", "plain + gate")),
    differences=(Difference.of(INTERVAL, column="test_time", against="plain", metric="auc"),),
    slices=(part("cold user"), part("seen user", 0.5)),
    scenarios=(part("device d0"), part("device d1")),
    deciles=(part("0–2"), part("3–9")),
    shipped="test_time",
    mode="gate",
    novelty=NOVELTY,
    data=DataFacts(schema="shop", split=SplitSpec(), parts={"train": FACTS, "valid": FACTS, "test": FACTS}),
    verdict=("The plain + gate model ships.", "Test-time work ships on."),
    trunk="plain",
    test_time=REPORT,
    extra_work=EXTRA_WORK,
    operating_point=OperatingPoint(roc=((0.0, 0.0, 1.0), (1.0, 1.0, 0.0)), threshold=0.2, confusion=((1, 2), (3, 4))),
    curves={
        "plain": (
            CurvePoint(epoch=0.5, train_logloss=0.6, valid_logloss=0.6),
            CurvePoint(epoch=1.0, train_logloss=0.5, valid_logloss=0.6, valid_auc=0.7),
        )
    },
    findings=FINDINGS,
)

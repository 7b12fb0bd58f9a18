"""Choice of a model's test-time configuration on validation rows; nothing ships that has not shown a gain there.

Validation is cut in two by time. Every parameter is fitted on the earlier half; the later half only accepts or rejects
(:mod:`thinktwice.selection.accept`). ``off``, the plain model, ships if nothing else is accepted.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from thinktwice.combinations.counts import CombinationCounts, maskable_pairs
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.data.training_set_info import Novelty
from thinktwice.errors import BundleError
from thinktwice.files import atomic_dir
from thinktwice.models.backbone import Backbone
from thinktwice.progress import note, track
from thinktwice.selection.accept import CandidateVerdict, compare, control, other_counters, sentence
from thinktwice.selection.candidates import EVIDENCE_MODES, Candidate, candidates, counters_candidate
from thinktwice.selection.config import FitConfig
from thinktwice.selection.cost import Meter, Price
from thinktwice.selection.counter_model import counter_model, counter_training
from thinktwice.selection.evidence import EvidenceFit, EvidenceRows, evidence_fit, evidence_rows, fit_evidence
from thinktwice.selection.frontier import frontiers
from thinktwice.selection.trial_model import TrialModel
from thinktwice.selection.trunks import Trunks, open_trunks
from thinktwice.stats.metrics import auc, logloss, row_logloss
from thinktwice.stats.significance import clusters_of, paired_mean
from thinktwice.testtime import calibrate
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.cost import CostFile
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.heads import fit_heads
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.report import (
    EvidenceReport,
    HalfRows,
    ModeChoice,
    Quality,
    TestTimeReport,
    TrunkChoice,
    TrunkName,
)
from thinktwice.testtime.store import CounterTrunk, TestTime, save_test_time
from thinktwice.threads import reproducible
from thinktwice.versioned import MeasuredInterval

STAGE = "fit_test_time"
MIN_HALF = 200  # rows of a validation half; with fewer nothing is tried
COUNT_CHUNK = 1 << 20  # rows of combinations counted at once
NO_EVIDENCE = "the mode does not use evidence"
COUNT_AUC_LIMIT = 0.6  # AUC of a count alone above which gains on rare values may be popularity


@dataclass(frozen=True)
class FitResult:
    """The chosen configuration with its report, and its model."""

    test_time: TestTime
    report: TestTimeReport
    model: Backbone

    @property
    def config(self) -> TestTimeConfig:
        return self.test_time.config

    @property
    def trunk(self) -> TrunkName:
        return self.report.trunk

    @property
    def sentence(self) -> str:
        """Why it ships, in plain words."""
        return self.report.sentence


@reproducible()
def fit_test_time(
    training_set_dir: Path | str,
    plain_dir: Path | str,
    pretrained_dir: Path | str | None,
    out_dir: Path | str,
    config: FitConfig | None = None,
    price: Price | None = None,
) -> FitResult:
    """Choose the trunk and the test-time configuration on validation; write ``test_time.json`` and ``counts.safetensors``, and
    ``cost.json`` with the measured costs. ``price`` replaces the measurement.

    Raises:
        DataError: the training set is missing or damaged.
        BundleError: a model is damaged, or was trained on another training set.
    """
    data, trunks = load_training_set(training_set_dir), open_trunks(plain_dir, pretrained_dir)
    result = choose(data, trunks, config or FitConfig(), price)
    with atomic_dir(out_dir) as folder:
        save_test_time(folder, result.test_time, result.model)
    note(STAGE, result.sentence)
    return result


@reproducible()
def choose(data: TrainingSet, trunks: Trunks, config: FitConfig, price: Price | None = None) -> FitResult:
    """Choose the trunk and the test-time configuration on validation; nothing is written.

    Raises:
        BundleError: a model was trained on another training set than ``data``.
    """
    valid = data.part_with_evidence("valid")
    positions = _subsample(valid, config.max_rows)
    valid = valid.take(positions)
    for name, opened in trunks.items():
        if opened.model.fields.num_values != data.encoder.num_values:
            raise BundleError(
                f"the {name} model was trained on another training set than {data.folder}: train it on this one"
            )
    train, plain = data.part("train"), trunks["plain"].model
    reliability = Reliability.fit(train.ids, train.label, plain.fields, plain.protected)
    trunk, trunks_compared = choose_trunk(
        {
            name: calibrate.apply(opened.info.calibration, _off_logits(opened.model, reliability, valid))
            for name, opened in trunks.items()
        },
        valid,
    )
    note(STAGE, f"{trunk} trunk")
    note(STAGE, novelty_words(novelty(data)))
    model, info = trunks[trunk].model, trunks[trunk].info
    other_trunks = tuple(trunk_model.model for name, trunk_model in trunks.items() if name != trunk)
    rows: EvidenceRows | str = NO_EVIDENCE
    if config.mode in ("lean", *EVIDENCE_MODES):
        rows = evidence_rows(data, trunks[trunk], positions)
    with ExitStack() as stack:
        counting = None
        if isinstance(rows, EvidenceRows) and config.mode in ("lean", "counters"):
            counting = stack.enter_context(counter_training(rows, model))  # the longest of all trainings begins first
        extras = fit_extras(model, reliability, train, other_trunks, config)
        inputs = (
            rows
            if isinstance(rows, str)
            else evidence_fit(rows, model, lambda part: _off_logits(model, reliability, part))
        )
        evidence = EvidenceReport(reason=inputs if isinstance(inputs, str) else NO_EVIDENCE)
        if isinstance(inputs, EvidenceFit) and config.mode != "counters":
            extras, evidence = fit_evidence(inputs, extras, retrieves=config.mode != "corrected")
        of_evidence = inputs if isinstance(inputs, EvidenceFit) else None
        trial_model = TrialModel(model, info.calibration, reliability, extras, of_evidence)
        if counting is not None and of_evidence is not None:
            trial_model = replace(trial_model, counter_model=counter_model(of_evidence, trial_model, counting))
    shipped, choice, costs = fit_mode(trial_model, valid, config, price)
    count_auc, warnings = count_check(model, reliability, valid)
    report = TestTimeReport(
        **dict(choice),
        trunk=trunk,
        trunks=trunks_compared,
        novelty=novelty(data),
        count_auc=count_auc,
        warnings=tuple(warnings),
        evidence=evidence.model_copy(update={"frontiers": frontiers(trial_model, valid)}),
    )
    counted = trial_model.counter_model
    parts = (shipped, reliability, report, extras, trunks[trunk].weights_hash, costs)
    test_time = TestTime(*parts, None if counted is None else CounterTrunk(counted.model, counted.calibration))
    return FitResult(test_time, report, model)


def fit_extras(
    model: Backbone,
    reliability: Reliability,
    train: EncodedRows,
    members: tuple[Backbone, ...],
    config: FitConfig,
) -> Extras:
    """Extras for the modes that ``config`` tries: combination counts, denoiser heads, further trunks."""
    lean = config.mode == "lean"
    fields = reliability.maskable_fields
    combinations = heads = None
    if len(fields) > 1 and (lean or config.mode in ("uttsi", "matt")):
        chunks = (train.ids[s : s + COUNT_CHUNK] for s in range(0, len(train), COUNT_CHUNK))
        combinations = CombinationCounts.fit(chunks, maskable_pairs(fields), (), reliability.num_values)
    if len(fields) and (lean or config.mode == "sgctr"):
        heads = fit_heads(model, train, fields)
    return Extras(combinations, heads, members if lean or config.mode == "members" else ())


def choose_trunk(logits: dict[TrunkName, np.ndarray], valid: EncodedRows) -> tuple[TrunkName, TrunkChoice]:
    """The pre-trained trunk if its validation logloss is significantly lower, else the plain one; with the numbers."""
    quality = {
        name: Quality(logloss=logloss(valid.label, z), auc=_finite(auc(valid.label, z))) for name, z in logits.items()
    }
    if "pretrained" not in logits:
        return "plain", TrunkChoice(plain=quality["plain"])
    losses = {name: row_logloss(valid.label, z) for name, z in logits.items()}
    change = paired_mean(losses["pretrained"] - losses["plain"], clusters_of(valid.user))
    compared = TrunkChoice(
        plain=quality["plain"], pretrained=quality["pretrained"], logloss_change=MeasuredInterval.of(change)
    )
    return ("pretrained" if change.high < 0 else "plain"), compared


def fit_mode(
    trial_model: TrialModel, valid: EncodedRows, config: FitConfig, price: Price | None = None
) -> tuple[TestTimeConfig, ModeChoice, CostFile | None]:
    """The configuration that ships with one trunk, the results behind it, and the measured costs. ``valid`` is in time order.

    Args:
        price: replaces the measurement of costs.
    """
    half = len(valid) // 2
    fit, later = valid.take(np.arange(half)), valid.take(np.arange(half, len(valid)))
    off = TestTimeConfig(importance=field_importance(trial_model.model, trial_model.reliability, fit))
    rows = HalfRows(fit=len(fit), accept=len(later))
    usable = half >= MIN_HALF and all(part.label.min() != part.label.max() for part in (fit, later))
    counters = trial_model.evidence is not None
    if not usable or (len(trial_model.reliability.maskable_fields) == 0 and not counters):
        reason = (
            f"validation has {len(valid)} rows, too few (or of one class in a half) to prove anything"
            if not usable
            else "every field of this log is protected, so no value can be masked"
        )
        no_trial = f"Test-time work ships off: {reason}; every row is scored once."
        nothing = ModeChoice(
            mode="off", accepted=False, candidates=(), best=None, best_name=None, rows=rows, sentence=no_trial
        )
        return off, nothing, None
    injected = price
    meter = cache(partial(Meter, trial_model, fit))  # nothing is measured unless something is tried
    price = cache(price or (lambda model, tried_config: meter()(model, tried_config)))
    plain = trial_model.logits(off, later)[0]
    max_cost = config.max_cost if config.mode == "lean" else float("inf")

    def compared(candidate: Candidate, confidence: float) -> CandidateVerdict:
        cost = price(trial_model, candidate.config).value
        return compare(candidate, trial_model, later, plain, confidence=confidence, cost=cost, max_cost=max_cost)

    with ExitStack() as stack:
        counting, other = counters_candidate(trial_model, fit, off, config), None
        # The longest of all controls begins first, unless no control is needed whatever is tried besides.
        if counting is not None and not compared(counting, config.confidence).failures:
            other = stack.enter_context(other_counters(trial_model))
        tried = candidates(trial_model, fit, off, config, price, counting)
        for c in track(tried, stage=STAGE, total=len(tried), label="costs"):
            price(trial_model, c.config)
        shared = _shared(config.confidence, tried)
        waits_last = sorted(tried, key=lambda c: c.config.mode == "counters")  # its control is trained meanwhile
        controlled = {
            c.name: control(compared(c, shared), trial_model, fit, later, confidence=config.confidence, other=other)
            for c in track(waits_last, stage=STAGE, total=len(tried), label="candidates")
        }
    measured = injected is None and len(tried) > 0
    costs = {c.name: price(trial_model, c.config) for c in tried}
    verdicts = [controlled[c.name] for c in tried]
    accepted = without_needless_looks([v for v in verdicts if v.accepted])
    affordable = [v for v in verdicts if v.cost <= max_cost]
    best = min(accepted or affordable, key=lambda v: v.candidate.fit_logloss, default=None)
    shipped = best.candidate.config if best is not None and (accepted or config.ship_unproven) else off
    choice = ModeChoice(
        mode=shipped.mode,
        accepted=bool(accepted),
        candidates=tuple(v.record() for v in verdicts),
        best=best.candidate.config if best is not None else None,
        best_name=best.candidate.name if best is not None else None,
        rows=rows,
        off=Quality(logloss=logloss(later.label, plain), auc=auc(later.label, plain)),
        sentence=sentence(best, len(later)),
    )
    return (
        shipped,
        choice,
        meter().file(config.max_cost if config.mode == "lean" else None, costs) if measured else None,
    )


def without_needless_looks(accepted: list[CandidateVerdict]) -> list[CandidateVerdict]:
    """``accepted`` without those that look at every row again, where a choice of rows for the same opinion is accepted too."""

    def opinion(verdict: CandidateVerdict) -> str | None:
        look = verdict.candidate.config.second_look
        return None if look is None else look.opinion.kind

    choosing = {opinion(v) for v in accepted if not v.candidate.all_rows}
    return [v for v in accepted if not (v.candidate.all_rows and opinion(v) in choosing)]


def field_importance(
    model: Backbone, reliability: Reliability, rows: EncodedRows, limit: int = 2000
) -> tuple[float, ...]:
    """Mean change of the logit when an unprotected field is masked, over at most ``limit`` evenly spaced ``rows``; sums to
    1."""
    maskable_fields = reliability.maskable_fields
    weight = np.zeros(model.num_fields)
    if len(maskable_fields) == 0 or len(rows) == 0:
        return ()
    sample = rows.batch(np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(np.int64)))
    mask = torch.ones(1 + len(maskable_fields), model.num_fields)
    mask[torch.arange(1, 1 + len(maskable_fields)), torch.from_numpy(maskable_fields)] = 0.0
    with torch.inference_mode():
        z = model.score(model.embed(sample), mask.expand(len(sample), -1, -1)).double().numpy()
    weight[maskable_fields] = np.abs(z[:, 1:] - z[:, :1]).mean(axis=0)
    total = weight.sum()
    return tuple(float(w) for w in weight / total) if total > 0 else ()


def novelty(data: TrainingSet) -> Novelty:
    """Share of rows whose user or item has no training row, in validation and in test."""
    return data.info.novelty()


def novelty_words(share: Novelty) -> str:
    """Novelty of validation and of test, as one sentence. If they differ, settings tuned on validation may not fit test."""
    parts = [
        f"unseen {entity}s in {share.valid[entity]:.0%} of validation rows and {share.test[entity]:.0%} of test rows"
        for entity in share.valid
    ]
    return "; ".join(parts) if parts else "the log has no users or items whose novelty can be measured"


def count_check(model: Backbone, reliability: Reliability, rows: EncodedRows) -> tuple[dict[str, float], list[str]]:
    """AUC of the training count alone for every unprotected field, and a warning for each that predicts the label."""
    counts = reliability.counts_of(rows.ids)
    count_auc = {model.fields.names[f]: auc(rows.label, counts[:, f]) for f in reliability.maskable_fields}
    count_auc = {name: value for name, value in count_auc.items() if np.isfinite(value)}
    warnings = [
        f"the training count of {name!r} alone predicts the label (AUC {value:.3f}): a gain on rare values may be popularity, "
        "not doubt"
        for name, value in count_auc.items()
        if max(value, 1 - value) > COUNT_AUC_LIMIT
    ]
    return count_auc, warnings


def _subsample(rows: EncodedRows, limit: int) -> np.ndarray:
    """Positions of at most ``limit`` evenly spaced rows, in time order."""
    order = np.argsort(rows.time, kind="stable")
    if len(order) > limit:
        order = order[np.linspace(0, len(order) - 1, limit).astype(np.int64)]
    return order


def _off_logits(model: Backbone, reliability: Reliability, rows: EncodedRows) -> np.ndarray:
    return raw_rows(Engine(model, reliability, TestTimeConfig()), rows).z


def _shared(confidence: float, tried: list[Candidate]) -> float:
    """Confidence of each interval such that all intervals hold jointly (Bonferroni)."""
    return 1 - (1 - confidence) / max(len(tried), 1)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None

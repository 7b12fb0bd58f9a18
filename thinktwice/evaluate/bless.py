"""The blessing: whether a new bundle may replace the champion. Both score the same raw test rows, each with its own encoder.

A verdict never fails the run: it is positive or negative, with reasons. Only a broken check (a damaged bundle) is an error.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl

from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.errors import BundleError, reason
from thinktwice.evaluate.evaluation import read_evaluation
from thinktwice.evaluate.from_bundle import evidence_of_test, misfit, score_bundle
from thinktwice.evaluate.measure import ScoreColumn, column_metrics
from thinktwice.files import atomic_dir
from thinktwice.progress import note
from thinktwice.release.blessing import BLESSING_FILE, Blessing, ComparedChampion
from thinktwice.release.bundle import EVALUATION_FILE, REPORT, Bundle, load_bundle
from thinktwice.stats.metrics import ECE_BINS
from thinktwice.stats.significance import (
    Interval,
    auc_interval,
    bootstrap_differences,
    clusters_of,
    paired_auc,
)
from thinktwice.threads import reproducible
from thinktwice.versioned import MeasuredInterval

STAGE = "bless"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MIN_FRESH = 1000  # minimum rows of a comparison after the champion's training window
ECE_LIMIT = 0.10  # largest ECE of a model without a champion to compare with
ECE_RISE = 0.01  # largest significant increase of the ECE over the champion's


@reproducible()
def bless(
    training_set_dir: Path | str, bundle_dir: Path | str, champion_dir: Path | str | None, out_dir: Path | str
) -> Blessing:
    """Judge a bundle on the test rows of its training set, against the champion if there is one.

    It must always order rows better than chance. Without a comparison, its probabilities must also be usable. Against a
    champion it must not be significantly worse in AUC or logloss, nor in the calibration of its probabilities. A champion that
    cannot read these rows (another schema) is not compared, and rows from the champion's training window are excluded; if too
    few later rows remain, the candidate is judged alone. The reasons say so.

    Args:
        champion_dir: the champion's bundle; None if nothing was ever deployed.

    Raises:
        DataError: the training set is missing or damaged.
        BundleError: a bundle is missing or damaged.
    """
    data = load_training_set(training_set_dir)
    candidate = load_bundle(bundle_dir)
    # A missing or damaged champion is an error, unlike a first run.
    champion = None if champion_dir is None else load_bundle(champion_dir)
    verdict, sentence = judge(data, candidate, champion)
    with atomic_dir(out_dir) as folder:
        verdict.write(folder / BLESSING_FILE)
    note(STAGE, sentence)
    return verdict


@reproducible()
def judge(data: TrainingSet, candidate: Bundle, champion: Bundle | None) -> tuple[Blessing, str]:
    """The verdict of :func:`bless` on the test rows of a training set, and a sentence that sums it up; nothing is written.

    Args:
        champion: None if nothing was ever deployed.
    """
    rows = data.rows("test")
    scores, encoded = score_bundle(
        candidate, rows, key="candidate", label="candidate", evidence=evidence_of_test(candidate, data)
    )
    label, cluster = encoded.label.astype(np.float64), clusters_of(encoded.user)
    opponent = _opponent(champion, rows)
    metrics = column_metrics(label, scores, cluster, None)
    compared: ComparedChampion | None = None
    compared_rows: int | None = None
    measured: dict[str, MeasuredInterval] | None = None
    better, reasons = _better_than_chance(label, scores, cluster)
    fresh, remark = np.ones(len(label), bool), ""
    if isinstance(opponent, Bundle) and opponent.hash != candidate.hash:
        fresh, remark = _fresh_rows(opponent, encoded.time, label)
    if isinstance(opponent, str) or not fresh.any():
        sound, why = _sound_alone(metrics.ece, label)
        remark = opponent if isinstance(opponent, str) else remark
    else:
        y, codes = label[fresh], clusters_of(encoded.user[fresh])
        fresh_scores = _selected(scores, fresh)
        champion_evidence = evidence_of_test(opponent, data)
        champion_scores = _selected(
            score_bundle(opponent, rows, key="champion", label="champion", evidence=champion_evidence)[0], fresh
        )
        changes = _changes(y, champion_scores, fresh_scores, codes)
        compared_rows = len(y)
        compared = ComparedChampion(
            bundle_hash=opponent.hash,
            model_version=opponent.manifest.model_version,
            metrics=column_metrics(y, champion_scores, codes, None).model_dump(),
        )
        measured = {name: MeasuredInterval.of(change) for name, change in changes.items()}
        sound, why = _against_champion(changes, same=opponent.hash == candidate.hash)
    blessed = better and sound
    failed = ([] if better else reasons) + ([] if sound else why)
    reasons = [*reasons, *([remark] if remark else []), *why]
    verdict = Blessing(
        format=Blessing.FORMAT,
        blessed=blessed,
        reasons=tuple(reasons),
        bundle_hash=candidate.hash,
        champion_hash=None if champion is None else champion.hash,
        model_version=candidate.manifest.model_version,
        rows=len(label),
        candidate=metrics.model_dump(),
        compared_rows=compared_rows,
        champion=compared,
        changes=measured,
    )
    return verdict, f"blessed: {why[-1]}" if blessed else f"not blessed: {'; '.join(failed)}"


def _opponent(champion: Bundle | None, rows: pl.DataFrame) -> Bundle | str:
    """The champion, or a sentence that says why there is no comparison."""
    if champion is None:
        return "there is no champion yet, so the model is judged alone"
    reason = misfit(champion, rows)
    if reason:
        return (
            f"the champion {champion.manifest.model_version} (schema {champion.manifest.schema_name}) cannot be compared: "
            f"{reason}; the model is judged alone"
        )
    return champion


def _fresh_rows(champion: Bundle, time: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, str]:
    """Mask [R] of the rows after the champion's training window, and a remark on them.

    The mask is all True, without a remark, if the window contains none of the rows, and all False if too few remain.
    """
    last = _last_seen(champion)
    fresh = time > (last - EPOCH) // timedelta(microseconds=1)
    if fresh.all():
        return fresh, ""
    until, num_fresh = f"its data reach to {last:%Y-%m-%d %H:%M} UTC", int(fresh.sum())
    if num_fresh >= MIN_FRESH and label[fresh].min() != label[fresh].max():
        remark = (
            f"the champion trained on some of these rows ({until}): both are compared on the {num_fresh:,} later ones"
        )
        return fresh, remark
    remark = (
        f"the champion trained on these rows ({until}; {num_fresh:,} later rows are left, and {MIN_FRESH:,} with both labels are "
        "needed), so the model is judged alone"
    )
    return np.zeros_like(fresh), remark


def _last_seen(champion: Bundle) -> datetime:
    """End of the champion's training and validation rows, which it was fitted and tuned on."""
    evaluation = read_evaluation(champion.folder / REPORT / EVALUATION_FILE, "deploy a model again")
    ends = [champion.manifest.train_window[1], evaluation.data.parts["valid"].window[1]]
    try:
        return max(datetime.fromisoformat(end).astimezone(timezone.utc) for end in ends)
    except (ValueError, OverflowError) as error:
        raise BundleError(
            f"bundle {champion.folder}: its training window is not a time ({reason(error)}): deploy a model again"
        ) from error


def _selected(column: ScoreColumn, rows: np.ndarray) -> ScoreColumn:
    return replace(column, logit=column.logit[rows], probability=column.probability[rows])


def _better_than_chance(label: np.ndarray, candidate: ScoreColumn, cluster: np.ndarray) -> tuple[bool, list[str]]:
    if label.min() == label.max():
        return False, [f"all {len(label)} test rows have the same label, so nothing can be judged"]
    interval = auc_interval(label, candidate.logit, cluster)
    if not interval.bounded:
        return False, [
            f"all {len(label):,} test rows are of one user, so chance cannot be excluded (AUC {interval.value:.4f})"
        ]
    described = f"AUC {interval.value:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f}) on {len(label):,} test rows"
    if interval.low > 0.5:
        return True, [f"it orders rows better than chance: {described}"]
    return False, [f"it does not order rows better than chance: {described}"]


def _sound_alone(ece: float | None, label: np.ndarray) -> tuple[bool, list[str]]:
    """Whether the ECE is within the limit plus the ECE that chance alone gives: with few rows, even true probabilities have
    one."""
    if ece is None:
        return False, ["its calibration cannot be measured on these rows"]
    rate = float(label.mean())
    chance = math.sqrt(2 / math.pi * rate * (1 - rate) * ECE_BINS / len(label))  # mean |error| of a bin's click rate
    described = f"its probabilities are off by {ece:.4f} on average (ECE; chance alone gives about {chance:.4f})"
    if ece - chance > ECE_LIMIT:
        return False, [f"{described}, more than the limit {ECE_LIMIT} beyond chance"]
    return True, [f"{described}, within the limit {ECE_LIMIT} beyond chance"]


def _changes(
    label: np.ndarray, champion: ScoreColumn, candidate: ScoreColumn, cluster: np.ndarray
) -> dict[str, Interval]:
    """Candidate minus champion, paired on the same rows."""
    pair = ("champion", "candidate")
    columns = {"champion": champion, "candidate": candidate}
    boot = bootstrap_differences(
        label,
        {k: c.logit for k, c in columns.items()},
        {k: c.probability for k, c in columns.items()},
        cluster,
        [pair],
    )[pair]
    return {"auc": paired_auc(label, champion.logit, candidate.logit, cluster), **boot}


def _against_champion(changes: dict[str, Interval], *, same: bool) -> tuple[bool, list[str]]:
    if same:
        return True, ["it is the champion's own bundle"]
    worse = []
    auc, logloss, ece = changes["auc"], changes["logloss"], changes["ece"]
    if auc.high < 0:
        worse.append(f"it orders rows worse than the champion: AUC {_described(auc)}")
    if logloss.low > 0:
        worse.append(f"its logloss is worse than the champion's: {_described(logloss)}")
    if ece.value > ECE_RISE and ece.low > 0:
        worse.append(f"its probabilities are further off than the champion's: ECE {_described(ece)}")
    if worse:
        return False, worse
    verb = "better than" if auc.low > 0 or logloss.high < 0 else "not significantly worse than"
    return True, [f"it is {verb} the champion on the same rows: AUC {_described(auc)}, logloss {_described(logloss)}"]


def _described(change: Interval) -> str:
    if not change.bounded:
        return f"{change.value:+.4f} (all rows are of one user, so chance cannot be excluded)"
    return f"{change.value:+.4f} (95 % interval {change.low:+.4f} to {change.high:+.4f})"

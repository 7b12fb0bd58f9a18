"""What thinking twice did on test rows: the numbers agree with the scores, and the page says them in words and pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.evaluate import samples
from thinktwice.data.encoded import EncodedRows
from thinktwice.evaluate.extra_work_record import STEPS, ThoughtTwice
from thinktwice.evaluate.report import render
from thinktwice.evaluate.thought_twice import REQUEST_US, thought_twice
from thinktwice.selection.parameters import calibrated, triggered
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import logloss, row_logloss
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.modes import preset
from thinktwice.testtime.report import EvidenceReport, Frontier
from thinktwice.versioned import MeasuredInterval


def measured(trial_model: TrialModel, valid: EncodedRows, config: TestTimeConfig) -> ThoughtTwice:
    off = trial_model.logits(TestTimeConfig(), valid)[0]
    raw = trial_model.raw(config, valid)
    return thought_twice(trial_model, config, raw, off, valid, candidate="members", ships=True)


def test_the_numbers_are_those_of_the_scores(trial_model: TrialModel, valid: EncodedRows) -> None:
    looks = triggered(trial_model, preset("members"), valid, "entropy", 0.2)
    config = calibrated(trial_model, looks, valid)
    found, engine, raw = (
        measured(trial_model, valid, config),
        trial_model.engine(config),
        trial_model.raw(config, valid),
    )
    final, first, off = (
        engine.finish(raw).logit,
        engine.first_logit(raw),
        trial_model.logits(TestTimeConfig(), valid)[0],
    )
    looked = raw.num_paths > 1
    assert found.looked == looked.sum() > 0 and found.rows == len(valid) and found.counted == 0
    assert np.array_equal(final[~looked], first[~looked])
    pairs = {(user, time // REQUEST_US) for user, time in zip(valid.user.tolist(), valid.time.tolist(), strict=True)}
    some = {(u, t // REQUEST_US) for u, t in zip(valid.user[looked].tolist(), valid.time[looked].tolist(), strict=True)}
    assert (found.requests, found.requests_looked) == (len(pairs), len(some))
    assert found.first_change.value == pytest.approx(logloss(valid.label, first) - logloss(valid.label, off))
    second = (row_logloss(valid.label, final) - row_logloss(valid.label, first))[looked].mean()
    assert found.second_change is not None and found.second_change.value == pytest.approx(second)
    moved = np.abs(sigmoid(final) - sigmoid(first))[looked]
    assert len(found.moved) == len(STEPS) and found.moved[-1] == pytest.approx(moved.max())
    assert sorted(found.moved) == list(found.moved)


def test_one_look_has_no_second(trial_model: TrialModel, valid: EncodedRows) -> None:
    found = measured(trial_model, valid, calibrated(trial_model, TestTimeConfig(), valid))
    assert (found.looked, found.requests_looked, found.second_change, found.moved) == (0, 0, None, ())


def test_rows_without_users_are_requests_of_their_own(trial_model: TrialModel, valid: EncodedRows) -> None:
    found = measured(trial_model, replace(valid, user=np.full(len(valid), -1)), TestTimeConfig())
    assert found.requests == len(valid)


def test_the_page_says_it_in_words_and_pictures() -> None:
    interval = MeasuredInterval(value=-0.01, low=-0.02, high=-0.005, significant=True)
    found = ThoughtTwice(
        candidate="retrieve",
        ships=True,
        rows=10_000,
        looked=2_000,
        counted=9_000,
        requests=800,
        requests_looked=400,
        first_change=interval,
        second_change=interval,
        moved=tuple(0.01 * step for step in STEPS),
    )
    frontier = Frontier(trigger="predicted", shares=(0.2, 1.0), kept=(0.5, 1.0))
    by_chance = Frontier(trigger="random", shares=(0.2, 1.0), kept=(0.2, 1.0))
    evidence = EvidenceReport(frontiers=(frontier, by_chance))
    report = samples.REPORT.model_copy(update={"evidence": evidence})
    content = samples.EVALUATION.model_copy(update={"thought_twice": found, "test_time": report})
    inside = render(content)
    for words in (
        "What did thinking twice do?",
        "Retrieve ships and gave a second look to 2,000 of 10,000 (20%) test rows, in 400 of 800 (50%) requests",
        "The counters of 9,000 of 10,000 (90%) rows were known and used.",
        "Its first look changed logloss by −0.01000",
        "Its second look changed logloss by a further −0.01000",
        "Its measured time is in cost.json.",
        "largest expected change first",
        "share of the gain that remains",
        "changed by at most",
    ):
        assert words in inside, words
    beside = render(content, {"plain": 1.0, "test_time": 1.6}, {"retrieve": 1.6})
    assert "A request takes 1.60 times the time of the plain model." in beside
    assert "What did thinking twice do?" not in render(samples.EVALUATION)
    nothing = found.model_copy(update={"looked": 0, "counted": 0, "second_change": None, "moved": (), "ships": False})
    page = render(samples.EVALUATION.model_copy(update={"thought_twice": nothing}))
    assert "Retrieve does not ship; it gave a second look to 0 of 10,000 (0%) test rows." in page

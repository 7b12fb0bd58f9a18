"""Kept scores are those that would be computed again, whatever was scored before."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinktwice.calibration import Calibration
from thinktwice.data.encoded import EncodedRows
from thinktwice.selection import trial_model as module
from thinktwice.selection.trial_model import KEPT, TrialModel
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.base_pass import Filter, Gate
from thinktwice.testtime.engine import raw_rows
from thinktwice.testtime.modes import preset
from thinktwice.testtime.scores import Raw
from thinktwice.testtime.triggers import Entropy

OFF = TestTimeConfig()
ESCALATED = preset("members").looking(trigger=Entropy(threshold=0.6))
CONFIGS = (
    OFF,
    OFF.model_copy(update={"mode": "gate", "base": Gate(strength=0.5)}),
    OFF.model_copy(update={"mode": "gate", "base": Gate(strength=4.0)}),
    OFF.model_copy(update={"mode": "filter", "base": Filter(min_count=5)}),
    ESCALATED,
    ESCALATED.looking(trigger=Entropy(threshold=0.65)),
)
CALIBRATIONS = st.one_of(st.none(), st.builds(Calibration, a=st.floats(0.3, 3), b=st.floats(-2, 2)))


def same(found: Raw, expected: Raw) -> bool:
    return all(np.array_equal(getattr(found, f.name), getattr(expected, f.name)) for f in fields(Raw))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_kept_scores_are_those_of_a_fresh_engine(
    data: st.DataObject, trial_model: TrialModel, valid: EncodedRows
) -> None:
    tested, parts = replace(trial_model), [valid.take(slice(0, 60)), valid.take(slice(60, 120))]
    for _ in range(data.draw(st.integers(1, 8))):
        config = data.draw(st.sampled_from(CONFIGS)).model_copy(
            update={"calibration": data.draw(CALIBRATIONS), "temperature": data.draw(st.sampled_from((1.0, 0.5, 2.0)))}
        )
        if config.second_look is not None:
            config = config.looking(calibration=data.draw(CALIBRATIONS))
        rows = data.draw(st.sampled_from(parts))
        engine = trial_model.engine(config)
        expected = raw_rows(engine, rows)
        assert same(tested.raw(config, rows), expected)
        assert np.array_equal(tested.logits(config, rows)[0], engine.finish(expected).logit)
    assert len(tested._kept) <= KEPT


def test_other_calibrations_score_nothing_again(
    trial_model: TrialModel, valid: EncodedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested, rows, scored = replace(trial_model), valid.take(slice(0, 50)), []
    monkeypatch.setattr(module, "raw_rows", lambda engine, rows: scored.append(engine.config) or raw_rows(engine, rows))
    calibrated = Calibration(a=2.0, b=1.0)
    for config in (OFF, OFF.model_copy(update={"calibration": calibrated, "temperature": 2.0})):
        tested.logits(config, rows)
    for config in (ESCALATED, ESCALATED.looking(calibration=calibrated)):
        tested.logits(config, rows)
    assert len(scored) == 2
    tested.logits(ESCALATED.model_copy(update={"calibration": calibrated}), rows)  # the trigger reads it
    tested.logits(OFF, valid.take(slice(0, 50)))  # other rows, though equal
    replace(tested).logits(OFF, rows)  # another model
    assert len(scored) == 5

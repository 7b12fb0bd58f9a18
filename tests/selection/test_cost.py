"""The measured cost: the same work takes turns with the plain model, on requests like those of a server, by a clock that is passed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.selection import drifting
from tests.testtime import evidence, world
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.errors import BundleError
from thinktwice.models import load_model
from thinktwice.models.fields import FieldSpace
from thinktwice.selection.config import FitConfig
from thinktwice.selection.cost import NUM_REQUESTS, REQUEST_ROWS, ROUNDS, Meter, requests_of
from thinktwice.selection.fit import fit_mode
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.cost import COST_FILE, CostFile, load_costs
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.modes import PRESETS
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.triggers import Always


class CountedWork:
    """A clock that a scored row advances by a microsecond per pass, so that a cost is the number of passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, score = 0.0, Engine.score

        def counted(engine: Engine, *args: object, **more: object) -> object:
            scored = score(engine, *args, **more)  # type: ignore[arg-type]
            self.now += 1e-6 * float(scored.num_paths.sum())
            return scored

        monkeypatch.setattr(Engine, "score", counted)

    def __call__(self) -> float:
        return self.now


def test_a_cost_is_the_time_relative_to_the_plain_model(
    trial_model: TrialModel, valid: EncodedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(trial_model, valid, CountedWork(monkeypatch))
    assert meter(trial_model, TestTimeConfig()).value == 1.0
    everybody = PRESETS["members"].looking(trigger=Always())
    cost = meter(trial_model, everybody)
    assert cost.value == cost.low == cost.high == 2.0 and [r.value for r in cost.by_rows] == [2.0] * 3
    some = meter(trial_model, PRESETS["members"])
    assert 1.0 < some.value < 2.0
    file = meter.file(2.0, {"members": some, "members, all rows": cost})
    assert file.backend == "folded" and file.rows == REQUEST_ROWS and file.rounds == ROUNDS
    assert file.plain_us == pytest.approx(REQUEST_ROWS)


@pytest.mark.parametrize("name", ["deepfm", "dcnv2", "autoint"])
def test_engines_run_as_in_a_server(data: TrainingSet, valid: EncodedRows, name: str, tmp_path: Path) -> None:
    """With the backend that packaging chooses, for further trunks as well where it is a folded table."""
    models = [load_model(world.train_model(data, tmp_path / str(s), name=name, epochs=1, seed=s)) for s in (0, 1)]
    train = data.part("train")
    reliability = Reliability.fit(train.ids, train.label, models[0][0].fields)
    trial = TrialModel(models[0][0], models[0][1].calibration, reliability, Extras(members=(models[1][0],)))
    engine = Meter(trial, valid).engine(trial, PRESETS["members"])
    # On a processor with instructions for bfloat16 a wide dcnv2 has that backend; this one is narrow.
    expected = {"deepfm": "folded", "dcnv2": "onnx", "autoint": "onnx"}[name]
    assert [b.name for b in (engine.backend, *engine.member_backends)] == [expected] * 2
    assert len(engine.backend.sizes) > 1 and engine.backend.sizes == engine.member_backends[0].sizes


@given(st.integers(1, 700), st.sampled_from(REQUEST_ROWS), st.integers(1, 5))
def test_requests_are_rows_of_validation_that_share_a_user(
    valid: EncodedRows, trial_model: TrialModel, rows: int, size: int, number: int
) -> None:
    some = valid.take(np.arange(rows))
    some = replace(some, evidence=evidence.evidence(evidence.counters(rows)))
    requests = requests_of(some, trial_model.model.fields, size, number)
    assert len(requests) == number and all(len(batch) == size for batch, _ in requests)
    known = {row.tobytes() for row in some.ids.astype(np.int64)}
    for batch, found in requests:
        assert {row.tobytes() for row in batch.ids.numpy()} <= known
        assert found is not None and found.counters.shape == (size, evidence.COUNTERS)
        assert all(block.stride(0) == 0 or size == 1 for name, block in batch.sequences.items())


def test_costs_are_recorded_for_all_that_was_tried(trial_model: TrialModel, valid: EncodedRows, tmp_path: Path) -> None:
    settings = FitConfig(mode="members", member_shares=(0.2,), strengths=(0.0,))
    _, report, costs = fit_mode(trial_model, valid, settings)
    assert costs is not None and set(costs.candidates) == {c.name for c in report.candidates}
    assert costs.max_cost is None
    assert len(costs.plain_us) == len(NUM_REQUESTS) and all(us > 0 for us in costs.plain_us)
    for cost in costs.candidates.values():
        assert 0 < cost.low <= cost.value <= cost.high
    costs.write(tmp_path / COST_FILE)
    assert load_costs(tmp_path) == costs
    (tmp_path / COST_FILE).write_text((tmp_path / COST_FILE).read_text().replace('"rounds"', '"turns"'))
    with pytest.raises(BundleError, match=r"cost.json cannot be read .*fit the test-time parameters again"):
        load_costs(tmp_path)
    assert load_costs(tmp_path / "none") is None and CostFile.FORMAT == 1


def test_a_log_with_counters_is_measured_with_them(tmp_path: Path) -> None:
    rows = drifting.training_set(tmp_path / "set", drifting.log(3000)).part_with_evidence("valid")
    data = drifting.load_training_set(tmp_path / "set")
    (batch, found), *_ = requests_of(rows, FieldSpace.of(data.schema, data.encoder), 100, 2)
    assert found is not None and found.history is not None
    history = found.history()
    assert history is not None and len(batch) == len(found) == len(history.start)
    assert (history.start == history.start[0]).all() and (history.end == history.end[0]).all()

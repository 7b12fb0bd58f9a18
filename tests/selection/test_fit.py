"""What ships: off for a healthy model, the gate for one that memorised rare ids, and parameters of the earlier half alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pytest

from tests.selection.prices import fixed
from tests.testtime import world
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.errors import BundleError
from thinktwice.files import sha256_file
from thinktwice.models import load_model
from thinktwice.selection.config import FitConfig
from thinktwice.selection.fit import choose_trunk, count_check, field_importance, fit_extras, fit_mode, fit_test_time
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.base_pass import Gate
from thinktwice.testtime.config import Mode
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions.config import FeaturePaths
from thinktwice.testtime.report import ModeChoice
from thinktwice.testtime.store import load_test_time

QUICK = FitConfig(member_shares=(0.2,), max_paths=(4,))
TRIAL = cast(TrialModel, None)  # fixed prices do not read the model


@pytest.fixture(scope="module")
def lean(trial_model: TrialModel, valid: EncodedRows) -> ModeChoice:
    """The report of a search through every mode."""
    return fit_mode(trial_model, valid, QUICK, fixed)[1]


def test_a_healthy_model_ships_off(data: TrainingSet, plain: Path, memorised: Path, tmp_path: Path) -> None:
    found = fit_test_time(data.folder, plain, memorised, tmp_path / "out", QUICK, fixed)
    assert found.trunk == "plain"  # the other one is worse on validation
    assert found.config.mode == "off"
    assert found.sentence.startswith("Test-time work ships off")
    assert found.report.trunks.logloss_change.low > 0
    assert all(c.reasons for c in found.report.candidates)
    assert found.report.novelty.model_dump() == {p: data.info.parts[p].unseen_share for p in ("valid", "test")}
    shipped = load_test_time(tmp_path / "out", load_model(plain)[0])
    assert shipped.config == found.config
    assert shipped.report == found.report
    assert shipped.weights == sha256_file(plain / "weights.safetensors")
    assert len(shipped.extras.members) == 1  # the trunk that was not chosen


def test_a_model_that_memorised_rare_ids_ships_the_gate(rare: Path, tmp_path: Path) -> None:
    config = FitConfig(strengths=(0.0, 0.5, 1.0, 2.0), max_paths=(4,), max_cost=1.05)
    found = fit_test_time(rare / "set", rare / "model", None, tmp_path / "out", config, fixed)
    assert found.report.accepted
    assert found.config.mode == "gate" and isinstance(found.config.base, Gate)
    assert found.report.best_name in ("gate", "gate by field")
    assert found.sentence.startswith(f"Test-time work ships on ({found.report.best_name}, 1.00 passes per row)")
    tried = {c.name: c for c in found.report.candidates}
    gate = tried["gate"]
    assert gate.change.high < 0 and gate.auc_change.high >= 0
    assert set(gate.controls) == {"shuffled_counts", "recalibrated"}
    assert all(control.high < 0 for control in gate.controls.values())
    dear = [c for c in tried.values() if fixed(TRIAL, c.config).value > 1.05]
    assert {"uttsi", "uttsi, exact", "matt", "sgctr", "filter"} <= {c.name for c in dear}
    assert min(c.fit_logloss for c in dear) < gate.fit_logloss  # it is not that they were worse
    for candidate in dear:
        assert not candidate.accepted and not candidate.controls
        assert candidate.reasons[-1] == "it takes more than 1.05 times the time of the plain model"


def test_a_mode_by_name_may_cost_what_it_costs(rare_trial_model: TrialModel, rare_valid: EncodedRows) -> None:
    settings = FitConfig(mode="members", member_shares=(0.2,), strengths=(0.0,))
    config, report, _ = fit_mode(rare_trial_model, rare_valid, settings, fixed)
    assert report.accepted
    assert config.mode == report.mode == "members"
    assert {c.name for c in report.candidates} == {"members", "members, all rows"}
    (shipped,) = [c for c in report.candidates if c.name == report.best_name]
    assert shipped.config == report.best == config
    for max_cost, mode in ((1.4, "off"), (1.5, "members")):
        limited = settings.model_copy(update={"mode": "lean", "min_counts": (0,), "max_cost": max_cost})
        assert (fit_mode(rare_trial_model, rare_valid, limited, fixed)[0].mode == "members") == (mode == "members")


TRIED: dict[Mode, set[str]] = {
    "off": set(),
    "calibrated": {"calibrated by support"},
    "gate": {"gate", "gate by field", "gate without counts"},
    "filter": {"filter"},
    "uttsi": {"uttsi", "uttsi, exact"},
    "matt": {"matt"},
    "sgctr": {"sgctr"},
    "members": {"members", "members, gated", "members, all rows"},
}


@pytest.mark.parametrize("mode", TRIED)
def test_a_mode_by_name_is_tried_alone(
    mode: Mode, lean: ModeChoice, trial_model: TrialModel, valid: EncodedRows
) -> None:
    config, report, _ = fit_mode(trial_model, valid, QUICK.model_copy(update={"mode": mode}), fixed)
    names = {c.name for c in report.candidates}
    assert names <= TRIED[mode]  # a gate or filter of no strength is no candidate
    assert names or mode in ("off", "gate", "filter")
    assert config.mode in ("off", mode)
    in_lean = {c.name: c.config for c in lean.candidates}
    assert all(in_lean[c.name] == c.config for c in report.candidates)
    assert all(c.config.mode == mode for c in report.candidates)


def test_lean_tries_every_mode_and_ships_nothing_dear(lean: ModeChoice) -> None:
    names = {c.name for c in lean.candidates}
    assert {"calibrated by support", "uttsi", "uttsi, exact", "matt", "sgctr", "members", "members, all rows"} <= names
    for candidate in lean.candidates:
        config = candidate.config
        assert (candidate.passes > 1) == (config.second_look is not None)
        if fixed(TRIAL, config).value > QUICK.max_cost or candidate.name == "members, all rows":
            assert not candidate.accepted


def test_fitting_twice_gives_the_same_bytes(data: TrainingSet, plain: Path, memorised: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit_test_time(data.folder, plain, memorised, tmp_path / name, QUICK, fixed)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 6  # parameters, counts, combinations, heads, and a member of two files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_later_half_decides_nothing_but_yes_or_no(
    lean: ModeChoice, trial_model: TrialModel, valid: EncodedRows
) -> None:
    flipped = valid.take(np.arange(len(valid)))
    flipped.label[len(valid) // 2 :] = 1 - flipped.label[len(valid) // 2 :]
    _, other, _ = fit_mode(trial_model, flipped, QUICK, fixed)
    assert [c.config for c in lean.candidates] == [c.config for c in other.candidates]
    assert [c.fit_logloss for c in lean.candidates] == [c.fit_logloss for c in other.candidates]
    assert [c.logloss for c in lean.candidates] != [c.logloss for c in other.candidates]


def test_the_earlier_half_decides_the_parameters(lean: ModeChoice, trial_model: TrialModel, valid: EncodedRows) -> None:
    other = valid.take(np.arange(len(valid)))
    other.label[: len(valid) // 2] = 1 - other.label[: len(valid) // 2]
    _, report, _ = fit_mode(trial_model, other, QUICK.model_copy(update={"mode": "calibrated"}), fixed)
    before = next(c.config for c in lean.candidates if c.name == "calibrated by support")
    assert report.candidates[0].config != before


def test_a_log_with_one_open_field_has_no_pairs_and_works(
    data: TrainingSet, trial_model: TrialModel, valid: EncodedRows
) -> None:
    """Everything but the user is protected: no combination can be counted, and nothing that needs one is tried."""
    only = replace(trial_model.reliability, protected=np.arange(trial_model.model.num_fields) != 0)
    extras = fit_extras(trial_model.model, only, data.part("train"), (), QUICK)
    assert extras.combinations is None and extras.heads is not None
    config, report, _ = fit_mode(replace(trial_model, reliability=only, extras=extras), valid, QUICK, fixed)
    names = {c.name for c in report.candidates}
    assert {"uttsi", "uttsi, exact", "sgctr", "calibrated by support"} <= names
    assert not {"matt", "members", "members, all rows"} & names
    opinions = [look.opinion for c in report.candidates if (look := c.config.second_look)]
    samplers = [opinion.sampler for opinion in opinions if isinstance(opinion, FeaturePaths)]
    assert samplers and all(sampler.pair_share == 0 for sampler in samplers)
    assert config.importance[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("mode", "holds"),
    [
        ("lean", "combinations heads members"),
        ("uttsi", "combinations"),
        ("matt", "combinations"),
        ("sgctr", "heads"),
        ("members", "members"),
        ("gate", ""),
        ("off", ""),
    ],
)
def test_only_what_the_tried_modes_need_is_made(
    mode: Mode, holds: str, data: TrainingSet, trial_model: TrialModel
) -> None:
    settings = QUICK.model_copy(update={"mode": mode})
    extras = fit_extras(
        trial_model.model, trial_model.reliability, data.part("train"), trial_model.extras.members, settings
    )
    found = {"combinations": extras.combinations, "heads": extras.heads, "members": extras.members or None}
    assert {name for name, value in found.items() if value is not None} == set(holds.split())
    if extras.combinations is not None:
        assert extras.combinations.pairs == ((0, 1), (0, 2), (1, 2))


def test_too_few_validation_rows_ship_off(trial_model: TrialModel, valid: EncodedRows) -> None:
    config, report, costs = fit_mode(trial_model, valid.take(np.arange(300)), FitConfig())
    assert costs is None
    assert config.mode == "off"
    assert "too few" in report.sentence


def test_one_user_in_validation_proves_nothing_and_ships_off(data: TrainingSet, tmp_path: Path) -> None:
    """One cluster has no interval: off ships, the sentence says why, and the file is written."""
    frame = data_of_one_user_in_validation()
    build_training_set(frame.to_arrow(), data.schema, tmp_path / "set", SplitSpec(valid=0.25, test=0.25))
    lonely = load_training_set(tmp_path / "set")
    assert lonely.rows("valid")["user_id"].n_unique() == 1
    world.train_model(lonely, tmp_path / "plain", epochs=1)
    world.memorise_rare_values(lonely, tmp_path / "plain", tmp_path / "bad")
    found = fit_test_time(lonely.folder, tmp_path / "bad", tmp_path / "plain", tmp_path / "out", QUICK, fixed)
    assert found.trunk == "plain"
    assert found.config.mode == "off"
    assert "rows are of one user, so that chance cannot be excluded" in found.sentence
    assert found.report.candidates
    for candidate in found.report.candidates:
        assert candidate.change.low is None and not candidate.accepted
        assert "are of a single user" in candidate.reasons[0]
    assert load_test_time(tmp_path / "out", load_model(tmp_path / "plain")[0]).report == found.report


def data_of_one_user_in_validation() -> pl.DataFrame:
    frame = world.log(4000)
    place = pl.int_range(pl.len())
    inside = (place >= 1900) & (place < 3100)  # a little more than the part, wherever ties cut it
    return frame.with_columns(pl.when(inside).then(pl.lit("u1")).otherwise("user_id").alias("user_id"))


def test_a_log_without_open_fields_ships_off(trial_model: TrialModel, valid: EncodedRows) -> None:
    closed = replace(trial_model.reliability, protected=np.ones_like(trial_model.reliability.protected))
    config, report, _ = fit_mode(replace(trial_model, reliability=closed, extras=Extras()), valid, FitConfig())
    assert config.mode == "off"
    assert "every field of this log is protected" in report.sentence


def test_importance_is_the_share_of_what_masking_a_field_changes(trial_model: TrialModel, valid: EncodedRows) -> None:
    found = np.asarray(field_importance(trial_model.model, trial_model.reliability, valid))
    names = trial_model.model.fields.names
    assert found.sum() == pytest.approx(1.0)
    assert (found > 0).tolist() == [name in ("user_id", "item_id", "site") for name in names]
    assert names[int(found.argmax())] == "user_id"  # the strongest effect of the log


def test_pretrained_trunk_needs_more_than_chance(data: TrainingSet) -> None:
    valid = data.part("valid")
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1, len(valid))
    good = z + 0.5 * (valid.label - 0.5)
    assert choose_trunk({"plain": z, "pretrained": good}, valid)[0] == "pretrained"
    assert choose_trunk({"plain": good, "pretrained": z}, valid)[0] == "plain"
    assert choose_trunk({"plain": z, "pretrained": z + rng.normal(0, 0.01, len(z))}, valid)[0] == "plain"
    assert choose_trunk({"plain": z}, valid)[0] == "plain"


def test_a_model_of_another_training_set_is_refused(data: TrainingSet, tmp_path: Path) -> None:
    other = world.make_training_set(tmp_path / "set", rows=2000, seed=9)
    world.train_model(other, tmp_path / "model", epochs=1)
    with pytest.raises(BundleError, match="was trained on another training set"):
        fit_test_time(data.folder, tmp_path / "model", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_count_that_predicts_the_label_is_named(trial_model: TrialModel, valid: EncodedRows) -> None:
    model, reliability = trial_model.model, trial_model.reliability
    found, warnings = count_check(model, reliability, valid)
    assert set(found) == {"user_id", "item_id", "site"}
    assert not any("site" in w for w in warnings)
    counts = reliability.counts_of(valid.ids)[:, model.fields.names.index("item_id")]
    clicked = replace(valid, label=(counts > np.median(counts)).astype(np.float32))
    assert any("'item_id' alone predicts the label" in w for w in count_check(model, reliability, clicked)[1])

"""What ships: off for a healthy model, the gate for one that memorised rare ids, and never by luck."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.testtime import world
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.errors import BundleError
from thinktwice.evaluate.significance import Interval
from thinktwice.models import load_model
from thinktwice.testtime import FitConfig, TestTimeConfig
from thinktwice.testtime.accept import Verdict, sentence
from thinktwice.testtime.candidates import Candidate
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.fit import choose_trunk, count_check, fit_mode, fit_test_time
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.store import load_test_time


def test_a_healthy_model_ships_off(data: TrainingSet, plain: Path, memorised: Path, tmp_path: Path) -> None:
    found = fit_test_time(data.folder, plain, memorised, tmp_path / "out")
    assert found.trunk == "plain"  # the other one is worse on validation
    assert found.config.mode == "off"
    assert found.sentence.startswith("Test-time work ships off")
    assert found.report["trunks"]["logloss_change"]["low"] > 0
    assert [c["name"] for c in found.report["candidates"]][-2:] == ["uttsi", "uttsi, exact"]
    assert all(c["reasons"] for c in found.report["candidates"])
    assert found.report["novelty"] == {p: data.info["parts"][p]["unseen_share"] for p in ("valid", "test")}
    shipped = load_test_time(tmp_path / "out")
    assert shipped.config == found.config
    assert shipped.report == found.report


def test_a_model_that_memorised_rare_ids_ships_the_gate(tmp_path: Path) -> None:
    data = world.make_training_set(tmp_path / "set", rows=16_000, users=2000, items=400, seed=1)
    world.train_model(data, tmp_path / "healthy")
    world.memorise_rare_values(data, tmp_path / "healthy", tmp_path / "model")
    found = fit_test_time(tmp_path / "set", tmp_path / "model", None, tmp_path / "out")
    assert found.report["accepted"]
    assert found.config.mode != "off"
    assert found.sentence.startswith("Test-time work ships on")
    gate = next(c for c in found.report["candidates"] if c["name"] == "gate")
    assert gate["accepted"]
    assert gate["change"]["high"] < 0
    assert gate["controls"]["shuffled_counts"]["high"] < 0
    assert gate["controls"]["recalibrated"]["high"] < 0


def test_fitting_twice_gives_the_same(data: TrainingSet, plain: Path, tmp_path: Path) -> None:
    first = fit_test_time(data.folder, plain, None, tmp_path / "a")
    second = fit_test_time(data.folder, plain, None, tmp_path / "b")
    assert first.report == second.report
    for name in ("test_time.json", "counts.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_later_half_decides_nothing_but_yes_or_no(data: TrainingSet, plain: Path) -> None:
    model, info = load_model(plain)
    train, valid = data.part("train"), data.part("valid")
    reliability = Reliability.fit(train.ids, train.label, model.fields)
    _, report = fit_mode(model, info.calibration, reliability, valid, FitConfig())
    flipped = valid.take(np.arange(len(valid)))
    flipped.label[len(valid) // 2 :] = 1 - flipped.label[len(valid) // 2 :]
    _, other = fit_mode(model, info.calibration, reliability, flipped, FitConfig())
    assert [c["config"] for c in report["candidates"]] == [c["config"] for c in other["candidates"]]
    assert [c["logloss"] for c in report["candidates"]] != [c["logloss"] for c in other["candidates"]]


def test_trigger_explores_the_asked_share(data: TrainingSet, plain: Path, tmp_path: Path) -> None:
    found = fit_test_time(data.folder, plain, None, tmp_path / "out", FitConfig(explored_share=0.3))
    config = next(c["config"] for c in found.report["candidates"] if c["name"] == "uttsi")
    model, _ = load_model(plain)
    engine = Engine(model, load_test_time(tmp_path / "out").reliability, TestTimeConfig.model_validate(config))
    raw = raw_rows(engine, data.part("valid"))
    assert (raw.signal > config["threshold"]).mean() == pytest.approx(0.3, abs=0.06)
    assert raw.num_paths.max() <= 1 + config["max_paths"]


def test_too_few_validation_rows_ship_off(data: TrainingSet, plain: Path) -> None:
    model, info = load_model(plain)
    train = data.part("train")
    reliability = Reliability.fit(train.ids, train.label, model.fields)
    few = data.part("valid").take(np.arange(300))
    config, report = fit_mode(model, info.calibration, reliability, few, FitConfig())
    assert config.mode == "off"
    assert "too few" in report["sentence"]


def test_one_user_in_validation_proves_nothing_and_ships_off(data: TrainingSet, tmp_path: Path) -> None:
    """One cluster has no interval: off ships, the sentence says why, and the file is written."""
    frame = data_of_one_user_in_validation()
    build_training_set(frame.to_arrow(), data.schema, tmp_path / "set", SplitSpec(valid=0.25, test=0.25))
    lonely = load_training_set(tmp_path / "set")
    assert lonely.rows("valid")["user_id"].n_unique() == 1
    world.train_model(lonely, tmp_path / "plain", epochs=1)
    world.memorise_rare_values(lonely, tmp_path / "plain", tmp_path / "bad")
    found = fit_test_time(lonely.folder, tmp_path / "bad", tmp_path / "plain", tmp_path / "out")
    assert found.trunk == "plain"
    assert found.config.mode == "off"
    assert "rows are of one user, so that chance cannot be excluded" in found.sentence
    assert found.report["candidates"]
    for candidate in found.report["candidates"]:
        assert candidate["change"]["low"] is None and not candidate["accepted"]
        assert "hold one user only" in candidate["reasons"][0]
    assert load_test_time(tmp_path / "out").report == found.report


def data_of_one_user_in_validation() -> pl.DataFrame:
    frame = world.log(4000)
    place = pl.int_range(pl.len())
    inside = (place >= 1900) & (place < 3100)  # a little more than the part, wherever ties cut it
    return frame.with_columns(pl.when(inside).then(pl.lit("u1")).otherwise("user_id").alias("user_id"))


def test_a_log_without_open_fields_ships_off(data: TrainingSet, plain: Path) -> None:
    model, info = load_model(plain)
    train = data.part("train")
    found = Reliability.fit(train.ids, train.label, model.fields)
    closed = Reliability(found.counts, found.kappa, found.num_values, np.ones_like(found.protected))
    config, report = fit_mode(model, info.calibration, closed, data.part("valid"), FitConfig())
    assert config.mode == "off"
    assert "every field of this log is protected" in report["sentence"]


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


def test_count_that_predicts_the_label_is_named(data: TrainingSet, plain: Path) -> None:
    model, _ = load_model(plain)
    train, valid = data.part("train"), data.part("valid")
    reliability = Reliability.fit(train.ids, train.label, model.fields)
    found, warnings = count_check(model, reliability, valid)
    assert set(found) == {"user_id", "item_id", "site"}
    assert not any("site" in w for w in warnings)
    counts = reliability.counts_of(valid.ids)[:, model.fields.names.index("item_id")]
    valid.label[:] = counts > np.median(counts)
    assert any("'item_id' alone predicts the label" in w for w in count_check(model, reliability, valid)[1])


def verdict(change: Interval, *, controls: dict[str, Interval], auc: Interval) -> Verdict:
    candidate = Candidate(
        "gate", TestTimeConfig(mode="gate", strength=1.0), 0.5, lambda counts, trigger: TestTimeConfig()
    )
    return Verdict(candidate, 0.5, 0.7, 1.0, change, auc, controls)


GAIN, LOSS, CHANCE = Interval(-0.01, -0.02, -0.001), Interval(0.01, 0.001, 0.02), Interval(-0.001, -0.01, 0.01)


def test_acceptance_needs_a_gain_over_chance_and_over_every_control() -> None:
    good = {"recalibrated": GAIN, "shuffled_counts": GAIN, "random_trigger": GAIN}
    assert verdict(GAIN, controls=good, auc=CHANCE).accepted
    assert verdict(LOSS, controls=good, auc=CHANCE).reasons == ["it is worse than the plain scores"]
    assert verdict(CHANCE, controls=good, auc=CHANCE).reasons == ["its gain may be chance"]
    assert verdict(GAIN, controls=good, auc=GAIN).reasons == ["it orders rows worse"]
    for control in good:
        found = verdict(GAIN, controls=good | {control: CHANCE}, auc=CHANCE)
        assert not found.accepted
        assert "does not clearly beat" in found.reasons[0]
    assert "ships off" in sentence(verdict(CHANCE, controls=good, auc=CHANCE), 1000)
    assert "ships on" in sentence(verdict(GAIN, controls=good, auc=CHANCE), 1000)
    assert "no candidate" in sentence(None, 1000)

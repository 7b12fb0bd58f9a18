"""The verdict: the better bundle wins on the same rows, whichever side it stands on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.testtime import world
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.errors import BundleError
from thinktwice.evaluate.bless import ECE_LIMIT, bless, judge
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.evaluation import recorded_evaluation
from thinktwice.evaluate.from_bundle import misfit
from thinktwice.evaluate.package import write_bundle, write_candidate
from thinktwice.files import read_json
from thinktwice.release.blessing import read_blessing
from thinktwice.release.bundle import BundleIdentity, bundle_hash, load_bundle, read_manifest
from thinktwice.schema import parse_schema
from thinktwice.selection.fit import fit_test_time


def test_first_model_is_blessed_for_beating_chance(finished: Path, tmp_path: Path) -> None:
    found = bless(finished / "set", finished / "bundle-good", None, tmp_path / "out")
    assert found.blessed
    assert found.reasons[0].startswith("it orders rows better than chance: AUC 0.")
    assert "there is no champion yet" in found.reasons[1]
    assert read_blessing(tmp_path / "out") == found
    assert found.bundle_hash == bundle_hash(finished / "bundle-good")


def test_better_candidate_is_blessed(finished: Path, tmp_path: Path) -> None:
    found = bless(finished / "set", finished / "bundle-good", finished / "bundle-bad", tmp_path / "out")
    assert found.blessed
    assert "it is better than the champion on the same rows" in found.reasons[-1]
    assert found.changes["auc"].low > 0
    assert found.champion.model_version == "world-bad"


def test_worse_candidate_is_not_blessed(finished: Path, tmp_path: Path) -> None:
    found = bless(finished / "set", finished / "bundle-bad", finished / "bundle-good", tmp_path / "out")
    assert not found.blessed
    assert any("orders rows worse than the champion" in r for r in found.reasons)
    assert any("logloss is worse than the champion's" in r for r in found.reasons)
    assert not read_blessing(tmp_path / "out").blessed


def test_both_directions_measure_the_same_difference(finished: Path, tmp_path: Path) -> None:
    one = bless(finished / "set", finished / "bundle-good", finished / "bundle-bad", tmp_path / "a").changes
    two = bless(finished / "set", finished / "bundle-bad", finished / "bundle-good", tmp_path / "b").changes
    for name in ("auc", "logloss", "ece"):
        assert one[name].value == pytest.approx(-two[name].value)


def test_the_champion_itself_is_blessed(finished: Path, tmp_path: Path) -> None:
    found = bless(finished / "set", finished / "bundle-bad", finished / "bundle-bad", tmp_path / "out")
    assert found.blessed
    assert found.reasons[-1] == "it is the champion's own bundle"
    assert found.changes["logloss"].value == 0


def small_bundle(folder: Path, schema_text: str, frame: pl.DataFrame, name: str) -> Path:
    schema = parse_schema(schema_text, where="test")
    build_training_set(frame.to_arrow(), schema, folder / "set", SplitSpec(valid=0.25, test=0.25))
    data = load_training_set(folder / "set")
    world.train_model(data, folder / "model", epochs=2)
    fit_test_time(folder / "set", folder / "model", None, folder / "test_time")
    found = evaluate(folder / "set", folder / "model", None, folder / "test_time", folder / "evaluation")
    write_candidate(
        folder / "bundle",
        evaluation=found,
        evaluation_dir=folder / "evaluation",
        training_set_dir=folder / "set",
        model_dirs={"plain": folder / "model"},
        test_time_dir=folder / "test_time",
        snapshot_id="0" * 16,
        model_version=name,
        feature_version=name,
        package_version="0.1.0",
    )
    return folder / "bundle"


OTHER_SCHEMA = """
name: other
time: {column: event_time, format: us}
fields: [{name: shelf}, {name: site}]
"""


def other_log(rows: int = 1600) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    shelf = rng.integers(0, 5, rows)
    return world.log(rows).with_columns(
        pl.Series("shelf", [f"h{s}" for s in shelf]),
        pl.Series("label", (rng.random(rows) < 0.15 * (shelf + 1)).astype(np.int8)),
    )


def test_champion_of_another_schema_is_no_opponent_and_is_named(finished: Path, tmp_path: Path) -> None:
    other = small_bundle(tmp_path / "other", OTHER_SCHEMA, other_log(), "other-1")
    found = bless(finished / "set", finished / "bundle-good", other, tmp_path / "out")
    assert found.blessed
    assert (
        "the champion other-1 (schema other) cannot be compared: the rows lack its columns shelf; the model is judged alone"
        in found.reasons
    )


def test_champion_that_reads_a_number_as_text_is_no_opponent(finished: Path, tmp_path: Path) -> None:
    """It would compete with that field blanked out."""
    text = "name: other\ntime: {column: event_time, format: us}\nfields: [{name: price}, {name: site}]\n"
    frame = world.log(1600).with_columns(pl.col("price").round(1).cast(pl.String))
    other = small_bundle(tmp_path / "other", text, frame, "other-2")
    found = bless(finished / "set", finished / "bundle-good", other, tmp_path / "out")
    assert found.champion is None
    assert "cannot be compared: it reads column price as categorical and the rows contain Float64" in found.reasons[1]
    numbers = load_training_set(finished / "set").rows("test")
    assert misfit(load_bundle(finished / "bundle-good"), numbers) == ""
    names = {"recent": pl.Series([[1]] * numbers.height), "look": pl.Series([["x"]] * numbers.height)}
    for name, column in names.items():
        changed = numbers.with_columns(column.alias(name))
        assert f"it reads column {name} as " in misfit(load_bundle(finished / "bundle-good"), changed)


def with_window(finished: Path, folder: Path, *, train_end: str, valid_end: str | None = None) -> Path:
    """The bad bundle as one that was trained on other data, up to these times."""
    shutil.copytree(finished / "bundle-bad", folder / "evaluated")
    evaluation = recorded_evaluation(folder / "evaluated")
    valid = evaluation.data.parts["valid"]
    valid = valid.model_copy(update={"window": (valid.window[0], valid_end or train_end)})
    data = evaluation.data.model_copy(update={"parts": {**evaluation.data.parts, "valid": valid}})
    manifest = read_manifest(finished / "bundle-bad")
    shutil.copytree(folder / "evaluated" / "report", folder / "report")
    evaluation.model_copy(update={"data": data}).write(folder / "report" / "evaluation.json")
    known = {name: getattr(manifest, name) for name in BundleIdentity.model_fields}
    window = (manifest.train_window[0], train_end)
    write_bundle(
        folder / "bundle",
        training_set_dir=finished / "set",
        **dict.fromkeys(("model_dir", "test_time_dir"), folder / "evaluated"),
        evaluation_dir=folder / "report",
        identity=BundleIdentity(**{**known, "train_window": window}),
    )
    return folder / "bundle"


@pytest.mark.parametrize("through", ["train", "valid"])
def test_rows_that_the_champion_trained_on_are_left_out(finished: Path, tmp_path: Path, through: str) -> None:
    """Of 1,500 test rows it has seen the first 300, in training or in validation; the others decide."""
    times = load_training_set(finished / "set").rows("test")["event_time"]
    end = times[299].isoformat()
    champion = with_window(
        finished, tmp_path, train_end=end if through == "train" else "2024-01-02T00:00:00+00:00", valid_end=end
    )
    found = bless(finished / "set", finished / "bundle-good", champion, tmp_path / "out")
    assert found.blessed
    assert (found.rows, found.compared_rows) == (1500, 1200)
    assert "the champion trained on some of these rows" in found.reasons[1]
    assert "compared on the 1,200 later ones" in found.reasons[1]
    assert "it is better than the champion" in found.reasons[-1]
    whole = bless(finished / "set", finished / "bundle-good", finished / "bundle-bad", tmp_path / "whole")
    assert whole.compared_rows == 1500
    assert whole.changes["logloss"].value != found.changes["logloss"].value
    assert not any("trained on" in r for r in whole.reasons)


def test_too_few_rows_after_the_champions_training_are_no_comparison(finished: Path, tmp_path: Path) -> None:
    times = load_training_set(finished / "set").rows("test")["event_time"]
    champion = with_window(finished, tmp_path, train_end=times[600].isoformat())
    found = bless(finished / "set", finished / "bundle-good", champion, tmp_path / "out")
    assert found.blessed
    assert found.champion is None and found.changes is None
    assert found.reasons[1].startswith("the champion trained on these rows (its data reach to 2024-01-0")
    assert "899 later rows are left" in found.reasons[1]
    assert "within the limit" in found.reasons[-1]


def test_after_a_random_split_the_candidate_is_judged_alone(finished: Path, tmp_path: Path) -> None:
    spec = SplitSpec(kind="random", valid=0.25, test=0.25)
    build_training_set(world.log(6000).to_arrow(), world.schema(), tmp_path / "set", spec)
    end = load_training_set(tmp_path / "set").train_window[1]
    champion = with_window(finished, tmp_path, train_end=end)
    found = bless(tmp_path / "set", finished / "bundle-good", champion, tmp_path / "out")
    assert found.champion is None
    assert found.reasons[1].startswith("the champion trained on these rows (")


def test_model_that_orders_by_chance_is_not_blessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    noise = other_log().with_columns(pl.Series("label", rng.integers(0, 2, 1600).astype(np.int8)))
    bundle = small_bundle(tmp_path / "noise", OTHER_SCHEMA, noise, "noise-1")
    notes: list[str] = []
    monkeypatch.setattr("thinktwice.evaluate.bless.note", lambda stage, text: notes.append(text))
    found = bless(tmp_path / "noise" / "set", bundle, None, tmp_path / "out")
    assert not found.blessed
    assert "does not order rows better than chance" in found.reasons[0]
    # The note names what failed, not the last remark, which is a good one here.
    assert "within the limit" in found.reasons[-1]
    assert notes == [f"not blessed: {found.reasons[0]}"]


@pytest.fixture(scope="module")
def loud(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good model with probabilities that are far too high."""
    tmp_path = tmp_path_factory.mktemp("loud")
    value = read_json(finished / "plain" / "model.json")
    value["calibration"] = {"a": 1.0, "b": 3.0}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(value))
    (folder / "weights.safetensors").write_bytes((finished / "plain" / "weights.safetensors").read_bytes())
    found = evaluate(finished / "set", folder, None, finished / "test_time-good", tmp_path / "evaluation")
    arguments = {"evaluation_dir": tmp_path / "evaluation", "training_set_dir": finished / "set"}
    write_candidate(
        tmp_path / "bundle",
        evaluation=found,
        model_dirs={"plain": folder},
        test_time_dir=finished / "test_time-good",
        snapshot_id="0" * 16,
        model_version="loud",
        feature_version="loud",
        package_version="0.1.0",
        **arguments,
    )
    return tmp_path / "bundle"


def test_few_rows_make_no_reason_to_refuse(finished: Path, loud: Path, tmp_path: Path) -> None:
    build_training_set(
        world.log(6000).tail(320).to_arrow(), world.schema(), tmp_path / "few", SplitSpec(valid=0.25, test=0.25)
    )
    found = bless(tmp_path / "few", finished / "bundle-good", None, tmp_path / "out")
    assert found.rows == 80
    assert found.candidate["ece"] > ECE_LIMIT  # by chance alone
    assert found.blessed, found.reasons
    assert (
        f"within the limit {ECE_LIMIT} beyond chance" in found.reasons[-1]
        and "chance alone gives about 0.1" in found.reasons[-1]
    )
    assert not bless(tmp_path / "few", loud, None, tmp_path / "loud").blessed


def test_first_model_with_useless_probabilities_is_not_blessed(finished: Path, loud: Path, tmp_path: Path) -> None:
    alone = bless(finished / "set", loud, None, tmp_path / "out")
    assert alone.rows == 1500
    assert not alone.blessed
    assert f"more than the limit {ECE_LIMIT} beyond chance" in alone.reasons[-1]
    against = bless(finished / "set", loud, finished / "bundle-good", tmp_path / "out")
    assert not against.blessed
    assert any("further off than the champion's" in r for r in against.reasons)


def test_damaged_bundle_is_an_error_and_no_verdict(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        bless(finished / "set", tmp_path, None, tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (finished / "bundle-bad").rglob("*"):
        if path.is_file():
            target = broken / path.relative_to(finished / "bundle-bad")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    (broken / "counts.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"nobody is not a bundle"):
        bless(finished / "set", finished / "bundle-good", tmp_path / "nobody", tmp_path / "out")
    with pytest.raises(BundleError, match=r"counts.safetensors"):
        bless(finished / "set", finished / "bundle-good", broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 7}, "it has format 7, this version reads 1"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"data": {}}, "data.schema: Field required"),
    ],
)
def test_a_champion_whose_evaluation_cannot_be_read_is_named(
    finished: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    champion = with_window(finished, tmp_path, train_end="2024-01-02T00:00:00+00:00")
    path = champion / "report" / "evaluation.json"
    path.write_text(json.dumps(read_json(path) | change))
    data = load_training_set(finished / "set")
    candidate = load_bundle(finished / "bundle-good")
    opponent = replace(load_bundle(finished / "bundle-bad"), folder=champion)
    with pytest.raises(BundleError) as caught:
        judge(data, candidate, opponent)
    assert str(caught.value) == f"{path} cannot be read ({words}): deploy a model again"

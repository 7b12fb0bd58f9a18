"""The study of training on a small log: finished units are not done again, figures follow from them, and bars can fail."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.training import bars, data, days, page, plan, pretraining, recipe_cost, roof, tables, unknown
from benchmarks.training.choice import GRID, best_training, grid_of, trainings
from benchmarks.training.data import Log
from benchmarks.training.days import SIDES, Days
from benchmarks.training.paired import Rows
from benchmarks.training.peers import environment
from benchmarks.training.peers.environment import FOLDER, PEERS, python_of
from benchmarks.training.quality import OURS, Training
from benchmarks.training.recipe_cost import BEFORE, NOW, Recipe
from benchmarks.training.roof import Roof, step_flops
from benchmarks.training.units import Unit, Units, code_of
from benchmarks.training.unknown import FIELDS, MEAN, TRAINED, Handling, Vectors
from tests.selection import drifting
from thinktwice.data.splits import SplitSpec
from thinktwice.files import read_json
from thinktwice.models import DeepFMConfig, FieldSpace, build_backbone
from thinktwice.schema import parse_schema
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import logits_of

PEER = Training("FuxiCTR", "deepfm", "ml_time", 1e-3)


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """A small log in place of two of the study."""
    schema = parse_schema(drifting.PLAIN, where="test")
    log = Log("small", lambda folder: drifting.log(3000), schema, SplitSpec(kind="random"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ml_time", plan.SEQUENCES):
            patch.setitem(data.LOGS, name, log)
        patch.setitem(pretraining.RECIPE, plan.SEQUENCES, "tiny")
        patch.setattr(days, "RECIPE", "tiny")
        patch.setattr(plan, "ROOFS", (Roof(2600, rounds=1),))
        patch.setattr(roof, "STEPS", 1)
        patch.setattr(roof, "BATCH", 64)
        patch.setattr(roof, "SQUARE", 64)
        patch.setattr(plan, "DAYS", (Days("ml_time", "continued", days=2),))
        yield


@pytest.fixture(scope="module")
def done(small: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with some units of every part, and their result. Peers and the other commit are scores that were made up."""
    work = tmp_path_factory.mktemp("training")
    units = Units(work)
    ours = units.do(replace(PEER, side=OURS).unit(work))
    noise = np.random.default_rng(0).normal(size=len(ours["test"]))
    worse = {"valid": ours["valid"] * 0.5, "test": ours["test"] + noise, "facts": np.array([3.0, 3000.0, 4.0])}
    units.do(replace(PEER.unit(work), compute=lambda: worse))
    for run in (*plan.MODES[:2], replace(plan.MODES[1], share=0.1), replace(plan.MODES[0], share=0.1)):
        units.do(run.unit(work))
    units.do(plan.ROOFS[0].unit())
    for side in SIDES:
        units.do(replace(plan.DAYS[0], side=side).unit(work))
    for name in (unknown.NONE, "new in earlier blocks"):
        units.do(Handling("ml_time", name).unit(work))
    valid, test = (data.load("ml_time", work).part(part) for part in ("valid", "test"))
    for side, seconds in ((BEFORE, 9.0), (NOW, 2.0)):
        made = {"valid": ours["valid"], "test": ours["test"], "facts": np.array([seconds, 0.5, 0.7, 2.0])}
        made |= {"label": test.label, "user": test.user, "valid_label": valid.label, "valid_user": valid.user}
        unit: Unit = recipe_cost.unit(Recipe("sim", side), work)
        units.do(replace(unit, compute=lambda made=made: made))
    result = tables.collect(work, 2, quick=False) | {"quick": False, "seeds_asked": 2, "commit": "abc", "versions": {}}
    return work, result | {"machine": {"cores": 2, "system": "x"}}


def test_figures_follow_from_the_units(done: tuple[Path, dict[str, Any]]) -> None:
    result = done[1]
    (table,) = result["quality"].values()
    assert [(row["side"], row["seeds"]) for row in table["models"]] == [(OURS, 1), ("FuxiCTR", 1)]
    ours, peer = table["models"]
    (same,) = table["same_model"]
    assert same["peer"] == "FuxiCTR" and same["auc"]["value"] == pytest.approx(ours["auc"] - peer["auc"])
    assert same["auc"]["low"] < same["auc"]["value"] < same["auc"]["high"]
    assert peer["rows_per_cpu_s"] == 1000 and ours["tried"] == [1e-3] and ours["at_an_end"]
    assert result["recipe"]["sim"]["ratio"] == pytest.approx(2 / 9)
    assert result["recipe"]["sim"]["valid_logloss"]["value"] == 0
    rows = {row["share"]: row for row in result["pretraining"]["rows"]}
    assert set(rows) == {1.0, 0.1} and rows[1.0]["mode"] == "dgenctr" and rows[1.0]["pretrain_cpu_s"] > 0
    assert result["pretraining"]["behaviours"] == []
    (found,) = result["days"].values()
    assert found["seeds"] == 1 and all(
        len(values) == 2 for values in (*found["auc"].values(), *found["cpu_s"].values())
    )


def test_the_share_of_the_roof_is_that_of_the_multiplications(done: tuple[Path, dict[str, Any]]) -> None:
    found = Units(done[0]).found(plan.ROOFS[0].unit())
    assert found is not None
    assert step_flops() == 3 * 2 * 64 * (416 * 400 + 2 * 400 * 400 + 400)
    np.testing.assert_allclose(found["share"] * found["step_s"] * found["flops"], step_flops())
    held = bars.of(done[1] | {"roof": [{"values": 1_000_000, "share": 0.81}, {"values": 10_000_000, "share": 0.49}]})[
        -2:
    ]
    assert [(b["value"], b["holds"]) for b in held] == [(0.81, True), (0.49, False)]


def test_a_continued_day_and_one_anew_have_the_same_test(done: tuple[Path, dict[str, Any]]) -> None:
    kept = [Units(done[0]).found(replace(plan.DAYS[0], side=side).unit(done[0])) for side in SIDES]
    continued, anew = (found for found in kept if found is not None)
    for name in ("label", "user", "day", "first"):
        np.testing.assert_array_equal(continued[name], anew[name])
    assert not np.array_equal(continued["test"], anew["test"]) and not np.array_equal(anew["test"], anew["first"])
    assert abs(len(anew["label"]) - 3000 * (1 - days.BEFORE) * 2 / 3) <= 3 and set(anew["day"]) == {0, 1}


def test_bars_say_their_seeds_and_fail_when_missed_or_missing(done: tuple[Path, dict[str, Any]]) -> None:
    found = {b["name"]: b for b in bars.of(done[1])}
    held = [b for name, b in found.items() if name.startswith("sim: CPU time")]
    assert [(b["holds"], b["seeds"]) for b in held] == [(True, 1)]
    missing = [b for b in found.values() if b["value"] is None]
    assert missing and not any(b["holds"] or b["seeds"] for b in missing)
    slower = done[1] | {"recipe": {"sim": done[1]["recipe"]["sim"] | {"ratio": 0.5}}}
    assert not next(b for b in bars.of(slower) if b["name"].startswith("sim: CPU time"))["holds"]
    worse = replace_value(done[1]["quality"]["ml_time"], -0.01)
    failing = [b for b in bars.of(done[1] | {"quality": {"ml_time": worse}}) if "our deepfm minus" in b["name"]]
    assert [b["holds"] for b in failing if b["value"] is not None] == [False]
    quick = bars.of(done[1] | {"quick": True})
    assert {b["name"].partition(":")[0] for b in quick} == {"ml_100k_time"}


def replace_value(table: dict[str, Any], value: float) -> dict[str, Any]:
    same = [c | {"auc": c["auc"] | {"value": value}} for c in table["same_model"]]
    return table | {"same_model": same}


def test_the_page_shows_every_figure_and_what_is_missing(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    result = done[1] | {"bars": bars.of(done[1])}
    page.write(tmp_path, "training", result)
    text = (tmp_path / "training.md").read_text(encoding="utf-8")
    assert all(b["name"] in text for b in result["bars"]) and "not measured" in text
    assert "| FuxiCTR | deepfm | 0.001 |" in text and "0.222" in text and "continued over anew" in text
    for plot in ("quality", "pretraining"):
        assert f"training-{plot}.svg" in text and (tmp_path / f"training-{plot}.svg").is_file()
    page.write(
        tmp_path,
        "empty",
        result
        | {
            "quality": {},
            "recipe": {},
            "unknown": {},
            "days": {},
            "roof": [],
            "pretraining": {"rows": [], "behaviours": []},
        },
    )
    assert "not measured" in (tmp_path / "empty.md").read_text(encoding="utf-8")


def test_finished_units_are_not_done_again_and_keep_apart(done: tuple[Path, dict[str, Any]]) -> None:
    work, units = done[0], Units(done[0])

    def fails() -> dict[str, np.ndarray]:
        raise AssertionError("done again")

    for unit in (PEER.unit(work), plan.MODES[1].unit(work)):
        assert set(units.do(replace(unit, compute=fails))) >= {"test", "facts"}
    for unit in (replace(PEER, seed=1).unit(work), replace(PEER, table_l2=3e-3).unit(work)):
        assert units.found(unit) is None
        with pytest.raises(AssertionError, match="done again"):
            units.do(replace(unit, compute=fails))
    assert units.found(replace(PEER.unit(work), key="other code")) is None


def test_the_plan_has_every_unit_and_the_short_form_is_part_of_it(done: tuple[Path, dict[str, Any]]) -> None:
    work = done[0]
    found = list(plan.units(Units(work), work, 2))
    distinct = {unit.name for unit in found}
    for log in plan.MOVIELENS:
        for peer in PEERS:
            for table_l2 in GRID:
                assert Training(peer, "dcnv2", log, table_l2).unit(work).name in distinct
    assert Training("FuxiCTR", "deepfm", "ml_time", 1e-3, 1).unit(work).name in distinct  # the L2 that is done
    assert grid_of("ml_random")[0] == 3e-4 and sorted(grid_of("ml_time")) == sorted(GRID)
    quick = [unit.name for unit in plan.quick_units(work)]
    assert len(quick) == 9 + len(TRAINED) and not any(peer in name for peer in PEERS for name in quick)


def test_the_l2_of_the_lowest_validation_logloss_is_chosen(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    label = data.load("ml_time", done[0]).part("valid").label
    units = Units(tmp_path)
    assert best_training(units, done[0], "FuxiCTR", "deepfm", "ml_time") is None
    for table_l2, size in ((1e-4, 0.0), (1e-3, 1.0), (3e-3, -1.0)):
        unit = replace(PEER, table_l2=table_l2).unit(done[0])
        scores = {"valid": (label - 0.5) * size, "test": label, "facts": label}
        units.do(replace(unit, compute=lambda scores=scores: scores))
    assert best_training(units, done[0], "FuxiCTR", "deepfm", "ml_time") == PEER


def test_our_schedule_is_chosen_like_the_l2(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    ours = list(trainings(OURS, "deepfm", "ml_time", grid_of("ml_time")))
    assert len(ours) == len({training.unit(done[0]).name for training in ours}) == 2 * len(GRID)
    assert [training.table_l2 for training in trainings("FuxiCTR", "deepfm", "ml_time", GRID)] == list(GRID)
    assert {training.config.schedule for training in ours} == {"averaged", "linear"}
    assert len({(training.config.schedule, training.config.rate) for training in ours}) == 2
    assert all(training.config.unknown_share == 0 and training.config.budget is None for training in ours)
    label, units = data.load("ml_time", done[0]).part("valid").label, Units(tmp_path)
    for training, size in zip(ours, (0.2, 1.0, 0.5), strict=False):
        scores = {"valid": (label - 0.5) * size, "test": label, "facts": label}
        units.do(replace(training.unit(done[0]), compute=lambda scores=scores: scores))
    assert best_training(units, done[0], OURS, "deepfm", "ml_time") == ours[1]


def test_the_hash_of_code_is_that_of_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.training.units.ROOT", tmp_path)
    file = tmp_path / "a.py"
    hashes = []
    for text in (
        '"""Doc."""\nx = 1\n',
        "x = 1  # one\n",
        "x = 2\n",
        'x = 1\n\n\ndef f():\n    """Doc."""\n    return 1\n',
    ):
        file.write_text(text, encoding="utf-8")
        hashes.append(code_of("a.py"))
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_intervals_are_paired() -> None:
    rng = np.random.default_rng(0)
    label, user = (rng.random(2000) < 0.4).astype(np.float32), rng.integers(0, 200, 2000)
    rows = Rows.of(label, user)
    first = label + rng.normal(size=2000)
    same = rows.auc([(first, first)])
    assert (same["value"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    better = rows.auc([(first, first + rng.normal(size=2000))])
    assert better["low"] > 0 and rows.logloss([(first - 0.4, -first)])["high"] < 0
    part = rows.take(user < 50)
    assert len(part.label) == (user < 50).sum() and part.cluster.max() == len(np.unique(user[user < 50])) - 1


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that the scripts of the peers import, as they import it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("job")
    sys.modules.pop("job", None)


@pytest.mark.parametrize(
    ("losses", "kept", "epochs"), [([3, 2, 1, 5, 5, 0], 2, 5), ([1, 2, 3], 0, 3), ([3, 2, 1], 2, 3)]
)
def test_a_peer_keeps_its_best_weights_and_stops(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, jobs: Any, losses: list[int], kept: int, epochs: int
) -> None:
    folder = data.exported("ml_time", done[0])
    job = jobs.Job(str(folder), "deepfm", 1e-3, 0, 16, [8], 64, 1e-3, 6 if len(losses) > 3 else 3, 2)
    assert set(job.sizes()) | {"label"} == set(job.part("train").columns)
    truth = job.part("valid")["label"].to_numpy()
    state = {"epoch": torch.tensor(-1)}

    def epoch() -> None:
        state["epoch"] = state["epoch"] + 1

    def predict(part: str) -> np.ndarray:
        p = np.exp(-np.float64(losses[int(state["epoch"])]))
        return np.where(truth > 0.5, p, 1 - p) if part == "valid" else np.full(3, float(state["epoch"]) / 10)

    trained = jobs.by_epochs(job, epoch, predict, lambda: state, state.update)
    assert trained.epochs == kept + 1 and trained.rows == epochs * len(job.part("train"))
    assert trained.test.tolist() == [kept / 10] * 3
    sys.argv[1:] = ["", str(tmp_path / "out.npz")]
    jobs.write(trained)
    with np.load(tmp_path / "out.npz") as written:
        np.testing.assert_allclose(1 / (1 + np.exp(-written["test"])), trained.test.clip(1e-9), rtol=1e-6)


def test_the_rows_of_a_peer_are_those_of_ours(done: tuple[Path, dict[str, Any]]) -> None:
    import polars as pl

    folder, training_set = data.exported("ml_time", done[0]), data.load("ml_time", done[0])
    for part in data.PARTS:
        frame, rows = pl.read_parquet(folder / f"{part}.parquet"), training_set.part(part)
        assert np.array_equal(frame.drop("label").to_numpy(), rows.ids)
        assert np.array_equal(frame["label"].to_numpy(), rows.label)
    columns = [column.name for column in training_set.encoder.columns]
    assert read_json(folder / "sizes.json") == dict(zip(columns, training_set.encoder.num_values, strict=True))


def test_another_build_of_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(environment, "_run", commands.append)
    monkeypatch.setattr(environment, "_torch", lambda python: "2.13.0+cu130 13.0" if commands else "")
    with pytest.raises(SystemExit, match="set TORCH_INDEX to the same index"):
        python_of(PEERS["FuxiCTR"], tmp_path)
    assert not any("uv" in command for command in commands)
    ours = f"{torch.__version__} {torch.version.cuda}"
    monkeypatch.setattr(environment, "_torch", lambda python: ours)
    for _ in range(2):  # the second time nothing is installed
        assert python_of(PEERS["FuxiCTR"], tmp_path).name == "python"
    assert sum("uv" in command for command in commands) == 1


@pytest.mark.parametrize("name", list(PEERS))
def test_every_package_of_a_peer_is_pinned_and_none_is_torch(name: str) -> None:
    lines = [line for line in PEERS[name].packages.splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines) and PEERS[name].version in lines
    assert not any(line.startswith(("torch==", "nvidia", "triton")) for line in lines)
    assert (FOLDER / PEERS[name].script).is_file()


def test_a_vector_of_an_unknown_value_follows_from_its_other_fields(done: tuple[Path, dict[str, Any]]) -> None:
    training_set = data.load("ml_time", done[0])
    fields = FieldSpace.of(training_set.schema, training_set.encoder)
    train, test = training_set.part("train"), training_set.part("test")
    model = build_backbone(DeepFMConfig(dim=4, hidden=(8,)), fields, seed=0)
    columns = unknown.keys_of(training_set, fields)
    assert {fields.names[c]: [fields.names[o] for o in others] for c, others in columns.items()} == {
        "user_id": ["city"],
        "item_id": ["topic"],
    }
    (user, (city,)), *_ = columns.items()
    of_city = np.random.default_rng(0).normal(size=(fields.num_values[city], 5))
    start = fields.offsets[user]
    with torch.no_grad():
        for value, place in set(zip(train.ids[:, user].tolist(), train.ids[:, city].tolist(), strict=True)):
            model.embedding.table[start + value] = torch.from_numpy(of_city[place]).float()
    vectors = {user: Vectors.fitted(model, train, user, (city,))}
    np.testing.assert_allclose(vectors[user].of(test.ids), of_city[test.ids[:, city]], atol=0.3)
    mean = Vectors.fitted(model, train, user, ()).of(test.ids[:1])
    known = model.embedding.table.detach()[start + 1 : start + fields.num_values[user]]
    np.testing.assert_allclose(mean[0], known.mean(dim=0), atol=1e-5)
    plain = logits_of(model, BlockLoader(test))
    np.testing.assert_allclose(unknown.logits_with(model, test, vectors), plain, atol=1e-5)  # no user is unknown
    test.ids[::2, user] = 0
    changed = unknown.logits_with(model, test, vectors) != logits_of(model, BlockLoader(test))
    assert changed[::2].all() and not changed[1::2].any()


def test_the_handlings_of_unknown_values_are_compared_with_none(done: tuple[Path, dict[str, Any]]) -> None:
    table = done[1]["unknown"]["ml_time"]
    rows = {row["handling"]: row for row in table["rows"]}
    assert list(rows) == [unknown.NONE, "new in earlier blocks", MEAN, FIELDS]
    assert rows[unknown.NONE]["over_none"] == {} and rows[MEAN]["auc"] == rows[unknown.NONE]["auc"]  # none is unknown
    assert set(rows[MEAN]["over_none"]) == {"all", "both known"} and table["shares"]["unknown user"] == 0
    trained = rows["new in earlier blocks"]
    assert trained["auc"] - rows[unknown.NONE]["auc"] == pytest.approx(trained["over_none"]["all"]["auc"]["value"])
    settings = {str(Handling("ml_time", name).config) for name in TRAINED}
    assert len(settings) == len(TRAINED)

"""A search over a recipe: it stays within its budget, continues after a kill, and its winner is a recipe file that trains."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from pipelines.arguments import RunArguments
from pipelines.check import chosen_recipe
from pipelines.tune import PAGE, chosen_training, first_settings, suggested, tune, with_settings
from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.cli import main
from thinktwice.data.warm_start import START_FOLDER
from thinktwice.errors import PipelineError, ResourceError, TrainingError
from thinktwice.files import write_json
from thinktwice.selection.study import STATE_FILE, TrialResult, search
from thinktwice.train.finetune import finetune

TINY = recipes.resolved("tiny", settings=["finetune.epochs=0.5"])


class Clock:
    """Seconds that pass where a test says so, and ``tick`` at every look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def bowl(trial: optuna.Trial, ends: float) -> float:
    return (trial.suggest_float("x", -1.0, 1.0) - 0.3) ** 2


def found(folder: Path, trials: int = 3, objective: Any = bowl, identity: str = "a") -> Any:
    """A search whose every trial takes a second, until ``trials`` have ended, those of earlier calls included."""
    clock = Clock()

    def ticking(trial: optuna.Trial, ends: float) -> float:
        clock.now += 1.0
        return float(objective(trial, ends))

    return search(folder, ticking, minutes=trials / 60, seed=1, identity=identity, first={"x": 0.9}, clock=clock)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("small") / "training_set", rows=1500)


def test_the_winner_is_a_recipe_file_that_trains(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, study = tmp_path / "tuned.yaml", tmp_path / "study ?x=1#%41"
    arguments = ["--training-set", str(data), "--recipe", "tiny", "--set", "finetune.epochs=0.5", "--minutes", "0.01"]
    assert main(["tune", *arguments, "--out", str(out), "--study", str(study)]) == 0
    shown = capfd.readouterr()
    *told, last = shown.out.splitlines()
    assert last == str(out) and told[0].startswith("trial 1: complete, validation logloss 0.") and shown.err == ""
    losses = [float(line.split()[-1]) for line in told if line.startswith("trial") and "logloss" in line]
    recipe = recipes.from_file(out)
    assert len(recipe.finetune.table_l2) == 1 and recipe.finetune.budget is None
    record = finetune(data, tmp_path / "model", recipe.model, recipe.finetune)
    assert record.valid.logloss <= min(losses) + 0.01 and record.trials == ()
    page = (study / PAGE).read_text()
    assert "Search over settings for small" in page and "<svg" in page and "finetune.rate" in page
    assert chosen_recipe(str(out), "", "", [])["recipe"] == recipe.model_dump_json()


def test_a_search_over_a_recipe_starts_with_it_prunes_at_the_budget_and_repeats(data: Path, tmp_path: Path) -> None:
    def results(name: str) -> tuple[Any, ...]:
        ended: list[TrialResult] = []
        out, clock = tmp_path / f"{name}.yaml", Clock(tick=1.0)
        done = tune(data, out, tmp_path / name, TINY, minutes=0.5, seed=3, on_trial=ended.append, clock=clock)
        assert tuple(ended) == done.trials
        return done.trials

    one = results("one")
    first = {name: pytest.approx(value) for name, value in first_settings(TINY).items()}
    assert {name: one[0].settings[name] for name in first} == first  # the recipe itself was tried
    assert one[0].state == "complete" and one[0].notes["AUC"] > 0 and one[-1].state == "pruned"
    assert 30 <= sum(trial.seconds for trial in one) <= 33  # the last trial ends with the budget
    assert one == results("two")
    assert (tmp_path / "one.yaml").read_text() == (tmp_path / "two.yaml").read_text()


def test_the_commands_of_the_page_follow_each_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As written, but for a shorter search; the run stops where its steps would start."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    first, second = (line.split()[1:] for line in page.split("```sh\n")[1].split("```")[0].splitlines())
    monkeypatch.chdir(tmp_path)
    Path(".thinktwice").mkdir()
    write_json(Path(".thinktwice/last_run.json"), {"training_set": str(data)})
    minutes = first.index("--minutes") + 1
    assert main([*first[:minutes], "0.01", "--recipe", "tiny"]) == 0
    seen = []

    def run_local(arguments: RunArguments, **_: object) -> None:
        seen.append(arguments.recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.run.run_local", run_local)
    assert main(second) == 130
    assert seen == [recipes.from_file("tuned.yaml").model_dump_json()]
    assert Path(".thinktwice/tune/tune.html").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == "tuned.yaml"


def test_an_output_that_cannot_be_written_is_refused_before_the_search(data: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="cannot be written: the folder"):
        tune(data, tmp_path / "none" / "out.yaml", tmp_path / "s", TINY, minutes=1, seed=0)
    assert not (tmp_path / "s").exists()


def test_a_training_set_that_continues_a_bundle_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "set")
    (tmp_path / "set" / START_FOLDER).mkdir()
    with pytest.raises(
        PipelineError, match="continues a bundle, whose sizes are given: search on one of a run without"
    ):
        tune(tmp_path / "set", tmp_path / "out.yaml", tmp_path / "s", TINY, minutes=1, seed=0)


def test_a_search_stops_at_its_budget_and_continues_with_what_is_left(tmp_path: Path) -> None:
    one = found(tmp_path, 3)
    assert len(one.trials) == 3 and one.trials[0].settings == {"x": 0.9}
    assert found(tmp_path, 3) == one  # nothing is left
    two = found(tmp_path, 6)
    assert len(two.trials) == 6 and two.trials[:3] == one.trials
    assert two.best.loss == min(trial.loss for trial in two.trials)
    assert found(tmp_path / "other", 6) == two  # in one process or two


KILLED = """
import os, signal, sys
from thinktwice.selection.study import search
def objective(trial, ends):
    x = trial.suggest_float("x", -1.0, 1.0)
    if trial.number == int(sys.argv[2]):
        print(x, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x
search(sys.argv[1], objective, minutes=1, seed=1, identity="a", first={"x": 0.9})
"""


def killed(folder: Path, number: int) -> float:
    """A search that a kill ends in that trial; the setting that it tried."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(number)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL and done.stderr == ""
    return float(done.stdout)


def test_a_killed_search_continues_and_tries_the_cut_trial_again_once(tmp_path: Path) -> None:
    assert killed(tmp_path, 0) == 0.9
    assert killed(tmp_path, 1) == 0.9  # again
    cut = killed(tmp_path, 3)  # not a third time: trial 2 was a new one
    done = found(tmp_path, 5).trials
    assert [trial.state for trial in done[:5]] == ["stopped", "stopped", "complete", "stopped", "complete"]
    assert cut != 0.9 and done[4].settings["x"] == cut and done[2].settings["x"] != 0.9
    assert sum(trial.settings.get("x") == 0.9 for trial in done) == 2


def test_two_searches_do_not_share_a_folder(tmp_path: Path) -> None:
    def second(trial: optuna.Trial, ends: float) -> float:
        with pytest.raises(PipelineError, match=r"another search works in .*: wait for it, or give another folder"):
            found(tmp_path)
        return bowl(trial, ends)

    assert len(found(tmp_path, 1, second).trials) == 1


def test_what_diverges_fails_alone_and_bad_trials_are_pruned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def some(trial: optuna.Trial, ends: float) -> float:
        x = trial.suggest_float("x", -1.0, 1.0)
        if trial.number == 1:
            raise TrainingError("the training loss is nan")
        if trial.number == 2:
            return float("nan")
        for step in range(10):
            trial.report(x if trial.number < 8 else 100.0, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    states = [trial.state for trial in found(tmp_path, 10, some).trials]
    assert states[:3] == ["complete", "fail", "fail"] and states[8:] == ["pruned", "pruned"]

    def never(trial: optuna.Trial, ends: float) -> float:
        raise TrainingError("the training loss is nan")

    with pytest.raises(PipelineError, match=r"no trial of the search in .* gave a loss"):
        found(tmp_path / "never", objective=never)
    assert capfd.readouterr().err == ""


def test_an_error_that_is_not_of_the_training_ends_the_search_and_a_rerun_goes_on(tmp_path: Path) -> None:
    def full(trial: optuna.Trial, ends: float) -> float:
        bowl(trial, ends)
        raise ResourceError("the disk is full")

    with pytest.raises(ResourceError, match="the disk is full"):
        found(tmp_path, objective=full)
    done = found(tmp_path, 2).trials
    assert [trial.state for trial in done] == ["stopped", "complete", "complete"]
    assert done[0].settings == done[1].settings == {"x": 0.9}


def test_a_folder_of_another_search_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    found(tmp_path / "a")
    with pytest.raises(PipelineError, match="another recipe, training set or seed"):
        found(tmp_path / "a", identity="b")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / STATE_FILE).write_bytes(b"no database" * 100)
    with pytest.raises(PipelineError, match=r"study\.db cannot be read"):
        found(tmp_path / "b")


@pytest.mark.parametrize("name", ["default", "tiny", "ml-100k"])
@pytest.mark.parametrize("backbone", ["lr", "deepfm", "din"])
def test_every_drawn_setting_is_one_of_the_recipe(name: str, backbone: str) -> None:
    recipe = recipes.resolved(name, backbone=backbone)
    for number in range(20):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        trial = study.ask()
        drawn = suggested(trial, recipe)
        tried = with_settings(recipe, drawn)
        assert tried.finetune.table_l2 == (drawn["finetune.table_l2"],) and tried.model.name == backbone
    assert set(first_settings(recipe)) <= set(drawn)


def test_without_a_run_the_training_set_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="or give --training-set"):
        chosen_training([], "tiny", "", tmp_path, None)
    assert chosen_training([], "tiny", "fm", tmp_path, tmp_path)[1].model.name == "fm"

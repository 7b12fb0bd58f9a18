"""A run that cannot succeed says so at once: no process is started and no folder written."""

import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
from pydantic import ValidationError

from components.choices import DeployTarget
from pipelines import cli
from pipelines.arguments import RunArguments
from pipelines.check import check_arguments, chosen_split
from pipelines.ctr_training import build_pipeline
from pipelines.run import run_local
from tests.pipelines.own_log import write_log
from thinktwice import recipes
from thinktwice.choices import Mode, OnlineStoreKind, PretrainingOption, RecipeName, SearchMode
from thinktwice.cli import main
from thinktwice.data.sources.registry import SOURCES
from thinktwice.errors import ThinktwiceError
from thinktwice.testtime.modes import PRESETS

#: Every parameter with a closed set of values, by its name among the arguments of a run.
CHOICES: dict[str, Any] = {
    "pretraining": PretrainingOption,
    "test_time_mode": SearchMode,
    "online_store": OnlineStoreKind,
    "target": DeployTarget,
}
OPTIONS = {"test_time_mode": "test_time"}  # where the command line has another name


def test_every_choice_has_its_settings():
    assert set(recipes.RECIPES) == set(get_args(RecipeName))
    assert set(PRESETS) == set(get_args(Mode)) == set(get_args(SearchMode)) - {"lean"}


@pytest.mark.parametrize("name", CHOICES)
def test_the_arguments_the_command_line_and_the_graph_agree_with_the_type(name: str):
    choices = get_args(CHOICES[name])
    assert get_args(RunArguments.model_fields[name].annotation) == choices
    option = typing.get_type_hints(cli.run)[OPTIONS.get(name, name)]
    assert get_args(option) == choices
    graph = build_pipeline("local").component_spec.inputs
    assert graph is not None and graph[name].default in choices
    assert graph[name].default == RunArguments.model_fields[name].default
    for value in choices:
        assert getattr(RunArguments.model_validate({name: value}), name) == value


@pytest.mark.parametrize("name", CHOICES)
def test_a_value_that_is_not_among_the_choices_is_refused_with_the_choices(
    name: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ValidationError) as caught:
        RunArguments.model_validate({name: "twice"})
    assert main(["pipeline", "run", f"--{OPTIONS.get(name, name).replace('_', '-')}", "twice"]) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    for choice in get_args(CHOICES[name]):
        assert f"'{choice}'" in str(caught.value) and f"'{choice}'" in shown


def test_the_split_of_the_command_line_is_one_text():
    assert chosen_split("time", 0) == RunArguments().split == "time"
    assert chosen_split("time", 7) == chosen_split("days:7", 7) == "days:7"
    assert RunArguments(split="column:part").split == "column:part"
    with pytest.raises(ThinktwiceError, match="exclude each other"):
        chosen_split("random", 7)
    with pytest.raises(ValidationError, match="did you mean random"):
        RunArguments(split="randm")


def test_a_wrong_split_ends_the_command_with_one_sentence(capsys: pytest.CaptureFixture[str]):
    assert main(["pipeline", "run", "--source", "sim", "--split", "colum:part"]) == 1
    shown = capsys.readouterr().err
    assert "split 'colum:part' is unknown: did you mean column?" in shown and len(shown.splitlines()) == 1


def test_naming_the_parameters_of_a_run_loads_no_torch():
    code = (
        "import sys, pipelines.cli\n"
        "assert not {'torch', 'numpy', 'polars'} & set(sys.modules), 'the command line'\n"
        "import pipelines.arguments, thinktwice.recipes, thinktwice.testtime.modes, thinktwice.selection.config\n"
        "import thinktwice.train.config, thinktwice.pretrain.config, thinktwice.models.config\n"
        "assert not {'torch', 'polars', 'scipy'} & set(sys.modules), 'the settings'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_sources_named_in_the_help_exist(capsys: pytest.CaptureFixture[str]):
    assert main(["pipeline", "run", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    named = shown.partition("log comes from: ")[2].partition(" or another of `thinktwice data list`")[0]
    assert named and set(named.split(", ")) <= set(SOURCES)


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_every_source_is_known(source: str, tmp_path: Path):
    log, schema = write_log(tmp_path, rows=20)
    wants = SOURCES[source]
    path = str(log) if wants.path == "required" else ""
    check_arguments(RunArguments(source=source, source_path=path, schema_path="" if wants.has_schema else str(schema)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "movielens"}, "unknown source 'movielens'"),
        ({"source": "parquet"}, "with --path"),
        ({"source": "sim", "source_path": "LOG"}, "takes no path"),
        ({"source": "parquet", "source_path": "nowhere.parquet"}, "nowhere.parquet does not exist"),
        ({"source": "parquet", "source_path": "LOG"}, "pass it with --schema"),
        ({"source": "parquet", "source_path": "LOG", "schema_path": "nowhere.yaml"}, "nowhere.yaml"),
        ({"source": "ml-100k", "online_store": "redis"}, "add --redis-address"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(tmp_path: Path, changes: dict[str, str], words: str):
    log, _ = write_log(tmp_path, rows=20)
    arguments = RunArguments(**{name: str(log) if value == "LOG" else value for name, value in changes.items()})
    with pytest.raises(ThinktwiceError) as caught:
        run_local(arguments, work_dir=tmp_path / "work", state_dir=tmp_path / "state")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "work").exists() and not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("column:devic", "--split column:devic: the log has no such column; did you mean 'device'?"),
        ("column:device", "rows have the value '"),
        ("column:part", "40 of the first 2,000 rows have no value; write train, valid or test"),
        ("days:3", "leaves no rows for training or test: the rows of"),
        ("dates:2024-03-01,2024-03-02", "are of 2024-03-01 to 2024-03-05; choose dates within them"),
        ("dates:2024-03-03,2024-03-06", "--split dates:2024-03-03,2024-03-06 leaves no rows"),
        ("column:good", ""),
        ("days:2", ""),
        ("dates:2024-03-02,2024-03-05", ""),
    ],
)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_split_that_the_log_cannot_have_is_refused_at_once(tmp_path: Path, split: str, words: str, form: str):
    log, schema = write_log(tmp_path, rows=2000)
    row = pl.int_range(pl.len())
    names = pl.when(row % 3 == 0).then(pl.lit("Test")).otherwise(pl.lit("train"))
    frame = pl.read_parquet(log).with_columns(
        part=pl.when(row % 50 > 0).then(names), good=pl.when(row != 7).then(names), look=pl.lit("1,2,3,4")
    )
    log.unlink()
    log = log.with_suffix(f".{form}")
    frame.write_csv(log) if form == "csv" else frame.write_parquet(log)
    arguments = RunArguments(source="log", source_path=str(log), schema_path=str(schema), split=split)
    if not words:
        check_arguments(arguments)
        return
    with pytest.raises(ThinktwiceError) as caught:
        check_arguments(arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    check_arguments(arguments.model_copy(update={"limit": 10}))  # which rows it has is known when they have been read


@pytest.mark.parametrize("limit", ["nan", "inf", "0.5", "-1", "much"])
def test_a_limit_of_cost_that_is_none_is_refused(limit: str, capsys: pytest.CaptureFixture[str]):
    assert main(["pipeline", "run", "--max-cost", limit]) != 0
    error = " ".join(capsys.readouterr().err.split())
    assert "--max-cost" in error and "Traceback" not in error

"""A run that cannot succeed says so at once: no process is started and no folder written."""

from pathlib import Path
from typing import get_args

import pytest

from pipelines.arguments import RunArguments
from pipelines.check import KNOWN_RECIPES, TEST_TIME_MODES, check_arguments
from pipelines.run import run_local
from tests.pipelines.own_log import write_log
from thinktwice import recipes
from thinktwice.cli import main
from thinktwice.data.sources.registry import SOURCES
from thinktwice.errors import ThinktwiceError
from thinktwice.testtime.config import Mode


def test_the_recipes_named_are_the_recipes_there_are():
    assert set(KNOWN_RECIPES) == set(recipes.RECIPES)


def test_the_test_time_modes_named_are_those_there_are(tmp_path: Path):
    assert set(TEST_TIME_MODES) == {"lean", *get_args(Mode)}
    with pytest.raises(ThinktwiceError, match="test-time mode 'twice' is unknown: choose one of lean, off"):
        check_arguments(RunArguments(source="sim", test_time_mode="twice"))


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
        ({"source": "parquet"}, "by --path"),
        ({"source": "sim", "source_path": "LOG"}, "takes no path"),
        ({"source": "parquet", "source_path": "nowhere.parquet"}, "nowhere.parquet does not exist"),
        ({"source": "parquet", "source_path": "LOG"}, "give it by --schema"),
        ({"source": "parquet", "source_path": "LOG", "schema_path": "nowhere.yaml"}, "nowhere.yaml"),
        ({"source": "ml-100k", "recipe": "large"}, "recipe 'large' is unknown"),
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

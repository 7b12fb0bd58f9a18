"""The runs of a work folder: what is listed, and that a clean-up removes what it says and nothing that something needs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.arguments import RunArguments
from pipelines.run import only_run
from pipelines.runs import clean as cleaning
from pipelines.runs import records
from pipelines.runs.records import named, runs_of, short_names
from thinktwice.cli import main
from thinktwice.errors import BundleError, PipelineError
from thinktwice.files import write_json
from thinktwice.recipes import resolved

TASKS = ("ingest", "validate", "build-training-set", "evaluate", "bless")
START = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
REASON = "it orders rows worse than chance"


def name_of(index: int) -> str:
    return (START + timedelta(minutes=index)).strftime(records.NAME_FORMAT)


def add_run(
    work: Path,
    index: int,
    *,
    reused: dict[str, int] | None = None,
    ends: str = "blessed",
    arguments: dict[str, object] | None = None,
) -> str:
    """A run as the runner leaves it. ``reused``: task -> the run whose output it shares. ``ends``: blessed, refused, failed (in the last
    step) or killed."""
    folder = work / "runs" / name_of(index)
    known = RunArguments().model_dump() | {"code_version": "1", "data_version": "d"} | (arguments or {})
    write_json(
        folder / "request.json", {"arguments": known, "pipeline_root": str(work / "pipeline"), "cache_root": "x"}
    )
    (folder / "run.log").write_text("log " * index)
    tasks = {}
    for task in TASKS:
        source = (reused or {}).get(task, index)
        place = work / "pipeline" / f"ctr-training-{source}" / task
        if source == index:
            fill(work, place, index)
        failed = ends == "failed" and task == TASKS[-1]
        tasks[task] = {
            "status": "FAILURE" if failed else "SUCCESS",
            "reused": source != index,
            "exit_status": 1 if failed else 0,
            "seconds": 1.0,
            "outputs": {
                "Output": ends != "refused" if task in ("validate", "bless") else "x",
                "result": str(place / "result"),
            },
        }
        if task == "evaluate":
            tasks[task]["outputs"]["bundle"] = str(place / "bundle")
        if task == "ingest":
            tasks[task]["outputs"]["model_version"] = f"shop-{index}"
    if ends != "killed":
        write_json(folder / "result.json", {"ended_well": ends != "failed", "tasks": tasks})
    if ends == "blessed":
        write_json(work / "last_run.json", {"log": str(folder / "run.log"), "tasks": tasks})
    return name_of(index)


def fill(work: Path, place: Path, index: int) -> None:
    """Outputs of a task, written while run ``index`` worked, and their entry in the cache."""
    (place / "result").mkdir(parents=True)
    (place / "result" / "data").write_bytes(b"x" * 1000)
    if place.name == "evaluate":
        write_json(place / "bundle" / "manifest.json", {"of": index})
    if place.name == "validate":
        write_json(place / "quarantine" / "quarantine.json", {"rows_quarantined": index})
    key = f"{index}-{place.name}"
    write_json(work / "reuse" / f"{key}.json", {"result": {"uri": str(place / "result"), "metadata": {}}})
    write_json(work / "reuse" / f"{key}.outputs", {"trees": {}, "said": []})
    at = (START + timedelta(minutes=index, seconds=30)).timestamp()
    os.utime(place, (at, at))


def tree(work: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(work)): p.read_bytes() for p in sorted(work.rglob("*")) if p.is_file() and p.name != "lock"
    }


def clean(work: Path, keep: int = 1, state: Path | None = None) -> cleaning.Plan:
    made = cleaning.plan(work, state or work / "state", keep)
    cleaning.clean(work, state or work / "state", keep, made)
    return made


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[str, dict[str, int]]], int]:
    """(how each run ends, what it reuses of which run before) of some runs, and how many to keep."""
    runs: list[tuple[str, dict[str, int]]] = []
    origin: list[dict[str, int]] = []
    for index in range(draw(st.integers(1, 6))):
        reused = {}
        if index:
            before = draw(st.integers(0, index - 1))
            reused = {task: origin[before][task] for task in TASKS if draw(st.booleans())}
        runs.append((draw(st.sampled_from(["blessed", "blessed", "refused", "failed", "killed"])), reused))
        origin.append({task: reused.get(task, index) for task in TASKS})
    return runs, draw(st.integers(1, 6))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(histories(), st.integers(0, 40))
def test_what_a_kept_run_needs_stays_and_a_kill_is_repaired(
    history: tuple[list[tuple[str, dict[str, int]]], int], kill_at: int
) -> None:
    runs, keep = history
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for index, (ends, reused) in enumerate(runs):
            add_run(work, index, ends=ends, reused=reused)
        before, listed = tree(work), runs_of(work)
        killed = Path(scratch + "-killed")
        shutil.copytree(work, killed)
        made = clean(work, keep)
        after = tree(work)
        assert after.items() <= before.items()  # nothing that stays is changed
        assert sum(len(before[path]) for path in before.keys() - after.keys()) == made.size
        newest = {run.name for run in listed[-keep:]}
        finished = [name_of(i) for i, (ends, _) in enumerate(runs) if ends == "blessed"][-1:]
        assert {run.name for run in runs_of(work)} == newest | set(finished) == {run.name for run, _ in made.kept}
        for run in runs_of(work):
            for folder, task in run.needs:
                assert (work / "pipeline" / folder / task / "result" / "data").is_file()
        entries = {Path(path).stem for path in after if path.startswith("reuse/")}
        whole = {f"{p.parent.name.removeprefix('ctr-training-')}-{p.name}" for p in (work / "pipeline").glob("*/*")}
        assert entries == whole  # no entry of what is gone, and every entry of what is left
        assert clean(work, keep).size == 0 and tree(work) == after

        assert after == killed_and_repaired(killed, keep, kill_at)
        shutil.rmtree(killed)


class KilledError(Exception):
    """A kill in the middle of a clean-up."""


def killed_and_repaired(work: Path, keep: int, kill_at: int) -> dict[str, bytes]:
    """Files after a clean-up that was killed at its ``kill_at``-th removal, and the one after it."""
    steps = iter(range(1000))

    def unlink(path: Path) -> None:
        if next(steps) == kill_at:
            raise KilledError
        path.unlink()

    with pytest.MonkeyPatch.context() as patch:
        # The files of a folder one by one, as rmtree itself does.
        patch.setattr(cleaning, "shutil", SimpleNamespace(rmtree=lambda path: remove_tree(path, unlink)))
        with contextlib.suppress(KilledError):
            clean(work, keep)
    clean(work, keep)
    return tree(work)


def remove_tree(path: Path, unlink: Callable[[Path], None]) -> None:
    for entry in sorted(path.iterdir()):
        remove_tree(entry, unlink) if entry.is_dir() else unlink(entry)
    path.rmdir()


@pytest.mark.parametrize("who", ["champion", "challenger", "base of a challenger", "experiment", "ended experiment"])
def test_the_runs_of_served_models_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    for index in range(3):
        add_run(tmp_path, index)
    digest = runs_of(tmp_path)[0].bundle_hash
    assert len(digest) == 64
    experiment = "experiment" in who
    if experiment:
        (tmp_path / "experiments" / "e").mkdir(parents=True)
        (tmp_path / "experiments" / "e" / "record.jsonl").touch()
        file = SimpleNamespace(name="e", arms=(SimpleNamespace(bundle=digest[:12]), SimpleNamespace(bundle="shop-1")))
        monkeypatch.setattr(cleaning, "read_lines", lambda path: (path,))
        monkeypatch.setattr(cleaning, "state_of", lambda lines: SimpleNamespace(file=file))
        monkeypatch.setattr(cleaning, "ended_experiments", lambda folder: {"e"} if "ended" in who else set())
    info = SimpleNamespace(bundle_hash=digest, champion=None)
    if who == "champion":
        monkeypatch.setattr(cleaning, "read_champion", lambda state: SimpleNamespace(info=info))
    if "challenger" in who:
        own, base = (digest, None) if who == "challenger" else ("f" * 64, digest)
        version = SimpleNamespace(bundle_hash=own, challenger=SimpleNamespace(champion=base))
        monkeypatch.setattr(cleaning, "versions", lambda state: [version])
    clean(tmp_path)
    kept = (
        {name_of(2)}
        | ({name_of(0)} if "ended" not in who else set())
        | ({name_of(1)} if who == "experiment" else set())
    )
    assert {run.name for run in runs_of(tmp_path)} == kept


def test_outputs_of_a_killed_run_stay_for_the_next_one(tmp_path: Path) -> None:
    add_run(tmp_path, 0)
    add_run(tmp_path, 1, ends="killed")
    made = clean(tmp_path)
    assert made.size == 0 and (tmp_path / "pipeline" / "ctr-training-1" / "evaluate").is_dir()
    add_run(tmp_path, 2)
    made = clean(tmp_path)
    assert [removal.run.name for removal in made.removals] == [name_of(0), name_of(1)]
    assert {path.name for path in (tmp_path / "pipeline").iterdir()} == {"ctr-training-2"}


def test_a_work_folder_that_was_moved(tmp_path: Path) -> None:
    for index in range(2):
        add_run(tmp_path / "old", index)
    (tmp_path / "old").rename(tmp_path / "new")
    runs = runs_of(tmp_path / "new")
    assert runs[0].bundle is not None and runs[0].bundle.is_relative_to(tmp_path / "new")
    clean(tmp_path / "new")
    (left,) = runs_of(tmp_path / "new")
    assert left.name == name_of(1) and left.bundle is not None
    assert all((tmp_path / "new" / "pipeline" / folder / task).is_dir() for folder, task in left.needs)


def test_nothing_outside_and_no_link_is_removed(tmp_path: Path) -> None:
    work, outside = tmp_path / "work", tmp_path / "outside"
    (outside / "evaluate").mkdir(parents=True)
    (outside / "evaluate" / "mine").touch()
    for index in range(2):
        add_run(work, index)
    (work / "pipeline" / "linked").symlink_to(outside)
    (work / "pipeline" / "ctr-training-0" / "link").symlink_to(outside / "evaluate")
    (work / "runs" / name_of(0).replace("03", "02")).symlink_to(outside)
    (work / "runs" / "notes").mkdir()
    result = work / "runs" / name_of(0) / "result.json"
    content = json.loads(result.read_text())
    content["tasks"]["bless"]["outputs"] |= {
        "a": str(outside / "evaluate"),
        "b": str(work / "pipeline/../../outside/x"),
    }
    write_json(result, content)
    clean(work)
    assert (outside / "evaluate" / "mine").is_file() and (work / "runs" / "notes").is_dir()
    assert [run.name for run in runs_of(work)] == [name_of(1)]


@pytest.mark.parametrize("damaged", ["result.json", "request.json", "last_run.json"])
def test_nothing_is_removed_when_a_kept_run_cannot_be_read(tmp_path: Path, damaged: str) -> None:
    for index in range(2):
        add_run(tmp_path, index)
    path = tmp_path / damaged if damaged == "last_run.json" else tmp_path / "runs" / name_of(1) / damaged
    path.write_text("{")
    before = tree(tmp_path)
    with pytest.raises(PipelineError, match=str(path.parent) + ".*(restore|again)"):
        clean(tmp_path)
    assert tree(tmp_path) == before


def test_a_damaged_champion_stops_the_clean_up(tmp_path: Path) -> None:
    add_run(tmp_path, 0)
    (tmp_path / "state" / "versions" / "x").mkdir(parents=True)
    (tmp_path / "state" / "champion").symlink_to("versions/x")
    with pytest.raises(BundleError, match="champion"):
        clean(tmp_path)


def test_a_plan_is_carried_out_only_as_it_was_shown(tmp_path: Path) -> None:
    for index in range(3):
        add_run(tmp_path, index)
    made = cleaning.plan(tmp_path, tmp_path / "state", 2)
    add_run(tmp_path, 3)
    before = tree(tmp_path)
    with pytest.raises(PipelineError, match="changed meanwhile"):
        cleaning.clean(tmp_path, tmp_path / "state", 2, made)
    assert tree(tmp_path) == before


def test_a_run_in_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_run(tmp_path, 0)
    add_run(tmp_path, 1, ends="killed")
    with (tmp_path / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert [run.active for run in runs_of(tmp_path)] == [False, True]
        assert main(["runs", "--work", str(tmp_path)]) == 0
        assert "running" in capsys.readouterr().out
        assert main(["runs", "clean", "--keep", "1", "--yes", "--work", str(tmp_path)]) == 1
        assert "a run works in" in capsys.readouterr().err
    assert [run.verdict for run in runs_of(tmp_path)][1] == "stopped"


def test_a_look_at_the_runs_stops_no_run(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        released = threading.Timer(0.15, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        released.start()
        with only_run(tmp_path):
            assert records.is_running(tmp_path)
        released.join()
        assert not records.is_running(tmp_path)
        fcntl.flock(looking, fcntl.LOCK_SH)
        with pytest.raises(PipelineError, match="another run works in"), only_run(tmp_path):
            pass


def test_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = resolved("ml-1m", settings=["finetune.rate=0.5"]).model_dump_json()
    asked = {
        "source": "log",
        "source_path": "/x/a.csv\n/x/b.csv",
        "since": "2024-01-01",
        "limit": 1000,
        "recipe": changed,
    }
    add_run(tmp_path, 0, arguments=asked | {"seed": 7})
    add_run(tmp_path, 1, ends="failed")
    add_run(tmp_path, 2, ends="refused")
    add_run(tmp_path, 3, ends="killed")
    runs = runs_of(tmp_path)
    described = [run.arguments for run in runs if run.arguments is not None]
    assert described[0].data == "log a.csv and 1 more, since 2024-01-01, first 1,000 rows"
    assert described[0].training == "ml-1m with finetune.rate=0.5, test time lean"
    assert (described[1].data, described[1].training) == ("ml-1m", "default, test time lean")
    assert [run.verdict for run in runs] == [
        "blessed",
        "failed in the step bless",
        "refused by the validation",
        "stopped",
    ]
    assert main(["runs", "--work", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    words = set(shown.split())
    assert {name_of(i)[:19] for i in range(4)} <= words and {
        "finetune.rate=0.5,",
        "7",
        "a.csv",
        "stopped",
        "damaged",
    } <= words


def test_names(tmp_path: Path) -> None:
    for index in range(3):
        add_run(tmp_path, index)
    runs = runs_of(tmp_path)
    assert short_names(runs) == {name_of(i): name_of(i)[:19] for i in range(3)}
    assert named(runs, "last") is runs[-1] and named(runs, name_of(1)) is runs[1]
    assert named(runs, name_of(1)[:16]) is runs[1]
    for wrong, words in (("2026", "beginning of 3 runs"), ("x", "no run 'x'"), ("", "no run ''")):
        with pytest.raises(PipelineError, match=words):
            named(runs, wrong)
    same_second = [*runs, records.Run(tmp_path / (name_of(1)[:-1] + "1"), None, "", None)]
    assert short_names(same_second)[name_of(1)] == name_of(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs"], "contains no run: start one with `thinktwice pipeline run`"),
        (["runs", "clean"], "contains no run"),
        (["runs", "compare", "last", "x"], "contains no run"),
    ],
)
def test_no_run(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--work", str(tmp_path / "none")]) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_mistakes_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_run(tmp_path, 0)
    add_run(tmp_path, 1)
    add_run(tmp_path, 2, ends="killed")
    work, before = ["--work", str(tmp_path)], tree(tmp_path)
    for line, words in (
        (["compare", "last", "last", *work], "at least two different runs"),
        (["compare", "last", name_of(0), *work], "has no model to compare (stopped)"),
        (["clean", "--keep", "1", *work], "nothing was removed: give --yes"),
    ):
        assert main(["runs", *line]) == 1
        assert words in capsys.readouterr().err
    assert main(["runs", *work, "clean"]) == 1
    assert "behind the command" in capsys.readouterr().err
    assert main(["runs", "clean", "--keep", "0", *work]) == 2
    assert tree(tmp_path) == before
    assert main(["runs", "clean", "--keep", "1", "--yes", *work]) == 0
    shown = capsys.readouterr().out
    assert f"remove  {name_of(0)}: blessed" in shown and f"keep    {name_of(1)}: the last finished run" in shown
    assert "removed 1 run," in shown
    assert main(["runs", "clean", "--keep", "1", "--yes", *work]) == 0
    assert "nothing to remove" in capsys.readouterr().out

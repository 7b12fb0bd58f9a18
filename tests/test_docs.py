"""Every command in the documents is executed: here, by the gate, or by the test that is named beside it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import polars as pl
import pytest

from serving.config import load_config
from tests.data.test_object_log import OBJECT_LOG
from tests.pipelines.own_log import write_log
from tests.pipelines.test_replay import REPLAY
from thinktwice.choices import SplitKind
from thinktwice.data.split_spec import parse_split
from thinktwice.schema import parse_schema

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SERVING = ROOT / "docs" / "serving.md"
API = ROOT / "docs" / "api.md"
DOCUMENTS = (
    *(README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "examples" / "README.md", SERVING, API),
    *(ROOT / "docs" / name for name in ("architecture.md", "evidence.md", "internals-we-rely-on.md")),
    *(ROOT / "docs" / name for name in ("logs.md", "monitoring.md", "thinking-twice.md", "training.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

SCORE_COUNTED = "thinktwice score rows.parquet scored.parquet --features point-in-time --clean clean"
#: Commands that no test can run inside itself, and what does.
EXECUTED_ELSEWHERE = {
    "make demo": ".ci/run, with the small data set",
    "make demo-ab": "takes minutes; tests/long/test_demo_ab.py runs it",
    "make test": ".ci/run",
    "make test-long": "takes minutes; its target is checked here",
    "make lint": ".ci/run",
    "make setup": ".ci/run",
    "make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu": "tests/test_setup.py, with another index",
    "make format": "changes files; its target is checked here",
    "make bench-against COMMIT=HEAD~1": "takes minutes; its target is checked here",
    "make bench-NAME": "a pattern; its target is checked here",
    ".venv/bin/python -m pytest tests/models -k mask": "pytest itself",
    '.venv/bin/python -m pytest tests/serving -m "not server and not pipeline"': "pytest itself",
    '.venv/bin/python -m pytest -m "not server and not pipeline"': "pytest itself",
    "python examples/own_log.py out": "tests/test_examples.py",
    SCORE_COUNTED: "tests/serving/test_counted_requests.py, with a bundle and a store",
    "thinktwice tune --minutes 30": "tests/pipelines/test_tune.py, with fewer minutes",
    "thinktwice pipeline run --recipe tuned.yaml": "tests/pipelines/test_tune.py, after the line above",
    "thinktwice pipeline run --continue-from .thinktwice/state/champion/bundle": "tests/pipelines/test_run_local.py",
    "pre-commit install": "its list of checks is compared with make lint in test_docs_structure.py",
    "source .venv/bin/activate": "the shell's; the tests call the command line of the running Python",
    **dict.fromkeys(OBJECT_LOG, "tests/data/test_object_log.py, with an object store"),
    **dict.fromkeys(REPLAY, "tests/pipelines/test_replay.py"),
}


def commands(document: Path) -> list[str]:
    """The lines of the shell blocks of a document, without their comments."""
    found = []
    for language, text in FENCE.findall(document.read_text(encoding="utf-8")):
        if language in ("sh", ""):
            found += [re.split(r"\s+# ", line)[0].strip() for line in text.splitlines()]
    return [line for line in found if line]


def run(line: str, cwd: Path, ends_with: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one documented line as this Python's own command line would."""
    words = shlex.split(line)
    if words[0].removeprefix(".venv/bin/") == "thinktwice":
        words = [sys.executable, "-m", "thinktwice", *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == ends_with, f"{line}\n{done.stdout}\n{done.stderr}"
    return done


def test_every_documented_command_has_its_test() -> None:
    known = {*EXECUTED_ELSEWHERE, *INFERRED, *OWN_LOG, *ANYWHERE, *IN_THE_REPOSITORY, *SERVED, *RUNS, *PYTHON}
    unknown = [line for document in DOCUMENTS for line in commands(document) if line not in known]
    assert unknown == [], "documented, but executed by nothing"


def test_no_command_is_tested_that_the_documents_dropped() -> None:
    documented = {line for document in DOCUMENTS for line in commands(document)}
    listed = {*EXECUTED_ELSEWHERE, *INFERRED, *OWN_LOG, *ANYWHERE, *IN_THE_REPOSITORY, *SERVED, *RUNS, *PYTHON}
    assert listed - documented == set()


@pytest.mark.parametrize(
    "target",
    [
        "setup",
        "demo",
        "demo-ab",
        "test",
        "test-long",
        "lint",
        "format",
        "bench-quality",
        "bench-sim",
        "bench-testtime",
        "bench-training",
        "bench-evidence",
        "bench-combinations",
        "bench-serving",
        "bench-experiment",
        "bench-gateway",
        "bench-against",
        "clean",
    ],
)
def test_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_gate_runs_what_the_readme_promises() -> None:
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for line in ("make setup", "make lint", "make demo DATASET=ml-100k", "make test"):
        assert re.search(rf"^{re.escape(line)}$", gate, re.MULTILINE), line


INFERRED = (
    "thinktwice data infer-schema impressions.csv --out shop.yaml",
    "thinktwice pipeline run --source log --path impressions.csv --schema shop.yaml",
)


@pytest.mark.pipeline
@pytest.mark.timeout(900)
def test_a_csv_needs_two_commands(tmp_path: Path) -> None:
    log, by_hand = write_log(tmp_path, rows=1500)
    by_hand.unlink()
    vectors = pl.format("[{}]", pl.col("look").list.eval(pl.element().cast(pl.String)).list.join(","))
    pl.read_parquet(log).with_columns(look=vectors).write_csv(tmp_path / "impressions.csv")
    infer, train = INFERRED
    run(infer, tmp_path)
    schema = parse_schema((tmp_path / "shop.yaml").read_text(encoding="utf-8"), where="inferred")
    assert schema.entities.user is not None and schema.entities.user.source_column == "customer"
    assert [v.entity for v in schema.vectors] == ["item"]
    shown = run(f"{train} --recipe tiny --test-time off", tmp_path).stdout
    assert "lessed and deployed" in shown or "Not blessed" in shown


def test_the_splits_of_the_page_about_logs_are_splits() -> None:
    text = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    splits = re.findall(r"`--split ([^`]+)`", text)
    assert {parse_split(split).kind for split in splits} == set(get_args(SplitKind))


ANYWHERE = (
    "thinktwice data list",
    "thinktwice data schema ml-100k",
    "thinktwice data simulate --rows 20000 --out ad-log",
    "thinktwice release keygen --out keys",
    "thinktwice pipeline compile --profile gpu-single --out ctr_training.yaml",
    "thinktwice pipeline compile --profile gpu-single --kubernetes-manifest --out ctr_training.yaml",
)


@pytest.mark.parametrize("line", ANYWHERE)
def test_commands_that_need_nothing(line: str, tmp_path: Path) -> None:
    done = run(line, tmp_path)
    assert done.stdout.strip() or list(tmp_path.iterdir())


IN_THE_REPOSITORY = (
    "kubectl kustomize manifests/overlays/standard",
    "kubectl kustomize manifests/overlays/standard-kserve",
    "kubectl kustomize manifests/overlays/knative",
    ".venv/bin/thinktwice pipeline compile --profile gpu-single --out pipelines/golden/gpu-single.yaml",
)


@pytest.mark.parametrize("line", IN_THE_REPOSITORY)
def test_commands_of_the_repository(line: str, tmp_path: Path) -> None:
    if "--out" in line:  # the same file, elsewhere: a test must not write into the repository
        line = re.sub(r"--out \S+", f"--out {tmp_path / 'out.yaml'}", line)
        run(line, ROOT)
        assert (tmp_path / "out.yaml").read_text() == (ROOT / "pipelines/golden/gpu-single.yaml").read_text()
        return
    if subprocess.run(["which", "kubectl"], capture_output=True).returncode:
        pytest.skip("kubectl is not installed")
    assert "kind: InferenceService" in run(line, ROOT).stdout


OWN_LOG = (
    "thinktwice pipeline run --source parquet --path impressions.parquet --schema shop.yaml",
    "thinktwice serve --port 8080",
    "thinktwice predict --user c7 --candidates s1,s2,s3 --context device=phone",
    "curl -s http://127.0.0.1:8080/v1/models/ctr:predict -H 'Content-Type: application/json' "
    """-d '{"instances": [{"user_id": "c7", "candidates": ["s1", "s2", "s3"], "context": {"device": "phone"}}]}'""",
    "thinktwice evaluate",
    "thinktwice evaluate --work .thinktwice --state .thinktwice/state",
)


RUNS = (
    "thinktwice runs",
    "thinktwice runs compare 2026-11-30T10-06-36 last",
    "thinktwice runs clean --keep 5 --yes",
)


SERVED = (
    "thinktwice release verify .thinktwice/state/champion",
    "thinktwice serve --port 8080 --server kserve",
    "thinktwice load --candidates 3 --duration 1 --steps 50,80",
    "thinktwice openapi --out openapi.json",
    "thinktwice skew --log served",
    "thinktwice drift --log served --json drift.json",
    "thinktwice skew --log served --clean later --max-mismatch 0.05 --html skew.html",
    "thinktwice drift --log served --since 2026-01-01 --fail-above 0.25 --html drift.html",
)


PYTHON = (
    "thinktwice score rows.parquet scores.parquet --bundle model/bundle",
    "thinktwice score impressions.parquet scores.parquet --features point-in-time",
)


def test_the_python_api_as_its_page_tells_it(tmp_path: Path) -> None:
    """All Python blocks of the page as one program, in a folder with the log and the schema of the README."""
    (schema,) = [text for language, text in FENCE.findall(README.read_text(encoding="utf-8")) if language == "yaml"]
    log, _ = write_log(tmp_path, rows=1500)
    log.rename(tmp_path / "impressions.parquet")
    (tmp_path / "shop.yaml").write_text(schema, encoding="utf-8")
    blocks = [text for language, text in FENCE.findall(API.read_text(encoding="utf-8")) if language == "python"]
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    shown = run(f"{sys.executable} page.py", tmp_path).stdout
    assert "ships" in shown and "report.html" in shown
    assert "1,000 rows scored by shop-" in run(PYTHON[0], tmp_path).stdout
    assert (tmp_path / "scores.parquet").is_file()


def test_the_first_lines_of_python_in_the_readme(tmp_path: Path) -> None:
    fences = FENCE.findall(README.read_text(encoding="utf-8"))
    (schema,) = [text for language, text in fences if language == "yaml"]
    (block,) = [text for language, text in fences if language == "python"]
    log, _ = write_log(tmp_path, rows=1500)
    log.rename(tmp_path / "impressions.parquet")
    (tmp_path / "shop.yaml").write_text(schema, encoding="utf-8")
    (tmp_path / "first.py").write_text(block, encoding="utf-8")
    verdict, probabilities = run(f"{sys.executable} first.py", tmp_path).stdout.splitlines()
    assert verdict.startswith("The ") and verdict.endswith("% of pairs.")
    numbers = [float(number) for number in probabilities.strip("[]").split()]
    assert len(numbers) == 3 and all(0 < number < 1 for number in numbers)


def test_the_settings_that_refuse_older_releases_are_settings(tmp_path: Path) -> None:
    blocks = [text for language, text in FENCE.findall(SERVING.read_text(encoding="utf-8")) if language == "json"]
    (settings,) = [text for text in blocks if "oldest" in text]
    (tmp_path / "serving.json").write_text(settings, encoding="utf-8")
    assert load_config(tmp_path / "serving.json").release.oldest is not None


def the_runs(folder: Path) -> None:
    """docs/training.md on two runs; what follows needs the champion and the last run only."""
    before, last = sorted(path.name for path in folder.glob(".thinktwice/runs/*"))
    listing, compare, clean = RUNS
    shown = run(listing, folder).stdout
    assert before[:19] in shown and last[:19] in shown and "champion)" in shown
    shown = run(compare.replace("2026-11-30T10-06-36", before), folder).stdout
    (change,) = [line for line in shown.splitlines() if re.match(rf"{last[:19]} +[+-]0\.\d{{4}} \[", line)]
    assert change.count("[") == 2 and f"change from {before[:19]}" in shown  # AUC and logloss: the same test rows
    shown = run(clean.replace("--keep 5", "--keep 1"), folder).stdout
    assert f"remove  {before}" in shown and f"keep    {last}" in shown
    assert [path.name for path in folder.glob(".thinktwice/runs/*")] == [last]


def the_second_server(folder: Path, port: str) -> None:
    """docs/serving.md and docs/monitoring.md on the state that the README left: its settings, its server, load on it, and what was logged."""
    (settings,) = [text for language, text in FENCE.findall(SERVING.read_text(encoding="utf-8")) if language == "yaml"]
    (folder / "serving.yaml").write_text(settings, encoding="utf-8")
    assert load_config(folder / "serving.yaml").prediction_log.folder == "served"
    verify, serve, load, openapi, skew, drift, skew_later, drift_since = SERVED
    assert "whole, its signature was not checked" in run(verify, folder).stdout
    server = subprocess.Popen(
        [sys.executable, "-m", "thinktwice", *shlex.split(serve.replace("8080", port))[1:]],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "THINKTWICE_SERVING": str(folder / "serving.yaml")},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("ready http://127.0.0.1:")
        assert "80 %" in run(f"{load} --url http://127.0.0.1:{port}", folder).stdout
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    run(openapi, folder)
    assert '"3.1.0"' in (folder / "openapi.json").read_text(encoding="utf-8")
    assert "no field is skewed" in run(skew, folder).stdout
    # Items drawn evenly are not the traffic of training: that this has drifted is the right answer.
    assert "drifted: " in run(drift, folder, ends_with=1).stdout
    assert (folder / "drift.json").is_file()
    (clean,) = folder.glob(".thinktwice/pipeline/*/validate/clean")
    shutil.copytree(clean, folder / "later")
    assert "no field is skewed" in run(skew_later, folder).stdout
    assert "drifted: " in run(drift_since, folder, ends_with=1).stdout
    assert (folder / "skew.html").is_file() and (folder / "drift.html").is_file()


@pytest.mark.server
@pytest.mark.pipeline
@pytest.mark.timeout(900)
def test_your_own_log_as_the_readme_tells_it(tmp_path: Path) -> None:
    (schema,) = [text for language, text in FENCE.findall(README.read_text(encoding="utf-8")) if language == "yaml"]
    parse_schema(schema, where="README.md")
    log, _ = write_log(tmp_path)
    log.rename(tmp_path / "impressions.parquet")
    (tmp_path / "shop.yaml").write_text(schema, encoding="utf-8")

    train, serve, predict, curl, evaluate, evaluate_there = OWN_LOG
    run(f"{train} --recipe tiny --test-time off", tmp_path)
    assert "Blessed and deployed" in run(train, tmp_path).stdout
    the_runs(tmp_path)
    assert "AUC" in run(evaluate, tmp_path).stdout
    assert run(evaluate_there, tmp_path).stdout == run(evaluate, tmp_path).stdout
    assert "9,000 rows scored by shop-" in run(PYTHON[1], tmp_path).stdout

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "thinktwice", *shlex.split(serve.replace("8080", port))[1:]],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("ready http://127.0.0.1:")
        shown = run(f"{predict} --url http://127.0.0.1:{port}", tmp_path).stdout
        assert all(item in shown for item in ("s1", "s2", "s3"))
        answered = run(curl.replace("8080", port), tmp_path).stdout
        assert answered.count('"probability"') == 3
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert server.returncode == 130
    the_second_server(tmp_path, port)

"""The scripts in ``images/`` refuse what they cannot use, in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "images").rglob("*.sh"))


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def engine(tmp_path: Path) -> str:
    """A PATH on which ``docker`` is a stand-in that never answers."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    return f"{docker.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_is_a_program_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    text = script.read_text()
    shell = "sh" if text.startswith("#!/bin/sh\n") else "bash"
    done = run(shell, "-n", str(script))
    assert (done.returncode, done.stderr) == (0, "")
    assert ("set -eu" if shell == "sh" else "set -euo pipefail") in text


def test_there_are_scripts() -> None:
    assert {path.name for path in SCRIPTS} == {
        "base.sh",
        "build.sh",
        "build_pipeline.sh",
        "build_predictor.sh",
        "check_feedback.sh",
        "check_pipeline.sh",
        "check_predictor.sh",
        "checks.sh",
        "engine.sh",
        "entrypoint.sh",
        "worker.sh",
    }


def test_an_engine_that_was_named_is_not_replaced(engine: str) -> None:
    done = run("images/engine.sh", "true", PATH=engine, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode == 1
    assert "DOCKER_HOST=unix:///nowhere/docker.sock does not answer" in done.stderr


def test_unknown_words_are_refused(engine: str) -> None:
    assert run("images/engine.sh", PATH=engine).returncode == 2
    for script in ("images/build_predictor.sh", "images/build_pipeline.sh"):
        build = run(script, "--tags", "x", PATH=engine, PYTHON=sys.executable)
        assert build.returncode == 2
        assert "unknown argument --tags" in build.stderr
    assert run("images/build.sh", "gateway", PATH=engine).returncode == 2
    check = run("images/check_predictor.sh", PATH=engine)
    assert check.returncode == 2
    assert "usage:" in check.stderr


def test_a_store_without_archive_and_a_missing_image_are_named(engine: str, tmp_path: Path) -> None:
    empty = run("images/check_predictor.sh", str(tmp_path), PATH=engine)
    assert empty.returncode == 1
    assert f"no model archive {tmp_path}/ctr.mar" in empty.stderr
    (tmp_path / "ctr.mar").touch()
    assert "is not the feature store of a model" in run("images/check_feedback.sh", str(tmp_path), PATH=engine).stderr
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "log_instant.parquet").touch()
    for script in ("predictor", "feedback", "pipeline"):
        done = run(f"images/check_{script}.sh", str(tmp_path), "--tag", "nobody:0", PATH=engine)
        assert done.returncode == 1
        assert "no image nobody:0: build it" in done.stderr
        assert run(f"images/check_{script}.sh", PATH=engine).returncode == 2

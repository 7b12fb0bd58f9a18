"""`make setup`: what it says before it starts, and where torch comes from. The gate runs the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = next(line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("torch=="))
SECRET = "https://reader:pass%23word@index.example/whl/cpu"

#: Stands for Python, pip and uv: writes down what they are asked for, and makes the files that they would make.
TOOL = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/uv ;;
  *"-m pip"*) echo "ERROR: pip says why" >&2; exit "${FAIL:-0}" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python-tool").write_text(TOOL)
    (tmp_path / "python-tool").chmod(0o755)
    return tmp_path


def setup(project: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    calls = project / "calls"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        ["make", "setup", f"PYTHON={project / 'python-tool'}", *arguments],
        cwd=project,
        env={**{k: v for k, v in os.environ.items() if k != "TORCH_INDEX"}, "CALLS": str(calls), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_it_says_first_what_it_downloads_and_where_to(project: Path) -> None:
    done, calls = setup(project, FAIL="1")
    assert done.returncode != 0
    assert TORCH in done.stdout and f"{project}/.venv" in done.stdout and "GB" in done.stdout
    assert "pip says why" in done.stderr
    assert not (project / ".venv" / ".ready").exists()
    assert all("--index-url" not in call for call in calls)


def test_torch_comes_from_the_index_that_was_named(project: Path) -> None:
    done, calls = setup(project, f"TORCH_INDEX={SECRET}")
    assert done.returncode == 0, done.stderr
    assert "torch comes from https://index.example/whl/cpu" in done.stdout and "word@" not in done.stdout + done.stderr
    pip = [call for call in calls if " -m pip " in call]
    assert all(" -qq " in call for call in pip), "warnings are not printed, errors are"
    first, second = pip
    assert f"--no-deps --index-url {SECRET} {TORCH}" in first
    assert "index-url" not in second and TORCH in second, "its dependencies and all else come from the usual index"
    assert all("index-url" not in call for call in calls if call.startswith("uv "))


def test_another_index_installs_torch_again_and_the_same_one_does_not(project: Path) -> None:
    assert setup(project)[1] and not setup(project)[1]
    assert setup(project, f"TORCH_INDEX={SECRET}")[1]
    assert not setup(project, f"TORCH_INDEX={SECRET}")[1]
    assert not setup(project)[1], "without a wish what is there stays"
    assert setup(project, "TORCH_INDEX=https://index.example/whl/cu126")[1]

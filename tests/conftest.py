"""Fixtures that more than one room needs."""

from __future__ import annotations

import os
from pathlib import Path

import prometheus_client  # noqa: F401  (before feast, which changes how it counts)
import pytest
from hypothesis import settings

from thinktwice.imports import SHARED_METRICS

# The library sets its own number of threads; this is for what tests compute in torch and numpy themselves.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

ROOT = Path(__file__).resolve().parents[1]

# How long an example takes says nothing on a busy machine. The gate tries the same examples in every run;
# HYPOTHESIS_PROFILE=search tries new ones.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes runs when it is asked for: ``make test-long``, or ``-m long``."""
    if config.option.markexpr == "long":
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="it takes minutes: run it with `make test-long`"))


@pytest.fixture(autouse=True)
def own_environment() -> None:
    """Feast names folders of shared metrics in the environment when a test imports it; child processes would use them."""
    for name in SHARED_METRICS:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with development data and schemas that are not part of the repository; tests skip where it is absent."""
    folder = Path(os.environ.get("THINKTWICE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"development data not found in {folder.name}/ beside the repository (set THINKTWICE_SHARED)")
    return folder

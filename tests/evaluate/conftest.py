"""Two models of the small world, a good and a bad one, carried through to bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testtime import world


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.finished_run(tmp_path_factory.mktemp("finished"))

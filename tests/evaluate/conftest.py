"""Two models of the small world, a good and a bad one, carried through to bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testtime import world
from tests.testtime.conftest import (
    data as data,
)
from tests.testtime.conftest import (
    memorised as memorised,
)
from tests.testtime.conftest import (
    plain as plain,
)
from tests.testtime.conftest import (
    trial_model as trial_model,
)
from tests.testtime.conftest import (
    valid as valid,
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.finished_run(tmp_path_factory.mktemp("finished"))

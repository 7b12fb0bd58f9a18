"""A small model whose parts are random rows of one distribution, for all tests of this folder."""

from pathlib import Path

import pytest

from tests.serving.small import make_bundle
from thinktwice.data.splits import SplitSpec


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``bundle/``; nobody writes into it."""
    folder = tmp_path_factory.mktemp("even")
    make_bundle(folder, split=SplitSpec(kind="random", valid=0.3, test=0.1))
    return folder

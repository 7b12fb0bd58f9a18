"""The small world, built once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testtime import world
from thinktwice.data.training_set import TrainingSet


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    world.one_thread()
    return world.make_training_set(tmp_path_factory.mktemp("world") / "set")


@pytest.fixture(scope="session")
def plain(data: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.train_model(data, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="session")
def memorised(data: TrainingSet, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.memorise_rare_values(data, plain, tmp_path_factory.mktemp("memorised") / "model")

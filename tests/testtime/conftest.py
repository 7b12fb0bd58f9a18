"""The small worlds, each built once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.testtime import wide, world
from thinktwice.combinations.counts import CombinationCounts, maskable_pairs
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.models import load_model
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.heads import fit_heads
from thinktwice.testtime.reliability import Reliability


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


@pytest.fixture(scope="session")
def trial_model(data: TrainingSet, plain: Path, memorised: Path) -> TrialModel:
    """The healthy model with all extras; the memorised one is its further trunk."""
    model, info = load_model(plain)
    train = data.part("train")
    reliability = Reliability.fit(train.ids, train.label, model.fields)
    fields = reliability.maskable_fields
    counts = CombinationCounts.fit(
        [train.ids], maskable_pairs(fields), (), reliability.num_values, capacity=1 << 12, width=1 << 13
    )
    extras = Extras(counts, fit_heads(model, train, fields), (load_model(memorised)[0],))
    return TrialModel(model, info.calibration, reliability, extras)


@pytest.fixture(scope="session")
def valid(data: TrainingSet) -> EncodedRows:
    """Validation rows in time order."""
    rows = data.part("valid")
    return rows.take(np.argsort(rows.time, kind="stable"))


@pytest.fixture(scope="session")
def big() -> wide.Wide:
    world.one_thread()
    return wide.build()


@pytest.fixture(scope="session")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``set``, ``healthy`` and ``model`` of a log of many rare values, which the last memorised as noise."""
    world.one_thread()
    folder = tmp_path_factory.mktemp("rare")
    rows = world.make_training_set(folder / "set", rows=16_000, users=2000, items=400, seed=1)
    world.train_model(rows, folder / "healthy")
    world.memorise_rare_values(rows, folder / "healthy", folder / "model")
    return folder


@pytest.fixture(scope="session")
def rare_trial_model(rare: Path) -> TrialModel:
    """``model`` with its counts, and ``healthy`` as a further trunk."""
    model, info = load_model(rare / "model")
    train = load_training_set(rare / "set").part("train")
    return TrialModel(
        model,
        info.calibration,
        Reliability.fit(train.ids, train.label, model.fields),
        Extras(members=(load_model(rare / "healthy")[0],)),
    )


@pytest.fixture(scope="session")
def rare_valid(rare: Path) -> EncodedRows:
    """Its validation rows in time order."""
    rows = load_training_set(rare / "set").part("valid")
    return rows.take(np.argsort(rows.time, kind="stable"))

"""The choice of L2, the same grid for every model of every side, and of our schedule: by validation logloss with seed 0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.training import data
from benchmarks.training.peers.environment import PEERS
from benchmarks.training.quality import BATCH, DIM, EPOCHS, HIDDEN, OURS, RECIPES, Training
from benchmarks.training.units import Units
from thinktwice.stats.metrics import logloss

GRID = (1e-4, 3e-4, 5e-4, 1e-3, 3e-3)
FIRST = {
    "ml_random": 3e-4
}  # of the grid; elsewhere 1e-3: near the best of earlier measurements, so that a study that is cut short says most


def grid_of(log: str) -> tuple[float, ...]:
    """The values of L2 to try, the most promising one first."""
    first = FIRST.get(log, 1e-3)
    return (first, *sorted((value for value in GRID if value != first), key=lambda value: abs(math.log(value / first))))


def trainings(side: str, model: str, log: str, values: Iterable[float]) -> Iterator[Training]:
    """What a model is chosen from, with seed 0: every L2 of ``values``, and ours with either schedule."""
    for table_l2 in values:
        for schedule in RECIPES if side == OURS else list(RECIPES)[:1]:
            yield Training(side, model, log, table_l2, schedule=schedule)


def best_training(units: Units, work: Path, side: str, model: str, log: str) -> Training | None:
    """The training of the lowest validation logloss among those that are done; None if none is."""
    done = {}
    for training in trainings(side, model, log, grid_of(log)):
        found = units.found(training.unit(work))
        if found is not None:
            done[training] = found["valid"]
    if not done:
        return None
    label = data.load(log, work).part("valid").label
    return min(done, key=lambda training: logloss(label, done[training]))


def described() -> dict[str, object]:
    """The settings of both sides, for the page."""
    return {
        "ours": {"dim": DIM, "hidden": HIDDEN, "batch": BATCH, "epochs": EPOCHS},
        "peers": [peer.version for peer in PEERS.values()],
    }

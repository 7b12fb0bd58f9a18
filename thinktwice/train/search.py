"""The search for the length, the L2 and the handling of unknown values within a budget of epochs.

Each setting is searched in turn with the others at their best so far, and a stronger or weaker candidate is tried only while it
pays: L2 moves by a constant factor until the best value lies between two that are worse. So a grid opens itself where its best
value is at an end.

A run of the schedule ``averaged`` finds its own length: it ends once its validation logloss has not improved for two epochs, if what
is left is enough for another run of that length; otherwise the rest of the budget is its own. Lengths of the schedule ``linear`` double (or halve) from the first one in the same way as L2 moves,
each with a run whose rate falls to 0. A longer run never replaces a better shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from thinktwice.train.config import Augmentation, FinetuneConfig

DOUBLED = 2.0
STEP_OF_L2 = math.sqrt(10.0)  # where the grid names a single value
WEAKEST_L2, STRONGEST_L2 = 1e-7, 1.0
SHORTEST = 0.25  # epochs
PATIENCE = 2.0  # epochs without a better validation logloss after which a run that finds its own length may end


@dataclass(frozen=True)
class Point:
    """Settings of one run; ``epochs`` is its length, or the longest where it finds its own."""

    epochs: float
    table_l2: float
    augmentation: Augmentation
    unknown_share: float


class Search:
    """Asks for one run at a time: :meth:`next`, then :meth:`tell`. The same answers give the same questions."""

    def __init__(self, config: FinetuneConfig, budget: float) -> None:
        self.config, self.left = config, budget
        self.losses: dict[Point, float] = {}
        self.lengths: dict[Point, float] = {}  # epochs until the weights that were kept
        self.own_length = config.schedule == "averaged"
        middle = sorted(config.table_l2)[len(config.table_l2) // 2]
        first = config.epochs if self.own_length else min(config.trial_epochs, config.epochs)
        self.start = Point(first, middle, config.augmentations[0], config.unknown_share)
        self._asked = self._questions()

    @staticmethod
    def of(config: FinetuneConfig) -> Search:
        """The search that settings with a budget describe."""
        assert config.budget is not None
        return Search(config, config.budget)

    def next(self) -> Point | None:
        """The next run; None at the end of the search. The first run is made whatever it costs."""
        return next(self._asked, None)

    def longest(self, point: Point) -> float:
        """Epochs that a run may take."""
        return min(point.epochs, self.left) if self.own_length else point.epochs

    def ends(self, done: float, kept: float) -> bool:
        """Whether a run that finds its own length ends after ``done`` epochs, where ``kept`` were those until its best weights."""
        return done - kept >= PATIENCE - 1e-9 and kept <= self.left - done + 1e-9

    def tell(self, point: Point, loss: float, kept: float, spent: float) -> None:
        """The validation logloss of a run, where NaN counts as worst, the epochs until the weights that were ``kept``, and those
        ``spent``."""
        self.losses[point] = math.inf if math.isnan(loss) else loss
        self.lengths[point] = kept
        self.left -= spent

    @property
    def best(self) -> Point:
        """The best run so far; of equals the first, which is the shorter one."""
        return min(self.losses, key=self.losses.__getitem__)

    def _questions(self) -> Iterator[Point]:
        yield self.start
        if not self.own_length:
            yield from self._lengths()
        yield from self._l2()
        for share in self.config.unknown_shares:
            yield from self._affordable(replace(self.best, unknown_share=share))
        for kind in self.config.augmentations[1:]:
            yield from self._affordable(replace(self.best, augmentation=kind))
        if not self.own_length:
            yield from self._lengths()  # a stronger L2 bears a longer training

    def _lengths(self) -> Iterator[Point]:
        yield from self._moved("epochs", DOUBLED, SHORTEST, self.config.epochs)

    def _l2(self) -> Iterator[Point]:
        grid = sorted(value for value in self.config.table_l2 if value > 0)
        if not grid:
            return
        step = (grid[-1] / grid[0]) ** (1 / (len(grid) - 1)) if len(grid) > 1 else STEP_OF_L2
        yield from self._moved("table_l2", step, WEAKEST_L2, STRONGEST_L2)
        if 0 in self.config.table_l2:
            yield from self._affordable(replace(self.best, table_l2=0.0))

    def _moved(self, name: str, step: float, low: float, high: float) -> Iterator[Point]:
        """Move one setting by a factor, up and then down, as long as the best run moves with it."""
        for factor in (step, 1.0 / step):
            while True:
                start = self.best
                value = getattr(start, name) * factor
                changed: Any = {name: _rounded(value)}
                moved = replace(start, **changed)
                if not low <= value <= high * (1 + 1e-9) or moved in self.losses:
                    break
                yield from self._affordable(moved)
                if self.best == start:
                    break

    def _affordable(self, point: Point) -> Iterator[Point]:
        """The point, if it was not tried and what is left is enough for its length, or for that of the best run."""
        needed = self.lengths[self.best] if self.own_length else point.epochs
        if point not in self.losses and needed <= self.left + 1e-9:
            yield point


def _rounded(value: float) -> float:
    """Four digits, so that a factor and its inverse lead back to the same value."""
    return float(f"{value:.4g}")

"""The units of the study in order of what they are worth: what decides most bars comes first, further seeds last.

A later unit may depend on what earlier ones chose on validation, so the plan is read one unit at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.training import pretraining, recipe_cost, unknown
from benchmarks.training.choice import best_training, grid_of, trainings
from benchmarks.training.days import SIDES, Days
from benchmarks.training.peers.environment import PEERS
from benchmarks.training.quality import BACKBONES, OURS, SHARED
from benchmarks.training.recipe_cost import BEFORE, NOW, Recipe
from benchmarks.training.roof import Roof
from benchmarks.training.units import Unit, Units

MOVIELENS = ("ml_time", "ml_random")
FIRST_PEER = "FuxiCTR"  # the best in earlier measurements
RECIPE_LOGS = ("ml_100k_time", "sim", "ml_time")
UNKNOWN_LOGS = ("ml_time", "sim")
SHORT_UNKNOWN = "ml_100k_time"
DAYS = (Days("sim", "continued"), Days("ml_time", "continued"))
ROOFS = (Roof(1_000_000), Roof(10_000_000))
SHORT_ROOF = Roof(100_000, rounds=1)
SHORT_DAYS = Days("sim_small", "continued", days=2)
SEQUENCES = "ml_100k_recent"
SHARES = (1.0, 0.1, 0.01)
MODES = (
    pretraining.Run(SEQUENCES, "none"),
    pretraining.Run(SEQUENCES, "dgenctr"),
    *(pretraining.Run(SEQUENCES, "hetegenctr", (("balancing", b),)) for b in ("dro", "kendall", "uniform_norm")),
)
ABLATIONS = tuple(
    pretraining.Run(SEQUENCES, "dgenctr", (setting,))
    for setting in (
        ("ablation", "embeddings_only"),
        ("ablation", "trunk_only"),
        ("ablation", "no_label"),
        ("schedule", "fixed"),
    )
)
BEHAVIOURS = (2.0, 20.0)  # of a sequence restored per row; the last restores every masked one
RESTORED = tuple(pretraining.Run(SEQUENCES, "dgenctr", (("behaviours", value),)) for value in BEHAVIOURS)


def units(kept: Units, work: Path, seeds: int) -> Iterator[Unit]:
    """All units of the full form."""
    few = range(min(3, seeds))
    yield from _recipe(work, RECIPE_LOGS[:1], range(1))
    for model in SHARED:
        for log in MOVIELENS:
            yield from _grid(work, log, [(OURS, model), (FIRST_PEER, model)], 1)
        yield from _recipe(work, RECIPE_LOGS[1:2] if model == SHARED[0] else ("ml_100k_random",), range(1))
    yield from (roof.unit() for roof in ROOFS)
    yield from _pretraining(work, (*MODES[:2], *RESTORED), SHARES[:1], few)
    yield from _pretraining(work, MODES, SHARES, few)
    yield from _recipe(work, ("ml_100k_random", *RECIPE_LOGS[:2]), few)
    for log in MOVIELENS:
        yield from _grid(work, log, [(side, model) for side in (OURS, FIRST_PEER) for model in SHARED])
    for log in MOVIELENS:
        yield from _grid(work, log, [(OURS, model) for model in BACKBONES[len(SHARED) :]])
        others = [peer for peer in PEERS if peer != FIRST_PEER]
        yield from _grid(work, log, [(side, model) for side in others for model in SHARED])
    yield from _recipe(work, RECIPE_LOGS, range(1))
    yield from unknown.units_of(work, UNKNOWN_LOGS, few)
    yield from _days(work, DAYS, range(1))
    yield from _pretraining(work, ABLATIONS, SHARES[:2], few)
    for seed in range(1, seeds):
        for log in MOVIELENS:
            for side in (OURS, *PEERS):
                for model in BACKBONES if side == OURS else SHARED:
                    best = best_training(kept, work, side, model, log)
                    if best is not None:
                        yield replace(best, seed=seed).unit(work)
        yield from _recipe(work, ("ml_100k_random", *RECIPE_LOGS), (seed,))
        yield from _pretraining(work, (*MODES, *ABLATIONS), SHARES, (seed,))
        yield from unknown.units_of(work, UNKNOWN_LOGS, range(seed, seed + 1))
        yield from _days(work, DAYS, (seed,))


def quick_units(work: Path) -> Iterator[Unit]:
    """Those of the short form: a small log, no peer, one seed."""
    yield from _grid(work, "ml_100k_time", [(OURS, "deepfm")], 1)
    yield from _recipe(work, ("ml_100k_time",), (0,))
    yield from _pretraining(work, MODES[:2], SHARES[:1], (0,))
    yield from unknown.units_of(work, (SHORT_UNKNOWN,), range(1))
    yield from _days(work, (SHORT_DAYS,), (0,))
    yield SHORT_ROOF.unit()


def _grid(work: Path, log: str, trained: list[tuple[str, str]], values: int | None = None) -> Iterator[Unit]:
    """Every model with the first ``values`` of the grid; None: with all."""
    for table_l2 in grid_of(log)[:values]:
        for side, model in trained:
            yield from (training.unit(work) for training in trainings(side, model, log, (table_l2,)))


def _recipe(work: Path, logs: tuple[str, ...], seeds: Iterable[int]) -> Iterator[Unit]:
    for seed in seeds:
        for log in logs:
            for side in (BEFORE, NOW):  # one after the other: the speed of a machine drifts
                yield recipe_cost.unit(Recipe(log, side, seed), work)


def _days(work: Path, runs: Iterable[Days], seeds: Iterable[int]) -> Iterator[Unit]:
    for seed in seeds:
        for run in runs:
            for side in SIDES:  # one after the other: the speed of a machine drifts
                yield replace(run, side=side, seed=seed).unit(work)


def _pretraining(
    work: Path,
    runs: tuple[pretraining.Run, ...],
    shares: tuple[float, ...],
    seeds: Iterable[int],
) -> Iterator[Unit]:
    for seed in seeds:
        for share in shares:
            for run in runs:
                yield replace(run, share=share, seed=seed).unit(work)

"""The search within a budget, on scripted losses: it finds the length and the L2, opens its grids, and keeps within the budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.train.config import FinetuneConfig
from thinktwice.train.search import PATIENCE, Point, Search

CONFIG = FinetuneConfig(trial_epochs=1.0, epochs=16.0, budget=100.0, unknown_shares=(0.0,))


def searched(loss: Callable[[Point], float], config: FinetuneConfig = CONFIG) -> tuple[Search, list[Point]]:
    search, asked = Search.of(config), []
    while (point := search.next()) is not None:
        asked.append(point)
        assert len(asked) < 200
        search.tell(point, loss(point), point.epochs, point.epochs)
    return search, asked


def bowl(length: float, l2: float, share: float = 0.0) -> Callable[[Point], float]:
    """A loss with its minimum at a length, an L2 and a share."""

    def loss(point: Point) -> float:
        away = math.log2(point.epochs / length) ** 2 + math.log10(point.table_l2 / l2) ** 2
        return 0.5 + 0.01 * away + 0.1 * abs(point.unknown_share - share)

    return loss


@given(st.sampled_from([0.25, 0.5, 1, 2, 4, 8, 16]), st.floats(1e-6, 0.3))
@settings(max_examples=80, deadline=None)
def test_the_minimum_is_found_also_beyond_the_grid(length: float, l2: float) -> None:
    search, asked = searched(bowl(length, l2), CONFIG.model_copy(update={"budget": 1000.0}))
    assert search.best.epochs == length
    assert abs(math.log10(search.best.table_l2 / l2)) <= 0.5 * math.log10(math.sqrt(10)) + 0.01
    tried = sorted({point.table_l2 for point in asked})
    assert tried[0] < search.best.table_l2 < tried[-1] or search.best.table_l2 < 1e-6  # bracketed
    assert search.best.unknown_share == 0.0
    assert len(set(asked)) == len(asked)  # nothing is trained twice


@given(st.floats(0.5, 60), st.floats(0.25, 20), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_the_budget_is_kept_and_the_best_of_all_runs_is_the_result(budget: float, length: float, seed: int) -> None:
    config = CONFIG.model_copy(update={"budget": budget})
    seen: dict[Point, float] = {}

    def loss(point: Point) -> float:
        seen[point] = bowl(length, 1e-3)(point) + (crc32(f"{seed} {point}".encode()) % 100) / 2000
        return seen[point]

    search, asked = searched(loss, config)
    assert sum(point.epochs for point in asked) <= max(budget, config.trial_epochs) + 1e-6
    assert seen[search.best] == min(seen.values())


def test_a_longer_run_never_replaces_a_better_or_equal_shorter_one() -> None:
    search, asked = searched(lambda point: 0.5)
    assert search.best == asked[0] and search.best.epochs == 1.0
    assert max(point.epochs for point in asked) == 2.0  # one look further was enough


def test_a_run_that_gives_no_number_is_worst() -> None:
    search, _ = searched(lambda point: math.nan if point.epochs > 1 else 0.4)
    assert search.best.epochs == 1.0


def test_the_longest_length_and_a_grid_of_one_value() -> None:
    config = CONFIG.model_copy(update={"table_l2": (1e-3,), "epochs": 4.0, "augmentations": ("none",)})
    search, asked = searched(bowl(64, 1e-2), config)
    assert search.best.epochs == 4.0 == max(point.epochs for point in asked)
    assert search.best.table_l2 == pytest.approx(1e-2, rel=0.01)
    nothing = CONFIG.model_copy(update={"table_l2": (0.0,)})
    assert {point.table_l2 for point in searched(lambda p: 0.5, nothing)[1]} == {0.0}


AVERAGED = CONFIG.model_copy(update={"schedule": "averaged"})


def found(
    best_length: Callable[[Point], float], loss: Callable[[Point], float], config: FinetuneConfig
) -> tuple[Search, list[tuple[Point, float]]]:
    """A search whose runs are evaluated twice per epoch; the points asked for, and the epochs that each took."""
    search, asked = Search.of(config), []
    while (point := search.next()) is not None:
        longest = search.longest(point)
        kept = spent = 0.0
        while spent < longest:
            spent = min(spent + 0.5, longest)
            kept = spent if spent <= best_length(point) + 1e-9 else kept or spent
            if search.ends(spent, kept):
                assert spent - kept >= PATIENCE and search.left - spent >= kept - 1e-9  # enough for another run
                break
        asked.append((point, spent))
        assert len(asked) < 200
        search.tell(point, loss(point), kept, spent)
    return search, asked


@given(st.floats(0.1, 40), st.floats(0.25, 20), st.floats(1e-6, 0.3))
@settings(max_examples=80, deadline=None)
def test_runs_that_find_their_length_share_a_budget(budget: float, length: float, l2: float) -> None:
    config = AVERAGED.model_copy(update={"budget": budget})
    search, asked = found(lambda point: length, lambda point: bowl(1.0, l2)(replace(point, epochs=1.0)), config)
    assert sum(spent for _, spent in asked) <= budget + 1e-6
    assert max(spent for _, spent in asked) <= config.epochs
    assert len({point for point, _ in asked}) == len(asked)  # every candidate has one run
    left = budget
    for at, (_, spent) in enumerate(asked):
        assert at == 0 or left >= min(length, config.epochs) - 0.5 - 1e-6  # no run begins that must be too short
        left -= spent
    assert search.losses[search.best] == min(search.losses.values())


@given(st.floats(1e-6, 0.3), st.floats(0.5, 15))
@settings(max_examples=40, deadline=None)
def test_runs_that_find_their_length_open_the_grid(l2: float, length: float) -> None:
    config = AVERAGED.model_copy(update={"budget": 1000.0})
    search, asked = found(lambda point: length, lambda point: bowl(1.0, l2)(replace(point, epochs=1.0)), config)
    assert abs(math.log10(search.best.table_l2 / l2)) <= 0.5 * math.log10(math.sqrt(10)) + 0.01
    assert search.best.unknown_share == 0.0
    assert {point.augmentation for point, _ in asked} == {"none", "mask_block"}

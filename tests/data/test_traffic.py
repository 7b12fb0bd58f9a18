"""Live traffic of the simulator: repeatable, from the world of the log, with probabilities that mean what they say."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from thinktwice.data.simulator.config import SimConfig
from thinktwice.data.simulator.traffic import BLOCK, Traffic
from thinktwice.data.simulator.world import DEVICES, TOPICS, make_world

CONFIG = SimConfig(rows=5000, users=300, items=150, drift=1.5, seed=3)


def traffic(seed: int = 1, now: float = 1.0, config: SimConfig = CONFIG) -> Traffic:
    return Traffic(config, now=now, hour=12, candidates=8, seed=seed)


def test_visits_depend_only_on_their_number() -> None:
    every = list(islice(traffic().visits(), BLOCK + 20))
    assert [visit.number for visit in every] == list(range(BLOCK + 20))
    assert list(islice(traffic().visits(BLOCK - 3), 10)) == every[BLOCK - 3 : BLOCK + 7]
    assert list(islice(traffic(seed=2).visits(), 10)) != every[:10]


def test_a_visit_is_of_the_world() -> None:
    world = make_world(CONFIG)
    for visit in islice(traffic().visits(), 200):
        assert len(set(visit.candidates)) == 8 and all(0 <= int(item) < 150 for item in visit.candidates)
        assert visit.context["device"] in DEVICES and 0 <= int(visit.user) < 300
        assert all(0 < p < 1 for p in visit.truth) and all(0 <= d < 1 for d in visit.draw)
        topics = [TOPICS[world.item_topic[int(item)]] for item in visit.candidates]
        assert [values["topic"] for values in visit.values] == topics


def test_clicks_come_as_often_as_the_probabilities_say() -> None:
    visits = list(islice(traffic().visits(), 4000))
    truth = np.array([visit.truth for visit in visits])
    clicked = np.array([visit.draw for visit in visits]) < truth
    assert clicked.mean() == pytest.approx(truth.mean(), abs=4 * np.sqrt(0.25 / truth.size))
    low, high = truth < np.median(truth), truth >= np.median(truth)
    assert clicked[low].mean() == pytest.approx(truth[low].mean(), abs=0.01)
    assert clicked[low].mean() < clicked[high].mean()


def test_the_world_drifts_and_too_many_candidates_are_refused() -> None:
    early, late = (next(traffic(now=now).visits()).truth for now in (0.0, 1.0))
    assert early != late
    with pytest.raises(ValueError, match="fewer than 200 candidates"):
        Traffic(CONFIG, now=1.0, hour=0, candidates=200, seed=0)

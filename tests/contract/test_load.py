"""Both servers under load: every request is answered rightly or refused with a word when to try again."""

from __future__ import annotations

import pytest

from serving.load.drive import Target, closed_loop, open_loop
from serving.load.plan import poisson, requests_of
from serving.load.report import Step, trouble
from tests.contract.conftest import Servers
from tests.serving.small import SCHEMA
from thinktwice.release.champion import Champion

pytestmark = pytest.mark.server


@pytest.mark.parametrize("protocol", ["v1", "v2"])
@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_answers_stay_right_under_load(servers: Servers, champion: Champion, name: str, protocol: str) -> None:
    requests = requests_of(champion.feature_store_dir, SCHEMA, count=30, candidates=50, seed=1)
    assert {r["user_id"] for r in requests} <= {f"u{i}" for i in range(30)}
    assert all(len(r["candidates"]) == 50 for r in requests)
    target = Target(servers.url[name], requests, protocol)
    for measured in (closed_loop(target, 4, 1.0), open_loop(target, poisson(40, 1.0, 0))):
        assert trouble([Step(name, None, measured)]) == []
        assert measured.count("ok") > 0  # how many more says how fast the machine is
        assert measured.count("ok") + measured.count("refused") == len(measured.outcomes)


@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_far_more_than_it_can_do(servers: Servers, champion: Champion, name: str) -> None:
    """Ten times the capacity: nothing is lost or wrong, and what is refused is told when to come again."""
    requests = requests_of(champion.feature_store_dir, SCHEMA, count=30, candidates=500, seed=2)
    target = Target(servers.url[name], requests, deadline=0.2)
    capacity = closed_loop(target, 2, 1.0).throughput
    measured = open_loop(target, poisson(min(10 * capacity, 1500), 1.0, 0))
    counts = measured.counts()
    assert counts["refused"] > 0
    assert counts["failed"] == counts["wrong"] == counts["lost"] == 0
    if name == "kserve":  # TorchServe's own full queue answers without the header
        assert measured.refused_silently == 0

"""Canary, promotion and roll-back of the three forms against an API server: nothing is lost, nothing is left, and the stable pods stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from components.deployment.rollout.run import canary, promote, roll_back, status
from components.deployment.rollout.waiting import Waiting
from tests.cluster.api_process import Api
from tests.cluster.objects_store import Json
from tests.cluster.served import NAMESPACE, V1, V2, V3, install, load, session
from thinktwice.errors import RolloutError

Overlay = Callable[[str], list[Json]]
GATEWAY_URL = f"http://ctr-gateway.{NAMESPACE}.svc.cluster.local/v1/models/ctr:predict"
SERVICE_URL = f"http://ctr-predictor.{NAMESPACE}.svc.cluster.local/v1/models/ctr:predict"
ROUTE_URL = "http://ctr.example.com/v1/models/ctr:predict"
FORMS = [
    ("standard", "standard", ROUTE_URL),
    ("knative", "knative", SERVICE_URL),
    ("experiment", "gateway", GATEWAY_URL),
]


def stable_pods(api: Api, version: str) -> set[str]:
    """Names of the pods of a version that are not those of an arm beside control."""
    pods = api.objects("pods").items()
    own = {n for n, p in pods if p["metadata"].get("labels", {}).get("ctr.example.org/model-version") == version}
    return {name for name in own if "treatment" not in name}


@pytest.mark.parametrize(("name", "form", "url"), FORMS, ids=[form for _, form, _ in FORMS])
def test_canary_promotion_and_back_lose_nothing(api: Api, overlay: Overlay, name: str, form: str, url: str) -> None:
    install(api, overlay(name))
    said: list[str] = []
    before = stable_pods(api, V1.name)
    with load(api, url) as traffic:
        canary(session(api, said=said), V2, 20)
        assert before <= stable_pods(api, V1.name), "no stable pod is replaced when a canary begins"
        found = status(session(api))
        assert found.form == form and found.state is not None
        assert (found.state.canary, found.state.percent, found.state.action) == (V2, 20, "")
        roll_back(session(api, said=said))
        if form != "knative":  # Knative makes another revision for the old content
            assert before <= stable_pods(api, V1.name), "nor when it ends"
        canary(session(api, said=said), V2, 20)
        promote(session(api, said=said))
        assert status(session(api)).live.stable == V2
        roll_back(session(api, said=said))
        assert status(session(api)).live.stable == V1
    assert traffic.failed == 0 and traffic.statuses[200] > 100, (traffic.statuses, said)
    assert set(traffic.versions) == {V1.name, V2.name}
    left = {
        kind: sorted(api.objects(kind))
        for kind in ("deployments", "horizontalpodautoscalers", "httproutes", "inferenceservices", "pods")
    }
    assert not [n for names in left.values() for n in names if "bbbb" in n or "treatment" in n or "probe" in n], left


def test_the_load_would_see_a_canary_that_is_removed_too_early(api: Api, overlay: Overlay) -> None:
    """The check above can fail: a gateway that is slower than the drain loses requests."""
    install(api, overlay("standard"))
    canary(session(api), V2, 50)
    api.control(lag=2.0)
    hasty = Waiting(limit_s=8.0, settle_s=0.6, poll_s=0.05, drain_s=0.0)
    with load(api, ROUTE_URL, rate=100.0) as traffic:
        roll_back(session(api, waiting=hasty))
    assert traffic.failed > 0


@pytest.mark.parametrize(("name", "form", "url"), FORMS, ids=[form for _, form, _ in FORMS])
def test_replicas_and_autoscalers_of_the_stable_version_stay(
    api: Api, overlay: Overlay, name: str, form: str, url: str
) -> None:
    install(api, overlay(name))
    stable = "ctr-control" if form == "gateway" else "ctr"

    def kept() -> tuple[object, ...]:
        predictor = api.objects("inferenceservices")[stable]["spec"]["predictor"]
        scaler = api.objects("horizontalpodautoscalers").get(f"{stable}-predictor", {}).get("spec")
        return scaler, predictor.get("minReplicas"), predictor.get("maxReplicas")

    before = kept()
    canary(session(api), V2, 10)
    assert kept()[0] == before[0], "the autoscaler has the same minimum while the canary stands"
    roll_back(session(api))
    assert kept() == before
    canary(session(api), V2, 10)
    promote(session(api))
    assert kept() == before


@pytest.mark.parametrize(("name", "form", "url"), FORMS, ids=[form for _, form, _ in FORMS])
def test_every_action_may_be_repeated(api: Api, overlay: Overlay, name: str, form: str, url: str) -> None:
    install(api, overlay(name))
    for percent in (10, 10, 30, 5):
        canary(session(api), V2, percent)
        found = status(session(api)).state
        assert found is not None and found.percent == percent
    with pytest.raises(RolloutError, match=f"the canary {V2.name} stands beside {V1.name}: promote it or roll it back"):
        canary(session(api), V3, 10)
    promote(session(api))
    said: list[str] = []
    promote(session(api, said=said))
    assert said == [f"{V2.name}: promoted already"]
    with pytest.raises(RolloutError, match="is the stable version of ctr already"):
        canary(session(api), V2, 10)
    roll_back(session(api))
    with pytest.raises(RolloutError, match=f"nothing to roll back: {V1.name} serves all requests"):
        roll_back(session(api))
    with pytest.raises(RolloutError, match=r"no canary stands beside .*: start one with `thinktwice rollout canary`"):
        promote(session(api))

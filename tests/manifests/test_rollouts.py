"""Plain, canary, promotion and back, applied to a simulated namespace: the address stays, nothing is dropped, no pod is replaced in vain.

The simulation (``kserve_cluster``) follows KServe's source; the mistakes planted below are what a real cluster showed for them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.manifests import kserve_controller
from tests.manifests.kserve_cluster import Cluster, RefusedError
from tests.manifests.kserve_controller import VISIBILITY

Resources = dict[str, dict[str, Any]]
Render = Callable[[str], Resources]

RUNTIMES = ("standard", "standard-kserve")
ADDRESS = "ctr-predictor"
BEFORE, AFTER = "ml-1m-3f2a9c01d4e7", "ml-1m-b81d5e90f264"


def with_version(resources: Resources, version: str) -> Resources:
    """The overlay with another stable version, as the patch of one's own overlay sets it."""
    resources = copy.deepcopy(resources)
    predictor = resources["InferenceService"]["spec"]["predictor"]
    predictor["labels"]["ctr.example.org/model-version"] = version
    predictor["model"]["storageUri"] = f"s3://models/ctr/{version}/"
    return resources


def with_canary(resources: Resources, stable: str, canary: str, share: int = 10) -> Resources:
    resources = with_version(resources, stable)
    (entry,) = resources["InferenceService"]["spec"]["canary"]
    entry["trafficPercent"] = share
    entry["predictor"]["name"] = canary
    entry["predictor"]["labels"]["ctr.example.org/model-version"] = canary
    entry["predictor"]["model"]["storageUri"] = f"s3://models/ctr/{canary}/"
    return resources


def in_order(cluster: Cluster) -> list[str]:
    """What is wrong in a namespace; empty when every request is answered."""
    wrong = [f"a route leads to {name}, which is gone" for name in sorted(cluster.dead_backends())]
    if ADDRESS not in cluster.services:
        wrong.append(f"the address {ADDRESS} is gone")
    elif cluster.autoscalers[ADDRESS][0] < 2:
        wrong.append(f"the stable predictor may shrink to {cluster.autoscalers[ADDRESS][0]}")
    if list(kserve_controller.never_ready(cluster.isvc or {}, cluster.runtimes)):
        wrong.append("the controller cannot start it")
    wrong += [
        f"{name}: weights {sum(weights.values())}"
        for name, weights in cluster.routes.items()
        if sum(weights.values()) != 100
    ]
    return wrong


@pytest.mark.parametrize("overlay", RUNTIMES)
def test_plain_canary_promotion_and_back(render: Render, overlay: str) -> None:
    cluster, plain, canary = Cluster(), render(overlay), render(f"{overlay}-canary")
    own = f"ctr-{AFTER}-predictor"

    cluster.apply(with_version(plain, BEFORE))
    assert in_order(cluster) == [] and cluster.services == set(cluster.deployments) == {ADDRESS}
    assert cluster.routes == {"ctr": {ADDRESS: 100}, ADDRESS: {ADDRESS: 100}}
    first = cluster.template_hash(ADDRESS)

    cluster.apply(with_canary(canary, BEFORE, AFTER))
    assert in_order(cluster) == [] and cluster.services == set(cluster.deployments) == {ADDRESS, own}
    assert cluster.routes == {"ctr": {ADDRESS: 90, own: 10}, ADDRESS: {ADDRESS: 90, own: 10}}
    assert cluster.template_hash(ADDRESS) == first, "stable pods are not replaced when a canary begins"
    assert cluster.template_hash(own) != first
    assert cluster.autoscalers == {ADDRESS: (2, 6), own: (1, 1)}

    rolled_back = copy.deepcopy(cluster)
    rolled_back.apply(with_version(plain, BEFORE))
    assert in_order(rolled_back) == [] and rolled_back.services == {ADDRESS}
    assert rolled_back.routes == {"ctr": {ADDRESS: 100}, ADDRESS: {ADDRESS: 100}}
    assert rolled_back.template_hash(ADDRESS) == first, "nor when it ends"
    assert rolled_back.orphans() == {f"hpa/{own}"}

    cluster.apply(with_version(plain, AFTER))
    assert in_order(cluster) == [] and cluster.services == set(cluster.deployments) == {ADDRESS}
    promoted = cluster.template_hash(ADDRESS)
    fresh = Cluster()
    fresh.apply(with_version(plain, AFTER))
    assert promoted == fresh.template_hash(ADDRESS) != first, "as if it had always been served"

    cluster.apply(with_version(plain, BEFORE))
    assert in_order(cluster) == [] and cluster.template_hash(ADDRESS) == first
    assert cluster.orphans() == {f"hpa/{own}"}


@pytest.mark.parametrize("overlay", RUNTIMES)
def test_a_canary_differs_in_its_version_alone(render: Render, overlay: str) -> None:
    cluster = Cluster()
    cluster.apply(with_canary(render(f"{overlay}-canary"), BEFORE, AFTER))
    stable, canary = cluster.deployments[ADDRESS], cluster.deployments[f"ctr-{AFTER}-predictor"]
    assert stable["spec"] == canary["spec"] and stable["annotations"] == canary["annotations"]
    names = {key for key in stable["labels"] if stable["labels"][key] != canary["labels"][key]}
    assert names == {"app", "ctr.example.org/variant", "ctr.example.org/model-version"}


VERSIONS = ("v1", "v2", "v3")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("plain"), st.sampled_from(RUNTIMES), st.sampled_from(VERSIONS)),
        st.tuples(
            st.just("canary"),
            st.sampled_from(RUNTIMES),
            st.permutations(VERSIONS).map(lambda v: (v[0], v[1])),
            st.integers(0, 100),
        ),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def overlays(render: Render) -> dict[str, Resources]:
    """Parsed once: the test below takes them a thousand times."""
    return {name: render(name) for runtime in RUNTIMES for name in (runtime, f"{runtime}-canary")}


@given(steps=STEPS)
@settings(max_examples=100, deadline=None)
def test_any_order_of_rollouts_keeps_the_address_and_every_request(
    overlays: dict[str, Resources], steps: list[tuple[Any, ...]]
) -> None:
    cluster, before = Cluster(), None
    for kind, overlay, version, *share in steps:
        if kind == "plain":
            resources = with_version(overlays[overlay], version)
        else:
            resources = with_canary(overlays[f"{overlay}-canary"], *version, *share)
        cluster.apply(resources)
        assert in_order(cluster) == []
        stable = (overlay, version if kind == "plain" else version[0])
        if before is not None and before[0] == stable:
            assert cluster.template_hash(ADDRESS) == before[1], "the same version and runtime are the same pods"
        before = (stable, cluster.template_hash(ADDRESS))
        weights = cluster.routes["ctr"]
        assert weights[ADDRESS] == 100 - sum(share), "a route tells the last applied shares"


def labelled(resources: Resources, key: str) -> Resources:
    resources = copy.deepcopy(resources)
    resources["InferenceService"]["metadata"]["labels"][key] = "cluster-local"
    return resources


def test_a_visibility_label_that_comes_and_goes_is_found(render: Render) -> None:
    """Seen on a cluster: a tenth of the gateway's requests got 503 after the roll back, and every pod was replaced."""
    plain = labelled(with_version(render("standard"), BEFORE), VISIBILITY["Standard"])
    cluster = Cluster()
    cluster.apply(plain)
    assert cluster.routes == {}
    first = cluster.template_hash(ADDRESS)
    cluster.apply(with_canary(render("standard-canary"), BEFORE, AFTER))
    assert cluster.template_hash(ADDRESS) != first
    cluster.apply(plain)
    assert in_order(cluster) == [f"a route leads to ctr-{AFTER}-predictor, which is gone"]


def test_a_promotion_by_name_is_found(render: Render) -> None:
    """Seen on a cluster: the documented address did not resolve any more."""
    cluster, plain = Cluster(), render("standard")
    cluster.apply(with_canary(render("standard-canary"), BEFORE, AFTER))
    promoted = with_version(plain, AFTER)
    promoted["InferenceService"]["spec"]["predictor"]["name"] = AFTER
    cluster.apply(promoted)
    assert f"the address {ADDRESS} is gone" in in_order(cluster)


def test_a_canary_that_halves_the_stable_predictor_is_found(render: Render) -> None:
    """Seen on a cluster: the stable minimum went from 2 to 1."""
    canary = with_canary(render("standard-canary"), BEFORE, AFTER)
    canary["InferenceService"]["spec"]["predictor"]["minReplicas"] = 2
    canary["InferenceService"]["spec"]["canary"][0]["predictor"]["minReplicas"] = 2
    cluster = Cluster()
    cluster.apply(canary)
    assert in_order(cluster) == ["the stable predictor may shrink to 1"]


def test_an_annotation_of_the_service_replaces_the_pods(render: Render) -> None:
    """Why the canary's component adds nothing to the service's metadata."""
    cluster, plain = Cluster(), render("standard")
    cluster.apply(plain)
    first = cluster.template_hash(ADDRESS)
    for place in ("annotations", "labels"):
        more = copy.deepcopy(plain)
        more["InferenceService"]["metadata"][place]["x.example.org/y"] = "z"
        cluster.apply(more)
        assert cluster.template_hash(ADDRESS) != first


def test_a_runtime_that_is_not_there_leaves_everything_as_it_was(render: Render) -> None:
    """Seen on a cluster: Ready stays Unknown, no pod comes."""
    cluster = Cluster()
    cluster.apply(render("standard-kserve"))
    first = cluster.template_hash(ADDRESS)
    wrong = with_version(render("standard-kserve"), AFTER)
    wrong["InferenceService"]["spec"]["predictor"]["model"]["runtime"] = "ctr-torchserve"
    cluster.apply(wrong)
    assert "the controller cannot start it" in in_order(cluster) and cluster.template_hash(ADDRESS) == first


def test_changing_the_runtime_leaves_the_other_behind(render: Render) -> None:
    cluster = Cluster()
    cluster.apply(render("standard"))
    cluster.apply(render("standard-kserve"))
    assert in_order(cluster) == [] and cluster.orphans() == {"servingruntime/ctr-torchserve"}


def test_the_mode_of_a_living_service_is_refused_and_nothing_changes(render: Render) -> None:
    cluster = Cluster()
    cluster.apply(render("standard"))
    before = copy.deepcopy(cluster)
    with pytest.raises(RefusedError, match="mode_is_kept"):
        cluster.apply(render("knative"))
    assert cluster == before


def test_a_cluster_local_service_never_has_a_route(render: Render) -> None:
    cluster = Cluster()
    for version in (BEFORE, AFTER):
        cluster.apply(with_version(render("standard-cluster-local"), version))
        assert cluster.routes == {} and in_order(cluster) == []


@pytest.mark.parametrize("overlay", ["standard-canary", "standard-kserve-canary"])
def test_no_overlay_with_a_canary_says_anything_of_visibility(render: Render, overlay: str) -> None:
    plain, canary = (
        render(name)["InferenceService"]["metadata"] for name in (overlay.removesuffix("-canary"), overlay)
    )
    assert plain == canary, "what stands on the service reaches the stable pods and KServe's routes"
    assert not set(VISIBILITY.values()) & set(canary["labels"])

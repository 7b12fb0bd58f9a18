"""What goes wrong in a cluster ends in one sentence with the object, the reason and the next command, and the old version serves on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from components.deployment.rollout.objects import VERSION_LABEL, version_at
from components.deployment.rollout.run import canary, promote, roll_back, status
from components.deployment.rollout.waiting import Waiting
from tests.cluster.api_process import Api
from tests.cluster.objects_store import Json
from tests.cluster.platform import seconds
from tests.cluster.served import SHORT, V1, V2, V3, install, load, session, until
from tests.cluster.test_rollout import FORMS, ROUTE_URL, stable_pods
from thinktwice.errors import RolloutError, ThinktwiceError

Overlay = Callable[[str], list[Json]]
IDS = [form for _, form, _ in FORMS]

#: How the pods of the new version fail, and what the sentence must say.
BROKEN = {
    "image": r"the image registry\.example\.org/.* of pod \S+ cannot be pulled \(ImagePullBackOff: .*`kubectl describe pod",
    "storage": r"cannot fetch its model \(RuntimeError: Failed to fetch model\. No model found.*`thinktwice bundle list`",
    "secret": r"cannot fetch its model \(.*SignatureDoesNotMatch.*the Secret of the service account.*`kubectl logs",
    "config": r'cannot be made \(CreateContainerConfigError: secret "ctr-keys" not found\): create what it names',
    "crash": r"ends with exit code 1 \(the bundle is damaged: hashes disagree\): see `kubectl logs \S+ -c kserve-container",
    "full": r"ends with exit code 1 \(OSError: \[Errno 28\] No space left on device.*`kubectl logs",
    "quota": r"cannot create its pods \(.*exceeded quota: team.*raise the quota of the namespace",
    "psa": r"cannot create its pods \(.*violates PodSecurity.*manifests/README\.md, Security",
}


def check_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 1500 and "Traceback" not in text
    return text


#: Tried in every run; the others by `make test-long`.
OFTEN = ("image", "storage", "full", "quota")


@pytest.mark.parametrize(
    "fault", [fault if fault in OFTEN else pytest.param(fault, marks=pytest.mark.long) for fault in BROKEN]
)
def test_a_canary_that_does_not_start_is_taken_back(api: Api, overlay: Overlay, fault: str) -> None:
    install(api, overlay("standard"))
    api.control(broken={V2.name: fault})
    before = stable_pods(api, V1.name)
    with load(api, ROUTE_URL) as traffic, pytest.raises(RolloutError, match=BROKEN[fault]) as raised:
        canary(session(api), V2, 10)
    text = check_sentence(raised.value)
    assert f"the canary {V2.name} failed and was taken back, {V1.name} keeps serving" in text
    assert traffic.failed == 0 and before <= stable_pods(api, V1.name) and stable_pods(api, V2.name) == set()
    found = status(session(api))
    assert (
        found.live.stable == V1 and found.live.canary is None and found.state is not None and found.state.action == ""
    )
    api.control(broken={})
    canary(session(api), V2, 10)


def past(kind: str) -> list[list[Any]]:
    """What an earlier attempt has left in the namespace: an event about pods that could not be created, and pods that ended."""
    owner = f"ctr-{V2.name}-predictor"
    if kind == "event":
        about = {"kind": "ReplicaSet", "name": f"{owner}-6d4f"}
        text = 'pods "x" is forbidden: exceeded quota: team, requested: memory=1536Mi'
        event = {"type": "Warning", "reason": "FailedCreate", "message": text, "lastTimestamp": seconds(back=1200)}
        return [["events", {"metadata": {"name": "old.1"}, "involvedObject": about, **event}]]
    labels = {"serving.kserve.io/inferenceservice": "ctr", VERSION_LABEL: V2.name}
    metadata: Json = {"name": f"{owner}-6d4f-old", "labels": labels, "creationTimestamp": seconds(back=1200)}
    crashed = {"name": "kserve-container", "state": {"terminated": {"exitCode": 137, "reason": "Error"}}}
    status: Json = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
    if kind == "ending":
        metadata["deletionTimestamp"] = seconds()
        status = {"phase": "Running"}
    spec = {"containers": [{"name": "kserve-container", "image": "x:1"}]}
    return [["pods", {"metadata": metadata, "spec": spec, "status": status | {"containerStatuses": [crashed]}}]]


@pytest.mark.parametrize("kind", ["event", "evicted", "ending"])
def test_what_is_past_does_not_fail_a_version(api: Api, overlay: Overlay, kind: str) -> None:
    """The pods take longer to become ready than a fault may last."""
    install(api, overlay("standard"))
    api.control(ready_s=2.0, objects=past(kind))
    canary(session(api), V2, 10)
    assert status(session(api)).live.canary == V2


@pytest.mark.long
@pytest.mark.parametrize(("name", "form", "url"), FORMS, ids=IDS)
@pytest.mark.parametrize("fault", ["image", "storage"])
def test_in_every_form(api: Api, overlay: Overlay, name: str, form: str, url: str, fault: str) -> None:
    install(api, overlay(name))
    api.control(broken={V2.name: fault})
    with load(api, url) as traffic, pytest.raises(RolloutError, match=BROKEN[fault]):
        canary(session(api), V2, 10)
    assert traffic.failed == 0 and set(traffic.versions) == {V1.name}
    assert status(session(api)).live.stable == V1


@pytest.mark.parametrize(("name", "form", "url"), FORMS, ids=IDS)
def test_a_promotion_that_fails_restores_the_version_before(
    api: Api, overlay: Overlay, name: str, form: str, url: str
) -> None:
    """The canary ran; its pods fail when there are to be more of them, or later."""
    install(api, overlay(name))
    canary(session(api), V2, 10)
    api.control(silent=[V2.name]) if form == "knative" else api.control(broken={V2.name: "crash"})
    with (
        load(api, url) as traffic,
        pytest.raises(RolloutError, match=f"promotion of {V2.name} failed and was taken back"),
    ):
        promote(session(api))
    found = status(session(api))
    assert found.live.stable == V1 and found.live.canary is None and found.state is not None and not found.state.canary
    # The canary itself was broken: its own share failed until it was gone; nothing that V1 would have answered did.
    assert traffic.versions[V1.name] > 0.5 * sum(traffic.statuses.values())


@pytest.mark.parametrize(("name", "form", "url"), FORMS, ids=IDS)
def test_a_version_that_cannot_come_back_leaves_the_promoted_one(
    api: Api, overlay: Overlay, name: str, form: str, url: str
) -> None:
    """For example because its model was deleted from the store: the next roll-out begins where this one did."""
    install(api, overlay(name))
    canary(session(api), V2, 10)
    promote(session(api))
    api.control(broken={V1.name: "storage"})
    with (
        load(api, url) as traffic,
        pytest.raises(
            RolloutError, match=rf"roll-back to {V1.name} failed and was taken back, {V2.name} keeps serving"
        ),
    ):
        roll_back(session(api))
    found = status(session(api))
    assert found.live.stable == V2 and found.live.canary is None
    assert found.state is not None and (found.state.action, found.state.previous) == ("", V1)
    assert traffic.failed == 0 and set(traffic.versions) == {V2.name}
    canary(session(api), V3, 10)


def test_a_version_without_scores_gets_no_requests(api: Api, overlay: Overlay) -> None:
    install(api, overlay("standard"))
    api.control(silent=[V2.name])
    with (
        load(api, ROUTE_URL) as traffic,
        pytest.raises(RolloutError, match=r"the test request to http://\S+ got 200 without scores"),
    ):
        canary(session(api), V2, 50)
    assert set(traffic.versions) == {V1.name}


def test_pods_without_a_node_fail_when_the_time_is_over(api: Api, overlay: Overlay) -> None:
    install(api, overlay("standard"))
    api.control(broken={V2.name: "nodes"})
    with pytest.raises(
        RolloutError, match=r"is not ready after 4 s: pod \S+ has no node \(0/3 nodes are available.*add nodes"
    ):
        canary(session(api, waiting=SHORT), V2, 10)


def test_a_mode_that_ignores_the_form_is_refused(api: Api, overlay: Overlay) -> None:
    install(api, overlay("standard"))
    with pytest.raises(
        RolloutError, match=r"mode Standard, which ignores canaryTrafficPercent: use --form standard, or gateway"
    ):
        canary(session(api), V2, 10, "knative")
    with pytest.raises(RolloutError, match="has no InferenceService ctr-control: apply an overlay"):
        canary(session(api), V2, 10, "gateway")
    api.control(reset=True)
    install(api, overlay("knative"))
    with pytest.raises(RolloutError, match=r"mode Knative, which ignores spec\.canary: use --form knative, or gateway"):
        canary(session(api), V2, 10, "standard")


def test_a_cluster_where_spec_canary_has_no_effect(api: Api, overlay: Overlay) -> None:
    install(api, overlay("standard-cluster-local"))
    with pytest.raises(RolloutError, match="is cluster-local, so it has no route and a canary gets no requests"):
        canary(session(api), V2, 10)
    api.control(reset=True, gateway_api=False)
    install(api, overlay("standard"))
    with pytest.raises(RolloutError, match=r"has no HTTPRoute.*enableGatewayApi: true"):
        canary(session(api), V2, 10)
    api.control(reset=True, kinds_gone=["httproutes"])
    install(api, overlay("standard"))
    with pytest.raises(RolloutError, match="does not know HTTPRoutes: install the Gateway API"):
        canary(session(api), V2, 10)
    api.control(reset=True, weights=False)  # KServe 0.20: the pods come, the share does not
    install(api, overlay("standard"))
    with pytest.raises(
        RolloutError, match=r"gives it no share of 10 % after 10 s: KServe before 0\.21.*--form gateway"
    ):
        canary(session(api, waiting=Waiting(limit_s=10.0, poll_s=0.1, drain_s=0.6)), V2, 10)
    assert status(session(api)).live.canary is None
    with pytest.raises(RolloutError, match=r"at most 50"):
        from components.deployment.rollout.gateway import canary_experiment

        canary_experiment(V1, V2, 51)


def test_a_transformer_is_refused(api: Api, overlay: Overlay) -> None:
    for name in ("standard", "knative"):
        api.control(reset=True)
        resources = copy.deepcopy(overlay(name))
        (service,) = [r for r in resources if r["kind"] == "InferenceService"]
        install(api, resources)
        service["spec"]["transformer"] = {"containers": [{"name": "kserve-container", "image": "x:1"}]}
        api.control(objects=[["inferenceservices", service]])
        with pytest.raises(RolloutError, match="has a transformer"):
            canary(session(api), V2, 10)


def test_a_field_of_a_gitops_controller_is_left_to_it(api: Api, overlay: Overlay) -> None:
    resources = copy.deepcopy(overlay("standard"))
    for resource in resources:
        resource["metadata"]["manager"] = "argocd-controller"
    install(api, resources)
    with pytest.raises(RolloutError, match=r"spec\.predictor\.minReplicas belongs to argocd-controller.*--take-over"):
        canary(session(api), V2, 10)
    assert status(session(api)).live.canary is None
    canary(session(api, take_over=True), V2, 10)


#: Faults of the API server, and what the sentence must say. Each ends without a change of what is served.
API = [
    ("PATCH .*inferenceservices", 403, 'inferenceservices.serving.kserve.io "ctr" is forbidden: User "x" cannot patch resource', r'may not patch inferenceservices .*apiGroups: \["serving\.kserve\.io"\], resources: \[inferenceservices\], verbs: \[patch\].*rollout-access'),
    ("POST .*leases", 403, 'leases is forbidden: User "x" cannot create resource', r'may not create leases .*apiGroups: \["coordination\.k8s\.io"\].*verbs: \[create\]'),
    ("POST .*pods", 403, "pods is forbidden: User cannot create resource", r'may not create pods .*resources: \[pods\], verbs: \[create\]'),
    ("GET .*pods/.*log", 403, "pods is forbidden: cannot get resource pods/log", r'may not get pods/log .*resources: \[pods/log\], verbs: \[get\]'),
    ("POST .*pods", 403, "exceeded quota: team, requested: pods=1", "has no quota left for the Pod"),
    ("PATCH .*inferenceservices", 400, 'admission webhook "validator.kserve" denied the request: no such runtime', "denied the request: no such runtime"),
    ("PATCH .*inferenceservices", 403, 'admission webhook "policy.example.org" denied the request: only on Tuesdays', "denied the request: only on Tuesdays"),
    ("GET .*inferenceservices", 401, "Unauthorized", "does not accept the credentials"),
    ("GET .*inferenceservices", 404, "404 page not found", r"does not know InferenceServices: install KServe 0\.20 or later"),
]  # fmt: skip


@pytest.mark.parametrize(("match", "code", "message", "said"), API)
def test_a_refusal_of_the_api_is_a_sentence(
    api: Api, overlay: Overlay, match: str, code: int, message: str, said: str
) -> None:
    install(api, overlay("standard"))
    if "log" in match:
        api.control(broken={V2.name: "storage"})
    before = stable_pods(api, V1.name)
    api.control(faults=[{"match": match, "times": 10**6, "status": code, "message": message}])
    with load(api, ROUTE_URL) as traffic, pytest.raises(ThinktwiceError, match=said) as raised:
        canary(session(api), V2, 10)
    check_sentence(raised.value)
    assert traffic.failed == 0 and before <= stable_pods(api, V1.name)
    api.control(faults=[], broken={})
    until(lambda: not [p for p in api.objects("pods") if "probe" in p], 5.0) if "POST" not in match else None
    roll_back_if_needed(api)
    canary(session(api), V2, 10)


def roll_back_if_needed(api: Api) -> None:
    found = status(session(api)).state
    if found is not None and found.action not in ("", "canary"):
        roll_back(session(api))


def test_a_namespace_that_does_not_exist(api: Api) -> None:
    here = session(api)
    here.api.namespace = "nowhere"
    with pytest.raises(RolloutError, match=r"namespace nowhere does not exist .*: create it, or give another"):
        canary(here, V2, 10)


def test_a_namespace_without_the_service(api: Api) -> None:
    with pytest.raises(
        RolloutError, match="has neither an InferenceService ctr nor ctr-control: apply an overlay of manifests/"
    ):
        canary(session(api), V2, 10)


@pytest.mark.parametrize(
    "uri", ["", "models", "ftp://x/v1", "s3://", "s3://b/a b/", "s3://models/ctr/" + "x" * 80, "file:///", "s3://b/-x/"]
)
def test_a_uri_without_a_version_is_refused(uri: str) -> None:
    with pytest.raises(RolloutError, match="is not the folder of a version"):
        version_at(uri)


@pytest.mark.parametrize("code", [429, *(pytest.param(code, marks=pytest.mark.long) for code in (500, 502, 504)), 503])
def test_a_busy_api_server_is_asked_again(api: Api, overlay: Overlay, code: int) -> None:
    install(api, overlay("standard"))
    faults: list[dict[str, Any]] = [
        {"match": match, "times": 2, "status": code}
        for match in ("POST", "PATCH", "PUT", "GET .*deployments", "DELETE")
    ]
    faults += [{"match": match, "times": 1, "after": True, "status": 0} for match in ("POST", "PATCH", "PUT")]
    here = session(api, patience_s=60.0)
    here.api.sleep = short(here.api.sleep)
    api.control(faults=faults)
    canary(here, V2, 10)
    promote(here)
    assert status(session(api)).live.stable == V2


def short(sleep: Callable[[float], None]) -> Callable[[float], None]:
    return lambda seconds: sleep(min(seconds, 0.1))


@pytest.mark.parametrize("match", ["PATCH", "GET .*deployments", "GET .*pods", "PUT .*leases"])
def test_an_api_server_that_stops_answering_leaves_the_old_version(api: Api, overlay: Overlay, match: str) -> None:
    install(api, overlay("standard"))
    api.control(faults=[{"match": match, "times": 10**6, "cut": True}])
    with (
        load(api, ROUTE_URL) as traffic,
        pytest.raises(ThinktwiceError, match=r"does not answer .*the same command continues") as raised,
    ):
        canary(session(api, patience_s=1.0), V2, 10, duration_s=1)
    check_sentence(raised.value)
    assert traffic.failed == 0 and set(traffic.versions) == {V1.name}
    api.control(faults=[])
    canary(session(api), V2, 10, duration_s=1)
    promote(session(api))
    assert status(session(api)).live.stable == V2

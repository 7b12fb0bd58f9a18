"""The whole path of a model in a cluster: apply, wait, request, canary, promote, roll back under load, experiment, feedback, delete.

Every step runs twice: against the API server of ours, and on the cluster of KUBECONFIG where these variables say what it may use:

    THINKTWICE_CLUSTER_NAMESPACE  a namespace that exists and whose content may be deleted
    THINKTWICE_CLUSTER_IMAGE      the predictor's image
    THINKTWICE_CLUSTER_VERSIONS   storageUri of two versions, with a blank between
    THINKTWICE_CLUSTER_REQUEST    body of a request with a user and candidates that the feature store knows (JSON)
    THINKTWICE_CLUSTER_GATEWAY    optional: http://HOST of KServe's route, as pods reach it
    THINKTWICE_CLUSTER_ENVOY      optional: Envoy's image by digest, for the experiment
    THINKTWICE_CLUSTER_FEEDBACK   optional: 1, where a Redis and the Secrets of docs/feedback.md are there
"""

from __future__ import annotations

import copy
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.cluster.client import APPLY, Resource
from components.deployment.rollout.connect import open_session
from components.deployment.rollout.experiments import ClusterRollout, versions_of_arms
from components.deployment.rollout.objects import DEPLOYMENTS, PODS, VERSION_LABEL, Version, host, probe_pod, version_at
from components.deployment.rollout.probe import PATH, Probed, finish_probe, start_probe
from components.deployment.rollout.run import canary, promote, roll_back, status
from components.deployment.rollout.target import Session, wait_for_deployment
from components.deployment.rollout.waiting import Waiting, wait_for
from tests.cluster.api_process import Api
from tests.cluster.objects_store import Json
from tests.cluster.platform import IMAGE
from tests.cluster.served import FAST, PLURALS, V1, V2, session
from thinktwice.experiment.file import ExperimentFile
from thinktwice.release.rollout import change_coverage, start_experiment, stop_experiment

Overlay = Callable[[str], list[Json]]
ANY = '{"instances": [{"user_id": "u1", "candidates": ["i1", "i2"]}]}'
#: Posts one event; counts statuses as the load does.
EVENT = """
import json, os, time, urllib.error, urllib.request
event = {"kind": "click", "request_id": "r1", "item_id": "i1", "at": time.time()}
request = urllib.request.Request(os.environ["PROBE_URL"], json.dumps({"events": [event]}).encode(), {"Content-Type": "application/json"})
try:
    status = urllib.request.urlopen(request, timeout=15).status
except urllib.error.HTTPError as error:
    status = error.code
with open(os.environ.get("PROBE_RESULT", "/dev/termination-log"), "w") as file:
    json.dump({"statuses": {str(status): 1}}, file)
"""


@dataclass
class Place:
    """A namespace to work in."""

    session: Session
    versions: tuple[Version, Version]
    image: str
    gateway: str
    envoy: str
    feedback: bool
    load_s: int

    def address(self, name: str) -> str:
        return f"http://{host(self.session.api.namespace, name)}{PATH}"


def given() -> Place:
    """The cluster of KUBECONFIG."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: this is for any real cluster, see the head of tests/cluster/test_path.py")
    names = ("NAMESPACE", "IMAGE", "VERSIONS", "REQUEST")
    missing = [f"THINKTWICE_CLUSTER_{name}" for name in names if not os.environ.get(f"THINKTWICE_CLUSTER_{name}")]
    if missing:
        pytest.skip(f"KUBECONFIG is set, but not {', '.join(missing)}: see the head of tests/cluster/test_path.py")
    namespace, image, uris, request = (os.environ[f"THINKTWICE_CLUSTER_{name}"] for name in names)
    here = open_session("ctr", namespace, Waiting(), tell=print)
    here.body = request
    one, two = (version_at(uri) for uri in uris.split())
    optional = [os.environ.get(f"THINKTWICE_CLUSTER_{name}", "") for name in ("GATEWAY", "ENVOY", "FEEDBACK")]
    return Place(here, (one, two), image, optional[0], optional[1], bool(optional[2]), load_s=60)


@pytest.fixture(params=["ours", "given"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "given":
        return given()
    api: Api = request.getfixturevalue("api")
    return Place(session(api, waiting=FAST, body=ANY), (V1, V2), IMAGE, "http://ctr.example.com", "x", True, load_s=4)


def resource_of(value: Json) -> Resource:
    group, _, version = value["apiVersion"].rpartition("/")
    return Resource(group, version, PLURALS[value["kind"]], value["kind"])


def adapted(place: Place, resources: list[Json]) -> list[Json]:
    """An overlay's objects with the version, image and namespace of the place, dependencies first."""
    found = []
    for value in copy.deepcopy(resources):
        if value["kind"] not in PLURALS:
            continue
        value["metadata"].pop("namespace", None)
        if value["kind"] == "InferenceService":
            predictor = value["spec"]["predictor"]
            predictor["labels"][VERSION_LABEL] = place.versions[0].name
            predictor["model"]["storageUri"] = place.versions[0].uri
        if value["kind"] == "ServingRuntime":
            value["spec"]["containers"][0]["image"] = place.image
        if value["metadata"]["name"] == "ctr-gateway" and value["kind"] == "Deployment":
            value["spec"]["template"]["spec"]["containers"][0]["image"] = place.envoy
        found.append(value)
    return sorted(found, key=lambda value: value["kind"] in ("InferenceService", "Deployment", "StatefulSet"))


@contextmanager
def applied(place: Place, resources: list[Json]) -> Iterator[None]:
    """Apply as ``kubectl apply --server-side`` does; delete everything at the end, and see that it is gone."""
    api, objects = place.session.api, adapted(place, resources)
    query = {"fieldManager": "kubectl", "force": "true", "fieldValidation": "Strict"}
    for value in objects:
        api.ask("PATCH", resource_of(value), value["metadata"]["name"], body=value, query=query, content_type=APPLY)
    try:
        yield
    finally:
        for value in reversed(objects):
            api.delete(resource_of(value), value["metadata"]["name"])
        api.delete(Resource("coordination.k8s.io", "v1", "leases", "Lease"), "ctr-rollout")
    for name in ("ctr-predictor", "ctr-control-predictor", "ctr-treatment-predictor"):
        wait_for(api, name, lambda name=name: "left" if api.get(DEPLOYMENTS, name) else "", list, place.session.waiting)  # type: ignore[misc]


@contextmanager
def loaded(place: Place, template: Json, *urls: str) -> Iterator[list[Probed]]:
    """50 requests/s from pods to each address while the block runs; the counts come after it.

    Two pods at a time with half of them each, and others after them: however long the block takes, there is never none.
    """
    found, failed, stop = list[Probed](), list[BaseException](), threading.Event()

    def run(url: str, number: int) -> None:
        try:
            while not stop.wait(number * place.load_s / 2):
                number = 0
                name = start_probe(
                    place.session.api, url, template, service="ctr-load", body=place.session.body, unit="user-{n}", rate=25.0,
                    count=25 * place.load_s, limit_s=place.load_s + 300,
                )  # fmt: skip
                found.append(finish_probe(place.session.api, name, limit_s=place.load_s + 300, poll_s=0.5))
        except BaseException as error:  # noqa: BLE001 (shown by the test's thread)
            failed.append(error)

    threads = [threading.Thread(target=run, args=(url, number)) for url in urls for number in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join(place.load_s + 400)
    assert not failed, failed


def all_of(counted: list[Probed]) -> Probed:
    """The sum of what several pods counted."""
    sums: dict[str, Counter[str]] = {name: Counter() for name in ("statuses", "versions", "arms")}
    for probed in counted:
        for name, counter in sums.items():
            counter.update(getattr(probed, name))
    return Probed(**{name: dict(counter) for name, counter in sums.items()}, scored=sum(p.scored for p in counted))


def template_of(place: Place, service: str) -> Json:
    name = f"{service}-predictor"
    deployment = wait_for_deployment(place.session, service, name, place.versions[0].name)
    return dict(deployment["spec"]["template"])


def one_request(place: Place, template: Json, url: str, **more: str) -> Probed:
    name = start_probe(place.session.api, url, template, service="ctr-load", body=place.session.body, tries=5, **more)
    return finish_probe(place.session.api, name, limit_s=180, poll_s=0.5)


def rolled_out(place: Place, form: str, urls: list[str], template: Json) -> None:
    """Canary, roll-back, canary and promotion under load with zero failed."""
    one, two = place.versions
    with loaded(place, template, *urls) as counted:
        canary(place.session, two, 10)
        assert status(place.session).form == form
        roll_back(place.session)
        canary(place.session, two, 50)
        promote(place.session)
        assert status(place.session).live.stable == two
    total = all_of(counted)
    assert total.failed == 0 and total.total >= 50 * place.load_s and total.scored, total
    assert set(total.versions) == {one.name, two.name}


def test_standard(place: Place, overlay: Overlay) -> None:
    with applied(place, overlay("standard")):
        template = template_of(place, "ctr")
        first = one_request(place, template, place.address("ctr-predictor"))
        assert first.failed == 0 and first.scored and set(first.versions) == {place.versions[0].name}
        urls = [place.address("ctr-predictor")]
        if place.gateway:
            urls.append(f"{place.gateway.rstrip('/')}{PATH}")
        rolled_out(place, "standard", urls, template)


def test_knative(place: Place, overlay: Overlay, request: pytest.FixtureRequest) -> None:
    if place.load_s > 10 and not os.environ.get("THINKTWICE_CLUSTER_KNATIVE"):
        pytest.skip("THINKTWICE_CLUSTER_KNATIVE is not set: Knative is said not to be installed")
    with applied(place, overlay("knative")):
        wait_for(place.session.api, "ctr", lambda: _not_rolled_out(place), list, place.session.waiting)
        template = {"spec": {"containers": [{"name": "kserve-container", "image": place.image}]}}
        first = one_request(place, template, place.address("ctr-predictor"))
        assert first.failed == 0 and first.scored
        rolled_out(place, "knative", [place.address("ctr-predictor")], template)


def _not_rolled_out(place: Place) -> str:
    found = place.session.api.get(
        Resource("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService"), "ctr"
    )
    predictor = (found or {}).get("status", {}).get("components", {}).get("predictor", {})
    return "" if predictor.get("latestRolledoutRevision") else "not rolled out"


def test_an_experiment_through_the_gateway(place: Place, overlay: Overlay, tmp_path: Path) -> None:
    if not place.envoy:
        pytest.skip("THINKTWICE_CLUSTER_ENVOY is not set: the gateway's image is a required value")
    file = ExperimentFile.model_validate(
        {
            "version": 1, "name": "path", "salt": "path", "coverage": 0.5,
            "arms": [{"name": "control", "bundle": "one"}, {"name": "treatment", "bundle": "two"}],
            "horizon": {"days": 1, "looks": 1}, "minimum": {"days": 0, "units": 2},
        }
    )  # fmt: skip
    with applied(place, overlay("experiment")):
        template = template_of(place, "ctr-control")
        url = place.address("ctr-gateway")
        with loaded(place, template, url) as counted:
            target = ClusterRollout(
                place.session, versions_of_arms(place.session, file, [f"treatment={place.versions[1].uri}"])
            )
            start_experiment(tmp_path, file, target)
            change_coverage(tmp_path, "path", 1.0, target)
            stop_experiment(tmp_path, "path", target)
        probed = all_of(counted)
        assert probed.failed == 0 and set(probed.arms) == {"control", "treatment"}, probed
        assert set(probed.versions) == {version.name for version in place.versions}
        rolled_out(place, "gateway", [url], template)


def test_feedback(place: Place, overlay: Overlay) -> None:
    if not place.feedback:
        pytest.skip("THINKTWICE_CLUSTER_FEEDBACK is not set: the feedback service needs a Redis and Secrets")
    stateful = Resource("apps", "v1", "statefulsets", "StatefulSet")
    with applied(place, overlay("evidence")):
        wait_for(
            place.session.api,
            "ctr-feedback",
            lambda: (
                ""
                if ((place.session.api.get(stateful, "ctr-feedback") or {}).get("status", {}).get("readyReplicas"))
                else "no pod is ready"
            ),
            list,
            place.session.waiting,
        )
        url = f"http://{host(place.session.api.namespace, 'ctr-feedback')}/v1/events"
        pod = probe_pod("ctr-load-event", place.image, [], EVENT, {"PROBE_URL": url}, 120)
        pod["metadata"]["labels"]["ctr.example.org/sends-feedback"] = "true"
        place.session.api.create(PODS, pod)
        sent = finish_probe(place.session.api, "ctr-load-event", limit_s=120, poll_s=0.5)
        assert sent.total == 1 and set(sent.statuses) <= {"200", "202"}, sent

"""The rules of the webhooks and of the controller: an overlay that breaks one of them is found, for every rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.manifests import knative_admission, kserve_admission, kserve_controller
from tests.manifests.kserve_admission import AUTOSCALER, KNATIVE_AUTOSCALER, MODE
from tests.manifests.test_overlays import pod_of

Render = Callable[[str], dict[str, dict[str, Any]]]
Change = Callable[[dict[str, Any]], Any]


def predictor(isvc: dict[str, Any]) -> dict[str, Any]:
    return isvc["spec"]["predictor"]


def model(isvc: dict[str, Any]) -> dict[str, Any]:
    return predictor(isvc)["model"]


def canary(isvc: dict[str, Any]) -> dict[str, Any]:
    return isvc["spec"]["canary"][0]


def annotate(**values: str) -> Change:
    keys = {"mode": MODE, "autoscaler": AUTOSCALER, "knative": KNATIVE_AUTOSCALER}
    return lambda isvc: isvc["metadata"]["annotations"].update({keys[k]: v for k, v in values.items()})


def label(key: str, value: str = "cluster-local") -> Change:
    return lambda isvc: isvc["metadata"]["labels"].update({key: value})


def changed(resource: dict[str, Any], *changes: Change) -> dict[str, Any]:
    """A copy of ``resource`` with something changed."""
    result = copy.deepcopy(resource)
    for change in changes:
        change(result)
    return result


PYTHONPATH = [{"name": "PYTHONPATH", "value": "/x"}]
#: Rule of KServe's webhook -> overlays with a change that breaks it.
BROKEN: dict[str, list[tuple[str, Change]]] = {
    "service_name": [
        ("standard", lambda isvc, n=name: isvc["metadata"].update(name=n))
        for name in ("1ctr", "Ctr", "ctr.v2", "ctr-", "ctr_2")
    ],
    "autoscaler_class": [
        *(("knative", annotate(autoscaler=name)) for name in ("kpa", "kpa.autoscaling.knative.dev", "")),
        ("standard", annotate(autoscaler="HPA")),
        ("standard", annotate(autoscaler="keda")),
    ],
    "blocked_environment": [
        ("standard", lambda isvc: model(isvc).update(env=PYTHONPATH)),
        ("knative", lambda isvc: predictor(isvc).update(initContainers=[{"name": "x", "env": PYTHONPATH}])),
    ],
    "collocated_transformer": [
        (
            "standard",
            lambda isvc: predictor(isvc).update(
                containers=[{"name": "transformer-container", "env": [{"name": "STORAGE_URI", "value": "s3://x"}]}]
            ),
        )
    ],
    "stable_model_name": [("standard-canary", lambda isvc: model(isvc).update(name="kserve-container"))],
    "one_source": [
        ("standard", lambda isvc: predictor(isvc).update(storageUris=[{"uri": "s3://a", "mountPath": "/mnt/a"}])),
        (
            "standard",
            lambda isvc: (
                predictor(isvc).update(storageUris=[{"uri": "s3://a", "mountPath": "/mnt/../etc"}])
                or model(isvc).pop("storageUri")
            ),
        ),
    ],
    "one_implementation": [
        ("standard", lambda isvc: predictor(isvc).update(pytorch={})),
        ("standard", lambda isvc: predictor(isvc).pop("model")),
        ("knative", lambda isvc: predictor(isvc).update(containers=[{"name": "kserve-container"}])),
        ("standard-canary", lambda isvc: canary(isvc)["predictor"].pop("model")),
    ],
    "bounds": [
        ("standard", lambda isvc: predictor(isvc).update(minReplicas=9)),
        ("standard", lambda isvc: predictor(isvc).update(minReplicas=-1)),
        ("knative", lambda isvc: predictor(isvc).update(containerConcurrency=-1)),
        ("standard", lambda isvc: predictor(isvc).update(logger={"mode": "everything"})),
        ("standard-canary", lambda isvc: canary(isvc)["predictor"].update(minReplicas=-1)),
    ],
    "scaling": [
        ("standard", lambda isvc: predictor(isvc).update(scaleMetric="concurrency")),
        ("standard", lambda isvc: predictor(isvc).update(scaleTarget=0)),
        ("standard", lambda isvc: predictor(isvc).update(scaleTarget=101)),
        ("standard", lambda isvc: predictor(isvc).update(autoScaling={"metrics": [{"type": "PodMetric"}]})),
        ("standard", annotate(mode="Knative")),
        ("standard", annotate(mode="Standrad")),  # whatever is not Standard is checked as Knative
        ("knative", lambda isvc: predictor(isvc).update(scaleMetric="cpu")),
        ("knative", lambda isvc: predictor(isvc).update(scaleMetric="rps", scaleTarget=0)),
        ("knative", lambda isvc: predictor(isvc).update(deploymentStrategy={"type": "Recreate"})),
        ("knative", annotate(knative="hpa.autoscaling.knative.dev")),
        (
            "standard",
            lambda isvc: annotate(autoscaler="keda")(isvc) or predictor(isvc).update(autoScaling={"metrics": []}),
        ),
    ],
    "canary_mode": [
        ("standard-canary", annotate(mode="Knative")),
        ("standard-canary", annotate(mode="ModelMesh")),
        ("standard-canary", lambda isvc: isvc["metadata"]["annotations"].pop(MODE)),
    ],
    "canary_names": [
        ("standard-canary", lambda isvc: canary(isvc)["predictor"].pop("name")),
        ("standard-canary", lambda isvc: canary(isvc)["predictor"].update(name="")),
        ("standard-canary", lambda isvc: predictor(isvc).update(name=canary(isvc)["predictor"]["name"])),
        ("standard-canary", lambda isvc: isvc["spec"]["canary"].append({**canary(isvc), "trafficPercent": 5})),
    ],
    "canary_shares": [
        ("standard-canary", lambda isvc: canary(isvc).update(trafficPercent=101)),
        ("standard-canary", lambda isvc: canary(isvc).update(trafficPercent=-1)),
        ("standard-canary", lambda isvc: isvc["spec"]["canary"].append({**canary(isvc), "trafficPercent": 95})),
    ],
    "canary_replicas": [
        ("standard-canary", lambda isvc: canary(isvc)["predictor"].update(minReplicas=4)),
        *(
            ("standard-canary", lambda isvc, f=field, v=value: canary(isvc)["predictor"].update({f: v}))
            for field, value in {"maxReplicas": 4, "scaleTarget": 70, "scaleMetric": "cpu"}.items()
        ),
        ("standard-canary", lambda isvc: canary(isvc)["predictor"].update(autoScaling={"metrics": []})),
        ("standard-canary", lambda isvc: canary(isvc)["predictor"].update(workerSpec={})),
    ],
}


@pytest.mark.parametrize(
    ("rule", "overlay", "change"), [(rule, *case) for rule, cases in BROKEN.items() for case in cases]
)
def test_a_webhook_refuses_it(render: Render, rule: str, overlay: str, change: Change) -> None:
    isvc = render(overlay)["InferenceService"]
    assert kserve_admission.refused(isvc) == []
    found = kserve_admission.refused(changed(isvc, change))
    assert any(line.startswith(f"{rule}: ") for line in found), found


def test_every_rule_is_broken_by_a_case() -> None:
    assert set(BROKEN) == {rule.__name__ for rule in kserve_admission.RULES}


@pytest.mark.parametrize(
    ("overlay", "change"),
    [
        ("standard", annotate(mode="RawDeployment")),
        ("knative", annotate(mode="Serverless")),
        *(("standard", annotate(autoscaler=name)) for name in ("external", "none")),
        ("standard", lambda isvc: predictor(isvc).update(maxReplicas=0)),
        ("knative", lambda isvc: predictor(isvc).update(minReplicas=0)),
        ("knative", lambda isvc: predictor(isvc).update(scaleMetric="rps")),
        ("standard-canary", lambda isvc: canary(isvc).update(trafficPercent=0)),
        ("standard-canary", lambda isvc: canary(isvc)["predictor"].update(minReplicas=3)),
        ("standard", lambda isvc: model(isvc).update(storageUri="/mnt/models")),
    ],
)
def test_what_a_webhook_takes_is_not_refused_here(render: Render, overlay: str, change: Change) -> None:
    assert kserve_admission.refused(changed(render(overlay)["InferenceService"], change)) == []


@given(name=st.text(max_size=20))
def test_only_the_classes_of_kserve_are_autoscalers(name: str) -> None:
    isvc = {"metadata": {"name": "a", "annotations": {AUTOSCALER: name}}, "spec": {"predictor": {"model": {}}}}
    wrong = [line for line in kserve_admission.refused(isvc) if "is not a supported autoscaler class type" in line]
    assert bool(wrong) == (name not in ("hpa", "keda", "external", "none"))


@given(shares=st.lists(st.integers(-5, 105), max_size=4))
def test_shares_of_canaries_leave_the_stable_predictor_at_least_nothing(shares: list[int]) -> None:
    canaries = [{"trafficPercent": s, "predictor": {"name": f"v{i}", "model": {}}} for i, s in enumerate(shares)]
    isvc = {
        "metadata": {"name": "a", "annotations": {MODE: "Standard"}},
        "spec": {"predictor": {"model": {}}, "canary": canaries},
    }
    fits = all(0 <= s <= 100 for s in shares) and sum(shares) <= 100
    assert (kserve_admission.refused(isvc) == []) == fits


def test_the_mode_of_a_living_service_and_a_name_without_another_model_are_refused(render: Render) -> None:
    standard, knative = render("standard")["InferenceService"], render("knative")["InferenceService"]
    assert kserve_admission.update_refused(standard, standard) == []
    assert kserve_admission.update_refused(standard, changed(standard, annotate(mode="RawDeployment"))) == []
    (reason,) = kserve_admission.update_refused(standard, knative)
    assert reason.startswith("mode_is_kept")
    named = changed(standard, lambda isvc: predictor(isvc).update(name="v2"))
    (reason,) = kserve_admission.update_refused(standard, named)
    assert reason.startswith("another_name_another_model")
    assert (
        kserve_admission.update_refused(standard, changed(named, lambda i: model(i).update(storageUri="s3://b/"))) == []
    )


RUNTIME_BROKEN: dict[str, Change] = {
    "runtime_environment": lambda runtime: runtime["spec"]["containers"][0]["env"].extend(PYTHONPATH),
    "runtime_priorities": lambda runtime: runtime["spec"].update(
        supportedModelFormats=[{"name": "x", "autoSelect": True, "priority": i} for i in (1, 2)]
    ),
}


@pytest.mark.parametrize("overlay", ["standard", "standard-kserve"])
def test_runtimes_that_a_webhook_refuses(render: Render, overlay: str) -> None:
    runtime = render(overlay)["ServingRuntime"]
    assert set(RUNTIME_BROKEN) == {rule.__name__ for rule in kserve_admission.RUNTIME_RULES}
    for rule, change in RUNTIME_BROKEN.items():
        (found,) = kserve_admission.runtime_refused(changed(runtime, change))
        assert found.startswith(f"{rule}: ")
        off = changed(runtime, change, lambda r: r["spec"].update(disabled=True))
        assert kserve_admission.runtime_refused(off) == [], "a disabled runtime is not checked"


def test_both_runtimes_may_be_in_one_namespace_and_two_of_equal_priority_not(render: Render) -> None:
    one, two = (render(overlay)["ServingRuntime"] for overlay in ("standard", "standard-kserve"))
    assert kserve_admission.runtime_refused(one, [two]) == kserve_admission.runtime_refused(two, [one]) == []
    chosen: Change = lambda runtime: runtime["spec"]["supportedModelFormats"][0].update(autoSelect=True, priority=1)  # noqa: E731
    (found,) = kserve_admission.runtime_refused(changed(one, chosen), [changed(two, chosen)])
    assert "ctr-kserve has the same priority" in found


@pytest.mark.parametrize(
    ("overlay", "change", "reason"),
    [
        (
            "standard",
            lambda i: model(i).update(runtime="ctr-kserve"),
            "No ServingRuntimes or ClusterServingRuntimes with the name",
        ),
        ("standard-kserve", lambda i: model(i).update(runtime="ctr-torchserve"), "No ServingRuntimes"),
        (
            "standard-kserve-canary",
            lambda i: canary(i)["predictor"]["model"].update(runtime="ctr-torchserve"),
            "No ServingRuntimes",
        ),
        ("standard", lambda i: model(i).pop("runtime"), "no runtime is named"),
        ("standard", lambda i: model(i).update(protocolVersion="grpc-v2"), "does not support the protocol grpc-v2"),
        ("standard", lambda i: model(i)["modelFormat"].update(name="pytorch"), "does not support the model format"),
        ("standard", lambda i: model(i)["modelFormat"].update(version="2"), "does not support the model format"),
        ("standard", lambda i: model(i).update(storageUri="s4://x/"), "no supported scheme"),
        ("standard", lambda i: model(i).update(storageUri="https://x.blob.core.windows.net"), "no supported scheme"),
        ("standard-canary", lambda i: canary(i)["predictor"].update(name="v" * 45), "too long"),
        ("standard-canary", lambda i: canary(i)["predictor"].update(name="v.2"), "cannot be the name of a Service"),
        ("standard-canary", lambda i: canary(i)["predictor"].update(name="V2"), "cannot be the name of a Service"),
    ],
)
def test_what_is_accepted_and_never_ready_is_found(render: Render, overlay: str, change: Change, reason: str) -> None:
    resources = render(overlay)
    runtimes = {resources["ServingRuntime"]["metadata"]["name"]: resources["ServingRuntime"]}
    isvc = changed(resources["InferenceService"], change)
    assert kserve_admission.refused(isvc) == []
    found = list(kserve_controller.never_ready(isvc, runtimes))
    assert any(reason in line for line in found), found


def test_the_longest_name_of_a_canary_is_the_documented_one(render: Render) -> None:
    resources = render("standard-canary")
    runtimes = {"ctr-torchserve": resources["ServingRuntime"]}
    isvc = changed(resources["InferenceService"], lambda i: canary(i)["predictor"].update(name="v" * 44))
    assert list(kserve_controller.never_ready(isvc, runtimes)) == []


STANDARD, KNATIVE = kserve_controller.VISIBILITY["Standard"], kserve_controller.VISIBILITY["Knative"]


@pytest.mark.parametrize(
    ("overlay", "change", "reason"),
    [
        ("standard", lambda isvc: isvc["metadata"]["annotations"].pop(MODE), "cluster's default"),
        ("standard", annotate(mode="RawDeployment"), "an old name"),
        ("standard", lambda isvc: predictor(isvc).update(canaryTrafficPercent=10), "outside Knative"),
        ("knative-canary", lambda isvc: predictor(isvc).update(canaryTrafficPercent=110), "not in 0..100"),
        ("standard", lambda isvc: isvc["metadata"]["annotations"].pop(AUTOSCALER), "is missing"),
        ("knative", annotate(autoscaler="hpa"), "has no effect in Knative"),
        (
            "standard",
            lambda i: i["metadata"]["annotations"].update({kserve_controller.SCRAPING: "True"}),
            "means false",
        ),
        (
            "standard",
            lambda isvc: isvc["metadata"]["annotations"].update({"serving.kserve.io/server-type": "torchserve"}),
            "stock TorchServe",
        ),
        ("standard-canary", label(STANDARD), "no HTTPRoute"),
        ("standard-canary", lambda isvc: isvc["spec"].update(transformer={}), "do not compose"),
        ("knative-canary", lambda isvc: isvc["spec"].update(transformer={}), "do not compose"),
        ("knative", label(STANDARD), "other mode"),
        ("standard", label(KNATIVE), "other mode"),
    ],
)
def test_what_a_cluster_would_silently_ignore_is_found(
    render: Render, overlay: str, change: Change, reason: str
) -> None:
    found = list(kserve_controller.ignored(changed(render(overlay)["InferenceService"], change)))
    assert any(reason in line for line in found), found


def test_scraping_by_kserve_announces_a_port_that_is_not_there_in_standard_mode(render: Render) -> None:
    resources = render("standard")
    on: Change = lambda isvc: isvc["metadata"]["annotations"].update({kserve_controller.SCRAPING: "true"})  # noqa: E731
    off: Change = lambda isvc: isvc["metadata"]["annotations"].pop(kserve_controller.SCRAPING)  # noqa: E731
    isvc, runtime = resources["InferenceService"], resources["ServingRuntime"]
    assert kserve_controller.announced(changed(isvc, on), runtime)["port"] == "9091"
    assert kserve_controller.announced(changed(isvc, off), runtime, "true")["port"] == "9091"
    assert kserve_controller.announced(changed(isvc, off), runtime, "false")["port"] == "8082"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *((lambda pod, f=field: pod.update({f: {}}), f"pod field {field}") for field in (
            *("affinity", "nodeSelector", "tolerations", "securityContext", "topologySpreadConstraints", "initContainers"),
            *("terminationGracePeriodSeconds", "hostNetwork", "priorityClassName"),
        )),
        (lambda pod: pod.update(automountServiceAccountToken=True), "may only be false"),
        (lambda pod: pod.update(timeoutSeconds=601), "timeoutSeconds"),
        (lambda pod: pod.update(containerConcurrency=1001), "containerConcurrency"),
        (lambda pod: pod["volumes"].append({"name": "x", "persistentVolumeClaim": {}}), "needs a feature flag"),
        (lambda pod: pod["volumes"].append({"name": "x", "emptyDir": {}}), "is not mounted"),
        (lambda pod: [m.pop("readOnly", None) for m in pod["containers"][0]["volumeMounts"]], "must be mounted readOnly"),
        (lambda pod: pod["containers"][0]["ports"].append({"containerPort": 8082}), "more than one"),
        (lambda pod: pod["containers"][0]["ports"][0].update(containerPort=9091), "is reserved"),
        (lambda pod: pod["containers"][0]["ports"][0].update(name="http"), "port name"),
        (lambda pod: pod["containers"][0].update(lifecycle={}), "container field lifecycle"),
        (lambda pod: pod["containers"][0]["securityContext"].update(privileged=False), "securityContext.privileged"),
        (lambda pod: pod["containers"][0]["env"].append({"name": "PORT", "value": "1"}), "is reserved"),
        (lambda pod: pod["containers"][0]["env"].append({"name": "A", "valueFrom": {"fieldRef": {}}}), "valueFrom"),
        (lambda pod: pod["containers"][0]["volumeMounts"][0].update(mountPath="/dev/"), "is reserved"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("overlay", ["knative", "knative-kserve"])
def test_what_knative_refuses_is_found(render: Render, overlay: str, change: Change, reason: str) -> None:
    pod = pod_of(render(overlay))
    assert knative_admission.refused(pod) == []
    found = knative_admission.refused(changed(pod, change))
    assert any(reason in line for line in found), found


def test_what_standard_mode_adds_is_what_knative_refuses(render: Render) -> None:
    """The two modes differ where they must: were the components exchanged, it would be found."""
    found = " ".join(knative_admission.refused(pod_of(render("standard"))))
    assert all(field in found for field in ("securityContext", "lifecycle", "topologySpread", "terminationGracePeriod"))

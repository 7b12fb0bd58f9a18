"""The checks themselves: a planted mistake of every kind is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.manifests import closed_schema, rules

Render = Callable[[str], dict[str, dict[str, Any]]]
Change = Callable[[dict[str, Any]], Any]


def changed(resource: dict[str, Any], change: Change) -> dict[str, Any]:
    """A copy of ``resource`` with one thing changed."""
    result = copy.deepcopy(resource)
    change(result)
    return result


def predictor(isvc: dict[str, Any]) -> dict[str, Any]:
    return isvc["spec"]["predictor"]


def canary(isvc: dict[str, Any]) -> dict[str, Any]:
    return isvc["spec"]["canary"][0]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda isvc: predictor(isvc).update(minReplica=2), "minReplica"),
        (lambda isvc: isvc["spec"].update(predictors={}), "predictors"),
        (lambda isvc: predictor(isvc)["model"].update(storageURI="s3://x/"), "storageURI"),
        (lambda isvc: predictor(isvc)["securityContext"].update(runAsNonroot=True), "runAsNonroot"),
        (lambda isvc: canary(isvc).update(canaryTrafficPercent=10), "canaryTrafficPercent"),
        (lambda isvc: canary(isvc).pop("trafficPercent"), "trafficPercent"),
        (lambda isvc: predictor(isvc).update(minReplicas="2"), "minReplicas"),
        (lambda isvc: isvc.update(specs={}), "specs"),
        (lambda isvc: isvc["metadata"].update(annotation={}), "annotation"),
        (lambda isvc: isvc["metadata"]["labels"].update(bad="no spaces here"), "labels.bad"),
    ],
)
def test_a_planted_typo_in_the_service_is_refused(render: Render, crds: Path, change: Change, path: str) -> None:
    isvc = render("standard-canary")["InferenceService"]
    assert closed_schema.errors(isvc, crds) == []
    found = closed_schema.errors(changed(isvc, change), crds)
    assert len(found) == 1
    assert path in found[0]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda runtime: runtime["spec"].update(protocolVersion=["v1"]), "protocolVersion"),
        (lambda runtime: runtime["spec"]["containers"][0].update(arguments=[]), "arguments"),
        (lambda runtime: runtime["spec"]["containers"][0]["startupProbe"].update(periodSecond=3), "periodSecond"),
        (lambda runtime: runtime["spec"]["containers"][0].pop("name"), "name"),
        (lambda runtime: runtime["spec"]["supportedModelFormats"][0].update(autoSelect="false"), "autoSelect"),
    ],
)
def test_a_planted_typo_in_the_runtime_is_refused(render: Render, crds: Path, change: Change, path: str) -> None:
    found = closed_schema.errors(changed(render("standard")["ServingRuntime"], change), crds)
    assert len(found) == 1
    assert path in found[0]


def test_a_number_or_a_text_is_taken_where_kubernetes_takes_both(render: Render, crds: Path) -> None:
    runtime = render("standard")["ServingRuntime"]
    for port in (8080, "http1"):
        probe = changed(
            runtime, lambda r, p=port: r["spec"]["containers"][0]["livenessProbe"]["httpGet"].update(port=p)
        )
        assert closed_schema.errors(probe, crds) == []
    probe = changed(runtime, lambda r: r["spec"]["containers"][0]["livenessProbe"]["httpGet"].update(port=True))
    assert closed_schema.errors(probe, crds) != []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda isvc: canary(isvc)["predictor"].update(maxReplicas=4), "maxReplicas"),
        (lambda isvc: canary(isvc)["predictor"].update(scaleTarget=70), "scaleTarget"),
        (lambda isvc: canary(isvc)["predictor"].update(minReplicas=3), "more minReplicas"),
        (lambda isvc: canary(isvc)["predictor"].pop("name"), "no name"),
        (lambda isvc: predictor(isvc).update(name=canary(isvc)["predictor"]["name"]), "not unique"),
        (lambda isvc: canary(isvc).update(trafficPercent=101), "0..100"),
        (lambda isvc: isvc["spec"]["canary"].append({**canary(isvc), "trafficPercent": 95}), "at most 100"),
        (lambda isvc: isvc["metadata"]["annotations"].update({rules.MODE: "Knative"}), "needs the annotation"),
        (lambda isvc: isvc["metadata"]["annotations"].update({rules.MODE: "Serverless"}), "none of"),
        (lambda isvc: predictor(isvc).update(minReplicas=9), "do not fit"),
        (lambda isvc: predictor(isvc)["model"].update(storageUri="/mnt/models"), "no known scheme"),
    ],
)
def test_what_a_webhook_refuses_is_found(render: Render, change: Change, reason: str) -> None:
    found = rules.refused(changed(render("standard-canary")["InferenceService"], change))
    assert any(reason in line for line in found), found


@pytest.mark.parametrize(
    ("overlay", "change", "reason"),
    [
        ("standard", lambda isvc: isvc["metadata"]["annotations"].pop(rules.MODE), "cluster's default"),
        ("standard", lambda isvc: predictor(isvc).update(canaryTrafficPercent=10), "outside Knative"),
        ("standard", lambda isvc: predictor(isvc).update(scaleMetric="concurrency"), "unknown to the autoscaler"),
        ("standard", lambda isvc: isvc["metadata"]["annotations"].update({rules.AUTOSCALER: "kpa"}), "does not exist"),
        (
            "standard",
            lambda isvc: isvc["metadata"]["annotations"].update({"serving.kserve.io/server-type": "torchserve"}),
            "stock TorchServe",
        ),
        (
            "standard-canary",
            lambda isvc: isvc["metadata"]["labels"].update({rules.VISIBILITY["Standard"]: "cluster-local"}),
            "no HTTPRoute",
        ),
        ("standard-canary", lambda isvc: isvc["spec"].update(transformer={}), "do not compose"),
        ("knative-canary", lambda isvc: isvc["spec"].update(transformer={}), "do not compose"),
        (
            "knative",
            lambda isvc: isvc["metadata"]["labels"].update({rules.VISIBILITY["Standard"]: "cluster-local"}),
            "other mode",
        ),
    ],
)
def test_what_a_cluster_would_silently_ignore_is_found(
    render: Render, overlay: str, change: Change, reason: str
) -> None:
    found = rules.ignored(changed(render(overlay)["InferenceService"], change))
    assert any(reason in line for line in found), found

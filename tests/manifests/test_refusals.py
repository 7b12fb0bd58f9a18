"""The schema check itself: a planted mistake of every kind is found. For the rules of the webhooks see test_admission.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.manifests import closed_schema

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

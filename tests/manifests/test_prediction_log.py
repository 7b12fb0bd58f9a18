"""The prediction log of a deployment: one volume for all replicas, its settings, its secret, and nothing else changed."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.config import load_config
from serving.telemetry.prediction_log import SALT
from tests.manifests import closed_schema, kserve_admission, kserve_controller
from tests.manifests.conftest import ROOT, rendered

Render = Callable[[str], dict[str, dict[str, Any]]]


@pytest.fixture
def logged(render: Render) -> dict[str, dict[str, Any]]:
    return copy.deepcopy(render("standard-log"))


def test_the_volume_is_the_claim_and_the_settings_name_its_place(
    logged: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    claim, runtime = logged["PersistentVolumeClaim"], logged["ServingRuntime"]["spec"]
    kubernetes_validate.validate(claim, "1.34", strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "every replica writes"
    (volume,) = [v for v in runtime["volumes"] if "persistentVolumeClaim" in v]
    assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    (mount,) = [m for m in runtime["containers"][0]["volumeMounts"] if m["name"] == volume["name"]]
    assert not mount.get("readOnly")
    ((name, text),) = logged["ConfigMap"]["data"].items()
    (tmp_path / name).write_text(text)
    found = load_config(tmp_path / name)
    assert found.prediction_log.folder == mount["mountPath"]
    assert found.prediction_log.max_bytes < 2 << 30 == _bytes(claim["spec"]["resources"]["requests"]["storage"])
    assert found.prediction_log.when_full == "drop_old"
    assert (found.metrics_host, found.metrics_port) == ("0.0.0.0", 8082)


def test_the_secret_of_hashed_user_ids_may_be_missing(logged: dict[str, dict[str, Any]]) -> None:
    (salt,) = [e for e in logged["ServingRuntime"]["spec"]["containers"][0]["env"] if e["name"] == SALT]
    assert salt["valueFrom"]["secretKeyRef"] == {"name": "ctr-prediction-log", "key": "salt", "optional": True}


def test_it_fits_the_schemas_and_the_rest_is_the_plain_overlay(
    logged: dict[str, dict[str, Any]], render: Render, crds: Path
) -> None:
    isvc, runtime_object = logged["InferenceService"], logged["ServingRuntime"]
    assert closed_schema.errors(runtime_object, crds) == closed_schema.errors(isvc, crds) == []
    assert kserve_admission.refused(isvc) == kserve_admission.runtime_refused(runtime_object) == []
    assert list(kserve_controller.never_ready(isvc, {runtime_object["metadata"]["name"]: runtime_object})) == []
    # A volume of a class that honours it is then writable for the server.
    user = runtime_object["spec"]["containers"][0]["securityContext"]["runAsUser"]
    assert isvc["spec"]["predictor"]["securityContext"]["fsGroup"] == user
    del logged["PersistentVolumeClaim"]
    runtime = logged["ServingRuntime"]["spec"]
    for part in (runtime["containers"][0]["env"], runtime["containers"][0]["volumeMounts"], runtime["volumes"]):
        part.pop()
    plain = copy.deepcopy(render("standard"))
    logged["ConfigMap"].pop("data")
    plain["ConfigMap"].pop("data")
    assert logged == plain


def test_the_other_runtime_logs_as_well(logged: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    own = tmp_path / "manifests" / "overlays" / "own"
    own.mkdir()
    content = {"resources": ["../standard-kserve"], "components": ["../../components/prediction-log"]}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(content))
    kserve = {resource["kind"]: resource for resource in yaml.safe_load_all(rendered(own))}
    for part in ("env", "volumeMounts"):
        added = logged["ServingRuntime"]["spec"]["containers"][0][part][-1]
        assert kserve["ServingRuntime"]["spec"]["containers"][0][part][-1] == added
    assert kserve["ServingRuntime"]["metadata"]["name"] == "ctr-kserve"
    assert kserve["ConfigMap"]["data"] == logged["ConfigMap"]["data"]


def _bytes(text: str) -> int:
    assert text.endswith("Gi")
    return int(text.removesuffix("Gi")) << 30

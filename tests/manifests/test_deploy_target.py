"""What the pipeline's deploy step writes for a cluster fits the overlays here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import closed_schema, kserve_admission, kserve_controller

deployment = pytest.importorskip("components.deployment.deploy.deployment")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "overlay", ["standard", "standard-kserve", "standard-log", "standard-canary", "knative", "knative-kserve"]
)
def test_the_written_service_is_a_patch_of_every_mode(
    render: Callable[[str], dict[str, dict[str, Any]]], crds: Path, tmp_path: Path, overlay: str
) -> None:
    before = render(overlay)["InferenceService"]
    place = deployment.storage_uri("minio://pipelines/run-1/deploy/deployment") + "/" + deployment.MODEL_FOLDER
    service = deployment.inference_service("ml-100k-c536f6dba604", "a" * 64, place)
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    own = tmp_path / "own"
    own.mkdir()
    (own / deployment.MANIFEST_NAME).write_text(yaml.safe_dump(service))
    kustomization = {
        "resources": [f"../manifests/overlays/{overlay}"],
        "patches": [{"path": deployment.MANIFEST_NAME}],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(["kubectl", "kustomize", str(own)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (after,) = [r for r in yaml.safe_load_all(done.stdout) if r["kind"] == "InferenceService"]
    assert closed_schema.errors(after, crds) == []
    assert kserve_admission.refused(after) == list(kserve_controller.ignored(after)) == []
    assert kserve_controller.storage_uris(after)[0] == "s3://pipelines/run-1/deploy/deployment/model"
    runtime = render(overlay)["ServingRuntime"]
    assert list(kserve_controller.never_ready(after, {runtime["metadata"]["name"]: runtime})) == []
    model = after["spec"]["predictor"]["model"]
    assert {**model, "storageUri": ""} == {**before["spec"]["predictor"]["model"], "storageUri": ""}
    assert after["spec"]["predictor"]["labels"]["ctr.example.org/model-version"] == "ml-100k-c536f6dba604"

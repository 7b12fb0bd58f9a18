"""The commands and paths in ``manifests/README.md`` exist and do what the text says."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.manifests import closed_schema, rules

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "manifests" / "README.md"

Render = Callable[[str], dict[str, dict[str, Any]]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_there_are_commands() -> None:
    text = "\n".join(commands())
    for overlay in ("standard", "standard-canary", "knative", "knative-canary"):
        assert re.search(rf"manifests/overlays/{overlay}(\s|$)", text, re.MULTILINE), overlay


def test_every_path_in_a_command_exists() -> None:
    paths = {word for line in commands() for word in line.split() if word.startswith(("manifests/", "images/"))}
    assert paths
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    assert missing == []


def test_every_folder_given_to_kubectl_renders() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: it renders the overlays")
    folders = set(
        re.findall(r"kubectl (?:kustomize|apply -k|apply --server-side -k|diff -k) (\S+)", "\n".join(commands()))
    )
    assert len(folders) >= 4
    for folder in sorted(folders):
        done = subprocess.run(["kubectl", "kustomize", folder], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_an_overlay_of_ones_own_works_as_written(render: Render, crds: Path, tmp_path: Path) -> None:
    render("standard")  # skips without kubectl
    (text,) = [block for block in blocks("yaml") if "kind: Kustomization" in block]
    shutil.copytree(ROOT / "manifests", tmp_path / "thinktwice" / "manifests")
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(text)
    done = subprocess.run(["kubectl", "kustomize", str(own)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    resources = {resource["kind"]: resource for resource in yaml.safe_load_all(done.stdout)}
    isvc, runtime = resources["InferenceService"], resources["ServingRuntime"]
    assert closed_schema.errors(isvc, crds) == closed_schema.errors(runtime, crds) == []
    assert rules.refused(isvc) == rules.ignored(isvc) == []
    assert rules.storage_uris(isvc) != rules.storage_uris(render("standard")["InferenceService"])
    assert "@sha256:" in runtime["spec"]["containers"][0]["image"]
    namespaces = {
        resource["metadata"].get("namespace", resource["metadata"]["name"]) for resource in resources.values()
    }
    assert namespaces == {"ads"}


def test_the_secret_is_the_one_the_account_names(render: Render) -> None:
    secret = yaml.safe_load((ROOT / "manifests" / "examples" / "model-store-secret.yaml").read_text())
    kubernetes_validate.validate(secret, "1.34", strict=True)
    assert secret["metadata"]["name"] in [entry["name"] for entry in render("standard")["ServiceAccount"]["secrets"]]
    assert set(secret["stringData"]) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert set(secret["stringData"].values()) == {"fill-in"}
    assert not secret["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"].startswith("http")

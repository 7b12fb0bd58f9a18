"""The steps ``deploy_to_cluster`` and ``promote``, and the file by which other pipelines import the first."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl
from kfp import components as kfp_components

import components.deployment.rollout.connect as connect_module
from components.cluster.client import UnreachableError
from components.deployment.deploy_to_cluster.component import deploy_to_cluster
from components.deployment.deploy_to_cluster.deploy import deploy_version
from components.deployment.promote.component import promote
from components.deployment.rollout.run import canary, status
from components.deployment.rollout.run import promote as run_promote
from tests.cluster.api_process import ROOT, Api
from tests.cluster.objects_store import Json
from tests.cluster.served import FAST, V1, V2, V3, install, session
from thinktwice.errors import PipelineError, RolloutError

Overlay = Callable[[str], list[Json]]
PUBLISHED = ROOT / "components/deployment/deploy_to_cluster/component.yaml"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    real = connect_module.open_session

    def quick(service: str, namespace: str, waiting: object, **more: object) -> object:
        return real(service, namespace, FAST, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(connect_module, "open_session", quick)
    monkeypatch.setattr("components.deployment.deploy_to_cluster.deploy.open_session", quick)


def test_a_version_becomes_a_canary_and_then_the_stable_version(api: Api, overlay: Overlay) -> None:
    install(api, overlay("standard"))
    for _ in range(2):  # a step that is tried again
        assert deploy_to_cluster.python_func(model_uri=V2.uri, namespace="runs", percent=20) == V2.uri
    assert status(session(api)).live.canary == V2
    for _ in range(2):
        promote.python_func(namespace="runs")
    assert status(session(api)).live.stable == V2
    said: list[str] = []
    assert deploy_version(V2.uri, "runs", "ctr", tell=said.append) == V2.uri
    assert said == [f"{V2.name} is the stable version already"] and status(session(api)).live.canary is None
    assert deploy_to_cluster.python_func(model_uri=V3.uri, namespace="runs", whole=True) == V3.uri
    assert status(session(api)).live.stable == V3 and status(session(api)).live.canary is None


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("standard", "PATCH .*inferenceservices"),
        ("standard", "DELETE .*horizontalpodautoscalers"),  # the stable version is new, and the canary gone
        ("experiment", "DELETE .*inferenceservices"),  # the arm and its record are left
        ("knative", "PATCH .*inferenceservices"),
    ],
)
def test_a_promotion_that_was_interrupted_is_completed(api: Api, overlay: Overlay, name: str, request_: str) -> None:
    """The step is tried again after the API server was gone in the middle of the promotion."""
    install(api, overlay(name))
    canary(session(api), V2, 20)
    api.control(faults=[{"match": request_, "times": 10**6, "cut": True}])
    with pytest.raises(UnreachableError, match="does not answer"):
        run_promote(session(api, patience_s=1.0))
    api.control(faults=[])
    assert deploy_to_cluster.python_func(model_uri=V2.uri, namespace="runs", whole=True) == V2.uri
    found = status(session(api))
    assert found.state is not None and (found.state.action, found.state.canary) == ("", None)
    assert (found.live.stable, found.live.canary) == (V2, None)
    assert not [n for n in api.objects("inferenceservices") if "treatment" in n]
    assert deploy_to_cluster.python_func(model_uri=V3.uri, namespace="runs", percent=5) == V3.uri  # the next run


def test_a_version_that_fails_fails_the_step(api: Api, overlay: Overlay) -> None:
    install(api, overlay("standard"))
    api.control(broken={V2.name: "storage"})
    with pytest.raises(RolloutError, match=f"was taken back, {V1.name} keeps serving"):
        deploy_to_cluster.python_func(model_uri=V2.uri, namespace="runs")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"form": "moon"}, "form 'moon' is unknown"),
        ({"percent": 0}, "percent 0 is not a share"),
        ({"percent": 101}, "not a share"),
        ({"model_uri": "s3://mlpipeline/v2/artifacts/run/deploy/7/deployment/model"}, "give storage"),
    ],
)
def test_wrong_arguments(change: Json, said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        deploy_to_cluster.python_func(**{"model_uri": V2.uri, "namespace": "runs", **change})


def test_the_published_file_is_what_the_step_compiles_to(tmp_path: Path) -> None:
    compiler.Compiler().compile(deploy_to_cluster, str(tmp_path / "component.yaml"))
    assert PUBLISHED.read_text() == (tmp_path / "component.yaml").read_text(), (
        "compile it again: kfp dsl compile --py components/deployment/deploy_to_cluster/component.py "
        "--function deploy_to_cluster --output components/deployment/deploy_to_cluster/component.yaml"
    )
    assert "packages_to_install" not in PUBLISHED.read_text() and "pip install" not in PUBLISHED.read_text()


def test_another_pipeline_imports_the_file(tmp_path: Path) -> None:
    imported = kfp_components.load_component_from_file(str(PUBLISHED))

    @dsl.pipeline(name="theirs")
    def theirs(uri: str) -> None:
        imported(model_uri=uri, namespace="ads", percent=5)

    compiler.Compiler().compile(theirs, str(tmp_path / "theirs.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "theirs.yaml").read_text()))
    (executor,) = spec["deploymentSpec"]["executors"].values()
    assert executor["container"]["image"].startswith("ghcr.io/thinktwice/thinktwice-python:")
    (task,) = spec["root"]["dag"]["tasks"].values()
    assert task["inputs"]["parameters"]["percent"]["runtimeValue"]["constant"] == 5.0

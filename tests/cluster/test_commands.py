"""The commands ``thinktwice rollout`` against the API server, as a user types them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import components.deployment.rollout.connect as connect_module
from tests.cluster.api_process import Api
from tests.cluster.objects_store import Json
from tests.cluster.served import FAST, V1, V2, install
from thinktwice.cli import main

Overlay = Callable[[str], list[Json]]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a fraction of a second: the commands' own are for a cluster."""
    real = connect_module.open_session
    monkeypatch.setattr(
        connect_module,
        "open_session",
        lambda service, namespace, waiting, **more: real(service, namespace, FAST, **more),
    )


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["rollout", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_commands(api: Api, overlay: Overlay, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    install(api, overlay("standard"))
    assert run(capsys, "status") == (0, f"form: standard\nstable: {V1.name} ({V1.uri})\n", "")
    (tmp_path / "request.json").write_text('{"instances": [{"user_id": "u1", "candidates": ["i1"]}]}')
    code, out, _ = run(capsys, "canary", V2.uri, "--percent", "25", "--request", str(tmp_path / "request.json"))
    assert code == 0 and out.splitlines()[-1] == f"canary {V2.name}: 25 % of the requests at the gateway"
    assert f"canary: {V2.name} ({V2.uri}), 25 %" in run(capsys, "status")[1]
    code, out, _ = run(capsys, "promote", "--form", "standard")
    assert code == 0 and out.splitlines()[-1] == f"{V2.name}: promoted, {V1.name} is the version to roll back to"
    assert f"before the last promotion: {V1.name}" in run(capsys, "status")[1]
    code, out, _ = run(capsys, "rollback")
    assert code == 0 and out.splitlines()[-1] == f"{V1.name}: serves all requests, no canary is left"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["canary", "models/v1"], "is not the folder of a version"),
        (["canary", "s3://b/v1", "--percent", "0"], "--percent"),
        (["canary", "s3://b/v1", "--request", "none.json"], "none.json is not a request"),
        (["promote"], "has neither an InferenceService ctr nor ctr-control"),
        (["status", "--namespace", "nowhere"], "namespace nowhere does not exist"),
    ],
)
def test_a_mistake_is_a_sentence(api: Api, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    code, _, error = run(capsys, *words)
    assert code != 0 and said in " ".join(error.split()) and "Traceback" not in error


def test_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    code, _, error = run(capsys, "status")
    assert code == 1 and "set KUBECONFIG" in error

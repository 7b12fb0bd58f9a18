"""What the manifests say about the predictor image is what ``images/`` puts into it."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from serving.adapters.java_queue import PORT as QUEUE_PORT
from serving.config import ServingConfig, load_config
from serving.local.torchserve_process import ABOVE, JVM, configuration

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
CONTAINERFILE = (IMAGES / "predictor.Containerfile").read_text()

Render = Callable[[str], dict[str, dict[str, Any]]]


def properties() -> dict[str, str]:
    lines = (IMAGES / "predictor" / "config.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment() -> dict[str, str]:
    block = re.search(r"^ENV (.*?)^$", CONTAINERFILE, re.MULTILINE | re.DOTALL)
    assert block
    return dict(word.split("=", 1) for word in shlex.split(block[1].replace("\\\n", " ")))


@pytest.fixture
def container(render: Render) -> dict[str, Any]:
    return render("standard")["ServingRuntime"]["spec"]["containers"][0]


def test_only_scoring_and_metrics_listen_beyond_loopback() -> None:
    config = properties()
    assert config["inference_address"] == "http://0.0.0.0:8080"
    assert config["metrics_address"] == "http://127.0.0.1:8084"
    settings = load_config(ROOT / "images" / "predictor" / "serving.yaml")
    assert (settings.metrics_host, settings.metrics_port) == ("0.0.0.0", 8082)
    assert environment()["THINKTWICE_SERVING"] == "/opt/predictor/serving.yaml"
    assert config["management_address"] == "http://127.0.0.1:8081"
    assert config["grpc_inference_address"] == config["grpc_management_address"] == "127.0.0.1"


def test_the_front_end_is_set_up_as_the_local_one() -> None:
    """Limits that belong together: its queue and bodies, and those of the service behind it."""
    image = properties()
    local = configuration(
        Path("/s/ctr.mar"), ServingConfig(), port=1, management=Path("/m"), metrics_port=3, grpc_ports=(4, 5)
    )
    ours = dict(line.split("=", 1) for line in local.splitlines())
    for name in (
        "job_queue_size",
        "max_request_size",
        "decode_input_request",
        "default_workers_per_model",
        "enable_model_api",
    ):
        assert image[name] == ours[name], name
    assert int(image["max_request_size"]) == ServingConfig().max_body_bytes + ABOVE
    script = (IMAGES / "predictor" / "entrypoint.sh").read_text().replace(" \\\n    ", " ")
    assert set(JVM.split()) - set(script.split()) == {"-XX:TieredStopAtLevel=1"}, "which only makes the start shorter"
    assert "--python /opt/predictor/worker.sh" in script
    (port,) = re.findall(rf"^export {QUEUE_PORT}=(\d+)$", script, re.MULTILINE)
    assert 1024 < int(port) < 65536 and port not in (8080, 8081, 8082, 8084)
    waits = "".join((IMAGES / "predictor" / "log4j2.xml").read_text().split())
    ours_waits = "".join((ROOT / "serving" / "local" / "log4j2.xml").read_text().split())
    found = re.search(r"<Socketname=.*?</Socket>", waits)
    assert found and found[0] in ours_waits


def test_the_worker_takes_no_code_from_the_archive() -> None:
    text = (IMAGES / "predictor" / "worker.sh").read_text()
    assert text.splitlines()[-1] == 'exec /opt/venv/bin/python -I -B -m serving.adapters.torchserve_worker "$@"'


def test_the_server_loads_nothing_but_its_store_and_installs_nothing() -> None:
    config = properties()
    assert config["allowed_urls"] == "file:///mnt/models/.*"
    assert config["enable_model_api"] == config["install_py_dep_per_model"] == "false"
    assert "service_envelope" not in config, "TorchServe's envelopes answer one request of a batch"


def test_the_manifest_runs_the_entry_point_with_the_default_words(container: dict[str, Any]) -> None:
    entry = re.search(r"^ENTRYPOINT (.*)$", CONTAINERFILE, re.MULTILINE)
    words = re.search(r"^CMD (.*)$", CONTAINERFILE, re.MULTILINE)
    assert entry
    assert words
    assert container["command"] == json.loads(entry[1])
    assert container["args"] == json.loads(words[1])
    assert "--disable-token-auth" in container["args"]


def test_ports_user_and_environment_agree(container: dict[str, Any]) -> None:
    assert re.search(r"^EXPOSE 8080 8082$", CONTAINERFILE, re.MULTILINE)
    assert [port["containerPort"] for port in container["ports"]] == [8080]
    user = re.search(r"^USER (\d+):(\d+)$", CONTAINERFILE, re.MULTILINE)
    assert user
    assert (int(user[1]), int(user[2])) == (
        container["securityContext"]["runAsUser"],
        container["securityContext"]["runAsGroup"],
    )
    image = environment()
    fixed = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert fixed.pop("THINKTWICE_SERVING") != image["THINKTWICE_SERVING"], "the manifest's settings, not the image's"
    assert fixed.items() <= image.items()
    redis = [entry for entry in container["env"] if "value" not in entry]
    assert [entry["name"] for entry in redis] == ["THINKTWICE_REDIS_ADDRESS", "THINKTWICE_REDIS_PASSWORD"]
    assert all(entry["valueFrom"]["secretKeyRef"]["optional"] is True for entry in redis)
    assert image["TEMP"] == image["TMPDIR"] == "/tmp"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert image["LOG_LOCATION"] in mounts
    assert re.search(r"^WORKDIR (.*)$", CONTAINERFILE, re.MULTILINE)[1] in mounts  # type: ignore[index]


def test_the_probes_are_files_of_the_image(container: dict[str, Any]) -> None:
    for probe in ("startupProbe", "readinessProbe"):
        command = container[probe]["exec"]["command"]
        assert command[:4] == ["/opt/venv/bin/python", "-I", "-S", "/opt/predictor/probe.py"]
    assert container["startupProbe"]["exec"]["command"][-1] == "--score"
    assert (IMAGES / "predictor" / "probe.py").is_file()
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 120


def test_only_torchserves_workers_share_metrics_in_a_folder() -> None:
    """The KServe predictor starts in the same image without the entry point that makes the folder."""
    assert "PROMETHEUS_MULTIPROC_DIR" not in environment()
    script = (IMAGES / "predictor" / "entrypoint.sh").read_text()
    assert script.index("export PROMETHEUS_MULTIPROC_DIR=/tmp/") < script.index("\nexec ")


def test_the_entry_point_becomes_the_server() -> None:
    script = (IMAGES / "predictor" / "entrypoint.sh").read_text()
    last = script.rstrip().rsplit("\nexec ", 1)
    assert len(last) == 2, "the last command must be exec, so that a dead server ends the container"
    assert "\n\n" not in last[1]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model-store=/nowhere"], 1, "no readable model archive /nowhere/ctr.mar"),
        (["--model-stores=/mnt"], 2, "unknown argument --model-stores=/mnt"),
    ],
)
def test_the_entry_point_says_what_is_missing(words: list[str], code: int, said: str) -> None:
    command = ["sh", str(IMAGES / "predictor" / "entrypoint.sh"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == ""


@pytest.fixture
def probe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("predictor_probe", IMAGES / "predictor" / "probe.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def workers(*states: str) -> tuple[int, bytes]:
    return 200, json.dumps([{"workers": [{"status": state} for state in states]}]).encode()


@pytest.mark.parametrize(
    ("management", "prediction", "score", "said"),
    [
        (workers("READY"), (200, b"{}"), True, ""),
        (workers("UNLOADING", "READY"), (200, b"{}"), False, ""),
        (workers("READY"), (500, b""), False, "status 500"),
        (workers("READY"), (507, b"Worker died."), False, "status 507"),
        (workers("READY"), (503, b"the answer needs about 9: try again later"), False, ""),
        (workers("READY"), (429, b"33 requests wait already"), False, ""),
        (workers("READY"), (503, b'{"error":"model ctr is being loaded: try again later"}'), False, "is being loaded"),
        (workers("READY"), (503, b'{"error":"model ctr is being loaded: try again later"}'), True, "is being loaded"),
        (workers("LOADING"), (200, b"{}"), False, "no worker of ctr is READY"),
        (workers(), (200, b"{}"), False, "no worker of ctr is READY"),
        (workers("READY"), (503, b"full"), True, "status 503"),
        ((404, b"{}"), (200, b"{}"), False, "does not know model ctr"),
        ((200, b"<html>"), (200, b"{}"), False, "unexpected"),
        ((200, b"{}"), (200, b"{}"), False, "no worker"),
        ((200, b"[1]"), (200, b"{}"), False, "unexpected"),
    ],
)
def test_the_probe_believes_a_ready_worker_and_a_score(
    probe: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    management: tuple[int, bytes],
    prediction: tuple[int, bytes],
    score: bool,
    said: str,
) -> None:
    def ask(method: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        assert (method, port, path) in (("GET", 8081, "/models/ctr"), ("POST", 8080, "/v1/models/ctr:predict"))
        return management if method == "GET" else prediction

    monkeypatch.setattr(probe, "ask", ask)
    reason = probe.why_not_ready(score)
    assert (said in reason) if said else reason == ""
    assert probe.main(["--score"] if score else []) == (1 if said else 0)


def test_the_probe_says_no_when_nothing_listens(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> tuple[int, bytes]:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(probe, "ask", ask)
    assert "does not answer" in probe.why_not_ready(False)

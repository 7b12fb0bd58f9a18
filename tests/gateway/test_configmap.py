"""The gateway's files as a cluster mounts them: a read-only folder whose links change at once, and another folder for logs."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.gateway.admin import Admin
from serving.gateway.binary import find_envoy
from serving.gateway.file import load_gateway
from serving.gateway.reload import plan, write
from thinktwice.experiment.bootstrap import bootstrap
from thinktwice.files import write_json

pytestmark = pytest.mark.server

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


def mount(config: Path, revision: int, files: dict[str, bytes]) -> None:
    """As the kubelet updates a ConfigMap: a new folder, then one link replaced."""
    folder = config / f"..{revision}"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        if not os.path.lexists(config / name):
            (config / name).symlink_to(f"..data/{name}")
        (folder / name).chmod(0o444)
    (config / "..new").symlink_to(folder.name)
    os.replace(config / "..new", config / "..data")


def rendered(folder: Path, value: dict[str, Any], coverage: float) -> dict[str, bytes]:
    """Envoy's files of the overlay's gateway, at another place and coverage."""
    source = MANIFESTS / "overlays" / "experiment" / "gateway"
    folder.mkdir(exist_ok=True)
    experiment = (source / "experiment.yaml").read_text().replace("coverage: 0.0 ", f"coverage: {coverage} ", 1)
    (folder / "experiment.yaml").write_text(experiment)
    (folder / "gateway.yaml").write_text(yaml.safe_dump(value))
    declared = load_gateway(folder / "gateway.yaml")
    write(folder, plan(declared, folder, None))
    write_json(folder / "bootstrap.json", bootstrap(declared.file))
    return {name: (folder / name).read_bytes() for name in ("bootstrap.json", "cds.json", "rds.json")}


def test_new_routes_of_a_configmap_are_used_without_a_restart(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, logs = tmp_path / "config", tmp_path / "logs"
    logs.mkdir()
    value = yaml.safe_load((MANIFESTS / "overlays" / "experiment" / "gateway" / "gateway.yaml").read_text())
    value |= {"folder": str(config), "log_folder": str(logs), "listen": f"127.0.0.1:{port}"}
    value["arms"] = {name: ["127.0.0.1:9"] for name in value["arms"]}
    mount(config, 1, rendered(tmp_path / "work", value, 0.0))
    command = [str(find_envoy()), "--config-path", str(config / "bootstrap.json"), "--concurrency", "1"]
    with (tmp_path / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--disable-hot-restart", "--log-level", "warning"], stdout=log, stderr=log
        )
    try:
        admin = Admin(logs)
        first = wait(admin, process, tmp_path / "envoy.log", None)
        mount(config, 2, rendered(tmp_path / "work", value, 0.02))
        second = wait(admin, process, tmp_path / "envoy.log", first)
        assert first != second and (logs / "access.log").exists()
        assert {path.name for path in config.iterdir()} == {
            "..1",
            "..2",
            "..data",
            "bootstrap.json",
            "cds.json",
            "rds.json",
        }
    finally:
        process.kill()
        process.wait()


def wait(admin: Admin, process: subprocess.Popen[bytes], log: Path, old: str | None) -> str:
    """The version of the routes, once it is another one than ``old``."""
    while True:
        assert process.poll() is None, log.read_text()
        try:
            version = admin.route_version()
        except OSError:
            version = None
        if version not in (None, old):
            return str(version)
        time.sleep(0.05)

"""An API server of ours as a process, with a kubeconfig for it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.objects_store import Json

ROOT = Path(__file__).resolve().parents[2]


class Api:
    """The server, and how it is told what to do."""

    def __init__(self, address: str, kubeconfig: Path) -> None:
        self.address, self.kubeconfig = address, kubeconfig

    def control(self, **change: Any) -> Json:
        request = urllib.request.Request(f"{self.address}/control", json.dumps(change).encode(), method="PUT")
        with urllib.request.urlopen(request, timeout=60) as answer:
            state: Json = json.load(answer)
            return state

    def objects(self, plural: str) -> dict[str, Json]:
        """Objects of a kind, by name."""
        return {value["metadata"]["name"]: value for kind, value in self.control()["store"] if kind == plural}


@contextmanager
def running(module: str, argument: str, namespace: str, folder: Path) -> Iterator[Api]:
    """The server ``python -m module argument``, which prints its port, and a kubeconfig for it in ``folder``."""
    process = subprocess.Popen([sys.executable, "-m", module, argument], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        }  # fmt: skip
        (folder / "config").write_text(yaml.safe_dump(config))
        yield Api(address, folder / "config")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

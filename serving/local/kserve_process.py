"""The KServe predictor as a child process on loopback: start, wait until it has scored, stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.config import VARIABLE, ServingConfig
from serving.local.processes import (
    START_LIMIT,
    STOP_LIMIT,
    LocalServer,
    Progress,
    check_port,
    scored,
    start_child,
)
from thinktwice.errors import ServerError
from thinktwice.interrupts import guarded, interruptible


@dataclass
class KServe(LocalServer):
    """A running server. Created by :func:`running`."""

    name = "the predictor"

    @property
    def metrics_url(self) -> str:
        return f"{self.url}/metrics"


@contextmanager
def running(
    bundle: Path,
    *,
    feature_store: Path | None,
    port: int,
    log: Path,
    config: ServingConfig | None = None,
    limit: float = START_LIMIT,
    progress: Progress = lambda text: None,
    environment: dict[str, str] | None = None,
) -> Iterator[KServe]:
    """Serve a bundle while the block runs. On exit, also by Ctrl-C or SIGTERM, the process has drained and ended.

    Args:
        bundle: bundle folder, or a ``.mar`` archive.
        config: settings of the predictor; default: those named in the environment.
        feature_store: feature store folder, None for a model without one.
        port: on 127.0.0.1.
        log: file for the server's output; replaced.
        limit: maximum seconds for the start.
        progress: called with the current stage.
        environment: additional environment variables.

    Raises:
        ServerError: the port is in use, or the model does not start.
    """
    with interruptible():
        check_port(port)
        scratch = tempfile.TemporaryDirectory(prefix="thinktwice-settings-")
        try:
            variables = dict(environment or {})
            if config is not None:
                variables[VARIABLE] = str(Path(scratch.name) / "serving.yaml")
                Path(variables[VARIABLE]).write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
            with guarded(lambda: _launch(bundle, feature_store, port, log, variables), stop) as server:
                start = time.monotonic()
                while not scored(server.predict_url):
                    server.check()
                    if (elapsed := time.monotonic() - start) > limit:
                        raise ServerError(f"the predictor did not score within {limit:.0f} seconds: see {log}")
                    progress(f"the predictor loads the model ({elapsed:.0f} s)")
                    time.sleep(0.1)
                server.seconds_to_ready = time.monotonic() - start
                yield server
        finally:
            scratch.cleanup()


def stop(server: KServe, limit: float = STOP_LIMIT) -> None:
    """Stop the server gracefully, or kill it after ``limit`` seconds."""
    server.process.terminate()
    try:
        server.process.wait(limit)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait(5.0)
    if server.process.stdin is not None:
        server.process.stdin.close()


def _launch(bundle: Path, store: Path | None, port: int, log: Path, variables: dict[str, str]) -> KServe:
    command = [sys.executable, "-m", "serving.local.kserve_launcher", "--port", str(port)]
    command += ["--bundle" if bundle.is_dir() else "--archive", str(bundle.resolve())]
    if store is not None:
        command += ["--feature-store", str(store.resolve())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables}
    for name in ("THINKTWICE_FEATURE_STORE", "PROMETHEUS_MULTIPROC_DIR"):  # a single process shares no metrics
        environment.pop(name, None)
    return KServe(port, log, start_child(command, log, environment))

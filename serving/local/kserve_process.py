"""The KServe predictor as a child of this process, on loopback: start, wait until it really scored, stop it."""

from __future__ import annotations

import json
import os
import signal
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
    handlers,
    scored,
    signals_later,
    sigterm_as_interrupt,
    start_child,
)
from thinktwice.errors import ServerError


@dataclass
class KServe(LocalServer):
    """A running server. Get one from :func:`running`."""

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
    """Serve a bundle while the block runs; on leaving, also by Ctrl-C or SIGTERM, the process has drained and is gone.

    Args:
        bundle: bundle folder, or a ``.mar`` archive.
        config: settings of the predictor, by default those that the environment names.
        feature_store: feature store folder, None for a model without one.
        port: on 127.0.0.1.
        log: file for the server's output; replaced.
        limit: seconds the start may take.
        progress: told what is going on.
        environment: variables beside those of this process.

    Raises:
        ServerError: a busy port, or a model that does not come up.
    """
    with sigterm_as_interrupt():
        check_port(port)
        server: KServe | None = None
        scratch = tempfile.TemporaryDirectory(prefix="thinktwice-settings-")
        try:
            more = dict(environment or {})
            if config is not None:
                more[VARIABLE] = str(Path(scratch.name) / "serving.yaml")
                Path(more[VARIABLE]).write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
            with signals_later():  # an interrupt between the birth of the child and its name would orphan it
                server = _launch(bundle, feature_store, port, log, more)
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
            if server is not None:
                stop(server)
            scratch.cleanup()


def stop(server: KServe, limit: float = STOP_LIMIT) -> None:
    """End the server in order, or by force after ``limit`` seconds."""
    with handlers(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
        server.process.terminate()
        try:
            server.process.wait(limit)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait(5.0)
        if server.process.stdin is not None:
            server.process.stdin.close()


def _launch(bundle: Path, store: Path | None, port: int, log: Path, more: dict[str, str]) -> KServe:
    command = [sys.executable, "-m", "serving.local.kserve_launcher", "--port", str(port)]
    command += ["--bundle" if bundle.is_dir() else "--archive", str(bundle.resolve())]
    if store is not None:
        command += ["--feature-store", str(store.resolve())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}
    for name in ("THINKTWICE_FEATURE_STORE", "PROMETHEUS_MULTIPROC_DIR"):  # a single process shares no metrics
        environment.pop(name, None)
    return KServe(port, log, start_child(command, log, environment))

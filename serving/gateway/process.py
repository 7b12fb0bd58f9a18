"""Envoy as a child process: start, wait until every arm is reached, watch the log, stop without losing requests."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from serving.exits import ended
from serving.gateway.admin import ROUTE_STATS, Admin
from serving.gateway.binary import find_envoy
from serving.gateway.file import Declared, GatewayFile
from serving.gateway.probe import Probed, check_handshake, probe_arms
from serving.gateway.reload import lock, plan, write
from serving.local.processes import (
    HOST,
    STOP_LIMIT,
    LocalServer,
    Progress,
    check_port,
)
from thinktwice.errors import ServerError
from thinktwice.experiment.bootstrap import ACCESS_LOG, bootstrap
from thinktwice.experiment.door import PROBE_SOCKET, secret_files
from thinktwice.files import atomic_file, read_json
from thinktwice.interrupts import guarded, interruptible

BOOTSTRAP, TOKEN, ENVOY_LOG = "bootstrap.json", "probe.token", "envoy.log"
FLUSH_MS = 250  # of the access log, which a kill may lose
START_LIMIT = 30.0
DRAIN_LIMIT = 5.0


@dataclass
class Gateway(LocalServer):
    """A running gateway. Created by :func:`running`."""

    folder: Path
    file: GatewayFile
    admin: Admin
    probes: tuple[Probed, ...] = ()
    _failed: int = field(default=0, init=False)

    def check(self) -> None:
        """Raise a ServerError if Envoy has ended by itself."""
        if (code := self.process.poll()) is not None:
            raise ServerError(f"Envoy {ended(code)}: see {self.log}")

    def look_at_log(self) -> list[str]:
        """Rotate the access log if it is large. Returns the problems with it since the last call."""
        path = self.folder / ACCESS_LOG
        if path.is_file() and path.stat().st_size >= self.file.log_bytes:
            self.rotate()
        failures = self.admin.stats().get("filesystem.write_failed", 0)
        new_failures, self._failed = failures - self._failed, failures
        if new_failures <= 0:
            return []
        return [
            f"{new_failures} writes to {path} failed and their lines are lost: free disk space; the experiment will be held"
        ]

    def rotate(self) -> Path:
        """Rename the access log and start a new one; the old one is complete after the next flush."""
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
        target = self.folder / f"access-{now}.log"
        os.replace(self.folder / ACCESS_LOG, target)
        self.admin.reopen_logs()
        return target


@contextmanager
def running(
    declared: Declared, folder: Path, *, limit: float = START_LIMIT, progress: Progress = lambda text: None
) -> Iterator[Gateway]:
    """Run a gateway while the block runs. On exit, also by Ctrl-C or SIGTERM, requests in progress are answered and Envoy has ended.

    Args:
        declared: the loaded gateway file.
        folder: of its files and logs. Routes of an earlier run in it count as live: enrolled users must keep their arm.
        limit: maximum seconds for the start.
        progress: called with the current stage.

    Raises:
        ServerError: Envoy is missing, the port is in use, another gateway runs in the folder, or Envoy does not start.
        ExperimentError: the routes are refused, by our rules or by Envoy.
    """
    with interruptible():
        envoy = find_envoy()
        listen = declared.file.listen
        if listen.host == HOST:
            check_port(listen.port)
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # secrets and logs
        with lock(folder / "gateway.lock", f"another gateway runs in {folder}: stop it, or set another --folder"):
            rendered = plan(declared, folder, envoy)
            write(folder, rendered, declared.file)
            token = secrets.token_hex(16)
            for left in (folder / PROBE_SOCKET, *folder.glob("sds-*.json")):  # of an earlier gateway
                if left.name not in secret_files(declared.file):
                    left.unlink(missing_ok=True)
            for name, text in ((TOKEN, token), (BOOTSTRAP, bootstrap_text(declared.file, token))):
                with atomic_file(folder / name, mode=0o600) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            with guarded(lambda: _launch(envoy, declared.file, folder), stop) as gateway:
                _wait_until_ready(gateway, limit, progress)
                if declared.file.tls is not None:
                    check_handshake(declared.file.listen, gateway.log)
                progress("asking every arm")
                gateway.probes = probe_arms(declared, folder, token)
                yield gateway


def bootstrap_text(file: GatewayFile, token: str) -> str:
    """The bootstrap of a gateway that runs inside its folder: its paths are relative, so the folder's path may be of any length."""
    return (
        json.dumps(bootstrap(file.model_copy(update={"folder": ".", "log_folder": None}), probe=token), indent=1) + "\n"
    )


def probe_token(declared: Declared, folder: Path) -> str:
    """The secret of the gateway that runs in a folder.

    Raises:
        ServerError: it was started with settings that differ from the file; a reload changes only routes and clusters.
    """
    try:
        token = (folder / TOKEN).read_text(encoding="utf-8")
        same = (folder / BOOTSTRAP).read_text(encoding="utf-8") == bootstrap_text(declared.file, token)
        secrets_now = {path.name: read_json(path) for path in folder.glob("sds-*.json")}
        same &= secrets_now == secret_files(declared.file)
    except OSError as error:
        raise ServerError(f"{folder} contains no gateway: start it with `thinktwice gateway run`") from error
    if not same:
        raise ServerError(
            "the running gateway listens with other settings than the file has (address, unit header, limits, TLS or model): "
            "restart it; a reload changes experiments, arms, timeouts, testers and tokens"
        )
    return token


def stop(gateway: Gateway, limit: float = STOP_LIMIT) -> None:
    """Accept no new connections, wait for requests in progress, stop Envoy."""
    if gateway.process.poll() is None:
        with suppress(OSError):
            gateway.admin.drain()
            end = time.monotonic() + DRAIN_LIMIT
            while gateway.admin.stats().get("http.in.downstream_rq_active", 0) and time.monotonic() < end:
                time.sleep(0.05)
    if gateway.process.stdin is not None:
        gateway.process.stdin.close()  # the launcher stops Envoy and exits
    try:
        gateway.process.wait(limit + 5)
    except subprocess.TimeoutExpired:
        gateway.process.kill()
        gateway.process.wait(5.0)


def _launch(envoy: Path, file: GatewayFile, folder: Path) -> Gateway:
    command = [sys.executable, "-m", "serving.local.launcher", str(envoy), "-c", BOOTSTRAP]
    command += ["--concurrency", str(file.threads), "--disable-hot-restart", "--reject-unknown-dynamic-fields"]
    command += ["--file-flush-interval-msec", str(FLUSH_MS), "--log-level", "warning"]
    command += ["--drain-time-s", str(int(DRAIN_LIMIT)), "--drain-strategy", "immediate"]
    log = folder / ENVOY_LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Gateway(file.listen.port, log, process, folder, file, Admin(folder))


def _wait_until_ready(gateway: Gateway, limit: float, progress: Progress) -> None:
    start = time.monotonic()
    while True:
        gateway.check()
        elapsed = time.monotonic() - start
        stats: dict[str, int] = {}
        with suppress(OSError):
            if gateway.admin.ready():
                return
            stats = gateway.admin.stats()
        for counter in ("update_rejected", "update_failure"):
            if stats.get(f"{ROUTE_STATS}.{counter}", 0):
                raise ServerError(f"Envoy refuses the routes ({counter}): see {gateway.log}")
        if elapsed > limit:
            raise ServerError(f"Envoy did not take its routes within {limit:.0f} seconds: see {gateway.log}")
        progress(f"Envoy starts ({elapsed:.0f} s)")
        time.sleep(0.05)

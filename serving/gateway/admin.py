"""Envoy's admin interface, on a Unix socket that only this user can access."""

from __future__ import annotations

import http.client
import json
import os
import socket
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from thinktwice.errors import ServerError
from thinktwice.experiment.bootstrap import ADMIN_SOCKET
from thinktwice.experiment.routes import ROUTE_CONFIG

ROUTE_STATS = f"http.in.rds.{ROUTE_CONFIG}"
CLUSTER_STATS = "cluster_manager.cds"
LONGEST_SOCKET_PATH = 100  # bytes; systems allow 104 to 108


class Admin:
    """Client of the Envoy that runs in a folder. Every method raises OSError if it does not respond."""

    def __init__(self, folder: Path, limit: float = 10.0) -> None:
        self._path, self._limit = folder.resolve() / ADMIN_SOCKET, limit

    def ready(self) -> bool:
        """Whether Envoy serves and has loaded a route file: without one it reports ready and answers 404."""
        if self._ask("GET", "/ready")[0] != 200:
            return False
        return self.stats().get(f"{ROUTE_STATS}.config_reload", 0) > 0

    def stats(self) -> dict[str, int]:
        """Counters and gauges by name."""
        lines = self._text("GET", "/stats").splitlines()
        return {name: int(value) for name, _, value in (line.partition(": ") for line in lines) if value.isdigit()}

    def route_version(self) -> str | None:
        """The version of the routes in use."""
        dump = json.loads(self._text("GET", "/config_dump?resource=dynamic_route_configs"))
        versions = [entry.get("version_info") for entry in dump.get("configs", [])]
        return str(versions[0]) if versions else None

    def reopen_logs(self) -> None:
        """Reopen the log files, after the old ones were renamed."""
        self._text("POST", "/reopen_logs")

    def drain(self) -> None:
        """Announce to clients that their connections end, and accept no new ones."""
        self._text("POST", "/healthcheck/fail")
        self._text("POST", "/drain_listeners?graceful&skip_exit")

    def _text(self, method: str, path: str) -> str:
        status, body = self._ask(method, path)
        if status != 200:
            raise OSError(f"Envoy's admin interface answers {method} {path} with {status}")
        return body

    def _ask(self, method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("admin", timeout=self._limit)
        connection.sock = connected(self._path, self._limit)
        with closing(connection):
            connection.request(method, path)
            try:
                answer = connection.getresponse()
                return answer.status, answer.read().decode("utf-8", "replace")
            except http.client.HTTPException as error:
                raise OSError(str(error)) from error


def running_admin(folder: Path) -> Admin:
    """The admin interface of the gateway that runs in a folder.

    Raises:
        ServerError: no gateway runs in the folder.
    """
    admin = Admin(folder)
    try:
        admin.stats()
    except OSError as error:
        raise ServerError(f"no gateway runs in {folder}: start it with `thinktwice gateway run`") from error
    return admin


def connected(path: Path, limit: float) -> socket.socket:
    """A connection to a Unix socket with a path of any length. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(limit)
        _connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        sock.connect(str(path))
        return
    with tempfile.TemporaryDirectory(prefix="tt-", dir="/tmp") as short:
        link = Path(short) / "f"
        link.symlink_to(path.parent)
        sock.connect(str(link / path.name))


def named(stats: dict[str, Any], prefix: str) -> dict[str, int]:
    """The counters with a prefix, by their names without it."""
    return {name.removeprefix(prefix): value for name, value in stats.items() if name.startswith(prefix)}

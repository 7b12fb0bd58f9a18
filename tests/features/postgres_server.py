"""A real PostgreSQL on a free loopback port, in a temporary folder; stopped by its process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.storage.servers import free_ports

PASSWORD = "a-secret-of-the-test"
USERS = ("postgres", "nobody")  # PostgreSQL does not run as root


def binaries() -> tuple[str, str]:
    found = shutil.which("initdb"), shutil.which("postgres")
    if None in found:
        pytest.skip("PostgreSQL (initdb, postgres) is not installed")
    return found  # type: ignore[return-value]


def _as_user(folder: Path) -> dict[str, Any]:
    """Arguments of the processes: for root, another user that may use ``folder``."""
    if os.geteuid() != 0:
        return {}
    for name in USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip(f"PostgreSQL does not run as root, and there is no user {' or '.join(USERS)}")


@contextmanager
def running() -> Iterator[str]:
    """Yield the URL of a new cluster's database, with its password."""
    initdb, postgres = binaries()
    # Not below pytest's folder, which other users cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="thinktwice-postgres-"))
    try:
        process_as = _as_user(folder)
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        words = {"pgdata": folder / "data", "username": "owner", "pwfile": folder / "password", "auth": "scram-sha-256"}
        options = [f"--{name}={value}" for name, value in words.items()]
        subprocess.run(
            [initdb, *options, "--no-sync", "--no-locale", "--encoding=UTF8"],
            check=True,
            capture_output=True,
            cwd=folder,
            timeout=120,
            **process_as,
        )
        (port,) = free_ports(1)
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "shared_buffers": "16MB"}  # fmt: skip
        chosen = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [postgres, "-D", str(folder / "data"), "-p", str(port), *chosen],
                stdout=log,
                stderr=log,
                cwd=folder,
                **process_as,
            )
        url = f"postgresql://owner:{PASSWORD}@127.0.0.1:{port}/postgres"
        try:
            _wait(url, process, folder / "log")
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown: connections are closed
            process.wait(30)
    finally:
        shutil.rmtree(folder)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]


def database(url: str, name: str) -> str:
    """The URL of a new, empty database on the same server."""
    execute(url, f"CREATE DATABASE {name}")
    return f"{url.rpartition('/')[0]}/{name}"

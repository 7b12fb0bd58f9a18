"""The service as a process, and events sent to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_LIMIT = 120.0


@contextmanager
def running(
    log: Path, store: Path, *more: str, before: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the address of events and the process, which is ended at the end."""
    with running_with("--log", str(log), "--store", str(store), *more, before=before) as started:
        yield started


@contextmanager
def running_with(*options: str, before: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The same with other options."""
    command = [*before, sys.executable, "-m", "thinktwice", "feedback", "run"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), process.stderr.read()
        yield line.split()[1], process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def send(url: str, events: Sequence[Any], kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    """The status and the answer."""
    body = json.dumps({"events": list(events)}).encode()
    if kind != "application/json":
        body = b"\n".join(json.dumps(event).encode() for event in events)
    return post(url, body, kind)


def post(url: str, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {**json.loads(error.read()), "retry-after": error.headers.get("retry-after")}


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def until(what: Any, limit: float = 60.0) -> Any:
    """The first truthy answer."""
    end = time.monotonic() + limit
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found

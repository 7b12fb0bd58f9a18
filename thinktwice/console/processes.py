"""Processes in a process group of their own, and how to end the whole group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from thinktwice.interrupts import guarded

POLITE = 30.0  # seconds to wait after SIGINT
FORCE = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))  # seconds to wait after each
POLL = 0.05  # seconds between two polls of a process


def start(
    command: Sequence[str], *, environment: Mapping[str, str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` so that Ctrl-C in the terminal reaches only this process, which decides how the command ends.

    `output` takes its stdout and stderr; None inherits ours.
    """
    return subprocess.Popen(
        list(command),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
    )


def running(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: IO[bytes] | None = None,
    polite: float = POLITE,
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A process that runs for the block, see `start`. At the end its whole group is stopped, see `stop`."""
    return guarded(
        lambda: start(command, environment=environment, output=output), lambda process: stop(process, polite)
    )


def group_alive(group: int) -> bool:
    """True while any process of the group runs (a zombie does not count)."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for `process` and return its exit status; Ctrl-C works meanwhile.

    `Popen.wait` alone ignores it: libraries with their own Ctrl-C handler (polars) install it so that the system call
    continues after the signal, and Python cannot raise.
    """
    while process.poll() is None:
        time.sleep(POLL)
    return int(process.returncode)


def stop(process: subprocess.Popen[bytes], polite: float = POLITE) -> None:
    """End the group of `process`: first by a signal that lets it remove temporary files, after `polite` seconds by SIGKILL.

    A process that stops its own children in this way needs more than `POLITE`, or they would be orphaned.
    """
    for how, seconds in ((signal.SIGINT, polite), *FORCE):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if process.poll() is not None and not group_alive(process.pid):
                return
            time.sleep(POLL)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]

"""Start a command in a process group of its own, and end the whole group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

POLITE = 30.0  # seconds to wait after SIGINT
FORCE = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))  # seconds to wait after each
POLL = 0.05  # seconds between two looks at a process


def start(
    command: Sequence[str], *, environment: Mapping[str, str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` so that Ctrl-C in the terminal reaches only us and we decide how the command ends.

    `output` takes its stdout and stderr; None leaves them where ours go.
    """
    return subprocess.Popen(
        list(command),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
    )


def group_alive(group: int) -> bool:
    """True while any process of the group runs (a process that ended and nobody waited for does not count)."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def wait(process: subprocess.Popen[bytes]) -> int:
    """Exit status of `process`, once it has ended; Ctrl-C is noticed meanwhile.

    `Popen.wait` alone would not notice it: libraries with a Ctrl-C handler of their own (polars) install it so that the
    system call goes on after the signal, and Python never gets to raise.
    """
    while process.poll() is None:
        time.sleep(POLL)
    return int(process.returncode)


def stop(process: subprocess.Popen[bytes], polite: float = POLITE) -> None:
    """End the group of `process`: first politely, so that temporary files are removed, after `polite` seconds by force.

    One that stops processes of its own in this way needs more than `POLITE`, or they would be orphaned.
    """
    with uninterrupted():
        for how, seconds in ((signal.SIGINT, polite), *FORCE):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if process.poll() is not None and not group_alive(process.pid):
                    return
                time.sleep(POLL)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for a moment: an impatient second one must not leave a half-stopped group behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end this process as cleanly as Ctrl-C does (schedulers and CI send it on a timeout)."""

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]

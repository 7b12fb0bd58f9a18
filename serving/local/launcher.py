"""Intermediate process between us and a server that is not Python (TorchServe's Java, Envoy): starts the server, and stops it when the
parent ends.

A parent that is killed (SIGKILL, out of memory) cannot stop its children. But the pipe that is the standard input of this process then
closes, whichever thread of the parent created it and on every Unix; the server would not notice otherwise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import psutil

GRACE = 20.0  # seconds for the children to end by themselves


def end_with_parent() -> None:
    """End the children of this process, and then this process, when standard input closes."""
    pipe = os.dup(0)
    os.set_inheritable(pipe, False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # standard input of the children
    os.close(nothing)
    threading.Thread(target=_wait_for_the_end, args=(pipe,), daemon=True).start()


def _wait_for_the_end(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    process = psutil.Process()
    while descendants := process.children(recursive=True):
        _signal(process.children(), signal.SIGTERM)  # Java ends its own workers
        _, alive = psutil.wait_procs(descendants, timeout=GRACE)
        _signal(alive, signal.SIGKILL)
    os._exit(1)  # the main thread may be about to start another child, or to wait for one


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def main() -> None:
    """``python -m serving.local.launcher COMMAND...``: run it and exit with its status (128 + signal number)."""
    end_with_parent()
    code = subprocess.run(sys.argv[1:], check=False).returncode  # the command is from our parent
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()

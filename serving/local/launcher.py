"""The child between us and a server that is no Python (TorchServe's Java, Envoy): it starts the server, and stops it when whoever
started it is gone.

A parent that is killed (SIGKILL, out of memory) cannot stop its children. But the pipe that is this process's standard
input then closes, whichever thread of the parent made it and on every Unix; nothing else would tell the server.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import psutil

GRACE = 20.0  # seconds the children have to end by themselves


def end_with_parent() -> None:
    """From now on, the end of standard input ends the children of this process, and then this process."""
    pipe = os.dup(0)
    os.set_inheritable(pipe, False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what the children get
    os.close(nothing)
    threading.Thread(target=_wait_for_the_end, args=(pipe,), daemon=True).start()


def _wait_for_the_end(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    me = psutil.Process()
    while family := me.children(recursive=True):
        _signal(me.children(), signal.SIGTERM)  # Java ends its workers by itself
        _, alive = psutil.wait_procs(family, timeout=GRACE)
        _signal(alive, signal.SIGKILL)
    os._exit(1)  # the main thread may be about to start another child, or to wait for one


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def main() -> None:
    """``python -m serving.local.launcher COMMAND...``: run it, and end as it ends (128 and the number of a signal)."""
    end_with_parent()
    code = subprocess.run(sys.argv[1:], check=False).returncode  # a command that our parent made
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()

"""Process exits: descriptions of exit codes, and a fast exit."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def ended(code: int) -> str:
    """Description of an exit code, in the convention of ``subprocess`` (-signal) or of a shell (128 + signal)."""
    number = -code if code < 0 else code - 128
    if number not in set(signal.Signals):
        return f"ended by itself (exit code {code})"
    name = signal.Signals(number).name
    return f"was ended by {name}" + (": was memory short?" if number == signal.SIGKILL else "")


def leave_after(work: Callable[[], int]) -> NoReturn:
    """End this process as soon as ``work`` is done, with the code it returns.

    Exit functions run (they export spans and flush logs). The interpreter is not finalized, which takes seconds with a model in
    memory, and threads that hang in a lookup are not joined.
    """
    try:
        code = work()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)

"""How a process ends: in words, and soon."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def ended(code: int) -> str:
    """What an exit code says: as ``subprocess`` gives it (a signal is negative), or as a shell does (128 and the signal)."""
    number = -code if code < 0 else code - 128
    if number not in set(signal.Signals):
        return f"ended by itself (exit code {code})"
    name = signal.Signals(number).name
    return f"was ended by {name}" + (": was memory short?" if number == signal.SIGKILL else "")


def leave_after(work: Callable[[], int]) -> NoReturn:
    """End this process as soon as ``work`` is done, with the code it returns.

    Exit functions run (they export spans and flush logs); but the interpreter is not taken down piece by piece, which takes seconds
    with a model in memory, nor are threads waited for that hang in a lookup.
    """
    try:
        code = work()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)

"""How a process ended, in words."""

from __future__ import annotations

import signal


def ended(code: int) -> str:
    """What an exit code says: as ``subprocess`` gives it (a signal is negative), or as a shell does (128 and the signal)."""
    number = -code if code < 0 else code - 128
    if number not in set(signal.Signals):
        return f"ended by itself (exit code {code})"
    name = signal.Signals(number).name
    return f"was ended by {name}" + (": was memory short?" if number == signal.SIGKILL else "")

"""What the command line says when Ctrl-C (or SIGTERM) stops a command: what that means for this very command."""

from __future__ import annotations

STOPPED = "stopped"
NOTHING_HALF_WRITTEN = "stopped; nothing half-written is left, run it again to go on"

_sentence = STOPPED


def on_stop(sentence: str = STOPPED) -> None:
    """Say this when the command is stopped from now on."""
    global _sentence
    _sentence = sentence


def stop_sentence() -> str:
    """What to say."""
    return _sentence

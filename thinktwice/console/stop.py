"""The message printed when Ctrl-C (or SIGTERM) stops a command: what stopping means for this command."""

from __future__ import annotations

STOPPED = "stopped"
NOTHING_HALF_WRITTEN = "stopped; nothing half-written is left, run it again to go on"

_sentence = STOPPED


def on_stop(sentence: str = STOPPED) -> None:
    """Set the message to print if the command is stopped."""
    global _sentence
    _sentence = sentence


def stop_sentence() -> str:
    """The message to print."""
    return _sentence

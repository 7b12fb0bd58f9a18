"""Error messages for users: one sentence for any error, whichever library raised it."""

from __future__ import annotations

import errno
from typing import NamedTuple

from thinktwice.errors import ThinktwiceError

MAX_LENGTH = 2_000  # of a message
NO_SPACE = ("no space left on device", "database or disk is full", "disk quota exceeded")  # the second is SQLite's
NO_MEMORY = ("arrowmemoryerror", "outofmemory", "memoryerror")  # in names of classes


class ErrorRecord(NamedTuple):
    """``message``: if ``own``, a complete message for the user; otherwise the first line of another library's message."""

    type: str
    message: str
    own: bool


def error_record(error: BaseException) -> ErrorRecord:
    """The record of an error."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    sentence = _sentence(error, name)
    message = sentence if sentence is not None else _first_line(error)
    return ErrorRecord(name, message[:MAX_LENGTH], sentence is not None)


def _sentence(error: BaseException, name: str) -> str | None:
    text = str(error)
    if isinstance(error, ThinktwiceError):
        return text
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(w in text.lower() for w in NO_SPACE):
        return "no space left on the disk: free some disk space and run again"
    if any(word in name.lower() for word in NO_MEMORY):
        detail = _first_line(error)
        return f"memory is full{f' ({detail})' if detail else ''}: end other programs, or read fewer rows with --limit"
    if isinstance(error, KeyboardInterrupt):
        return "stopped; nothing half-written is left, run it again to go on"
    if isinstance(error, RecursionError):
        return f"the input is nested too deeply ({_first_line(error)}): give one of ordinary depth"
    if name in ("zipfile.BadZipFile", "gzip.BadGzipFile", "tarfile.ReadError"):
        return f"an archive is damaged ({_first_line(error)}): copy or download it again"
    if isinstance(error, UnicodeError):
        return f"a text or a name is not valid UTF-8 ({_first_line(error)}): save or rename it as UTF-8"
    if isinstance(error, OSError):
        path = f" {error.filename}" if error.filename else ""
        return f"cannot use{path} ({error.strerror or _first_line(error) or name}): check that it exists, its rights and the disk"
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")

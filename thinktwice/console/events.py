"""Read the progress events another process writes (see `thinktwice.progress`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def events_in(data: bytes) -> list[dict[str, Any]]:
    """The events in the lines of `data`. A line that a killed process left unfinished is skipped."""
    events = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "stage" in event and "event" in event:
            events.append(event)
    return events


class EventTail:
    """Follows a progress file that is still being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self) -> list[dict[str, Any]]:
        """The events written since the last call; an unfinished line is read by the next call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as handle:
            handle.seek(self._position)
            data = handle.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._position += len(complete)
        return events_in(complete)

"""Progress that a piece of work reported."""

from __future__ import annotations

from pathlib import Path

from thinktwice.console.events import events_in


def pieces(file: Path, stage: str) -> dict[str, list[tuple[int, int]]]:
    """(done, total) of every report of a stage, by label."""
    out: dict[str, list[tuple[int, int]]] = {}
    for event in events_in(file.read_bytes()):
        if event["event"] == "progress" and event["stage"] == stage:
            out.setdefault(event["label"], []).append((event["done"], event["total"]))
    return out


def assert_complete(reports: list[tuple[int, int]]) -> None:
    """It was known from the start how much there is to do, and in the end all of it was done."""
    done = [at for at, _ in reports]
    assert len({total for _, total in reports}) == 1 and done == sorted(set(done)) and reports[-1][0] == reports[-1][1]

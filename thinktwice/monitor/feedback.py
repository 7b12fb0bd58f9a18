"""Counts of the feedback service: whether outcomes arrive within the delay that training assumed."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from thinktwice.errors import DataError

STATE_FILE = "state.db"  # in the folder of an event log; a SQLite file with the tables facts (name, value) and counts (name, number)


@dataclass(frozen=True)
class FeedbackAssumption:
    """Outcomes of an event log against ``feedback_delay``.

    Attributes:
        in_time: clicks that were known within the delay of clicks.
        late: clicks that were known later: in between, training assumed outcomes that a server did not have.
        lost: clicks that came after the window of their impression was closed; they were counted as non-clicks.
    """

    in_time: int
    late: int
    lost: int

    @property
    def broken_share(self) -> float:
        """Share of all clicks that were late or lost; 0 without clicks."""
        return (self.late + self.lost) / max(1, self.in_time + self.late + self.lost)


def read_state(folder: Path) -> tuple[dict[str, str | int], dict[str, int]]:
    """Facts and counts of the state of an event log; safe while a service writes to it.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} contains no state of an event log: correct the path, or start 'thinktwice feedback run'"
        )
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            facts = dict(db.execute("SELECT name, value FROM facts"))
            return facts, dict(db.execute("SELECT name, number FROM counts"))
        finally:
            db.close()
    except sqlite3.Error as error:
        raise DataError(
            f"the state {path} cannot be read ({error}): build it again with 'thinktwice feedback replay'"
        ) from error


def feedback_assumption(folder: Path | str) -> FeedbackAssumption:
    """When the outcomes of an event log arrived.

    Raises:
        DataError: see :func:`read_state`.
    """
    _, counts = read_state(Path(folder))
    return FeedbackAssumption(
        in_time=counts.get("outcomes_clicked", 0),
        late=counts.get("outcomes_clicked_late", 0),
        lost=counts.get("clicks_too_late", 0),
    )

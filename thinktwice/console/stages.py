"""Stage lines: one line for each finished stage, and a bar for the running one.

On a terminal the running stage is redrawn in place. Elsewhere (a CI log, a pipe) nothing is redrawn: one line per finished
stage, and a progress line from time to time during a long one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from thinktwice.console.output import say
from thinktwice.printable import printable

TITLE_WIDTH = 32
TIME_WIDTH = 12
DETAIL_INDENT = 4
FIRST_ESTIMATE = 2.0  # seconds of a piece of work after which the time left is estimated
BAR_WIDTH = 24
SIGN_OF_LIFE = 20.0  # seconds between two progress lines of a running stage without a terminal
TASK_PREFIX = "task/"  # marks the events that open and close a stage line; all others belong to the running stage


def seconds_text(seconds: float) -> str:
    """``8.1 s``, ``2 min 05 s``."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


class Pace:
    """Estimates the time left of a piece of work from the pace since its first report. Work with another label, or that begins again,
    is another piece."""

    def __init__(self) -> None:
        self._label: str | None = None
        self._from = (0.0, 0)
        self._latest = (0.0, 0)
        self._total = 0

    def report(self, at: float, done: int, total: int, label: str) -> None:
        """Take the instant, how much is done, and of how much."""
        if label != self._label or done < self._latest[1] or total != self._total:
            self._label, self._from, self._total = label, (at, done), total
        self._latest = at, done

    def left(self, at: float) -> float | None:
        """Seconds left at an instant; None if too little is known."""
        (since, first), (until, done) = self._from, self._latest
        if self._label is None or done <= first or until - since < FIRST_ESTIMATE:
            return None
        return max(0.0, (self._total - done) * (until - since) / (done - first) - (at - until))


def left_text(seconds: float | None) -> str:
    """``about 40 s left``, ``about 3 min left``; empty if nothing is known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds)):d} s left"
    return f"about {round(seconds / 60):d} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"


class StageBoard:
    """Turns progress events into lines on `console`. `titles` contains the titles of the stages shown, by event name."""

    def __init__(self, console: Console, titles: dict[str, str]) -> None:
        self._console = console
        self._titles = titles
        self._running: str | None = None
        self._begun = False
        self._started = 0.0
        self._notes: list[str] = []
        self._messages: list[str] = []
        self._label = ""
        self._pace = Pace()
        self._done: int = 0
        self._total: int | None = None
        self._last_sign = 0.0
        self._live: Live | None = None
        self._spinner = Spinner("dots")

    def __enter__(self) -> StageBoard:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=10, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        if self._running is not None:
            self._close("stopped")
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    def feed(self, event: dict[str, Any]) -> None:
        """Take one progress event."""
        name = str(event["stage"])
        kind = event["event"]
        if name.startswith(TASK_PREFIX):
            name = name.removeprefix(TASK_PREFIX)
            if kind == "start":
                self._open(name, event["at"])
            elif kind in ("done", "failed") and name == self._running:
                self._close(kind, event["at"])
        if kind == "note" and self._running is not None:
            text = str(event["text"])
            if text not in self._notes:
                self._notes.append(text)
        elif kind == "message" and self._running is not None:
            if event["text"] not in self._messages:
                self._messages.append(str(event["text"]))
        elif kind == "progress" and self._running is not None:
            self._done, self._total, self._label = event["done"], event["total"], str(event["label"])
            if self._total:
                self._pace.report(event["at"], self._done, self._total, self._label)
            self._print_progress(event["at"])

    def _open(self, name: str, at: float) -> None:
        self._running, self._started, self._last_sign, self._begun = name, at, at, True
        self._notes, self._messages, self._label, self._done, self._total = [], [], "", 0, None
        self._pace = Pace()

    def _close(self, outcome: str, at: float | None = None) -> None:
        seconds = (time.time() if at is None else at) - self._started
        mark, style = {"done": ("✓", "green"), "failed": ("✗", "red")}.get(outcome, ("■", "yellow"))
        reused = "reused" in self._notes
        notes = [note for note in self._notes if note != "reused"]
        if reused:
            notes.append("reused")
            mark, style = "↻", "cyan"
        self._print_line(Text(mark, style=style), " · ".join(notes) if outcome != "stopped" else "stopped", seconds)
        for message in self._messages:
            say(self._console, f"  {message}")
        self._running = None

    def _title(self) -> str:
        return self._titles.get(self._running or "", self._running or "")

    def _print_line(self, mark: Text, detail: str, seconds: float) -> None:
        """A permanent line: notes follow the time if there is room, otherwise on the next line."""
        time_taken, name, detail = Text(seconds_text(seconds), style="dim"), printable(self._title()), printable(detail)
        if self._console.width >= TITLE_WIDTH + TIME_WIDTH + 2:
            title = Text(f"{name:<{TITLE_WIDTH}}{' ' * (TIME_WIDTH - len(time_taken))}")
        else:
            title = Text(f"{name}  ")
        head = Text(" ").join([mark, title]).append_text(time_taken)
        if head.cell_len + 1 + cell_len(detail) <= self._console.width:
            say(self._console, head.append(f" {detail}" if detail else ""))
            return
        say(self._console, head)
        say(self._console, detail, indent=DETAIL_INDENT)

    def _line(self, mark: Any, detail: Any, seconds: float) -> Table:
        """The running stage, in one line that is redrawn."""
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=1)
        line.add_column(width=TITLE_WIDTH, no_wrap=True)
        line.add_column(width=11, justify="right", no_wrap=True)
        line.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
        line.add_row(mark, self._title(), Text(seconds_text(seconds), style="dim"), detail)
        return line

    def _print_progress(self, at: float) -> None:
        if self._live is not None or at - self._last_sign < SIGN_OF_LIFE or not self._total:
            return
        self._last_sign = at
        share = f"{100 * self._done // self._total} % {self._label}".rstrip()
        left = left_text(self._pace.left(at))
        self._print_line(Text("…"), f"{share}, {left}" if left else share, at - self._started)

    def __rich__(self) -> Table | Text:
        """The running stage, for the live display."""
        if self._running is None:
            return Text("" if self._begun else "  starting", style="dim")
        detail = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._total, completed=self._done, width=BAR_WIDTH, pulse=self._total is None)
        left = left_text(self._pace.left(time.time()))
        detail.add_row(bar, Text(", ".join(filter(None, (printable(self._label), left))), style="dim"))
        return self._line(self._spinner, detail, time.time() - self._started)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of this process."""
        self.feed({"stage": TASK_PREFIX + name, "event": "start", "at": time.time()})
        try:
            yield
        except KeyboardInterrupt:
            self._close("stopped")
            raise
        except BaseException:
            self._close("failed")
            raise
        self._close("done")

    def note(self, text: str) -> None:
        """Attach a note to the running stage."""
        self._notes.append(text)

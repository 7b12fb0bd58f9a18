import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinktwice.console.events import EventTail
from thinktwice.console.processes import group_alive, start, stop
from thinktwice.console.stages import SIGN_OF_LIFE, Pace, StageBoard, left_text, seconds_text
from thinktwice.console.terminal import Terminal


def board(width: int = 90) -> tuple[StageBoard, io.StringIO]:
    out = io.StringIO()
    return StageBoard(Terminal(file=out, width=width, force_terminal=False), {"ingest": "read the log"}), out


def event(stage: str, kind: str, at: float, **more: object) -> dict:
    return {"stage": stage, "event": kind, "at": at, **more}


def test_a_finished_stage_is_one_line_with_title_time_and_notes():
    stages, out = board()
    with stages:
        stages.feed(event("task/ingest", "start", 10.0))
        stages.feed(event("ingest", "start", 10.0))  # the library's own stage inside the task
        stages.feed(event("ingest", "progress", 10.1, done=1, total=2, label="rows"))
        stages.feed(event("ingest", "note", 10.2, text="1,000 rows"))
        stages.feed(event("ingest", "done", 10.3))
        stages.feed(event("task/ingest", "done", 18.1))
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("✓ read the log") and "8.1 s" in lines[0] and lines[0].rstrip().endswith("1,000 rows")


def test_a_failed_and_a_reused_stage_are_told_apart():
    stages, out = board()
    with stages:
        stages.feed(event("task/ingest", "start", 0.0))
        stages.feed(event("task/ingest", "note", 0.0, text="reused"))
        stages.feed(event("task/ingest", "done", 0.1))
        stages.feed(event("task/other", "start", 0.1))
        stages.feed(event("task/other", "failed", 1.0))
    first, second = out.getvalue().splitlines()
    assert first.startswith("↻") and "reused" in first
    assert second.startswith("✗ other")


def test_progress_tells_the_time_left_of_each_piece_of_work():
    stages, out = board()
    with stages:
        stages.feed(event("task/ingest", "start", 0.0))
        for at, done, label in (
            (1.0, 10, "rows"),
            (21.0, 30, "rows"),
            (41.5, 50, "rows"),
            (42.0, 1, "users"),
            (62.0, 3, "users"),
        ):
            stages.feed(event("ingest", "progress", at, done=done, total=1000, label=label))
        stages.feed(event("task/ingest", "done", 70.0))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines == [
        "… read the log 21.0 s 3 % rows, about 16 min left",
        "… read the log 41.5 s 5 % rows, about 16 min left",
        "… read the log 1 min 02 s 0 % users, about 2.8 h left",
        "✓ read the log 1 min 10 s",
    ]


@pytest.mark.parametrize(
    ("reports", "at", "left"),
    [
        ([], 5.0, None),
        ([(0.0, 1)], 50.0, None),  # one report has no pace
        ([(0.0, 0), (1.0, 5)], 1.0, None),  # too early
        ([(0.0, 0), (4.0, 4)], 4.0, 6.0),
        ([(0.0, 0), (4.0, 4)], 7.0, 3.0),  # it counts down between two reports
        ([(0.0, 0), (4.0, 4)], 99.0, 0.0),  # and is never negative
        ([(0.0, 0), (4.0, 8), (5.0, 1)], 5.0, None),  # it began again
        ([(0.0, 0), (4.0, 10)], 4.0, 0.0),
    ],
)
def test_the_time_left_follows_from_the_pace(reports: list[tuple[float, int]], at: float, left: float | None):
    pace = Pace()
    for instant, done in reports:
        pace.report(instant, done, 10, "rows")
    assert pace.left(at) == left


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.2, "about 1 s left"),
        (89.0, "about 89 s left"),
        (100.0, "about 2 min left"),
        (7200.0, "about 2.0 h left"),
    ],
)
def test_the_time_left_is_short(seconds: float | None, text: str):
    assert left_text(seconds) == text


@pytest.mark.parametrize("width", [40, 80, 110, 120])
def test_a_long_finding_stands_below_title_and_time(width: int):
    stages, out = board(width=width)
    finding = " ".join(f"word{n}" for n in range(60))
    with stages:
        stages.feed(event("task/ingest", "start", 0.0))
        stages.feed(event("ingest", "note", 0.1, text=finding))
        stages.feed(event("task/ingest", "done", 8.1))
    first, *rest = out.getvalue().splitlines()
    assert first.split() == ["✓", "read", "the", "log", "8.1", "s"]
    assert " ".join(" ".join(rest).split()) == finding
    assert all(line.startswith("    word") and len(line.rstrip()) <= width for line in rest)


def test_a_short_finding_stands_behind_the_time():
    shown = []
    for width in (40, 56, 57, 80):
        stages, out = board(width=width)
        with stages:
            stages.feed(event("task/ingest", "start", 0.0))
            stages.feed(event("ingest", "note", 0.1, text="1,000 rows"))
            stages.feed(event("task/ingest", "done", 8.1))
        shown.append([line.rstrip() for line in out.getvalue().splitlines()])
    aligned = "✓ read the log                           8.1 s"
    assert shown == [
        ["✓ read the log  8.1 s 1,000 rows"],
        [aligned, "    1,000 rows"],
        [f"{aligned} 1,000 rows"],
        [f"{aligned} 1,000 rows"],
    ]


def test_a_stage_cut_short_says_so():
    stages, out = board()
    with pytest.raises(KeyboardInterrupt), stages:
        stages.feed(event("task/ingest", "start", time.time()))
        raise KeyboardInterrupt
    assert "stopped" in out.getvalue()


def test_a_long_stage_gives_signs_of_life_in_a_log():
    stages, out = board()
    with stages:
        stages.feed(event("task/ingest", "start", 0.0))
        for tenth in range(0, 600):
            stages.feed(event("ingest", "progress", tenth / 10, done=tenth, total=600, label="steps"))
        stages.feed(event("task/ingest", "done", 60.0))
    lines = out.getvalue().splitlines()
    assert len(lines) == int(59.9 // SIGN_OF_LIFE) + 1
    assert "33 % steps" in lines[0]


def test_a_terminal_shows_a_bar_and_text_with_brackets_is_literal():
    out = io.StringIO()
    console = Terminal(file=out, width=90, force_terminal=True, color_system=None)
    stages = StageBoard(console, {"ingest": "read [bold]the log"})
    with stages:
        stages.feed(event("task/ingest", "start", time.time()))
        stages.feed(event("ingest", "progress", time.time(), done=1, total=2, label="rows [1/2]"))
        console.print(stages)
    assert "read [bold]the log" in out.getvalue() and "━" in out.getvalue() and "rows [1/2]" in out.getvalue()


def test_seconds_text():
    assert seconds_text(8.14) == "8.1 s" and seconds_text(125) == "2 min 05 s"


def test_a_half_written_event_waits_for_its_end(tmp_path: Path):
    file = tmp_path / "progress.jsonl"
    tail = EventTail(file)
    assert tail.read() == []
    whole = json.dumps({"stage": "a", "event": "start"}) + "\n"
    file.write_text(whole + whole[:5])
    assert len(tail.read()) == 1
    with file.open("a") as handle:
        handle.write(whole[5:])
    assert tail.read() == [{"stage": "a", "event": "start"}]
    assert tail.read() == []


STUBBORN = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    open(sys.argv[1], "w").write("cleaned")
    raise
"""


def test_stop_lets_a_process_clean_up_and_ends_its_children(tmp_path: Path):
    output = (tmp_path / "out").open("wb")
    process = start([sys.executable, "-c", STUBBORN, str(tmp_path / "mark")], environment=os.environ, output=output)
    deadline = time.monotonic() + 30
    while "ready" not in (tmp_path / "out").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    stop(process)
    output.close()
    assert (tmp_path / "mark").read_text() == "cleaned"
    assert process.returncode != 0 and not group_alive(process.pid)


def test_stop_uses_force_where_asking_does_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("thinktwice.console.processes.FORCE", ((signal.SIGKILL, 10.0),))
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    stop(process, polite=0.2)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL

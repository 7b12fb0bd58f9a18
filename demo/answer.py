"""Final output of the demo: the top items of one user, and a command to query the server."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from demo.question import NUM_SHOWN, Question
from demo.server import predict_url
from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.printable import printable


def print_answer(console: Console, question: Question, prediction: dict[str, Any]) -> None:
    """Print a table of the top items for the user of `question`."""
    say(
        console,
        f"\nUser {printable(question.user)} has {question.num_impressions:,} impressions "
        f"and {question.num_clicks:,} clicks in the log; the latest clicks:",
    )
    for title in question.recent:
        say(console, f"· {printable(title)}", indent=2)
    say(console, f"\nOf {len(question.titles)} popular items new to them, the model ranks first:")
    columns = (
        Column("rank"),
        Column("item", right=False),
        Column("click probability"),
        Column("uncertainty"),
        Column("paths"),
    )
    records = [
        Record(
            (
                str(rank),
                question.titles.get(item["item_id"], item["item_id"]),
                f"{item['probability']:.3f}",
                f"{item['uncertainty']:.3f}",
                str(item["num_paths"]),
            )
        )
        for rank, item in enumerate(ranked(prediction)[: 2 * NUM_SHOWN], 1)
    ]
    print_table(console, columns, records)


def ranked(prediction: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of a prediction by descending probability; ties in the order of their ids."""
    items: list[dict[str, Any]] = prediction["items"]
    return sorted(items, key=lambda item: (-item["probability"], item["item_id"]))


def call(question: Question, port: int) -> str:
    """A curl command that requests scores of three of the candidates."""
    instance = {**question.request, "candidates": question.request["candidates"][:3]}
    instance.pop("k", None)
    body = json.dumps({"instances": [instance]})
    return f"curl -s {predict_url(port)} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def program() -> str:
    """Command to call this command line from the current folder: its name if it is on the path, else its path."""
    if shutil.which("thinktwice"):
        return "thinktwice"
    script = Path(sys.executable).parent / "thinktwice"
    return os.path.relpath(script) if script.is_file() else f"{sys.executable} -m thinktwice"


def print_call(console: Console, question: Question, port: int, state: Path, running: bool) -> None:
    """Print how to query the server from a terminal."""
    if running:
        say(console, f"\nThe server answers on {predict_url(port)} until you press Ctrl-C. Ask it:")
    else:
        say(console, "\nTo serve it again and ask it yourself:")
        console.print(f"  {program()} serve --state {state} --port {port}", soft_wrap=True)
    console.print("  " + call(question, port), soft_wrap=True)

"""The demo's question: a user the training part knows, popular items new to them, the moment of their last impression."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from demo import question as module
from demo.answer import call, print_answer, ranked
from demo.question import choose_question
from thinktwice.errors import DataError

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
SCHEMA = """
name: shop
time: {column: t}
entities: {user: {key: user}, item: {key: item, title: name}}
fields:
  - {name: device}
"""


def training_set(folder: Path, rows: list[tuple[str, str, int, str]], schema: str = SCHEMA) -> Path:
    """Rows of (user, item, label, split), one minute apart."""
    (folder / "schema.yaml").write_text(schema)
    pl.DataFrame(
        {
            "user": [r[0] for r in rows],
            "item": [r[1] for r in rows],
            "label": pl.Series([r[2] for r in rows], dtype=pl.Int8),
            "split": [r[3] for r in rows],
            "event_time": [START + timedelta(minutes=i) for i in range(len(rows))],
            "device": ["phone"] * len(rows),
            "title": [f"The {r[1]}" for r in rows],
        }
    ).write_parquet(folder / "rows.parquet")
    return folder


ROWS = [
    ("new", "a", 1, "test"),
    ("new", "b", 1, "test"),
    ("new", "c", 1, "test"),
    ("known", "a", 1, "train"),
    ("other", "b", 0, "train"),
    ("other", "c", 0, "train"),
    ("other", "d", 0, "train"),
    ("known", "d", 0, "test"),
    ("known", "e", 1, "test"),
]


def test_a_user_with_history_is_asked_about_popular_items_new_to_them(tmp_path: Path):
    asked = choose_question(training_set(tmp_path, ROWS))
    assert asked.user == "known"
    assert (asked.num_impressions, asked.num_clicks) == (3, 2)
    assert asked.recent == ("The e", "The a")  # newest first
    assert asked.request["candidates"] == ["b", "c"]  # two impressions each, nothing the user has seen
    assert asked.titles == {"b": "The b", "c": "The c"}
    assert asked.request["context"]["device"] == "phone"
    assert asked.request["context"]["timestamp"] == (START + timedelta(minutes=8)).isoformat()


def test_the_same_training_set_gives_the_same_question(tmp_path: Path):
    folder = training_set(tmp_path, ROWS)
    assert choose_question(folder) == choose_question(folder)


def test_candidates_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "NUM_CANDIDATES", 1)
    assert choose_question(training_set(tmp_path, ROWS)).request["candidates"] == ["b"]


def test_a_log_without_users_or_without_anything_new_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no users or no items"):
        choose_question(training_set(tmp_path, ROWS, "name: shop\ntime: {column: t}\nfields: [{name: device}]\n"))
    with pytest.raises(DataError, match="has seen every item"):
        choose_question(training_set(tmp_path, [("u", "a", 1, "train"), ("u", "a", 1, "test")]))


def test_the_answer_is_shown_best_first_and_the_call_is_a_shell_command(tmp_path: Path):
    asked = choose_question(training_set(tmp_path, ROWS))
    items = [
        {"item_id": item, "probability": p, "uncertainty": 0.01, "num_paths": n}
        for item, p, n in (("b", 0.25, 1), ("c", 0.75, 8))
    ]
    assert [item["item_id"] for item in ranked({"items": items})] == ["c", "b"]
    console = Console(record=True, width=100, force_terminal=False)
    print_answer(console, asked, {"items": items})
    shown = console.export_text()
    assert shown.index("The c") < shown.index("The b")
    assert "0.750" in shown and "User known" in shown
    assert call(asked, 8080).startswith("curl -s http://127.0.0.1:8080/v1/models/ctr:predict -H 'Content-Type")

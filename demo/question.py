"""The request of the demo: which of the popular items that are new to a user would they like?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from thinktwice.errors import DataError
from thinktwice.parquet import read_frame
from thinktwice.schema import EVENT_TIME, LABEL, LogSchema, load_schema

NUM_CANDIDATES = 100
NUM_SHOWN = 5
TIME_KEYS = ("timestamp", "event_time")  # of a request, the second where the log has a field of the first name


@dataclass(frozen=True)
class Question:
    """One user, their history, and the request for their items."""

    user: str
    num_impressions: int
    num_clicks: int
    recent: tuple[str, ...]  # titles of the latest clicked items, newest first
    titles: dict[str, str]  # title of every candidate by item id
    request: dict[str, Any]  # one instance of a scoring request

    def at(self, instant: datetime) -> Question:
        """The same question at another time, answered with all candidates."""
        context = self.request["context"]
        timed = {name: instant.isoformat() if name in TIME_KEYS else value for name, value in context.items()}
        return replace(self, request={"user_id": self.user, "candidates": self.request["candidates"], "context": timed})

    def among(self, candidates: Sequence[str]) -> Question:
        """The same question about fewer candidates."""
        titles = {item: self.titles[item] for item in candidates}
        return replace(self, titles=titles, request={**self.request, "candidates": list(candidates)})


def choose_question(training_set: Path) -> Question:
    """Pick the user with the most test rows among those in the training split, and the popular items new to them.

    The choice depends only on the training set, so the demo sends the same request every time.

    Raises:
        DataError: the log has no users or no items to choose from.
    """
    schema = load_schema(training_set / "schema.yaml")
    user_key, item_key = schema.key_of("user"), schema.key_of("item")
    if user_key is None or item_key is None:
        raise DataError(
            f"the log {schema.name} describes no users or no items: the demo needs users and items, choose another data set"
        )
    context = [field.name for field in schema.attributes_of("context")]
    context += [sequence.name for sequence in schema.logged_sequences if sequence.entity == "context"]
    columns = [user_key, item_key, EVENT_TIME, LABEL, "split", *context]
    rows = read_frame(training_set / "rows.parquet")
    titled = "title" in rows.columns
    rows = rows.select([*columns, "title"] if titled else columns).drop_nulls([user_key, item_key])

    user = _choose_user(rows, user_key)
    history = rows.filter(pl.col(user_key) == user).sort(EVENT_TIME, item_key, descending=[True, False])
    names = _titles(rows, item_key) if titled else {}
    clicked = history.filter(pl.col(LABEL) == 1)
    candidates = _popular(rows, item_key, without=set(history[item_key].to_list()))
    if not candidates:
        raise DataError(f"user {user} has seen every item of {schema.name}: choose another user")
    return Question(
        user=user,
        num_impressions=history.height,
        num_clicks=clicked.height,
        recent=tuple(names.get(item, item) for item in clicked[item_key].head(NUM_SHOWN).to_list()),
        titles={item: names.get(item, item) for item in candidates},
        request={
            "user_id": user,
            "candidates": candidates,
            "context": _context(history, context, schema),
            "k": 2 * NUM_SHOWN,
        },
    )


def _choose_user(rows: pl.DataFrame, user_key: str) -> str:
    per_user = rows.group_by(user_key).agg(
        (pl.col("split") == "test").sum().alias("tested"), (pl.col("split") == "train").sum().alias("trained")
    )
    in_both = per_user.filter((pl.col("trained") > 0) & (pl.col("tested") > 0))
    ordered = (in_both if in_both.height else per_user).sort(
        "tested", "trained", user_key, descending=[True, True, False]
    )
    return str(ordered[user_key][0])


def _popular(rows: pl.DataFrame, item_key: str, without: set[str]) -> list[str]:
    """Ids of the items with the most impressions, most popular first."""
    counted = rows.group_by(item_key).len().sort("len", item_key, descending=[True, False])
    return [item for item in counted[item_key].to_list() if item not in without][:NUM_CANDIDATES]


def _titles(rows: pl.DataFrame, item_key: str) -> dict[str, str]:
    latest = rows.drop_nulls("title").group_by(item_key).agg(pl.col("title").last())
    return dict(latest.iter_rows())


def _context(history: pl.DataFrame, context: list[str], schema: LogSchema) -> dict[str, Any]:
    """The context of the user's latest impression, with its time as the time of the request."""
    latest = history.row(0, named=True)
    values = {name: latest[name] for name in context if latest[name] is not None}
    time_key = "event_time" if any(f.name == "timestamp" for f in schema.model_fields_in_order()) else "timestamp"
    return {**values, time_key: latest[EVENT_TIME].isoformat()}

"""The demo's feedback: the log up to its last day, the last day, then some clicks of one user; and what is printed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.fresh import EventFeed, choose_clicks, summary
from demo.question import Question
from serving.feedback.offline import log_status
from tests.feedback.stores import full_schema, make_store, random_log
from thinktwice.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that build the store
ITEMS = ("i", "j", "k", "l", "ü 1")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_store(tmp_path / "made", random_log(400, seed=7), full_schema())
    return tmp_path / "made"


def question() -> Question:
    request = {"user_id": "u", "candidates": list(ITEMS), "context": {"site": "s", "timestamp": "x"}, "k": 2}
    return Question("u", 1, 1, (), {item: item.upper() for item in ITEMS}, request)


def answer(probabilities: dict[str, float]) -> dict[str, Any]:
    names = ("reason", "corrected", "base_probability")
    of_row = dict(zip(names, ("new_user", True, 0.5), strict=True))
    return {"items": [{"item_id": item, "probability": p, **of_row} for item, p in probabilities.items()]}


def test_every_event_of_the_log_and_each_new_click_is_counted(made: Path, tmp_path: Path) -> None:
    feed = EventFeed(made / "clean", tmp_path / "feedback", "--store", str(made / "store"))
    log = tmp_path / "feedback" / "events"
    before = feed.begin()
    assert 0 < before < 400 and log_status(log).counts["impressions"] == before
    assert before + feed.last_day() == 400
    status = log_status(log)
    assert status.counts["impressions"] == 400 and status.watermark == feed.now.isoformat()
    assert status.counts["outcomes_clicked"] + status.counts["outcomes_not_clicked"] == 400
    clicks = choose_clicks(feed, made / "clean", question(), answer(dict.fromkeys(ITEMS, 0.5)))
    assert clicks.items and not set(clicks.items) & set(clicks.candidates)
    feed.clicks(question(), clicks)
    after = log_status(log).counts
    assert after["clicks"] == status.counts["clicks"] + len(clicks.items)
    assert after["outcomes_clicked"] == status.counts["outcomes_clicked"] + len(clicks.items)


def test_what_the_import_refuses_is_said(made: Path, tmp_path: Path) -> None:
    feed = EventFeed(made / "clean", tmp_path / "feedback", "--store", str(tmp_path / "none"))
    with pytest.raises(DataError, match="none is not a feature store"):
        feed.begin()


def test_a_question_at_another_time_about_fewer_items() -> None:
    from datetime import datetime, timezone

    instant = datetime(2003, 2, 28, tzinfo=timezone.utc)
    asked = question().among(["j", "k"]).at(instant)
    assert asked.request == {
        "user_id": "u",
        "candidates": ["j", "k"],
        "context": {"site": "s", "timestamp": instant.isoformat()},
    }
    assert asked.titles == {"j": "J", "k": "K"}


def test_the_summary_counts_second_looks_and_moves() -> None:
    before = answer({f"a{n}": 0.9 - n / 100 for n in range(20)})
    after = answer({f"a{n}": 0.1 + n / 100 for n in range(20)})
    after["items"][0]["reason"], after["items"][1]["reason"], after["items"][2]["corrected"] = "", "thin_support", False
    text = summary(before, after)
    assert "19 of 20 items got a second look (18 for new user, 1 for thin support)" in text
    assert (
        "; counters moved the probability of 19 of 20 items." in text
        and "10 of the first 10 items were not among them before." in text
    )


def test_without_second_looks_none_is_mentioned() -> None:
    answered = answer({"a": 0.5, "b": 0.4})
    for entry in answered["items"]:
        entry["reason"] = ""
    assert summary(answered, answered).startswith("Counters moved the probability of 2 of 2 items. 0 of the first 10")

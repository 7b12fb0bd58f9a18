"""The outcome join against one in plain Python: every exposure and every click is counted once."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.experiment.files import repeatable
from thinktwice.errors import ExperimentError
from thinktwice.experiment.outcomes import OUTCOMES, OutcomeCounts, Window, join_outcomes
from thinktwice.records.events import CLICK_COLUMNS

T0 = datetime(2026, 1, 1, tzinfo=timezone.utc)
WINDOW = Window(seconds=100, early_seconds=2, late_seconds=5)
SHOWN = pa.schema(
    [
        ("log_request_id", pa.string()), ("log_item_id", pa.string()), ("log_place", pa.int32()),
        ("log_at", pa.timestamp("us", "UTC")), ("kept", pa.string()),
    ]
)  # fmt: skip
Row = dict[str, Any]


def random_events(seed: int) -> tuple[list[Row], list[Row], datetime]:
    rng = random.Random(seed)
    shown, clicks = [], []
    for number in range(rng.randint(0, 40)):
        at = T0 + timedelta(seconds=number * 10)
        for place in range(rng.randint(1, 3)):
            item = rng.choice([f"i{place}", f"i{place}", "same", None])
            shown.append(
                {"log_request_id": f"r{number}", "log_item_id": item, "log_place": place, "log_at": at, "kept": "x"}
            )
            for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
                moved = rng.choice([-50, -2, -1, 0, 1, 50, 100, 100.000001, 101, 500])
                received = rng.choice([None, at + timedelta(seconds=moved + rng.choice([1, 5, 5.000001, 60]))])
                clicks.append(
                    {
                        "request_id": f"r{number}",
                        "item_id": item,
                        "at": at + timedelta(seconds=moved),
                        "received_at": received,
                    }
                )
    for _ in range(rng.randint(0, 5)):
        clicks.append(
            {
                "request_id": rng.choice(["gone", None]),
                "item_id": "i0",
                "at": rng.choice([T0, T0 - timedelta(seconds=3), None]),
                "received_at": T0,
            }
        )
    rng.shuffle(clicks)
    return shown, clicks, T0 + timedelta(seconds=rng.choice([0, 150, 10_000]))


def write(folder: Path, shown: list[Row], clicks: list[Row]) -> tuple[list[Path], list[Path]]:
    pq.write_table(pa.Table.from_pylist(shown, SHOWN), folder / "shown.parquet")
    half = len(clicks) // 2
    for name, part in (("a", clicks[:half]), ("b", clicks[half:])):
        pq.write_table(pa.Table.from_pylist(part, CLICK_COLUMNS), folder / f"clicks-{name}.parquet")
    return [folder / "shown.parquet"], [folder / "clicks-a.parquet", folder / "clicks-b.parquet"]


def naive(shown: list[Row], clicks: list[Row], watermark: datetime) -> tuple[OutcomeCounts, dict[tuple[Any, ...], Any]]:
    reach, early = timedelta(seconds=WINDOW.seconds), timedelta(seconds=WINDOW.early_seconds)
    arrival = reach + timedelta(seconds=WINDOW.late_seconds)
    oldest = min((r["log_at"] for r in shown), default=datetime.min.replace(tzinfo=timezone.utc) + early) - early
    first: dict[tuple[str, str], Row] = {}
    for row in shown:
        if row["log_item_id"] is not None:
            first.setdefault((row["log_request_id"], row["log_item_id"]), row)
    fates: Counter[str] = Counter()
    labels: dict[tuple[Any, ...], Any] = {
        (r["log_request_id"], r["log_place"]): None for r in shown if r["log_at"] + arrival <= watermark
    }
    for click in sorted(clicks, key=lambda c: (c["at"] is None, c["at"] or T0)):
        if click["request_id"] is None or click["item_id"] is None or click["at"] is None:
            fates["broken"] += 1
            continue
        found = first.get((click["request_id"], click["item_id"]))
        if found is None:
            fates["older" if click["at"] < oldest else "unmatched"] += 1
        elif click["at"] < found["log_at"] - early:
            fates["before_exposure"] += 1
        elif click["at"] > found["log_at"] + reach or (
            click["received_at"] is not None and click["received_at"] > found["log_at"] + arrival
        ):
            fates["late"] += 1
        elif found["log_at"] + arrival > watermark:
            fates["pending"] += 1
        elif labels[found["log_request_id"], found["log_place"]] is not None:
            fates["duplicate"] += 1
        else:
            fates["matched"] += 1
            labels[found["log_request_id"], found["log_place"]] = click["at"]
    names = ("matched", "duplicate", "late", "before_exposure", "unmatched", "older", "pending", "broken")
    counts = OutcomeCounts(
        exposures=len(shown), final=len(labels), open=len(shown) - len(labels), clicks=len(clicks),
        **{n: fates[n] for n in names},
    )  # fmt: skip
    return counts, labels


@settings(repeatable, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_the_join_is_the_naive_one(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("events")
    shown, clicks, watermark = random_events(seed)
    counts = join_outcomes(*write(folder, shown, clicks), folder, watermark, WINDOW)
    expected, labels = naive(shown, clicks, watermark)
    assert counts == expected
    assert counts.exposures == counts.final + counts.open
    fates = ("matched", "duplicate", "late", "before_exposure", "unmatched", "older", "pending", "broken")
    assert counts.clicks == sum(getattr(counts, n) for n in fates)
    found = pq.read_table(folder / OUTCOMES).to_pylist()
    assert {(r["log_request_id"], r["log_place"]): r["log_clicked_at"] for r in found} == labels
    assert len(found) == len(labels)
    assert all((r["label"] == 1) == (r["log_clicked_at"] is not None) and r["kept"] == "x" for r in found)


def test_exposures_that_were_given_twice_are_refused(tmp_path: Path) -> None:
    shown, clicks, watermark = random_events(1)
    parts, clicked = write(tmp_path, shown, clicks)
    with pytest.raises(ExperimentError, match="twice"):
        join_outcomes(parts * 2, clicked, tmp_path / "out", watermark, WINDOW)


def test_nothing_to_join(tmp_path: Path) -> None:
    shown, clicks = write(tmp_path, random_events(3)[0], [])
    assert join_outcomes(shown, clicks, tmp_path / "out", T0 + timedelta(days=1), WINDOW).matched == 0
    assert join_outcomes([], [], tmp_path / "out", T0, WINDOW).exposures == 0
    with pytest.raises(ValueError, match="time zone"):
        join_outcomes(shown, clicks, tmp_path / "out", datetime(2026, 1, 1), WINDOW)
    pq.write_table(pa.table({"request_id": ["r"]}), tmp_path / "bad.parquet")
    with pytest.raises(ExperimentError, match="no column"):
        join_outcomes(shown, [tmp_path / "bad.parquet"], tmp_path / "out", T0, WINDOW)

"""The exposure join against one in plain Python, and what it does with damaged logs."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.experiment.files import experiment, repeatable
from tests.experiment.logs import COLUMNS, T0, World, naive_join, random_world
from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.join import EXPOSURES, REQUESTS, Logs, join_exposures, raw_unit_column
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.monitor.record import HEAD
from thinktwice.records.exposure import EXPERIMENT_COLUMNS
from thinktwice.records.served import EXPOSURE_ADDS, PREDICTION_COLUMNS, REQUEST_COLUMNS, USER_IDS

FILE = experiment("exp1", arms=3, coverage=0.8)
LAYOUT = layout_of([FILE])


def joined(world: World, folder: Path, watermark: float | None = None) -> JoinCounts:
    access, predictions = world.write(folder)
    until = None if watermark is None else datetime.fromtimestamp(watermark, timezone.utc)
    logs = Logs(access, predictions, unit_column="log_user_id")
    return join_exposures(logs, LAYOUT, folder / "out", watermark=until)


def assert_nothing_is_lost(c: JoinCounts) -> None:
    assert c.lines == c.requests + c.open + c.repeated + c.broken + c.torn
    assert c.requests == c.unanswered + c.unnamed + c.lost + c.unlogged + c.joined + c.ambiguous_requests
    known = c.joined + c.superseded + c.shadow + c.direct + c.unexplained + c.ambiguous + c.open_predicted
    assert c.predicted == known


@settings(repeatable, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.one_of(st.none(), st.integers(-1, 61)))
def test_the_join_is_the_naive_one(tmp_path_factory: pytest.TempPathFactory, seed: int, until: int | None) -> None:
    folder = tmp_path_factory.mktemp("logs")
    world = random_world(seed, LAYOUT)
    watermark = None if until is None else T0 + 10.0 * until
    counts = joined(world, folder, watermark)
    expected = naive_join(world, LAYOUT, math.inf if watermark is None else watermark)
    arms = {(a.experiment, a.arm): a.model_dump(exclude={"experiment", "arm"}) for a in counts.arms}
    assert arms == expected.pop("arms")
    found = counts.model_dump(exclude={"arms", "wrong_arm"})
    assert found == expected
    assert_nothing_is_lost(counts)
    rows = pq.read_table(folder / "out" / EXPOSURES)
    assert rows.num_rows == counts.exposures and "device" in rows.column_names
    assert not any(r["log_probability"] == 2.0 for r in rows.to_pylist())  # the first row of a place counts
    kept = [n for n in PREDICTION_COLUMNS.names if n != "log_shadow"]
    typed = pa.schema([*(PREDICTION_COLUMNS.field(n) for n in kept), *EXPOSURE_ADDS])
    assert {f.name: f.type for f in rows.schema if f.name in typed.names} == {f.name: f.type for f in typed}
    requests = pq.read_table(folder / "out" / REQUESTS)
    assert requests.num_rows == sum(a.requests for a in counts.arms) and requests.column_names == REQUEST_COLUMNS.names


def a_world() -> World:
    """A world without mishaps."""
    world = random_world(1, LAYOUT)
    for number in range(2):
        world.torn[number] = ""
    return world


def test_an_arm_that_the_bucket_does_not_belong_to_is_counted(tmp_path: Path) -> None:
    world = a_world()
    before = joined(world, tmp_path).wrong_arm
    line = next(
        (n, i) for n, file in enumerate(world.access) for i, text in enumerate(file)
        if '"enrolled": "1"' in text and '"served": "t1"' in text and '"code": 200' in text
    )  # fmt: skip
    content = json.loads(world.access[line[0]][line[1]])
    world.access[line[0]][line[1]] = json.dumps({**content, "assigned": "t2"})
    assert joined(world, tmp_path).wrong_arm == before + 1


def test_the_order_of_lines_and_rows_changes_nothing(tmp_path: Path) -> None:
    world = a_world()
    whole = joined(world, tmp_path)
    rows = pq.read_table(tmp_path / "out" / EXPOSURES).to_pylist()
    turned = World([file[::-1] for file in world.access[::-1]], world.rows[::-1], world.torn)
    assert joined(turned, tmp_path) == whole
    again = pq.read_table(tmp_path / "out" / EXPOSURES).to_pylist()
    assert sorted(map(repr, again)) == sorted(map(repr, rows))


def test_shares_of_a_server_without_experiments_are_refused(tmp_path: Path) -> None:
    world = a_world()
    access, predictions = world.write(tmp_path)
    pq.write_table(pq.read_table(predictions[0]).drop_columns(["log_unit"]), predictions[0])
    with pytest.raises(ExperimentError, match="no column 'log_unit'"):
        join_exposures(Logs(access, predictions), LAYOUT, tmp_path / "out")
    table = pq.read_table(predictions[1])
    place = table.column_names.index("log_unit")
    pq.write_table(table.set_column(place, "log_unit", pa.array(["x"] * table.num_rows)), predictions[1])
    with pytest.raises(ExperimentError, match="'log_unit' is string, not uint64"):
        join_exposures(Logs(access, predictions[1:]), LAYOUT, tmp_path / "out")
    predictions[0].write_bytes(b"PAR1 not")
    with pytest.raises(ExperimentError, match="cannot be read"):
        join_exposures(Logs(access, predictions), LAYOUT, tmp_path / "out")
    with pytest.raises(ExperimentError, match="no access log"):
        join_exposures(Logs([tmp_path / "none.log"], []), LAYOUT, tmp_path / "out")


def test_buckets_are_recomputed_from_the_unit_of_the_experiment(tmp_path: Path) -> None:
    def part(name: str, columns: dict[str, Any], **metadata: str) -> Path:
        table = pa.table({"log_bucket": [1], **columns})
        made = {USER_IDS: metadata["user_ids"].encode()} if metadata else None
        pq.write_table(table.replace_schema_metadata(made), tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    raw = part("raw", {"log_user_id": ["u"], "cookie": ["c"], "age": [3]}, user_ids="raw")
    other = part("other", {"log_user_id": ["u"]})
    hidden = part("hidden", {"log_user_id": ["h"], "cookie": ["c"]}, user_ids="hashed")
    assert raw_unit_column([raw, other], "user_id") == raw_unit_column([raw], "customer", "customer") == "log_user_id"
    assert raw_unit_column([raw, hidden], "user_id") is None, "a hash is no unit"
    assert raw_unit_column([raw, hidden, other], "cookie") == "cookie"
    for unit in ("age", "session", "customer"):  # not text, not logged
        assert raw_unit_column([raw, other], unit) is None
    assert raw_unit_column([], "user_id") is None


def test_an_experiment_on_another_unit_is_checked_by_that_unit(tmp_path: Path) -> None:
    layout = layout_of([experiment("exp1", coverage=0.8)])
    world = random_world(3, layout)
    access, predictions = world.write(tmp_path)
    wrong = join_exposures(Logs(access, predictions, "log_user_id"), layout, tmp_path / "out").wrong_bucket
    for row in world.rows:
        row["device"], row["log_user_id"] = row["log_user_id"], "somebody"
    access, predictions = world.write(tmp_path)
    column = raw_unit_column(predictions, "device")
    assert column == "device"
    assert join_exposures(Logs(access, predictions, column), layout, tmp_path / "out").wrong_bucket == wrong
    assert join_exposures(Logs(access, predictions, "log_user_id"), layout, tmp_path / "out").wrong_bucket != wrong


def test_empty_logs(tmp_path: Path) -> None:
    (tmp_path / "empty.log").write_bytes(b"")
    counts = join_exposures(Logs([tmp_path / "empty.log"], []), LAYOUT, tmp_path / "out")
    assert (counts.lines, counts.predicted, counts.exposures, counts.arms) == (0, 0, 0, ())
    assert pq.read_table(tmp_path / "out" / EXPOSURES).num_rows == 0


def test_parts_of_other_models_have_other_fields(tmp_path: Path) -> None:
    world = a_world()
    access, predictions = world.write(tmp_path)
    table = pq.read_table(predictions[0])
    pq.write_table(table.append_column("another", pa.array(["x"] * table.num_rows)), predictions[0])
    join_exposures(Logs(access, predictions), LAYOUT, tmp_path / "out")
    assert {"another", "device"} <= set(pq.read_schema(tmp_path / "out" / EXPOSURES).names)


def test_a_torn_last_line_is_counted_and_costs_itself_alone(tmp_path: Path) -> None:
    world = a_world()
    whole = joined(world, tmp_path)
    line = world.access[0][-1]
    for cut in range(1, len(line)):
        torn = World([world.access[0][:-1], world.access[1]], world.rows, [line[:cut], ""])
        counts = joined(torn, tmp_path)
        assert counts.torn == 1 and counts.broken == whole.broken and counts.requests >= whole.requests - 1
        if cut > 3:
            break
    finished = World([world.access[0][:-1], world.access[1]], world.rows, [line, ""])
    assert joined(finished, tmp_path).model_dump() == whole.model_dump()


def test_the_columns_are_those_of_the_prediction_log() -> None:
    ours = {f.name: f.type for f in PREDICTION_COLUMNS}
    assert ours == {name: HEAD[name] for name in ours}
    assert set(EXPERIMENT_COLUMNS.names) <= set(ours)
    assert set(COLUMNS.names) >= set(PREDICTION_COLUMNS.names)

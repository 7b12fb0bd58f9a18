"""Cost of instant statistics: the pass over a log of 10 million rows of 500,000 users, states, a request, and late outcomes.

make bench-counters              # 10 million rows
QUICK=1 make bench-counters      # 1 million rows of 50,000 users; the bounds are those of 10 million
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from thinktwice.data.instant.definition import Definition, definition_of
from thinktwice.data.instant.keys import slots_of
from thinktwice.data.instant.state import Outcome, State, apply, empty_states, state_type, values
from thinktwice.data.simulator import SimConfig
from thinktwice.data.simulator.draw import draw_blocks
from thinktwice.data.simulator.world import AGES, TOPICS, make_world
from thinktwice.data.sources.registry import builtin_schema
from thinktwice.files import write_json
from thinktwice.parquet import write_frame
from thinktwice.schema import LogSchema

RESULT = Path(__file__).parent / "results" / "counters.json"
MAX_SECONDS = 360.0
MAX_RSS_GB = 3.0
CANDIDATES = 100
REPEATS = 300
OUTCOMES = 20_000  # of the run with late outcomes
WATERMARK_US = 60_000_000  # by how much they are late

CHILD = """
import json, os, sys, time
from pathlib import Path
from benchmarks.counters import schema
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.parquet import read_frame
log, out = Path(sys.argv[1]), Path(sys.argv[2])
definition = definition_of(schema())
start, rows = time.perf_counter(), 0
counter_rows = log_rows(lambda name: read_frame(log, [name])[name], definition)
with out.open("wb") as file:
    for block in log_counters(counter_rows, definition, out.parent):
        rows += len(block)
        file.write(block.data)
seconds = time.perf_counter() - start
# Not ru_maxrss, which a process inherits from the one that started it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024 / 1e9
times = os.times()
print(json.dumps({"rows": rows, "counters": len(definition.names), "seconds": seconds,
                  "cpu_seconds": times.user + times.system, "peak_rss_gb": peak}))
"""


def schema() -> LogSchema:
    """The schema of the simulator with instant statistics: topics author and topic, attributes age and city."""
    content = builtin_schema("sim").model_dump(mode="json")
    content["statistics"] = {"instant": {"feedback_delay": {"click": 60, "no_click": 600}}}
    return LogSchema.model_validate(content)


def draw(rows: int, users: int, items: int) -> pl.DataFrame:
    """The columns of a simulated log that counters read, in time order."""
    config = SimConfig(rows=rows, users=users, items=items)
    world = make_world(config)
    blocks = [(b.time_us, b.click, b.user, b.shown) for b in draw_blocks(config, world)]
    at, click, user, item = (np.concatenate(column) for column in zip(*blocks, strict=True))
    order = np.argsort(at, kind="stable")
    at, click, user, item = at[order], click[order], user[order], item[order]
    return pl.DataFrame(
        {
            "event_time": pl.Series(at).cast(pl.Datetime("us", "UTC")),
            "label": click.astype(np.int8),
            "user_id": pl.Series(user).cast(pl.String),
            "item_id": pl.Series(item).cast(pl.String),
            "age_band": np.asarray(AGES)[world.user_age[user]],
            "city": pl.Series(world.user_city[user]).cast(pl.String),
            "author_id": pl.Series(world.item_author[item]).cast(pl.String),
            "topic": np.asarray(TOPICS)[world.item_topic[item]],
        }
    )


def one_pass(rows: int, users: int, items: int) -> dict[str, Any]:
    """Time and peak memory of the pass over a log on disk, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.parquet"
        write_frame(draw(rows, users, items), log)
        made = subprocess.run(
            [sys.executable, "-c", CHILD, str(log), str(Path(folder) / "out")],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "2", "POLARS_MAX_THREADS": "2"},
        )
    return {"users": users, "items": items, **json.loads(made.stdout)}


def outcomes_of(frame: pl.DataFrame, definition: Definition) -> list[Outcome]:
    """The outcomes of a log in the order in which they become known."""
    out = [
        Outcome(
            row["user_id"],
            row["item_id"],
            at,
            row["label"] == 1,
            slots_of(definition.topics, row),
            slots_of(definition.attributes, row),
        )
        for row, at in zip(frame.to_dicts(), frame["event_time"].dt.epoch("us"), strict=True)
    ]
    return sorted(out, key=lambda o: o.time + definition.delay(o.clicked))


def applied(outcomes: list[Outcome], definition: Definition) -> tuple[dict[str, State], dict[str, State]]:
    """States of users and items after these outcomes."""
    log, users, items = empty_states(definition, "log"), {}, {}
    for outcome in outcomes:
        assert outcome.user is not None and outcome.item is not None
        if outcome.user not in users:
            users[outcome.user] = empty_states(definition, "user")
        if outcome.item not in items:
            items[outcome.item] = empty_states(definition, "item")
        apply(definition, outcome, log, users[outcome.user], items[outcome.item])
    return users, items


def states(definition: Definition) -> dict[str, Any]:
    """CPU time of an outcome and of a request, and the effect of late outcomes."""
    outcomes = outcomes_of(draw(OUTCOMES, 500, 300), definition)
    start = time.process_time()
    users, items = applied(outcomes, definition)
    apply_us = (time.process_time() - start) / len(outcomes) * 1e6
    user = max(users.values(), key=lambda state: int(state["views"][0]))
    candidates = np.concatenate(list(items.values())[:CANDIDATES])
    topics = np.array([[n % c.slots for c in definition.topics] for n in range(CANDIDATES)])
    attributes = np.array([0 for _ in definition.attributes])
    instant = outcomes[-1].time + 1_000_000_000
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        values(definition, user, candidates, instant, topics, attributes)
        times.append((time.process_time() - start) * 1e6)
    request_us = float(np.median(times))
    return {
        "apply_us": apply_us,
        "request_us": request_us,
        "values_per_second": CANDIDATES * len(definition.names) / request_us * 1e6,
        "state_bytes": {kind: state_type(definition, kind).itemsize for kind in ("user", "item", "recent", "log")},
        "late": late(outcomes, users, definition),
    }


def late(outcomes: list[Outcome], users: dict[str, State], definition: Definition) -> dict[str, Any]:
    """Change of residuals when every outcome is up to a minute late, at random."""
    delays = np.random.default_rng(0).integers(0, WATERMARK_US, len(outcomes))
    at = np.array([o.time + definition.delay(o.clicked) for o in outcomes]) + delays
    moved, _ = applied([outcomes[n] for n in np.argsort(at, kind="stable")], definition)
    pairs = [(state[0], moved[key][0]) for key, state in users.items()]
    difference = [abs(int(on_time["residual"]) - int(delayed["residual"])) / 2**20 for on_time, delayed in pairs]
    rate = [d / (int(on_time["views"]) + 2) for d, (on_time, _) in zip(difference, pairs, strict=True)]
    spread = float(np.std([int(on_time["residual"]) / 2**20 / (int(on_time["views"]) + 2) for on_time, _ in pairs]))
    return {
        "watermark_seconds": WATERMARK_US / 1e6,
        "same_counts": all(
            (on_time[name] == delayed[name]).all()
            for on_time, delayed in pairs
            for name in ("views", "clicks", "bucket_views", "crossed_views", "last_at")
        ),
        "residual_sum_largest_difference": max(difference),
        "residual_rate_largest_difference": max(rate),
        "residual_rate_spread": spread,
    }


def measure(quick: bool) -> dict[str, Any]:
    """Figures and bars."""
    definition = definition_of(schema())
    assert definition is not None
    size = (1_000_000, 50_000, 5_000) if quick else (10_000_000, 500_000, 50_000)
    figures = {"pass": one_pass(*size), "states": states(definition)}
    log_pass = figures["pass"]
    moved = figures["states"]["late"]["residual_rate_largest_difference"]
    bars = [
        ("counters of a log: seconds", log_pass["seconds"], f"<= {MAX_SECONDS:g}", log_pass["seconds"] <= MAX_SECONDS),
        ("counters of a log: peak GB", log_pass["peak_rss_gb"], f"<= {MAX_RSS_GB:g}", log_pass["peak_rss_gb"] <= MAX_RSS_GB),
        ("late outcomes: counts stay (1: yes)", float(figures["states"]["late"]["same_counts"]), "= 1",
         figures["states"]["late"]["same_counts"]),
        ("late outcomes: largest change of a residual rate", moved, "<= 0.01", moved <= 0.01),
    ]  # fmt: skip
    return {
        "figures": figures,
        "bars": [dict(zip(("name", "value", "bound", "holds"), bar, strict=True)) for bar in bars],
    }


def main() -> None:
    """Measure, print, write the result, and fail if a bar is not met."""
    quick, load = (
        bool(os.environ.get("QUICK")),
        os.getloadavg()[0],
    )  # load by other processes, under which wall time means little
    result = measure(quick)
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "load_before": load}
    versions = {"python": platform.python_version(), "numpy": np.__version__, "polars": pl.__version__}
    write_json(RESULT, result | {"quick": quick, "machine": machine, "versions": versions})
    print(json.dumps(result, indent=2))
    if not all(bar["holds"] for bar in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()

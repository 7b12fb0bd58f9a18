"""Feedback: latency from an event to the counters that a request reads, at a constant event rate, on Redis and on SQLite.

make bench-feedback              # 60 s each
QUICK=1 make bench-feedback      # 15 s each

The service is the command `thinktwice feedback run` in a separate process, with a real online store. Events are sent over HTTP
in ten batches per second; half are impressions, half their clicks, of 2,000 users and 500 items drawn from a Zipf distribution.
Each batch contains the impression and click of a new user. One measurement is the time from sending this batch until the store
has the user's state, polled every 2 ms through the source that a predictor uses: it includes HTTP, the durable write, the join,
the push and the read. Clicks count at once (delay 0), so nothing waits for a window.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from thinktwice.data.pushed_views import STATE
from thinktwice.files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "feedback.json"
SECONDS, QUICK_SECONDS = 60.0, 15.0
BATCHES = 10  # per second
PROBE_EVERY = 1  # batches
USERS, ITEMS = 2000, 500
LIMIT_S = 1.0
RATES = {"redis": 1000, "sqlite": 100}
GIVE_UP = 30.0  # seconds


def main() -> None:
    warnings.simplefilter("ignore")
    quick = bool(os.environ.get("QUICK"))
    seconds = QUICK_SECONDS if quick else SECONDS
    figures = {kind: _measured(kind, rate, seconds) for kind, rate in RATES.items()}
    bars = []
    for kind, figures_of_kind in figures.items():
        name = f"feedback: event to servable at {RATES[kind]:,} events/s on {kind}, p99, s"
        bars.append(
            {
                "name": name,
                "value": figures_of_kind["p99_s"],
                "bound": "<= 1",
                "holds": figures_of_kind["p99_s"] <= LIMIT_S,
            }
        )
        name = f"feedback: share of the events sent that were accepted, {kind}"
        bars.append(
            {
                "name": name,
                "value": figures_of_kind["accepted_share"],
                "bound": "= 1",
                "holds": figures_of_kind["accepted_share"] == 1,
            }
        )
    machine = {"system": platform.platform(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), **{n: version(n) for n in ("feast", "redis", "numpy", "uvicorn")}}
    result = {"figures": figures, "bars": bars, "quick": quick, "machine": machine, "versions": versions}
    write_json(RESULT, result)
    for bar in bars:
        print(f"{bar['name']}: {bar['value']:.3f} ({bar['bound']}: {'holds' if bar['holds'] else 'MISSED'})")


def _measured(kind: str, rate: int, seconds: float) -> dict[str, Any]:
    from serving.features.feast_source import FeastSource, open_feast
    from serving.features.redis_source import RedisSource
    from tests.features import redis_server
    from tests.feedback.server import running
    from tests.feedback.stores import full_schema, make_store, random_log

    schema = full_schema(click=0, no_click=600)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = stack.enter_context(redis_server.running(folder)) if kind == "redis" else ""
        store_dir = make_store(folder, random_log(40), schema, address, version=f"bench-{kind}")
        store, service = open_feast(store_dir, read_json(store_dir / "feature_store.json")["feature_service"])
        source = RedisSource(store, schema) if kind == "redis" else FeastSource(store, service, schema)
        url, process = stack.enter_context(running(folder / "log", store_dir))
        probes = _Probes(source)
        before = time.process_time()
        sent, accepted = _send(url, rate, seconds, probes)
        probes.finish()
        sender_cpu = time.process_time() - before
        cpu = psutil.Process(process.pid).cpu_times()
        with urllib.request.urlopen(url.replace("/v1/events", "/metrics")) as answer:
            metrics = dict(
                line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")
            )
        source.close()
    latencies = np.array(probes.seconds)
    return {
        "rate": rate,
        "seconds": seconds,
        "events": sent,
        "accepted_share": accepted / sent,
        "probes": len(latencies),
        "p50_s": float(np.quantile(latencies, 0.5)),
        "p99_s": float(np.quantile(latencies, 0.99)),
        "max_s": float(latencies.max()),
        "service_cpu_s": cpu.user + cpu.system,
        "service_cpu_us_per_event": (cpu.user + cpu.system) * 1e6 / sent,
        "sender_cpu_s": sender_cpu,
        "pushed_rows": float(metrics["thinktwice_feedback_pushed_rows_total"]),
        "push_failures": float(metrics["thinktwice_feedback_push_failures_total"]),
    }


class _Probes:
    """Polls the store for the users that were sent."""

    def __init__(self, source: Any) -> None:
        self._source, self.seconds = source, list[float]()
        self._waiting: list[tuple[str, float]] = []
        self._changed, self._ending = threading.Condition(), False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def add(self, user: str, sent: float) -> None:
        with self._changed:
            self._waiting.append((user, sent))
            self._changed.notify()

    def finish(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ending:
                    self._changed.wait()
                waiting = list(self._waiting)
                if not waiting:
                    return
            rows = self._source.fetch_fields("user_id", [("user_instant", STATE)], [user for user, _ in waiting])
            now = time.monotonic()
            done = {user for (user, _), row in zip(waiting, rows, strict=True) if row[0] is not None}
            done |= {user for user, sent in waiting if now - sent > GIVE_UP}
            self.seconds += [now - sent for user, sent in waiting if user in done]
            with self._changed:
                self._waiting = [entry for entry in self._waiting if entry[0] not in done]
            time.sleep(0.002)


def _send(url: str, rate: int, seconds: float, probes: _Probes) -> tuple[int, int]:
    """Events sent and accepted."""
    draw, address = random.Random(0), urlsplit(url)
    reach = np.cumsum(np.arange(1, USERS + 1) ** -1.1)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 0, timeout=60)
    sent = accepted = 0
    began = time.monotonic()
    for batch in range(int(seconds * BATCHES)):
        time.sleep(max(0.0, began + batch / BATCHES - time.monotonic()))
        events: list[dict[str, Any]] = []
        now = time.time()
        for number in range(rate // BATCHES // 2):
            probe = f"probe-{batch}" if number == 0 and batch % PROBE_EVERY == 0 else ""
            user = probe or f"user-{int(np.searchsorted(reach, draw.random() * reach[-1]))}"
            keys = {
                "request_id": f"{batch}-{number}",
                "item_id": f"item-{int(draw.paretovariate(1)) % ITEMS}",
                "at": now,
            }
            values = {"genre": draw.choice("abcdef"), "city": draw.choice("xyz"), "sex": "f"}
            events.append({"kind": "impression", "user_id": user, "values": values, **keys})
            events.append({"kind": "click", **keys})
        moment = time.monotonic()
        connection.request("POST", address.path, json.dumps({"events": events}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        reply = json.loads(answer.read())
        sent += len(events)
        accepted += reply["accepted"] if answer.status == 202 else 0
        if batch % PROBE_EVERY == 0:
            probes.add(f"probe-{batch}", moment)
    connection.close()
    return sent, accepted


if __name__ == "__main__":
    sys.exit(main())

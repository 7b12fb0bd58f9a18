"""A bundle with a correction and one with retrieval behind the real TorchServe and KServe: the answers of the engine, which follow
every push."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from serving.config import ServingConfig
from serving.features.open_reader import FeatureConfig
from serving.local import kserve_process, torchserve_process
from serving.open_service import open_service
from tests.data.instant.oracle import Row
from tests.features import redis_server
from tests.feedback.streams import SECOND
from tests.server.conftest import free_port, post
from tests.serving.counted import LOG, Counted, feed, make_counted
from tests.serving.releases import pack

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
CONFIG = ServingConfig(shed=False, deadline_ms=60_000, features=FeatureConfig(timeout_ms=5000))
CANDIDATES = ["i", "j", "never seen", "k", "i"]


def body(instant: int) -> dict[str, Any]:
    return {"instances": [{"user_id": "u", "candidates": CANDIDATES, "context": {"timestamp": instant / 1e6}}]}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    folder = tmp_path_factory.mktemp("served-evidence")
    with redis_server.running(folder) as address:
        made = make_counted(folder, redis=address, version="served-evidence")
        archives = {mode: pack(bundle, folder / f"packed-{mode}") for mode, bundle in made.bundles.items()}
        feed(made.store)
        yield replace(made, bundles=made.bundles | {f"{mode}.mar": path for mode, path in archives.items()})


@pytest.fixture(scope="module")
def log() -> list[Row]:
    """What was pushed; each case adds to it."""
    return [*LOG]


@contextmanager
def served(server: str, counted: Counted, mode: str, log: Path) -> Iterator[str]:
    """The address that predicts."""
    archive, settings = counted.bundles[f"{mode}.mar"], {"port": free_port(), "log": log, "config": CONFIG}
    running = torchserve_process.running if server == "torchserve" else kserve_process.running
    with running(archive, feature_store=counted.store, **settings) as found:  # type: ignore[operator]
        yield found.predict_url


def in_process(counted: Counted, mode: str, instant: int) -> Any:
    service = open_service(
        counted.bundles[mode], CONFIG, model_name="ctr", feature_store=counted.store, registry=CollectorRegistry()
    )
    reply = service.answer(orjson.dumps(body(instant)), {})
    service.close()
    return orjson.loads(reply.body)["predictions"][0]


@pytest.mark.parametrize("mode", ["corrected", "retrieve"])
@pytest.mark.parametrize("server", ["torchserve", "kserve"])
def test_answers_follow_what_was_pushed(
    counted: Counted, log: list[Row], tmp_path: Path, server: str, mode: str
) -> None:
    start = log[-1].time + 3600 * SECOND
    with served(server, counted, mode, tmp_path / "log") as url:

        def ask(instant: int) -> Any:
            status, _, text = post(url, body(instant))
            assert status == 200, text
            return json.loads(text)["predictions"][0]

        feed(counted.store, log, start)
        before = ask(start + SECOND)
        more = [Row(start + n, n % 2 == 0, "u", item, ("a", "a"), ("x", "f")) for n, item in enumerate("ijk")]
        log.extend(more)
        feed(counted.store, log, start + 700 * SECOND)
        after, expected = ask(start + 701 * SECOND), in_process(counted, mode, start + 701 * SECOND)
    assert after == expected
    assert before["counters"] == after["counters"] == "used" and all(item["corrected"] for item in after["items"])
    moved = [item["probability"] != item["base_probability"] for item in after["items"]]
    assert all(moved) and after["items"] != before["items"]
    reasons = {item["reason"] for item in after["items"]}
    assert (reasons == {""}) == (mode == "corrected")
    assert after["items"][0]["probability"] == after["items"][4]["probability"]

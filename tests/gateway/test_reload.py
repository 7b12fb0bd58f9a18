"""Routes change under load without a lost request; what is wrong is refused before the rename, or undone after it."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.gateway import reload as reloading
from serving.gateway.binary import find_envoy
from serving.gateway.file import Declared
from serving.gateway.process import Gateway, probe_token
from serving.gateway.reload import Reloaded, reload
from tests.experiment.files import experiment
from tests.gateway.gateways import declare, gateway, log_lines, need_envoy
from tests.gateway.load import load
from tests.gateway.upstreams import Upstream, upstreams
from thinktwice.errors import ExperimentError, ServerError
from thinktwice.experiment.assignment import assign, layout_of
from thinktwice.experiment.routes import CLUSTERS, ROUTES, Rendered

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def arms() -> Iterator[list[Upstream]]:
    need_envoy()
    with upstreams("control", "t1", "t2") as found:
        yield found


def at(arms: list[Upstream], coverage: float, port: int | None = None, **fields: Any) -> Declared:
    ports = {"control": arms[0].port, "exp1/t1": arms[1].port}
    return declare(ports, [experiment("exp1", coverage=coverage)], port=port, **fields)


@pytest.fixture
def live(arms: list[Upstream], tmp_path: Path) -> Iterator[Gateway]:
    with gateway(tmp_path / "gateway", at(arms, 0.01)) as found:
        yield found


def put(live: Gateway, declared: Declared) -> Reloaded:
    return reload(declared, live.folder, find_envoy(), live.admin, probe_token(declared, live.folder))


def files(live: Gateway) -> tuple[bytes, bytes]:
    return (live.folder / ROUTES).read_bytes(), (live.folder / CLUSTERS).read_bytes()


def arm_of(live: Gateway, unit: str) -> str:
    with load(live.port, 1000, lambda n: unit) as found:
        time.sleep(0.01)
    assert not found.bad()
    (arm,) = set(found.arms.values())
    return arm


def test_a_ramp_under_300_requests_a_second_loses_nothing(live: Gateway, arms: list[Upstream]) -> None:
    steps = (0.05, 0.25, 0.5, 1.0)
    with load(live.port, 300) as found:
        for coverage in steps:
            done = put(live, at(arms, coverage, live.port))
            assert live.admin.route_version() == done.version == json.loads(files(live)[0])["version_info"]
            assert [(p.arm, p.served) for p in done.probes] == [("control", "control")] * 2 + [("t1", "t1")]
    assert found.statuses and not found.bad()
    layouts = [layout_of([experiment("exp1", coverage=c)]) for c in (0.01, *steps)]
    lines = {line["request_id"]: line for line in log_lines(live, set(found.statuses))}
    assert set(lines) == set(found.statuses), "probes are in no log of the experiment"
    for request, unit in found.units.items():
        possible = {(a.arm, "1" if a.enrolled else "0") for a in (assign(layout, unit) for layout in layouts)}
        assert (lines[request]["assigned"], lines[request]["enrolled"]) in possible
        assert lines[request]["served"] == lines[request]["assigned"]
    # The last layout is live.
    last = max(lines.values(), key=lambda line: float(line["ts"]))
    assert last["enrolled"] == "1"


def test_an_arm_comes_and_goes_under_load(live: Gateway, arms: list[Upstream]) -> None:
    ports = {"control": arms[0].port, "exp2/t1": arms[2].port}
    other = declare(ports, [experiment("exp2", coverage=1.0)], port=live.port)
    with load(live.port, 200) as found:
        with pytest.raises(ExperimentError, match="salt changes"):
            put(live, other)
        put(live, declare({"control": arms[0].port}, port=live.port))  # exp1 is stopped, all of it
        put(live, other)
        put(live, declare({"control": arms[0].port}, port=live.port))
    assert not found.bad()
    assert json.loads(files(live)[1])["resources"][0]["name"] == "control"
    assert {c["name"] for c in json.loads(files(live)[1])["resources"]} == {"control", "control_ready"}
    with load(live.port, 100) as found:
        time.sleep(0.2)
    assert not found.bad() and set(found.arms.values()) == {"control"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arms, port: at(arms, 0.001, port), "leave the arm"),
        (lambda arms, port: at(arms, 0.01, port, unit_header="x-user"), "restart it"),
        (lambda arms, port: at(arms, 0.01, port, model="other"), "restart it"),
        (lambda arms, port: declare({"control": arms[0].port}, [experiment("exp1")], port=port), "no endpoint for"),
    ],
)
def test_what_may_not_be_reloaded(live: Gateway, arms: list[Upstream], change: Any, words: str) -> None:
    before = files(live)
    with pytest.raises((ExperimentError, ServerError), match=words):
        put(live, change(arms, live.port))
    assert files(live) == before
    assert not list(live.folder.glob(".*.part"))


def _unknown_field(rendered: Rendered) -> Rendered:
    routes = copy.deepcopy(rendered.routes)
    routes["resources"][0]["no_such_field"] = 1
    return dataclasses.replace(rendered, routes=routes)


def _unknown_cluster(rendered: Rendered) -> Rendered:
    routes = copy.deepcopy(rendered.routes)
    for route in routes["resources"][0]["virtual_hosts"][0]["routes"]:
        if "cluster" in route.get("route", {}):
            route["route"]["cluster"] = "nowhere"
    return dataclasses.replace(rendered, routes=routes)


def _bad_cluster(rendered: Rendered) -> Rendered:
    clusters = copy.deepcopy(rendered.clusters)
    clusters["resources"][0]["no_such_field"] = 1
    return dataclasses.replace(rendered, clusters=clusters)


def _other_order(rendered: Rendered) -> Rendered:
    """What Envoy takes without a word: the ranges in another order, so the units of the probes go elsewhere."""
    routes = copy.deepcopy(rendered.routes)
    split = routes["resources"][0]["virtual_hosts"][0]["routes"][-1]
    entries = split["route"]["weighted_clusters"]["clusters"]
    entries.reverse()
    return dataclasses.replace(rendered, routes=routes)


@pytest.mark.parametrize("spoil", [_unknown_field, _unknown_cluster, _bad_cluster, _other_order])
def test_what_envoy_or_a_probe_refuses_is_undone(
    live: Gateway, arms: list[Upstream], monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    """As if our own check had a hole: the file is renamed, and the old one comes back."""
    declared = at(arms, 1.0, live.port)
    put(live, declared)
    before, version = files(live), live.admin.route_version()
    good = reloading.plan
    monkeypatch.setattr(reloading, "plan", lambda *given: spoil(good(*given)))
    with load(live.port, 100) as found:
        with pytest.raises(ExperimentError, match=r"refuses the new|the gateway puts the unit"):
            put(live, declared)
    assert files(live) == before and not found.bad()
    layout = layout_of(declared.experiments)
    end = time.monotonic() + 10
    while live.admin.route_version() != version and time.monotonic() < end:
        time.sleep(0.05)
    for unit in ("a", "b", "c", "d"):
        assert arm_of(live, unit) == assign(layout, unit).arm
    monkeypatch.undo()
    assert put(live, declared).version == version, "what is live already is not written again"
    assert files(live) == before


def test_a_kill_at_any_moment_leaves_what_the_next_reload_repairs(
    live: Gateway, arms: list[Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C puts the old files back; after a kill they stay as they are: new clusters beside old routes, which harm nobody."""
    before = files(live)
    ports = {"control": arms[0].port, "exp1/t1": arms[1].port, "exp1/t2": arms[2].port}
    stopped = at(arms, 0.0, live.port)
    other = declare(ports, [experiment("exp1", arms=3, coverage=0.5)], port=live.port)
    put(live, stopped)
    before = files(live)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with load(live.port, 100) as found:
        monkeypatch.setattr(reloading, "_put_routes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            put(live, other)
        assert files(live) == before
        monkeypatch.setattr(reloading, "_restore", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            put(live, other)
        assert files(live)[0] == before[0] and files(live)[1] != before[1]
        (live.folder / ".rds.json.x.part").write_text("{")  # what a kill in the middle of a write leaves
        monkeypatch.undo()
        put(live, other)
    assert not found.bad()
    layout = layout_of(other.experiments)
    for number in range(20):
        assert arm_of(live, f"u{number}") == assign(layout, f"u{number}").arm


def test_two_reloads_at_once(live: Gateway, arms: list[Upstream]) -> None:
    results: list[str] = []

    def one() -> None:
        try:
            results.append(put(live, at(arms, 0.5, live.port)).version)
        except ServerError as error:
            results.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert live.admin.route_version() in results
    assert all("in progress" in found or found.startswith("2-") for found in results)


def test_an_arm_that_does_not_answer_is_named_and_hurts_nobody(live: Gateway, arms: list[Upstream]) -> None:
    arms[1].kill()
    try:
        done = put(live, at(arms, 1.0, live.port))
        assert [(p.arm, p.served) for p in done.probes if p.arm == "t1"] == [("t1", "control")]
    finally:
        arms[1].start()


@pytest.mark.parametrize("content", [b"", b"{", b'{"version_info": "1-1-abc", "resources": []}', b"\xff"])
def test_live_files_of_another_kind_are_refused(live: Gateway, arms: list[Upstream], content: bytes) -> None:
    (live.folder / ROUTES).write_bytes(content)
    with pytest.raises(ExperimentError, match="Another version of thinktwice wrote it, or it was edited by hand"):
        put(live, at(arms, 0.5, live.port))
    assert (live.folder / ROUTES).read_bytes() == content

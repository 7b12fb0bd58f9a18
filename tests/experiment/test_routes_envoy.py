"""The rendered files in a real Envoy: it does for every unit what the pure function says, at every step of a ramp."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.experiment.files import COVERAGES, UNIT_CHARACTERS, experiment, grouped, repeatable, units
from tests.experiment.proxy import Proxy, binary, echo_servers, running
from thinktwice.experiment.assignment import Assignment, assign, layout_of
from thinktwice.experiment.bootstrap import ACCESS_LOG, LOG_FORMAT, bootstrap, inlined
from thinktwice.experiment.gateway_config import Endpoint, GatewayConfig
from thinktwice.experiment.route_check import check_routes
from thinktwice.experiment.routes import Rendered, cluster_of, render

pytestmark = pytest.mark.server

UNIT = b"X-Experiment-Unit"
SECRET = "a-secret-of-twenty-one"
TESTERS = ["tester-1", "tester-11", "a.b+c=d", "t" * 256, *(f"someone-{i}@example.org" for i in range(40))]
FILE = experiment("exp1", arms=3, testers={"t1": TESTERS, "control": ["me"]})
ENDPOINTS = ("control", "exp1_t1", "exp1_t2")


SERIALS = itertools.count(1000)
#: Any text a header can carry; control characters are refused by the proxy itself.
sendable = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=400)


def some_units(count: int, seed: int) -> list[str]:
    """Ids of the whole allowed alphabet and all lengths."""
    rng = random.Random(seed)
    sizes = [1, 2, 31, 32, 33, 255, 256, *(rng.randint(1, 40) for _ in range(count - 7))]
    return ["".join(rng.choices(UNIT_CHARACTERS, k=size)) for size in sizes]


def rendered_at(coverage: float, endpoints: dict[str, list[Endpoint]], serial: int) -> Rendered:
    file = FILE.model_copy(update={"coverage": coverage})
    rendered = render([file], endpoints, GatewayConfig(), serial, SECRET)
    check_routes(dict(rendered.files())["rds.json"], dict(rendered.files())["cds.json"], [file])
    return rendered


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Proxy, dict[str, list[Endpoint]]]]:
    binary()
    with echo_servers(ENDPOINTS) as endpoints, running(rendered_at(0.01, endpoints, 1)) as proxy:
        yield proxy, endpoints


def expect(seen: dict[str, object], want: Assignment) -> None:
    experiment_name = want.experiment
    cluster = cluster_of("exp1", want.arm)
    assert (seen["x-experiment"], seen["x-arm"]) == ([experiment_name], [want.arm]), seen
    assert seen["x-enrolled"] == ["1" if want.enrolled else "0"] and seen["cluster"] == cluster, seen


def test_every_unit_at_every_step_of_a_ramp(world: tuple[Proxy, dict[str, list[Endpoint]]]) -> None:
    proxy, endpoints = world
    good = some_units(500, seed=1)
    bad = [
        "ü",
        "日本",
        "a b",
        "a,b",
        "u%20x",
        "$0\\1",
        "a\tb",
        "x" * 257,
        "x" * 8192,
        "é" * 100,
        "a;b",
        "\\1",
        "(a)",
        "{1}",
        "*",
    ]
    before: dict[str, str] = {}
    for serial, coverage in enumerate(COVERAGES, start=2):
        proxy.put(rendered_at(coverage, endpoints, serial))
        layout = layout_of([FILE.model_copy(update={"coverage": coverage})])
        enrolled: dict[str, str] = {}
        for unit in [*good, *TESTERS, *bad]:
            status, seen = proxy.ask([(UNIT, unit.encode())])
            want = assign(layout, unit)
            assert status == 200
            expect(seen, want)
            if want.enrolled:
                enrolled[unit] = want.arm
        assert all(enrolled[unit] == arm for unit, arm in before.items())
        assert len(enrolled) > len(before) or coverage == COVERAGES[0]
        before = enrolled
    assert len(before) == len(good)


@settings(repeatable, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(units, sendable), min_size=10, max_size=30), st.sampled_from(COVERAGES))
def test_any_unit(world: tuple[Proxy, dict[str, list[Endpoint]]], asked: list[str], coverage: float) -> None:
    proxy, endpoints = world
    proxy.put(rendered_at(coverage, endpoints, next(SERIALS)))
    layout = layout_of([FILE.model_copy(update={"coverage": coverage})])
    for unit in asked:
        expect(proxy.ask([(UNIT, unit.encode())])[1], assign(layout, unit))


def test_a_header_that_is_missing_empty_blank_or_repeated(world: tuple[Proxy, dict[str, list[Endpoint]]]) -> None:
    proxy, endpoints = world
    proxy.put(rendered_at(1.0, endpoints, 100))
    layout = layout_of([FILE.model_copy(update={"coverage": 1.0})])
    count = "vhost.vh.route.no_unit.upstream_rq_completed"
    before = proxy.stats().get(count, 0)
    for headers in ([], [(UNIT, b"")], [(UNIT, b"   ")]):
        expect(proxy.ask(headers)[1], assign(layout, None))
    assert proxy.stats()[count] == before + 3
    for first, second in [(b"a", b"b"), (b"b", b"a"), (b"a", b"a b"), (b"unit-7", b"unit-8")]:
        seen = proxy.ask([(UNIT, first), (UNIT, second)])[1]
        expect(seen, assign(layout, first.decode()))  # the first value counts, on both sides
        assert seen["x-ab-unit"] == [first.decode()]
    expect(proxy.ask([(UNIT, b"  spaced\t")])[1], assign(layout, "  spaced\t"))
    _status, seen = proxy.ask([(UNIT, b"\xff\xfe")])
    expect(seen, assign(layout, "\u00ff\u00fe"))  # not UTF-8: bad on both sides
    assert proxy.ask([(UNIT, b"x" * 70_000)])[0] == 431


def test_a_client_cannot_choose_its_arm(world: tuple[Proxy, dict[str, list[Endpoint]]]) -> None:
    proxy, endpoints = world
    proxy.put(rendered_at(0.25, endpoints, 200))
    layout = layout_of([FILE.model_copy(update={"coverage": 0.25})])
    forged = [
        (b"X-Arm", b"t1"),
        (b"x-enrolled", b"1"),
        (b"X-EXPERIMENT", b"exp1"),
        (b"x-arm", b"t2"),
        (b"x-ab-unit", b"u"),
    ]
    for unit in [*some_units(40, seed=2), ""]:
        expect(proxy.ask([*forged, (UNIT, unit.encode())])[1], assign(layout, unit))
    wrong = [(b"x-force-arm", b"exp1_t1:wrong"), (UNIT, b"u")]
    expect(proxy.ask(wrong)[1], assign(layout, "u"))
    seen = proxy.ask([(b"x-force-arm", f"exp1_t1:{SECRET}".encode()), (UNIT, b"u")])[1]
    assert (seen["cluster"], seen["x-arm"], seen["x-enrolled"]) == ("exp1_t1", ["t1"], ["0"])
    assert seen["x-experiment"] == ["override"] and seen["x-force-arm"] is None


def test_the_access_log_says_what_happened(world: tuple[Proxy, dict[str, list[Endpoint]]]) -> None:
    proxy, endpoints = world
    proxy.put(rendered_at(0.5, endpoints, 300))
    layout = layout_of([FILE.model_copy(update={"coverage": 0.5})])
    units = {f"log-{i}": f"00000000-0000-4000-8000-{i:012d}" for i in range(50)}
    for unit, request in units.items():
        assert proxy.ask([(UNIT, unit.encode()), (b"x-request-id", request.encode())])[0] == 200
    for _ in range(100):
        lines = (proxy.folder / ACCESS_LOG).read_text().splitlines()
        rows = {row["request_id"]: row for row in map(json.loads, lines)}
        if set(units.values()) <= set(rows):
            break
        time.sleep(0.1)
    for unit, request in units.items():
        want, row = assign(layout, unit), rows[request]
        assert set(row) == set(LOG_FORMAT)
        assert (row["assigned"], row["enrolled"]) == (want.arm, "1" if want.enrolled else "0")
        assert row["served"] == cluster_of("exp1", want.arm) and row["code"] == 200 and row["attempts"] == 1


def test_a_group_and_a_holdout(tmp_path: Path) -> None:
    files = [
        grouped("one", 0, 4000, coverage=0.5, holdout=1000),
        grouped("two", 5000, 9000, coverage=1.0, holdout=1000),
    ]
    layout = layout_of(files)
    with echo_servers(("control", "one_t1", "two_t1")) as endpoints:
        rendered = render(files, endpoints, GatewayConfig(), 1)
        check_routes(*(rendered.routes, rendered.clusters), files)
        with running(rendered) as proxy:
            for unit in some_units(300, seed=3):
                seen = proxy.ask([(UNIT, unit.encode())])[1]
                want = assign(layout, unit)
                assert (seen["x-experiment"], seen["x-arm"]) == ([want.experiment], [want.arm])
                assert seen["cluster"] == cluster_of(want.experiment, want.arm)


@pytest.mark.parametrize("fields", [{}, {"shadow": ("exp1/t1",)}, {"watch_folder": True}])
def test_the_proxy_validates_what_is_rendered(fields: dict, tmp_path: Path) -> None:
    config = GatewayConfig(folder=str(tmp_path), **fields)
    endpoints = {name: [Endpoint(host="127.0.0.1", port=9)] for name in ENDPOINTS}
    endpoints["exp1_t2"] = [Endpoint(host="ctr-t2.models.svc", port=80)]
    rendered = render([FILE.model_copy(update={"coverage": 0.1})], endpoints, config, 1, SECRET)
    for name, content in (("whole.json", inlined(bootstrap(config), rendered)), ("start.json", bootstrap(config))):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        for file, body in rendered.files():
            (tmp_path / file).write_bytes(body)
        command = [binary(), "--mode", "validate", "-c", str(tmp_path / name), "--reject-unknown-dynamic-fields"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

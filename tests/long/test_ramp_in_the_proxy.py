"""Ten thousand units at every step of a ramp through a real Envoy."""

from __future__ import annotations

import pytest

from tests.experiment.files import COVERAGES, experiment
from tests.experiment.proxy import echo_servers, running
from tests.experiment.test_routes_envoy import UNIT, expect, some_units
from thinktwice.experiment.assignment import assign, layout_of
from thinktwice.experiment.gateway_config import GatewayConfig
from thinktwice.experiment.routes import render

pytestmark = [pytest.mark.long, pytest.mark.server, pytest.mark.timeout(3600)]


def test_every_unit_at_every_step() -> None:
    units = some_units(10_000, seed=11)
    before: dict[str, str] = {}
    with echo_servers(("control", "exp1_t1")) as endpoints:
        files = [experiment("exp1", coverage=c) for c in COVERAGES]
        with running(render(files[:1], endpoints, GatewayConfig(), 1)) as proxy:
            for serial, file in enumerate(files, start=2):
                proxy.put(render([file], endpoints, GatewayConfig(), serial))
                layout = layout_of([file])
                enrolled: dict[str, str] = {}
                for unit in units:
                    want = assign(layout, unit)
                    expect(proxy.ask([(UNIT, unit.encode())])[1], want)
                    if want.enrolled:
                        enrolled[unit] = want.arm
                assert all(enrolled[unit] == arm for unit, arm in before.items())
                before = enrolled
    assert set(before) == set(units)

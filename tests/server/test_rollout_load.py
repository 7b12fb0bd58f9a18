"""Promotion and roll-back of the local target behind a real Envoy at 50 requests/s: 0 of 3,000 requests are lost.

The arms answer at once and use no CPU to speak of, so that what is lost is lost by the roll-out: `test_rollout.py` has the real servers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.experiment.planted import plant_worse
from serving.config import ServingConfig
from serving.local import kserve_process
from serving.local.processes import free_ports
from serving.rollout.servers import ArmServers, reload_gateway
from tests.gateway.gateways import need_envoy
from tests.gateway.load import load
from tests.gateway.upstreams import Upstream
from tests.server.test_rollout import CONFIG, PATIENT, declared
from thinktwice.release.champion import read_champion
from thinktwice.release.rollout import change_coverage, start_experiment, stop_experiment
from thinktwice.release.rollout_local import LocalRollout

pytestmark = [pytest.mark.server]
RATE, REQUESTS = 50.0, 3_000


class Running:
    """An arm as ArmServers sees its server."""

    def check(self) -> None:
        return None


@contextmanager
def quick_arm(archive: Path, *, port: int, config: ServingConfig, **_: Any) -> Iterator[Running]:
    arm = Upstream(config.arm or "control")
    arm.kill()
    arm.port = port
    arm.start()
    try:
        yield Running()
        time.sleep(0.5)  # requests in progress are answered
    finally:
        arm.close()


@pytest.mark.timeout(600)
def test_promotion_and_roll_back_lose_none_of_3000_requests(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_envoy()
    monkeypatch.setattr(kserve_process, "running", quick_arm)
    home, records = tmp_path / "state", tmp_path / "experiments"
    shutil.copytree(state, home, symlinks=True)
    champion = read_champion(home)
    assert champion is not None
    first, second = (
        plant_worse(home, champion.bundle_dir, champion.feature_store_dir, share=0.5, seed=seed) for seed in (1, 2)
    )
    folder = home / "rollout"
    running: list[ArmServers] = []

    def reload() -> None:
        if running and not running[0].follow():
            reload_gateway(folder)

    target = LocalRollout(home, folder, reload)
    target.serve_champion()
    promoted = declared("promoted", champion.info.bundle_hash, first.bundle_hash)
    stopped = declared("stopped", first.bundle_hash, second.bundle_hash)
    actions = [
        lambda: start_experiment(records, promoted, target),
        lambda: change_coverage(records, "promoted", 1.0, target),
        lambda: target.promote(promoted, "treatment"),
        lambda: start_experiment(records, stopped, target),
        lambda: (stop_experiment(records, "stopped", target), servers.follow()),
    ]
    with ArmServers(folder, free_ports(1)[0], CONFIG, kind="kserve", settings=PATIENT) as servers:
        running.append(servers)
        with load(servers.port, RATE) as traffic:
            begin = time.monotonic()
            for number, action in enumerate(actions, start=1):
                while len(traffic.statuses) < number * REQUESTS // (len(actions) + 1):
                    time.sleep(0.05)
                    assert time.monotonic() - begin < 400
                action()
            while len(traffic.statuses) < REQUESTS:
                time.sleep(0.05)
                assert time.monotonic() - begin < 500
    assert traffic.bad() == {} and len(traffic.statuses) >= REQUESTS
    assert {arm for arm in traffic.arms.values() if arm} == {"control", "treatment"}
    now = read_champion(home)
    assert now is not None and now.info.bundle_hash == first.bundle_hash

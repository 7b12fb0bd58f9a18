"""Roll-outs that are killed at any request, and roll-outs at the same time: a second call repairs, and only one works at a time."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.deployment.rollout import run
from components.deployment.rollout.gateway import Gateway
from components.deployment.rollout.lock import Lock, State, read_state
from components.deployment.rollout.run import canary, promote, roll_back, status
from components.deployment.rollout.target import Session
from tests.cluster.api_process import ROOT, Api
from tests.cluster.objects_store import Json
from tests.cluster.served import V1, V2, V3, install, load, session
from tests.cluster.test_experiments import declared, target
from tests.cluster.test_rollout import FORMS
from thinktwice.errors import RolloutError
from thinktwice.release.rollout import start_experiment, stop_experiment

Overlay = Callable[[str], list[Json]]
ACTIONS = {"canary": (canary, V1, V2), "promote": (promote, V2, None), "rollback": (roll_back, V1, None)}


def killed(api: Api, action: str, after: int) -> bool:
    """Run an action in a process that is killed when its request number ``after`` has come. Returns whether it was."""
    command = [sys.executable, "-m", "tests.cluster.driver", action, api.address, str(api.kubeconfig)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    api.control(faults=[{"match": " /apis?/", "times": 1, "skip": after, "kill": process.pid}])
    _, error = process.communicate(b"go\n", timeout=60)
    api.control(faults=[])
    assert process.returncode in (0, -9), error.decode()
    return process.returncode == -9


@pytest.mark.parametrize(
    ("name", "form", "url"),
    [pytest.param(*case, id=case[1], marks=[pytest.mark.long] * (case[1] != "gateway")) for case in FORMS],
)
def test_a_killed_action_is_completed_by_another_call(
    api: Api, overlay: Overlay, name: str, form: str, url: str
) -> None:
    install(api, overlay(name))
    chance, kills = random.Random(form), 0
    with load(api, url, rate=30.0) as traffic:
        for action, (complete, stable, beside) in ACTIONS.items():
            for most in (12, 60) if form == "standard" else (12,):
                kills += killed(api, action, chance.randrange(most))
            here = session(api)
            try:
                complete(here, V2, 20, duration_s=1) if action == "canary" else complete(here, duration_s=1)  # type: ignore[operator]
            except RolloutError as error:  # the process had done it
                assert action == "rollback" and "nothing to roll back" in str(error)
            found = status(session(api))
            assert found.live.stable == stable and found.state is not None
            assert (found.state.canary, found.state.action) == (beside, "")
    assert kills >= 2 and traffic.failed == 0, traffic.statuses
    left = [n for kind in ("deployments", "pods", "horizontalpodautoscalers") for n in api.objects(kind)]
    assert not [n for n in left if "bbbb" in n or "treatment" in n or "probe" in n], left


@pytest.mark.parametrize("after", [14, *(pytest.param(after, marks=pytest.mark.long) for after in (5, 23))])
def test_a_killed_canary_can_be_rolled_back(api: Api, overlay: Overlay, after: int) -> None:
    install(api, overlay("standard"))
    assert killed(api, "canary", after)
    state = read_state(session(api).api, "ctr")
    if state is not None and state.action:
        with pytest.raises(RolloutError, match="interrupted: run `thinktwice rollout canary` again to complete it, or"):
            promote(session(api), duration_s=1)
        roll_back(session(api), duration_s=1)
    found = status(session(api))
    assert (found.live.stable, found.live.canary) == (V1, None)
    assert [name for name in api.objects("deployments") if "bbbb" in name] == []


class Killed(BaseException):
    """No code handles it, as none runs after a kill."""


def run_killed(here: Session, action: Callable[[], object], change: int) -> bool:
    """Run an action of which nothing reaches the server after its change number ``change``, as if its process had been killed.

    Returns:
        Whether it was, and not done before.
    """
    call, left, record = here.api.client.call_api, [change], [""]

    def counted(path: str, method: str, **more: Any) -> object:
        if left[0] < 0:
            raise Killed
        if method == "GET":
            return call(path, method, **more)
        # Taking and renewing the lease is no change: how often it is renewed depends on the time.
        changes = True
        if "/leases" in path:
            now = str(more["body"]["metadata"].get("annotations"))
            changes, record[0] = record[0] not in ("", now), now
        answer = call(path, method, **more)
        left[0] -= changes
        if left[0] < 0:
            raise Killed
        return answer

    here.api.client.call_api = counted
    try:
        action()
    except Killed:
        return True
    except RolloutError:
        return False
    return False


def after_each(often: int, changes: int) -> list[Any]:
    """Numbers of changes; one is tried in every run, the others by `make test-long`."""
    return [n if n == often else pytest.param(n, marks=pytest.mark.long) for n in range(changes)]


CHANGES = {"standard": 6, "knative": 8, "experiment": 8}
LOST = [
    pytest.param(name, number, marks=[] if (name, number) == ("standard", 1) else [pytest.mark.long])
    for name, changes in CHANGES.items()
    for number in range(changes)
]


@pytest.mark.parametrize(("name", "change"), LOST)
def test_a_killed_roll_back_to_a_lost_version_ends_with_what_served(
    api: Api, overlay: Overlay, name: str, change: int
) -> None:
    install(api, overlay(name))
    canary(session(api), V2, 10)
    promote(session(api))
    api.control(broken={V1.name: "storage"})
    here = session(api)
    assert run_killed(here, lambda: roll_back(here, duration_s=1), change)
    state = read_state(session(api).api, "ctr")
    if state is not None and state.action:
        try:
            roll_back(session(api), duration_s=1)
        except RolloutError as error:  # else it was killed while it was taken back
            assert f"the roll-back to {V1.name} failed and was taken back, {V2.name} keeps serving" in str(error)
    found = status(session(api))
    assert found.live.stable == V2 and found.live.canary is None
    assert found.state is not None and (found.state.stable, found.state.action) == (V2, "")
    api.control(broken={})
    canary(session(api), V3, 10, duration_s=1)


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("action", ["canary", "promote"])
def test_a_killed_action_whose_version_then_fails_is_taken_back(
    api: Api, overlay: Overlay, name: str, action: str
) -> None:
    def act(here: Session) -> None:
        canary(here, V2, 10, duration_s=1) if action == "canary" else promote(here, duration_s=1)

    for change in itertools.count():
        api.control(reset=True)
        install(api, overlay(name))
        canary(session(api), V2, 10) if action == "promote" else None
        here = session(api)
        if not run_killed(here, lambda: act(here), change):  # noqa: B023 (called at once)
            break
        api.control(broken={V2.name: "crash"})
        state = read_state(session(api).api, "ctr")
        if state is None or not state.action:
            continue  # it had not begun, or was done
        with pytest.raises(RolloutError, match=f"failed and was taken back, {V1.name} keeps serving"):
            act(session(api))
        found = status(session(api))
        assert found.live.stable == V1 and found.live.canary is None
        assert found.state is not None and (found.state.stable, found.state.action) == (V1, "")
    assert change >= 4


@pytest.mark.parametrize("change", after_each(2, 9))
def test_a_killed_start_of_an_experiment_that_cannot_start_frees_the_lock(
    api: Api, overlay: Overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    monkeypatch.setattr(run, "DURATION_S", 1)
    install(api, overlay("experiment"))
    api.control(broken={V2.name: "storage"})
    file, here = declared("first"), session(api)
    assert run_killed(here, lambda: start_experiment(tmp_path, file, target(api, file, here=here)), change)
    with pytest.raises(RolloutError, match="cannot fetch its model"):
        start_experiment(tmp_path, file, target(api, file))
    assert sorted(api.objects("inferenceservices")) == ["ctr-control"]
    canary(session(api), V3, 10)


def test_control_serves_what_it_served_after_a_promotion_that_fails_or_is_killed_and_stopped(
    api: Api, overlay: Overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "DURATION_S", 1)
    install(api, overlay("experiment"))
    file = declared("first")
    start_experiment(tmp_path, file, target(api, file))
    api.control(broken={V2.name: "crash"})
    with pytest.raises(
        RolloutError, match=f"promotion of {V2.name} failed and was taken back, {V1.name} keeps serving"
    ):
        target(api, file).promote(file, "treatment")
    state = read_state(session(api).api, "ctr")
    assert state is not None and (state.stable, state.action) == (V1, "") and state.experiment is not None
    here = session(api)
    assert run_killed(here, lambda: target(api, file, here=here).promote(file, "treatment"), 1)
    assert Gateway(session(api)).live().stable == V2, "it had begun"
    stop_experiment(tmp_path, "first", target(api, file))
    state = read_state(session(api).api, "ctr")
    assert Gateway(session(api)).live().stable == V1 and state is not None
    assert (state.stable, state.action, state.experiment) == (V1, "", None)
    assert sorted(api.objects("inferenceservices")) == ["ctr-control"]


def test_two_at_once_are_refused_and_the_first_goes_on(api: Api, overlay: Overlay) -> None:
    install(api, overlay("standard"))
    api.control(ready_s=3.0)
    failed: list[BaseException] = []

    def first() -> None:
        try:
            canary(session(api), V2, 10, duration_s=3)
        except BaseException as error:  # noqa: BLE001 (shown by the test's thread)
            failed.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    time.sleep(0.7)
    for other in (lambda: canary(session(api), V3, 10, duration_s=3), lambda: roll_back(session(api), duration_s=3)):
        with pytest.raises(
            RolloutError, match=rf"canary of {V2.name} of the service ctr runs already \(by .*: wait for it"
        ):
            other()
    thread.join(60)
    assert not failed, failed
    assert status(session(api)).live.canary == V2


def test_a_process_that_lost_its_lease_stops(api: Api) -> None:
    here = session(api)
    state = State(form="standard", stable=V1)
    with Lock(here.api, "ctr", duration_s=1) as first:
        first.save(state)
        time.sleep(1.2)
        with Lock(session(api).api, "ctr", duration_s=1) as second:
            assert second.state == state
            with pytest.raises(RolloutError, match="another process has taken over the roll-out of ctr"):
                first.save(state)
            second.save(state.model_copy(update={"percent": 7}))
    found = read_state(here.api, "ctr")
    assert found is not None and found.percent == 7


def test_a_released_lease_is_taken_at_once(api: Api) -> None:
    begin = time.monotonic()
    for _ in range(3):
        with Lock(session(api).api, "ctr"):
            pass
    assert time.monotonic() - begin < 10.0, "no wait for the lease's 15 seconds"


def test_a_record_of_another_version_is_a_sentence(api: Api) -> None:
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "ctr-rollout", "annotations": {"thinktwice.dev/rollout": '{"format": 9}'}},
        "spec": {},
    }
    api.control(objects=[["leases", lease]])
    with pytest.raises(RolloutError, match=r"of the lease ctr-rollout cannot be read .*another version of thinktwice"):
        read_state(session(api).api, "ctr")

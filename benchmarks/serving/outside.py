"""The real servers as callers see them: TorchServe with our handler, one that does nothing and the obvious one; and under
load."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.world import OTHER_HANDLER, SCHEMA, World, with_handler
from serving.config import ServingConfig
from serving.load.drive import Measured, Target, closed_loop, open_loop
from serving.load.plan import poisson, requests_of
from serving.load.report import Step
from serving.local import kserve_process, torchserve_process
from thinktwice.release.archive import HANDLER

DEADLINE = 0.25  # seconds that a page can wait for its ads
LOADS = (50, 80, 110)


@contextlib.contextmanager
def serving(
    archive: Path, world: World, folder: Path, server: str = "torchserve", handler: str = HANDLER
) -> Iterator[str]:
    """Yields the address of a server of an archive (TorchServe) or bundle (kserve)."""
    config = ServingConfig(access_log=False)
    log = folder / f"{archive.parent.name}-{server}.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if server == "torchserve":
        with torchserve_process.running(
            archive, feature_store=world.store, port=port, log=log, config=config, handler=handler
        ) as running:
            yield running.url
        return
    with kserve_process.running(archive, feature_store=world.store, port=port, log=log) as second:
        yield second.url


def by_turns(
    world: World, folder: Path, other: str, *, callers: int, seconds: float, rounds: int
) -> dict[str, list[Measured]]:
    """Closed loops on TorchServe, alternating between our handler (``ours``) and another, ``nothing`` or ``obvious``."""
    requests = requests_of(world.store, SCHEMA, count=100, candidates=100, seed=2)
    archive = with_handler(world.archives["off"], other, folder / other)
    name = OTHER_HANDLER.format(name=other)
    with (
        serving(world.archives["off"], world, folder) as ours,
        serving(archive, world, folder, handler=name) as theirs,
    ):
        urls = {"ours": ours, other: theirs}
        for url in urls.values():
            closed_loop(Target(url, requests), callers, 1.0)
        measured: dict[str, list[Measured]] = {name: [] for name in urls}
        for _ in range(rounds):
            for name, url in urls.items():
                measured[name].append(closed_loop(Target(url, requests), callers, seconds))
    return measured


def hop(world: World, folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """One caller, 100 candidates: latency through TorchServe with our handler and with one that does nothing."""
    measured = by_turns(world, folder, "nothing", callers=1, seconds=seconds, rounds=rounds)
    latency = {name: np.concatenate([m.latency for m in parts]) for name, parts in measured.items()}
    return {
        name: {f"p{q}": float(1000 * np.nanpercentile(all_, q)) for q in (50, 99)} for name, all_ in latency.items()
    }


def throughput(world: World, folder: Path, seconds: float, rounds: int) -> dict[str, float]:
    """Answers per second of four callers: our handler against the obvious one."""
    measured = by_turns(world, folder, "obvious", callers=4, seconds=seconds, rounds=rounds)
    assert all(m.count("ok") > 0 and m.count("wrong") == 0 for parts in measured.values() for m in parts)
    return {name: float(np.median([m.throughput for m in parts])) for name, parts in measured.items()}


def loads(world: World, folder: Path, server: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Poisson load at several percentages of the capacity of the engine-off server, the modes of the engine alternately."""
    requests = requests_of(world.store, SCHEMA, count=200, candidates=100, seed=4)
    where = world.archives if server == "torchserve" else world.bundles
    out: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        urls = {
            name: stack.enter_context(serving(model_path, world, folder, server)) for name, model_path in where.items()
        }
        for url in urls.values():
            closed_loop(Target(url, requests), 4, 1.0)
        capacity = float(
            np.median([closed_loop(Target(urls["off"], requests), 8, seconds / 2).throughput for _ in range(3)])
        )
        out["capacity_per_second"] = capacity
        for percent in LOADS:
            done: dict[str, list[Measured]] = {name: [] for name in urls}
            for number in range(rounds):
                moments = poisson(capacity * percent / 100, seconds, seed=number)
                first = number % len(urls)  # each mode is first as often as last
                for name in [*urls][first:] + [*urls][:first]:
                    done[name].append(open_loop(Target(urls[name], requests, deadline=DEADLINE), moments))
            out[str(percent)] = {name: _summary(name, found) for name, found in done.items()}
    return out


def _summary(name: str, rounds: list[Measured]) -> dict[str, Any]:
    whole = Measured(
        seconds=sum(m.seconds for m in rounds),
        latency=np.concatenate([m.latency for m in rounds]),
        outcomes=[o for m in rounds for o in m.outcomes],
        refused_silently=sum(m.refused_silently for m in rounds),
        unequal=sum(m.unequal for m in rounds),
    )
    step = Step(name, None, whole).as_json()
    answered = _answered(whole)
    # A burst of other work on the machine affects one round; rounds of all modes have the same arrivals.
    step["p99_ms_by_round"] = [float(1000 * np.percentile(m.latency[_answered(m)], 99)) for m in rounds]
    step["answered_beyond_deadline_by_a_tenth"] = int((whole.latency[answered] > 1.1 * DEADLINE).sum())
    refused = np.array([o == "refused" for o in whole.outcomes], bool)
    step["refused_beyond_deadline_by_a_tenth"] = int((whole.latency[refused] > 1.1 * DEADLINE).sum())
    return step


def _answered(measured: Measured) -> np.ndarray:
    return np.array([o in ("ok", "late") for o in measured.outcomes], bool)

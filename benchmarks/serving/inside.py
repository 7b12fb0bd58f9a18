"""Cost of a request in the process: stages without the model, and feature lookups compared with the feature store's SDK."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.serving.world import SCHEMA, World
from serving.config import ServingConfig
from serving.features.open_reader import FeatureConfig, open_reader
from serving.load.plan import body_of, requests_of
from serving.open_service import open_service
from thinktwice.release.bundle import load_bundle


def overhead(world: World, rounds: int) -> dict[str, Any]:
    """Milliseconds of a 100-candidate request by stage, the modes of the engine alternately; ``other`` is everything except the
    engine."""
    requests = requests_of(world.store, SCHEMA, count=200, candidates=100, seed=0)
    bodies = [body_of(request, "v1") for request in requests]
    services = {
        name: open_service(
            bundle,
            ServingConfig(access_log=False),
            model_name="ctr",
            feature_store=world.store,
            registry=CollectorRegistry(),
        )
        for name, bundle in world.bundles.items()
    }
    spent_by_stage: dict[str, dict[str, list[float]]] = {name: {} for name in services}
    for number in range(rounds):
        for name, service in services.items():
            began = time.perf_counter()
            reply = service.answer(bodies[number % len(bodies)], {})
            total = 1000 * (time.perf_counter() - began)
            assert reply.status == 200, reply.body
            if number < 20:
                continue
            stages = {k: float(v) for k, v in (p.split(";dur=") for p in reply.headers["server-timing"].split(", "))}
            for stage, spent in stages.items():
                spent_by_stage[name].setdefault(stage, []).append(spent)
            spent_by_stage[name].setdefault("all", []).append(total)
            spent_by_stage[name].setdefault("other", []).append(total - stages["engine"])
    for service in services.values():
        service.close()
    return {
        name: {
            stage: {"p50": float(np.percentile(v, 50)), "p99": float(np.percentile(v, 99))}
            for stage, v in stages.items()
        }
        for name, stages in spent_by_stage.items()
    }


def lookups(world: World, rounds: int) -> dict[str, Any]:
    """One user and 500 items: milliseconds of wall and CPU time by reader, alternately."""
    requests = requests_of(world.store, SCHEMA, count=50, candidates=500, seed=1)
    encoder = load_bundle(world.bundles["off"]).encoder
    readers = {
        kind: open_reader(
            world.store,
            world.service,
            SCHEMA,
            encoder,
            FeatureConfig(reader=kind, timeout_ms=10_000),  # type: ignore[arg-type]
        )
        for kind in ("snapshot", "redis", "feast")
    }
    wall: dict[str, list[float]] = {kind: [] for kind in readers}
    cpu: dict[str, list[float]] = {kind: [] for kind in readers}
    for number in range(rounds):
        request = requests[number % len(requests)]
        for kind, reader in readers.items():
            if kind == "feast" and number % 4:
                continue  # it takes as long as all other readers together
            used, began = time.process_time(), time.perf_counter()
            reader.read(request["user_id"], request["candidates"])
            wall[kind].append(1000 * (time.perf_counter() - began))
            cpu[kind].append(1000 * (time.process_time() - used))
    for reader in readers.values():
        reader.close()
    return {
        kind: {
            "wall_p50": float(np.percentile(wall[kind][2:], 50)),
            "wall_p99": float(np.percentile(wall[kind][2:], 99)),
            "cpu_p50": float(np.percentile(cpu[kind][2:], 50)),
        }
        for kind in readers
    }

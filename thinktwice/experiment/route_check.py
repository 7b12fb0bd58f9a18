"""May a rendered route file replace the live one? Our own check: Envoy accepts half of what is wrong without a word.

Seen on a real Envoy: a forgotten hash policy makes assignment random, a total other than 10,000 reshuffles everybody, an unknown
cluster answers 503, a wrong back-reference hashes something else. So the file is read back rule by rule, and never compared with a
second rendering alone: a mistake of the renderer must not agree with itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import CONTROL, HOLDOUT, NO_EXPERIMENT, Range
from thinktwice.experiment.file import BUCKETS, ExperimentFile
from thinktwice.experiment.gateway_config import ARM, ENROLLED, EXPERIMENT, UNIT_HEADER
from thinktwice.experiment.routes import (
    FORMAT,
    GOOD_UNIT,
    METADATA,
    OVERWRITE,
    REWRITE,
    ROUTE_CONFIG,
    cluster_of,
)

_OWN = frozenset({EXPERIMENT, ARM, ENROLLED})


@dataclass(frozen=True)
class Split:
    """What a route file does with a unit: its salt and its ranges, in order."""

    salt: str
    ranges: tuple[Range, ...]


def read_split(routes: bytes | str | dict[str, Any], clusters: bytes | str | dict[str, Any]) -> Split:
    """Read a route file and prove every rule that needs no other file.

    Raises:
        ExperimentError: the first rule that does not hold, named with its place.
    """
    config = _only_resource(_parsed(routes, "routes"))
    defined = _defined(_parsed(clusters, "clusters"))
    _want(config.get("name") == ROUTE_CONFIG, f"route configuration is named {config.get('name')!r}, not {ROUTE_CONFIG!r}")
    _want(config.get("validate_clusters") is True, "validate_clusters is not true: an unknown cluster would answer 503")
    _want(not config.get("request_headers_to_remove"), "request_headers_to_remove would remove the headers of the arms")
    hosts = _list(config, "virtual_hosts")
    _want(len(hosts) == 1 and hosts[0].get("domains") == ["*"], "there must be one virtual host, for the domain '*'")
    for place in (config, hosts[0]):
        _want(not _set_headers(place) & _OWN, "headers of the arms may be set by routes and entries alone")
    _want(not hosts[0].get("request_headers_to_remove"), "request_headers_to_remove would remove the headers of the arms")
    routes_ = _list(hosts[0], "routes")
    _want(len(routes_) >= 3, "the last three routes must be no-unit, bad-unit and split")
    *others, no_unit, bad_unit, split = routes_
    missing = {"name": UNIT_HEADER, "present_match": True, "invert_match": True}
    bad = {"name": UNIT_HEADER, "string_match": {"safe_regex": {"regex": GOOD_UNIT}}, "invert_match": True}
    _want(no_unit.get("match") == {"prefix": "/", "headers": [missing]}, "the route no-unit must match a missing unit")
    _want(bad_unit.get("match") == {"prefix": "/", "headers": [bad]}, "the route bad-unit must match every unit not allowed")
    for route in (*others, no_unit, bad_unit):
        _check_plain(route, defined)
    for route in (no_unit, bad_unit):
        _want(route["route"]["cluster"] == CONTROL, f"{route.get('name')} must go to control")
        _want(_headers(route) == {EXPERIMENT: NO_EXPERIMENT, ARM: CONTROL, ENROLLED: "0"}, f"{route.get('name')} enrols")
    for route in others:
        headers = route.get("match", {}).get("headers")
        _want(bool(headers) and "invert_match" not in headers[0], f"{route.get('name')} would take every request")
        _want(_headers(route)[ENROLLED] == "0", f"{route.get('name')} enrols: only the split may")
    return _read_ranges(split, defined)


def check_routes(
    routes: bytes | str | dict[str, Any],
    clusters: bytes | str | dict[str, Any],
    experiments: Sequence[ExperimentFile],
    live: Split | None = None,
) -> Split:
    """Prove that a route file does what the experiments declare, and moves nobody whom the live one has enrolled.

    Raises:
        ExperimentError: the first rule that does not hold.
    """
    split = read_split(routes, clusters)
    by_name = {e.name: e for e in experiments}
    salts = {e.salt for e in experiments}
    _want(salts == {split.salt}, f"the salt is {split.salt!r}, not that of the experiments ({', '.join(sorted(salts))})")
    found = {r.experiment for r in split.ranges} - {NO_EXPERIMENT, HOLDOUT}
    _want(found == set(by_name), f"the split holds {sorted(found)}, not the experiments {sorted(by_name)}")
    for experiment in experiments:
        _check_arms(experiment, [r for r in split.ranges if r.experiment == experiment.name])
    owned = {b for e in experiments for b in range(*e.buckets)}
    top = BUCKETS - experiments[0].holdout
    for r in split.ranges:
        inside = range(r.start, r.stop)
        if r.experiment == NO_EXPERIMENT:
            _want(not owned.intersection(inside) and r.stop <= top, f"buckets {r.start} to {r.stop} are owned and not served")
        if r.experiment == HOLDOUT:
            _want(r.start == top and r.stop == BUCKETS, f"the holdout is {r.start} to {r.stop}, not {top} to {BUCKETS}")
    if live is not None:
        check_growth(live, split)
    return split


def check_growth(live: Split, new: Split) -> None:
    """Prove that nobody who is enrolled changes arm, except by stopping a whole experiment.

    Raises:
        ExperimentError: the salt or an experiment's arms change, or enrolled buckets leave their arm.
    """
    if not any(r.enrolled for r in live.ranges):
        return
    _want(live.salt == new.salt, f"the salt changes from {live.salt!r} to {new.salt!r} while units are enrolled")
    for experiment in sorted({r.experiment for r in live.ranges if r.enrolled}):
        before, after = _enrolled(live, experiment), _enrolled(new, experiment)
        if not any(after.values()):
            continue  # stopped: all of it at once
        _want(set(before) == set(after), f"{experiment}: arms change from {sorted(before)} to {sorted(after)}")
        for arm, buckets in before.items():
            lost = buckets - after[arm]
            _want(not lost, f"{experiment}: {len(lost)} enrolled buckets leave the arm {arm!r} (the first is {min(lost, default=0)})")
    for experiment in sorted({r.experiment for r in new.ranges if r.enrolled}):
        old = {b for name in {r.experiment for r in live.ranges} - {experiment} for s in _enrolled(live, name).values() for b in s}
        mine = {b for s in _enrolled(new, experiment).values() for b in s}
        _want(not old & mine, f"{experiment} enrols {len(old & mine)} buckets that another experiment has enrolled under this salt")


def _check_arms(experiment: ExperimentFile, ranges: list[Range]) -> None:
    """Arms in their places, equal, of the declared width; the rest control and not enrolled."""
    name = experiment.name
    start, stop = experiment.buckets
    _want(bool(ranges) and ranges[0].start == start and ranges[-1].stop == stop, f"{name} must own the buckets {start} to {stop}")
    _want(all(a.stop == b.start for a, b in pairwise(ranges)), f"{name}: its ranges have a gap")
    width = (stop - start) // len(experiment.arms)
    enrolled = round(experiment.coverage * BUCKETS) * width // BUCKETS
    expected = {} if not enrolled else {
        (start + place * width, start + place * width + enrolled, arm.name) for place, arm in enumerate(experiment.arms)
    }
    found = {(r.start, r.stop, r.arm) for r in ranges if r.enrolled}
    _want(found == set(expected), f"{name}: enrolled ranges are {sorted(found)}, not {sorted(expected)} (equal arms at coverage {experiment.coverage})")
    for r in ranges:
        _want(r.enrolled or r.arm == CONTROL, f"{name}: buckets {r.start} to {r.stop} get {r.arm!r} and are not enrolled")


def _read_ranges(split: dict[str, Any], defined: set[str]) -> Split:
    _want(split.get("match") == {"prefix": "/"}, "the split must match every request")
    _want(not split.get("request_headers_to_remove"), "request_headers_to_remove would remove the headers of the arms")
    _want(not _set_headers(split) & _OWN, "headers of the arms may be set by the entries of the split alone")
    action = split.get("route")
    _want(isinstance(action, dict), "the split has no route")
    meta = split.get("metadata", {}).get("filter_metadata", {}).get(METADATA, {})
    _want(meta.get("format") == FORMAT, f"the file is of version {meta.get('format')!r}; this thinktwice reads {FORMAT}")
    salt = meta.get("salt")
    _want(isinstance(salt, str) and re.fullmatch(r"[a-z0-9-]{1,40}", salt) is not None, f"the salt {salt!r} is not allowed")
    rewrite = {"pattern": {"regex": REWRITE}, "substitution": f"{salt}:\\1"}
    policy = [{"header": {"header_name": UNIT_HEADER, "regex_rewrite": rewrite}}]
    _want(action.get("hash_policy") == policy, f"the hash policy must be the unit with the salt {salt!r}: without it assignment is random")
    weighted = action.get("weighted_clusters")
    _want(isinstance(weighted, dict), "the split has no weighted_clusters")
    _want(weighted.get("use_hash_policy") is True, "use_hash_policy is not true: assignment would be random")
    extra = sorted(set(weighted) - {"use_hash_policy", "clusters"})
    _want(not extra, f"weighted_clusters has {extra[0] if extra else ''!r}, which changes the split")
    entries = _list(weighted, "clusters")
    weights = [entry.get("weight") for entry in entries]
    _want(all(type(w) is int and w > 0 for w in weights), f"weights must be whole numbers above 0, not {weights}")
    _want(sum(weights) == BUCKETS, f"weights sum to {sum(weights):,}, not {BUCKETS:,}: everybody would be reshuffled")
    for mirror in action.get("request_mirror_policies", []):
        name = mirror.get("cluster")
        _want(name in defined and str(name).endswith("_shadow"), f"mirrored to {name!r}, which is no shadow cluster")
    ranges = []
    stops = list(accumulate(weights))
    for entry, weight, stop in zip(entries, weights, stops, strict=True):
        where = f"entry of buckets {stop - weight} to {stop}"
        extra = sorted(set(entry) - {"name", "weight", "request_headers_to_add"})
        _want(not extra, f"{where} has {extra[0] if extra else ''!r}, which changes the split")
        headers = _headers(entry, where)
        experiment, arm, enrolled = headers[EXPERIMENT], headers[ARM], headers[ENROLLED] == "1"
        _want(headers[ENROLLED] in ("0", "1"), f"{where}: {ENROLLED} is {headers[ENROLLED]!r}, not 0 or 1")
        cluster = cluster_of(experiment, arm)
        _want(entry.get("name") == cluster, f"{where}: goes to {entry.get('name')!r} and says it is {arm!r} of {experiment!r}")
        _want(cluster in defined, f"{where}: the cluster {cluster!r} is not defined")
        _want(enrolled or arm == CONTROL, f"{where}: gets {arm!r} and is not enrolled")
        _want(not (enrolled and experiment in (NO_EXPERIMENT, HOLDOUT)), f"{where}: enrols without an experiment")
        ranges.append(Range(stop - weight, stop, experiment, arm, enrolled))
    named = {r.experiment for r in ranges} - {NO_EXPERIMENT, HOLDOUT}
    _want(set(meta.get("experiments", {})) == named, "the experiments named in the metadata are not those of the entries")
    return Split(str(salt), tuple(ranges))


def _check_plain(route: dict[str, Any], defined: set[str]) -> None:
    name = route.get("name")
    action = route.get("route")
    _want(isinstance(action, dict), f"{name} has no route")
    cluster = action.get("cluster")
    _want(isinstance(cluster, str) and cluster in defined, f"{name}: the cluster {cluster!r} is not defined")
    _want(not action.get("weighted_clusters") and not action.get("hash_policy"), f"{name} must go to one cluster")
    headers = _headers(route, str(name))
    arm = CONTROL if cluster == CONTROL else cluster.partition("_")[2]
    _want(headers[ARM] == arm, f"{name}: goes to {cluster!r} and says it is {headers[ARM]!r}")


def _headers(place: dict[str, Any], where: str = "route") -> dict[str, str]:
    """The three headers of the arms that a route or an entry sets, each overwritten."""
    found: dict[str, str] = {}
    for option in place.get("request_headers_to_add", []):
        key, value = option.get("header", {}).get("key"), option.get("header", {}).get("value")
        _want(isinstance(key, str) and key not in found, f"{where}: the header {key!r} is set twice")
        if key in _OWN:
            _want(option.get("append_action") == OVERWRITE, f"{where}: {key} must overwrite what a client sent")
            _want(isinstance(value, str) and "%" not in value, f"{where}: {key} has no fixed value")
        found[key] = value
    missing = sorted(_OWN - set(found))
    _want(not missing, f"{where}: {missing[0] if missing else ''} is not set, so a client's own value would pass")
    return found


def _set_headers(place: dict[str, Any]) -> set[str]:
    return {str(o.get("header", {}).get("key")).lower() for o in place.get("request_headers_to_add", [])}


def _parsed(content: bytes | str | dict[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ExperimentError(f"the {what} file is no JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("resources"), list):
        raise ExperimentError(f"the {what} file has no list of resources")
    version = content.get("version_info")
    if not isinstance(version, str) or not version.startswith(f"{FORMAT}-"):
        raise ExperimentError(f"the {what} file is of version {version!r}; this thinktwice reads {FORMAT}-…")
    return content


def _only_resource(content: dict[str, Any]) -> dict[str, Any]:
    resources = content["resources"]
    if len(resources) != 1 or not isinstance(resources[0], dict):
        raise ExperimentError(f"the routes file holds {len(resources)} resources, not one")
    return dict(resources[0])


def _defined(content: dict[str, Any]) -> set[str]:
    names = [c.get("name") for c in content["resources"] if isinstance(c, dict)]
    _want(len(names) == len(set(names)) == len(content["resources"]), "a cluster is there twice, or is no object")
    defined = {str(name) for name in names}
    for cluster in content["resources"]:
        members = cluster.get("cluster_type", {}).get("typed_config", {}).get("clusters", [])
        for member in members:
            _want(member in defined, f"cluster {cluster.get('name')!r} falls back to {member!r}, which is not defined")
        if members:
            _want(members[-1] == CONTROL, f"cluster {cluster.get('name')!r} must fall back to control, not to {members[-1]!r}")
    return defined


def _list(place: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = place.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ExperimentError(f"{key} is no list of objects")
    return found


def _enrolled(split: Split, experiment: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for r in split.ranges:
        if r.experiment == experiment and r.enrolled:
            found.setdefault(r.arm, set()).update(range(r.start, r.stop))
    return found


def _want(holds: bool, problem: str) -> None:
    if not holds:
        raise ExperimentError(f"routes refused: {problem}")

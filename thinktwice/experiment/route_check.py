"""May a rendered route file replace the live one? Our own check: Envoy accepts half of what is wrong without a word.

Seen on a real Envoy: a forgotten hash policy makes assignment random, a total other than 10,000 reshuffles everybody, an unknown
cluster answers 503, a wrong back-reference hashes something else. So the file is read back rule by rule, and not compared with a
second rendering: a mistake of the renderer must not agree with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import HOLDOUT, NO_EXPERIMENT, OVERRIDE, TESTER, Range
from thinktwice.experiment.file import BUCKETS, CONTROL, ExperimentFile
from thinktwice.experiment.gateway_config import ARM, ENROLLED, EXPERIMENT, UNIT_HEADER
from thinktwice.experiment.ingress_check import check_ingress
from thinktwice.experiment.route_file import (
    Action,
    Cluster,
    Content,
    Entry,
    HeaderOption,
    Match,
    Route,
    read_clusters,
    read_routes,
)
from thinktwice.experiment.routes import FORMAT, GOOD_UNIT, NO_SALT, OVERWRITE, READY, REWRITE, cluster_of

_OWN = frozenset({EXPERIMENT, ARM, ENROLLED})


@dataclass(frozen=True)
class TrafficSplit:
    """What a route file does with a unit: its salt and its ranges, in order."""

    salt: str
    ranges: tuple[Range, ...]


def read_split(routes: Content, clusters: Content) -> TrafficSplit:
    """Read a route file and prove every rule that needs no other file.

    Raises:
        ExperimentError: the first rule that does not hold, named with its place.
    """
    config = read_routes(routes)
    defined = _defined(read_clusters(clusters))
    _want(config.validate_clusters, "validate_clusters is not true: an unknown cluster would answer 503")
    hosts = config.virtual_hosts
    _want(len(hosts) == 1 and hosts[0].domains == ["*"], "there must be one virtual host, for the domain '*'")
    _want(
        not {o.header.key.lower() for o in config.request_headers_to_add} & _OWN,
        "headers of the arms are the routes' to set",
    )
    arms = check_ingress(hosts[0].routes)
    _want(len(arms) >= 3, "the last three routes must be no-unit, bad-unit and split")
    *others, no_unit, bad_unit, split = arms
    missing = {"name": UNIT_HEADER, "present_match": True, "invert_match": True}
    bad = {"name": UNIT_HEADER, "string_match": {"safe_regex": {"regex": GOOD_UNIT}}, "invert_match": True}
    _want(no_unit.match == Match(prefix="/", headers=[missing]), "the route no-unit must match a missing unit")
    _want(
        bad_unit.match == Match(prefix="/", headers=[bad]),
        "the route bad-unit must match every unit that is not allowed",
    )
    for route in (*others, no_unit, bad_unit):
        _check_plain(route, defined)
    for route in (no_unit, bad_unit):
        _want(_action(route).cluster == CONTROL, f"{route.name} must go to control")
        _want(
            _headers(route.request_headers_to_add, route.name)[EXPERIMENT] == NO_EXPERIMENT,
            f"{route.name} names an experiment",
        )
    for route in others:
        by_value = [set(header) for header in route.match.headers] == [{"name", "string_match"}]
        named = _headers(route.request_headers_to_add, route.name)[EXPERIMENT]
        _want(named in (OVERRIDE, TESTER), f"{route.name} names the experiment {named!r}, not {OVERRIDE} or {TESTER}")
        _want(by_value, f"{route.name} must match one header by its value, or it takes every request")
    return _read_ranges(split, defined)


def check_routes(
    routes: Content, clusters: Content, experiments: Sequence[ExperimentFile], live: TrafficSplit | None = None
) -> TrafficSplit:
    """Prove that a route file does what the experiments declare, and moves nobody whom the live one has enrolled.

    Raises:
        ExperimentError: the first rule that does not hold.
    """
    split = read_split(routes, clusters)
    salts = {e.salt for e in experiments} or {NO_SALT}
    _want(
        salts == {split.salt}, f"the salt is {split.salt!r}, not that of the experiments ({', '.join(sorted(salts))})"
    )
    found = {r.experiment for r in split.ranges} - {NO_EXPERIMENT, HOLDOUT}
    names = {e.name for e in experiments}
    _want(found == names, f"the split contains {sorted(found)}, not the experiments {sorted(names)}")
    for experiment in experiments:
        _check_arms(experiment, [r for r in split.ranges if r.experiment == experiment.name])
    owned = {b for e in experiments for b in range(*e.buckets)}
    top = BUCKETS - (experiments[0].holdout if experiments else 0)
    for r in split.ranges:
        if r.experiment == NO_EXPERIMENT:
            free = not owned.intersection(range(r.start, r.stop)) and r.stop <= top
            _want(free, f"buckets {r.start} to {r.stop} belong to an experiment or the holdout")
        if r.experiment == HOLDOUT:
            _want((r.start, r.stop) == (top, BUCKETS), f"the holdout is {r.start} to {r.stop}, not {top} to {BUCKETS}")
    declared = read_routes(routes).virtual_hosts[0].routes[-1].metadata
    identities = {e.name: e.identity() for e in experiments}
    _want(
        declared is not None and declared.ours is not None and declared.ours.experiments == identities,
        "the file was rendered from another version of the experiment: render it again",
    )
    if live is not None:
        check_growth(live, split)
    return split


def check_growth(live: TrafficSplit, new: TrafficSplit) -> None:
    """Prove that nobody who is enrolled changes arm, except by stopping a whole experiment.

    Raises:
        ExperimentError: the salt or an experiment's arms change, or enrolled buckets leave their arm.
    """
    running = {r.experiment for r in live.ranges if r.enrolled}
    still = {r.experiment for r in new.ranges if r.enrolled}
    if running and still:
        _want(live.salt == new.salt, f"the salt changes from {live.salt!r} to {new.salt!r} while units are enrolled")
    for experiment in sorted(running & still):  # one that is gone was stopped, all of it at once
        before, after = _enrolled(live, experiment), _enrolled(new, experiment)
        _want(set(before) == set(after), f"{experiment}: arms change from {sorted(before)} to {sorted(after)}")
        for arm, buckets in before.items():
            lost = len(buckets - after[arm])
            _want(not lost, f"{experiment}: {lost} enrolled buckets leave the arm {arm!r}")
    for experiment in sorted(still):
        mine = set().union(*_enrolled(new, experiment).values())
        for other in sorted(running - {experiment}):
            taken = len(mine & set().union(*_enrolled(live, other).values()))
            _want(not taken, f"{experiment} enrols {taken} buckets that {other} has enrolled under the same salt")


def _check_arms(experiment: ExperimentFile, ranges: list[Range]) -> None:
    """Arms in their places, equal, of the declared width; the rest control and not enrolled."""
    name, (start, stop) = experiment.name, experiment.buckets
    owns = bool(ranges) and (ranges[0].start, ranges[-1].stop) == (start, stop)
    _want(owns, f"{name} must own the buckets {start} to {stop}")
    _want(all(a.stop == b.start for a, b in pairwise(ranges)), f"{name}: its ranges have a gap")
    width = (stop - start) // len(experiment.arms)
    enrolled = round(experiment.coverage * BUCKETS) * width // BUCKETS
    places = [(start + place * width, arm.name) for place, arm in enumerate(experiment.arms)]
    expected = sorted((first, first + enrolled, arm) for first, arm in places) if enrolled else []
    found = sorted((r.start, r.stop, r.arm) for r in ranges if r.enrolled)
    _want(
        found == expected,
        f"{name}: enrolled ranges are {found}, not {expected} (equal arms at {experiment.coverage:.2%})",
    )


def _read_ranges(split: Route, defined: set[str]) -> TrafficSplit:
    _want(split.match == Match(prefix="/"), "the split must match every request")
    _want(not split.request_headers_to_add, "headers of the arms may be set by the entries of the split alone")
    _want(split.metadata is not None, "the file is of version None: it does not say what it was rendered from")
    meta = split.metadata.ours if split.metadata else None
    if meta is None or meta.format != FORMAT:
        raise ExperimentError(
            f"routes refused: the file is of version {meta and meta.format}; this thinktwice reads {FORMAT}"
        )
    rewrite = {"pattern": {"regex": REWRITE}, "substitution": f"{meta.salt}:\\1"}
    policy = [{"header": {"header_name": UNIT_HEADER, "regex_rewrite": rewrite}}]
    action = _action(split)
    _want(
        action.hash_policy == policy,
        f"the hash policy must be the unit with the salt {meta.salt!r}: without it assignment is random",
    )
    weighted = action.weighted_clusters
    if weighted is None or action.cluster is not None:
        raise ExperimentError("routes refused: the split must have weighted_clusters and no cluster")
    _want(weighted.use_hash_policy, "use_hash_policy is not true: assignment would be random")
    weights = [entry.weight for entry in weighted.clusters]
    _want(sum(weights) == BUCKETS, f"weights sum to {sum(weights):,}, not {BUCKETS:,}: everybody would be reshuffled")
    for mirror in action.request_mirror_policies:
        shadow = mirror.cluster in defined and mirror.cluster.endswith("_shadow")
        _want(shadow, f"mirrored to {mirror.cluster!r}, which is not a shadow cluster")
    stops = accumulate(weights)
    ranges = tuple(_range(entry, stop, defined) for entry, stop in zip(weighted.clusters, stops, strict=True))
    named = {r.experiment for r in ranges} - {NO_EXPERIMENT, HOLDOUT}
    _want(set(meta.experiments) == named, "the experiments named in the metadata are not those of the entries")
    return TrafficSplit(meta.salt, ranges)


def _range(entry: Entry, stop: int, defined: set[str]) -> Range:
    where = f"entry of buckets {stop - entry.weight} to {stop}"
    headers = _headers(entry.request_headers_to_add, where)
    experiment, arm, enrolled = headers[EXPERIMENT], headers[ARM], headers[ENROLLED] == "1"
    _want(headers[ENROLLED] in ("0", "1"), f"{where}: {ENROLLED} is {headers[ENROLLED]!r}, not 0 or 1")
    _want(
        entry.name == cluster_of(experiment, arm),
        f"{where}: goes to {entry.name!r} and says it is {arm!r} of {experiment!r}",
    )
    _want(entry.name in defined, f"{where}: the cluster {entry.name!r} is not defined")
    _want(enrolled or arm == CONTROL, f"{where}: gets {arm!r} and is not enrolled")
    _want(not enrolled or experiment not in (NO_EXPERIMENT, HOLDOUT), f"{where}: enrols without an experiment")
    return Range(stop - entry.weight, stop, experiment, arm, enrolled)


def _check_plain(route: Route, defined: set[str]) -> None:
    """A route to one cluster that says so and enrols nobody."""
    action = _action(route)
    cluster = action.cluster
    _want(cluster is not None and cluster in defined, f"{route.name}: the cluster {cluster!r} is not defined")
    plain = action.weighted_clusters is None and not action.hash_policy
    _want(plain and not action.request_mirror_policies, f"{route.name} must go to one cluster")
    headers = _headers(route.request_headers_to_add, route.name)
    arm = CONTROL if cluster == CONTROL else str(cluster).partition("_")[2]
    _want(headers[ARM] == arm, f"{route.name}: goes to {cluster!r} and says it is {headers[ARM]!r}")
    _want(headers[ENROLLED] == "0", f"{route.name} enrols: only the split may")


def _action(route: Route) -> Action:
    """Where a route behind the ingress rules leads."""
    if route.route is None or route.direct_response is not None:
        raise ExperimentError(f"routes refused: {route.name} must go to an arm: ingress rules come before it")
    _want(
        not route.response_headers_to_add and not route.typed_per_filter_config,
        f"{route.name} must change neither answers nor filters",
    )
    return route.route


def _headers(options: Sequence[HeaderOption], where: str) -> dict[str, str]:
    """The three headers of the arms that a route or an entry sets, each overwritten, and no others."""
    found: dict[str, str] = {}
    for option in options:
        key, value = option.header.key, option.header.value
        _want(key in _OWN and key not in found, f"{where}: the header {key!r} is set twice or is not ours")
        _want(option.append_action == OVERWRITE, f"{where}: {key} must overwrite what a client sent")
        _want("%" not in value, f"{where}: {key} has no fixed value")
        found[key] = value
    missing = sorted(_OWN - set(found))
    _want(not missing, f"{where}: {', '.join(missing)} not set, so a client's own value would pass")
    return found


def _defined(clusters: Sequence[Cluster]) -> set[str]:
    """Names of the clusters; every aggregate must fall back to control."""
    names = {c.name for c in clusters}
    _want(len(names) == len(clusters), "a cluster is there twice")
    _want(READY in names, f"the cluster {READY!r} is not defined: the gateway would never be ready")
    for cluster in clusters:
        if cluster.cluster_type is not None:
            members = cluster.cluster_type.typed_config.clusters
            for member in members:
                _want(member in names, f"cluster {cluster.name!r} falls back to {member!r}, which is not defined")
            _want(
                members[-1:] == [CONTROL], f"cluster {cluster.name!r} must fall back to control, not to {members[-1:]}"
            )
    return names


def _enrolled(split: TrafficSplit, experiment: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for r in split.ranges:
        if r.experiment == experiment and r.enrolled:
            found.setdefault(r.arm, set()).update(range(r.start, r.stop))
    return found


def _want(holds: bool, problem: str) -> None:
    if not holds:
        raise ExperimentError(f"routes refused: {problem}")

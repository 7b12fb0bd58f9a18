"""Check whether a rendered route file may replace the live one. Envoy itself silently accepts many errors.

Observed on a real Envoy: a missing hash policy makes assignment random, a total other than 10,000 reshuffles all units, an
unknown cluster answers 503, a wrong back-reference hashes another value. So the file is read back rule by rule, and not
compared with a second rendering, which would repeat errors of the renderer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import HOLDOUT, NO_EXPERIMENT, OVERRIDE, TESTER, Range
from thinktwice.experiment.door import bearers
from thinktwice.experiment.file import BUCKETS, CONTROL, ExperimentFile
from thinktwice.experiment.gateway_config import ARM, ENROLLED, EXPERIMENT, HOST_HEADER, SALT_HEADER, UNIT_HEADER
from thinktwice.experiment.ingress_check import accepted_tokens, check_ingress
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
    """The split of a route file: its salt and its ranges, in order."""

    salt: str
    ranges: tuple[Range, ...]


def read_split(routes: Content, clusters: Content) -> TrafficSplit:
    """Read a route file and check every rule that needs no other file.

    Raises:
        ExperimentError: the first broken rule, with its location.
    """
    config = read_routes(routes)
    defined = _defined(read_clusters(clusters))
    _require(config.validate_clusters, "validate_clusters is not true: an unknown cluster would answer 503")
    hosts = config.virtual_hosts
    _require(len(hosts) == 1 and hosts[0].domains == ["*"], "there must be one virtual host, for the domain '*'")
    _require(
        not {o.header.key.lower() for o in config.request_headers_to_add} & _OWN,
        "arm headers must be set by the routes",
    )
    arms = check_ingress(hosts[0].routes)
    _require(len(arms) >= 3, "the last three routes must be no-unit, bad-unit and split")
    *tester_routes, no_unit, bad_unit, split = arms
    missing = {"name": UNIT_HEADER, "present_match": True, "invert_match": True}
    invalid_unit = {"name": UNIT_HEADER, "string_match": {"safe_regex": {"regex": GOOD_UNIT}}, "invert_match": True}
    _require(no_unit.match == Match(prefix="/", headers=[missing]), "the route no-unit must match a missing unit")
    _require(
        bad_unit.match == Match(prefix="/", headers=[invalid_unit]),
        "the route bad-unit must match every unit that is not allowed",
    )
    for route in (*tester_routes, no_unit, bad_unit):
        _check_plain(route, defined)
    for route in (no_unit, bad_unit):
        _require(_action(route).cluster == CONTROL, f"{route.name} must go to control")
        _require(
            _headers(route.request_headers_to_add, route.name)[EXPERIMENT] == NO_EXPERIMENT,
            f"{route.name} names an experiment",
        )
    for route in tester_routes:
        by_value = [set(header) for header in route.match.headers] == [{"name", "string_match"}]
        named = _headers(route.request_headers_to_add, route.name)[EXPERIMENT]
        _require(
            named in (OVERRIDE, TESTER), f"{route.name} names the experiment {named!r}, not {OVERRIDE} or {TESTER}"
        )
        _require(by_value, f"{route.name} must match one header by its value, or it takes every request")
    return _read_ranges(split, defined)


def check_routes(
    routes: Content,
    clusters: Content,
    experiments: Sequence[ExperimentFile],
    live: TrafficSplit | None = None,
    tokens: Sequence[str] = (),
) -> TrafficSplit:
    """Check that a route file does what the experiments declare, asks for one of the bearer tokens if there are any, and moves
    no unit enrolled by the live file.

    Raises:
        ExperimentError: the first broken rule.
    """
    split = read_split(routes, clusters)
    salts = {e.salt for e in experiments} or {NO_SALT}
    _require(
        salts == {split.salt}, f"the salt is {split.salt!r}, not that of the experiments ({', '.join(sorted(salts))})"
    )
    split_experiments = {r.experiment for r in split.ranges} - {NO_EXPERIMENT, HOLDOUT}
    names = {e.name for e in experiments}
    _require(
        split_experiments == names,
        f"the split contains {sorted(split_experiments)}, not the experiments {sorted(names)}",
    )
    for experiment in experiments:
        _check_arms(experiment, [r for r in split.ranges if r.experiment == experiment.name])
    owned = {b for e in experiments for b in range(*e.buckets)}
    top = BUCKETS - (experiments[0].holdout if experiments else 0)
    for r in split.ranges:
        if r.experiment == NO_EXPERIMENT:
            free = not owned.intersection(range(r.start, r.stop)) and r.stop <= top
            _require(free, f"buckets {r.start} to {r.stop} belong to an experiment or the holdout")
        if r.experiment == HOLDOUT:
            _require(
                (r.start, r.stop) == (top, BUCKETS), f"the holdout is {r.start} to {r.stop}, not {top} to {BUCKETS}"
            )
    config = read_routes(routes)
    asked = accepted_tokens(config.virtual_hosts[0].routes)
    _require(asked == bearers(tokens), "the routes accept other bearer tokens than the token file has")
    _require(
        bool(asked) == ("authorization" in config.request_headers_to_remove), "a bearer token must not reach an arm"
    )
    sent = {o.header.key: (o.header.value, o.append_action) for o in config.request_headers_to_add}
    for key, value in ((SALT_HEADER, split.salt), (HOST_HEADER, "%REQ(:AUTHORITY)%")):
        found = sent.get(key)
        _require(found == (value, OVERWRITE), f"{key} must be {value!r}, not {found}: predictors log the bucket by it")
    declared = config.virtual_hosts[0].routes[-1].metadata
    identities = {e.name: e.identity() for e in experiments}
    _require(
        declared is not None and declared.ours is not None and declared.ours.experiments == identities,
        "the file was rendered from another version of the experiment: render it again",
    )
    if live is not None:
        check_growth(live, split)
    return split


def check_growth(live: TrafficSplit, new: TrafficSplit) -> None:
    """Check that no enrolled unit changes its arm, except by stopping a whole experiment.

    Raises:
        ExperimentError: the salt or an experiment's arms change, or enrolled buckets leave their arm.
    """
    running = {r.experiment for r in live.ranges if r.enrolled}
    still = {r.experiment for r in new.ranges if r.enrolled}
    if running and still:
        _require(live.salt == new.salt, f"the salt changes from {live.salt!r} to {new.salt!r} while units are enrolled")
    for experiment in sorted(running & still):  # a missing experiment was stopped as a whole
        before, after = _enrolled(live, experiment), _enrolled(new, experiment)
        _require(set(before) == set(after), f"{experiment}: arms change from {sorted(before)} to {sorted(after)}")
        for arm, buckets in before.items():
            lost = len(buckets - after[arm])
            _require(not lost, f"{experiment}: {lost} enrolled buckets leave the arm {arm!r}")
    for experiment in sorted(still):
        enrolled = set().union(*_enrolled(new, experiment).values())
        for name in sorted(running - {experiment}):
            overlap = len(enrolled & set().union(*_enrolled(live, name).values()))
            _require(not overlap, f"{experiment} enrols {overlap} buckets that {name} has enrolled under the same salt")


def _check_arms(experiment: ExperimentFile, ranges: list[Range]) -> None:
    """Arms at their positions, equal, of the declared width; the rest control and not enrolled."""
    name, (start, stop) = experiment.name, experiment.buckets
    owns = bool(ranges) and (ranges[0].start, ranges[-1].stop) == (start, stop)
    _require(owns, f"{name} must own the buckets {start} to {stop}")
    _require(all(a.stop == b.start for a, b in pairwise(ranges)), f"{name}: its ranges have a gap")
    width = (stop - start) // len(experiment.arms)
    enrolled = round(experiment.coverage * BUCKETS) * width // BUCKETS
    arm_starts = [(start + index * width, arm.name) for index, arm in enumerate(experiment.arms)]
    expected = sorted((first, first + enrolled, arm) for first, arm in arm_starts) if enrolled else []
    enrolled_ranges = sorted((r.start, r.stop, r.arm) for r in ranges if r.enrolled)
    _require(
        enrolled_ranges == expected,
        f"{name}: enrolled ranges are {enrolled_ranges}, not {expected} (equal arms at {experiment.coverage:.2%})",
    )


def _read_ranges(split: Route, defined: set[str]) -> TrafficSplit:
    _require(split.match == Match(prefix="/"), "the split must match every request")
    _require(not split.request_headers_to_add, "only the entries of the split may set arm headers")
    _require(split.metadata is not None, "the file is of version None: it does not say what it was rendered from")
    meta = split.metadata.ours if split.metadata else None
    if meta is None or meta.format != FORMAT:
        raise ExperimentError(
            f"routes refused: the file is of version {meta and meta.format}; this thinktwice reads {FORMAT}"
        )
    rewrite = {"pattern": {"regex": REWRITE}, "substitution": f"{meta.salt}:\\1"}
    policy = [{"header": {"header_name": UNIT_HEADER, "regex_rewrite": rewrite}}]
    action = _action(split)
    _require(
        action.hash_policy == policy,
        f"the hash policy must be the unit with the salt {meta.salt!r}: without it assignment is random",
    )
    weighted = action.weighted_clusters
    if weighted is None or action.cluster is not None:
        raise ExperimentError(
            "routes refused: the split must have weighted_clusters and no cluster: render the routes again"
        )
    _require(weighted.use_hash_policy, "use_hash_policy is not true: assignment would be random")
    weights = [entry.weight for entry in weighted.clusters]
    _require(
        sum(weights) == BUCKETS, f"weights sum to {sum(weights):,}, not {BUCKETS:,}: all units would be reshuffled"
    )
    for mirror in action.request_mirror_policies:
        shadow = mirror.cluster in defined and mirror.cluster.endswith("_shadow")
        _require(shadow, f"mirrored to {mirror.cluster!r}, which is not a shadow cluster")
    stops = accumulate(weights)
    ranges = tuple(_range(entry, stop, defined) for entry, stop in zip(weighted.clusters, stops, strict=True))
    named = {r.experiment for r in ranges} - {NO_EXPERIMENT, HOLDOUT}
    _require(set(meta.experiments) == named, "the experiments named in the metadata are not those of the entries")
    return TrafficSplit(meta.salt, ranges)


def _range(entry: Entry, stop: int, defined: set[str]) -> Range:
    where = f"entry of buckets {stop - entry.weight} to {stop}"
    headers = _headers(entry.request_headers_to_add, where)
    experiment, arm, enrolled = headers[EXPERIMENT], headers[ARM], headers[ENROLLED] == "1"
    _require(headers[ENROLLED] in ("0", "1"), f"{where}: {ENROLLED} is {headers[ENROLLED]!r}, not 0 or 1")
    _require(
        entry.name == cluster_of(experiment, arm),
        f"{where}: goes to {entry.name!r} and says it is {arm!r} of {experiment!r}",
    )
    _require(entry.name in defined, f"{where}: the cluster {entry.name!r} is not defined")
    _require(enrolled or arm == CONTROL, f"{where}: gets {arm!r} and is not enrolled")
    _require(not enrolled or experiment not in (NO_EXPERIMENT, HOLDOUT), f"{where}: enrols without an experiment")
    return Range(stop - entry.weight, stop, experiment, arm, enrolled)


def _check_plain(route: Route, defined: set[str]) -> None:
    """A route to one cluster that sets its arm headers and enrols no unit."""
    action = _action(route)
    cluster = action.cluster
    _require(cluster is not None and cluster in defined, f"{route.name}: the cluster {cluster!r} is not defined")
    plain = action.weighted_clusters is None and not action.hash_policy
    _require(plain and not action.request_mirror_policies, f"{route.name} must go to one cluster")
    headers = _headers(route.request_headers_to_add, route.name)
    arm = CONTROL if cluster == CONTROL else str(cluster).partition("_")[2]
    _require(headers[ARM] == arm, f"{route.name}: goes to {cluster!r} and says it is {headers[ARM]!r}")
    _require(headers[ENROLLED] == "0", f"{route.name} enrols: only the split may")


def _action(route: Route) -> Action:
    """The target of a route after the ingress rules."""
    if route.route is None or route.direct_response is not None:
        raise ExperimentError(f"routes refused: {route.name} must go to an arm: move ingress rules before it")
    _require(
        not route.response_headers_to_add and not route.typed_per_filter_config,
        f"{route.name} must change neither answers nor filters",
    )
    return route.route


def _headers(options: Sequence[HeaderOption], where: str) -> dict[str, str]:
    """The three arm headers that a route or an entry sets: each is overwritten, and there are no others."""
    headers: dict[str, str] = {}
    for option in options:
        key, value = option.header.key, option.header.value
        _require(key in _OWN and key not in headers, f"{where}: the header {key!r} is set twice or is not ours")
        _require(option.append_action == OVERWRITE, f"{where}: {key} must overwrite what a client sent")
        _require("%" not in value, f"{where}: {key} has no fixed value")
        headers[key] = value
    missing = sorted(_OWN - set(headers))
    _require(not missing, f"{where}: {', '.join(missing)} not set, so a client's own value would pass")
    return headers


def _defined(clusters: Sequence[Cluster]) -> set[str]:
    """Names of the clusters; every aggregate must fall back to control."""
    names = {c.name for c in clusters}
    _require(len(names) == len(clusters), "a cluster is repeated")
    _require(READY in names, f"the cluster {READY!r} is not defined: the gateway would never be ready")
    for cluster in clusters:
        if cluster.cluster_type is not None:
            members = cluster.cluster_type.typed_config.clusters
            for member in members:
                _require(member in names, f"cluster {cluster.name!r} falls back to {member!r}, which is not defined")
            _require(
                members[-1:] == [CONTROL], f"cluster {cluster.name!r} must fall back to control, not to {members[-1:]}"
            )
    return names


def _enrolled(split: TrafficSplit, experiment: str) -> dict[str, set[int]]:
    buckets: dict[str, set[int]] = {}
    for r in split.ranges:
        if r.experiment == experiment and r.enrolled:
            buckets.setdefault(r.arm, set()).update(range(r.start, r.stop))
    return buckets


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ExperimentError(f"routes refused: {problem}")

"""Envoy's files from the experiment file: bootstrap (once), clusters (CDS) and routes (RDS), as plain JSON content.

A ramp changes the routes alone. Nothing is written here: the gateway writes aside and renames, clusters first (a route may name a
new one), and only after ``route_check`` has agreed. Envoy reads YAML 1.1, in which ``n`` is false, so the files are JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import NO_EXPERIMENT, OVERRIDE, TESTER, BucketLayout, Range, layout_of
from thinktwice.experiment.file import BUCKETS, CONTROL, UNIT, ExperimentFile
from thinktwice.experiment.gateway_config import (
    ARM,
    ENROLLED,
    EXPERIMENT,
    SERVED_ARM,
    UNIT_HEADER,
    Endpoint,
    GatewayConfig,
)
from thinktwice.experiment.ingress import JSON_TYPE, ingress_routes, predict_paths
from thinktwice.files import sha256_text

FORMAT = 2  # of the rendered files; one of another version is refused
METADATA = "thinktwice"  # name under which a split says what it was rendered from, and an endpoint its arm
READY = "control_ready"  # cluster of the control's replicas as a real prediction finds them; nothing is sent there
NO_SALT = "none"  # of a gateway without an experiment; no experiment may have it
ROUTES, CLUSTERS = "rds.json", "cds.json"
ROUTE_CONFIG = "thinktwice"
REWRITE = "^(.*)$"
GOOD_UNIT = UNIT.pattern
TESTER_CHARACTERS = 60  # of the ids in one route's expression: the proxy limits its size
OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"
RETRY_ON = "connect-failure,refused-stream,reset,5xx"
Json = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The two files that change, ready to be written: clusters first.

    Attributes:
        version: what Envoy reports in ``version_info`` once it has taken the routes.
    """

    clusters: Json
    routes: Json
    version: str

    def files(self) -> tuple[tuple[str, bytes], ...]:
        """Name and content, in the order of writing."""
        return (CLUSTERS, _bytes(self.clusters)), (ROUTES, _bytes(self.routes))


def cluster_of(experiment: str, arm: str) -> str:
    """Name of an arm's cluster. Control is one for all experiments; '_' is in no name of ours, so names never meet."""
    return CONTROL if arm == CONTROL else f"{experiment}_{arm}"


def render(
    experiments: Sequence[ExperimentFile],
    endpoints: Mapping[str, Sequence[Endpoint]],
    config: GatewayConfig,
    serial: int,
    secret: str | None = None,
) -> Rendered:
    """Clusters and routes of one experiment, of all experiments of one exclusive group, or of none: everybody gets control.

    Args:
        endpoints: replicas by cluster (:func:`cluster_of`).
        serial: number of this write; it makes the version differ from every earlier one.
        secret: value that, as ``x-force-arm: <cluster>:<secret>``, chooses an arm for one request; it is read from a file of
            its own, never from the experiment file. None offers no such way.

    Raises:
        ExperimentError: an arm has no endpoint, or experiments cannot stand beside one another.
    """
    layout = layout_of(experiments) if experiments else _nobody()
    clusters = {CONTROL, *(cluster_of(e.name, arm.name) for e in experiments for arm in e.arms)}
    if missing := sorted(clusters - {name for name, found in endpoints.items() if found}):
        raise ExperimentError(f"no endpoint for the cluster {missing[0]!r}: give its host and port")
    if unknown := sorted(set(endpoints) - clusters):
        raise ExperimentError(
            f"endpoints for {unknown[0]!r}, which is not a cluster: there are {', '.join(sorted(clusters))}"
        )
    shadows = [_shadow(name, clusters) for name in config.shadow]
    resources = _clusters(endpoints, shadows, config)
    routes = _route_config(layout, experiments, shadows, config, secret)
    version = f"{FORMAT}-{serial}-{sha256_text(_text(resources), _text(routes))[:12]}"
    return Rendered(
        {"version_info": version, "resources": resources}, {"version_info": version, "resources": [routes]}, version
    )


def _nobody() -> BucketLayout:
    return BucketLayout(NO_SALT, (Range(0, BUCKETS, NO_EXPERIMENT, CONTROL, False),), {})


def _route_config(
    layout: BucketLayout,
    experiments: Sequence[ExperimentFile],
    shadows: list[str],
    config: GatewayConfig,
    secret: str | None,
) -> Json:
    routes = ingress_routes(config)
    if secret is not None:
        if not re.fullmatch(r"[!-~]{16,200}", secret):
            raise ExperimentError(
                "the secret that chooses an arm must be 16 to 200 printable ASCII characters without blanks"
            )
        for cluster in sorted({CONTROL, *(cluster_of(e.name, a.name) for e in experiments for a in e.arms)}):
            routes.append(_override(cluster, secret, config))
    routes += _tester_routes(layout, config)
    missing = {"name": UNIT_HEADER, "present_match": True, "invert_match": True}
    bad = {"name": UNIT_HEADER, "string_match": {"safe_regex": {"regex": GOOD_UNIT}}, "invert_match": True}
    routes.append(_plain("no-unit", [missing], CONTROL, NO_EXPERIMENT, CONTROL, config))
    routes.append(_plain("bad-unit", [bad], CONTROL, NO_EXPERIMENT, CONTROL, config))
    routes.append(_split(layout, experiments, shadows, config))
    return {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": ROUTE_CONFIG,
        "validate_clusters": True,
        "request_headers_to_add": [_header("x-request-start", "t=%START_TIME(%s.%6f)%")],
        # A server that does not say its arm is named by its endpoint: under an aggregate no field of the log tells who answered.
        "response_headers_to_add": [
            {
                "header": {"key": SERVED_ARM, "value": f"%UPSTREAM_METADATA({METADATA}:arm)%"},
                "append_action": "ADD_IF_ABSENT",
            }
        ],
        "virtual_hosts": [
            {
                "name": "vh",
                "domains": ["*"],
                "include_request_attempt_count": True,
                # A request is kept until it is answered, to be sent again.
                "request_body_buffer_limit": config.max_body_bytes,
                "routes": routes,
            },
        ],
    }


def _split(
    layout: BucketLayout, experiments: Sequence[ExperimentFile], shadows: list[str], config: GatewayConfig
) -> Json:
    entries = [
        {
            "name": cluster_of(r.experiment, r.arm),
            "weight": r.width,
            "request_headers_to_add": _arm_headers(r.experiment, r.arm, r.enrolled),
        }
        for r in layout.ranges
    ]
    if (total := sum(r.width for r in layout.ranges)) != BUCKETS:
        raise ValueError(f"the ranges of the split sum to {total}, not {BUCKETS}")
    policy = {
        "header": {
            "header_name": UNIT_HEADER,
            # Salts are a-z, 0-9 and '-': nothing in them means something to the rewrite.
            "regex_rewrite": {"pattern": {"regex": REWRITE}, "substitution": f"{layout.salt}:\\1"},
        }
    }
    action = {
        "hash_policy": [policy],
        "weighted_clusters": {"use_hash_policy": True, "clusters": entries},
        **_waiting(config),
    }
    if shadows:
        everything = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
        action["request_mirror_policies"] = [{"cluster": s, "runtime_fraction": everything} for s in shadows]
    return {
        "name": "split",
        "match": {"prefix": "/"},
        "route": action,
        "stat_prefix": "split",
        "metadata": {
            "filter_metadata": {
                METADATA: {
                    "format": FORMAT,
                    "salt": layout.salt,
                    "experiments": {e.name: e.identity() for e in experiments},
                }
            }
        },
    }


def _override(cluster: str, secret: str, config: GatewayConfig) -> Json:
    match = {"name": "x-force-arm", "string_match": {"exact": f"{cluster}:{secret}"}}
    arm = CONTROL if cluster == CONTROL else cluster.partition("_")[2]
    route = _plain(f"override-{cluster}", [match], cluster, OVERRIDE, arm, config)
    return {**route, "request_headers_to_remove": ["x-force-arm"]}


def _tester_routes(layout: BucketLayout, config: GatewayConfig) -> list[Json]:
    """Testers by cluster, as many to a route as its expression holds; an id that is too long for one is matched as it is."""
    routes = []
    places = sorted({(cluster_of(*place), place[1]) for place in layout.testers.values()})
    for cluster, arm in places:
        units = sorted(u for u, place in layout.testers.items() if (cluster_of(*place), place[1]) == (cluster, arm))
        for number, some in enumerate(_packed(units)):
            match: Json = {"name": UNIT_HEADER}
            if len(some) == 1:
                match["string_match"] = {"exact": some[0]}
            else:
                match["string_match"] = {"safe_regex": {"regex": "|".join(re.escape(u) for u in some)}}
            routes.append(_plain(f"testers-{cluster}-{number}", [match], cluster, TESTER, arm, config))
    return routes


def _packed(units: list[str]) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for unit in units:
        size = len(unit) + 2
        if not groups or size > room or len(groups[-1]) >= 15:
            groups.append([])
            room = TESTER_CHARACTERS
        groups[-1].append(unit)
        room -= size
    return groups


def _plain(name: str, headers: list[Json], cluster: str, experiment: str, arm: str, config: GatewayConfig) -> Json:
    """A route to one cluster, nobody enrolled."""
    return {
        "name": name,
        "match": {"prefix": "/", "headers": headers},
        "route": {"cluster": cluster, **_waiting(config)},
        "stat_prefix": name.replace("-", "_"),
        "request_headers_to_add": _arm_headers(experiment, arm, False),
    }


def _arm_headers(experiment: str, arm: str, enrolled: bool) -> list[Json]:
    """All three headers, always: one that is not overwritten would let a client's own value through."""
    return [_header(EXPERIMENT, experiment), _header(ARM, arm), _header(ENROLLED, "1" if enrolled else "0")]


def _header(key: str, value: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": OVERWRITE}


def _waiting(config: GatewayConfig) -> Json:
    return {
        "timeout": _seconds(config.timeout),
        "retry_policy": {
            "retry_on": RETRY_ON,
            "num_retries": config.retries,
            "per_try_timeout": _seconds(config.per_try_timeout),
            # A retry goes to the next priority of the aggregate: from a failed treatment to control.
            "retry_priority": {
                "name": "envoy.retry_priorities.previous_priorities",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3."
                    "PreviousPrioritiesConfig",
                    "update_frequency": 1,
                },
            },
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
        },
    }


def _clusters(endpoints: Mapping[str, Sequence[Endpoint]], shadows: list[str], config: GatewayConfig) -> list[Json]:
    """Control; for every other arm its own replicas and, above them, an aggregate that falls back to control."""
    control = _replicas(CONTROL, endpoints[CONTROL], config, config.max_in_flight)
    control["circuit_breakers"] = _breakers(config.max_in_flight, few_retries=True)
    ready = {
        **_replicas(READY, endpoints[CONTROL], config, config.max_in_flight),
        "health_checks": [_prediction(config)],
    }
    found = [control, ready]
    for name in sorted(set(endpoints) - {CONTROL}):
        own = {**_replicas(f"{name}_own", endpoints[name], config, config.max_in_flight), **_watched(config)}
        aggregate = {
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": name,
            "connect_timeout": _seconds(config.connect_timeout),
            "lb_policy": "CLUSTER_PROVIDED",
            "circuit_breakers": _breakers(config.max_in_flight),
            "cluster_type": {
                "name": "envoy.clusters.aggregate",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig",
                    "clusters": [f"{name}_own", CONTROL],
                },
            },
        }
        found += [own, aggregate]
    for shadow in shadows:
        name = shadow.removesuffix("_shadow")
        found.append(_replicas(shadow, endpoints[name], config, config.shadow_in_flight))
    return found


def _replicas(name: str, endpoints: Sequence[Endpoint], config: GatewayConfig, in_flight: int) -> Json:
    arm = CONTROL if name in (CONTROL, READY) else name.split("_")[1]
    addresses = [
        {
            "endpoint": {"address": {"socket_address": {"address": e.host, "port_value": e.port}}},
            "metadata": {"filter_metadata": {METADATA: {"arm": arm}}},
        }
        for e in endpoints
    ]
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC" if all(e.is_address for e in endpoints) else "STRICT_DNS",
        "connect_timeout": _seconds(config.connect_timeout),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": addresses}]},
        "circuit_breakers": _breakers(in_flight),
    }


def _watched(config: GatewayConfig) -> Json:
    """Health checks, and ejection that they may not undo: a server that is well and answers 500 stays out."""
    return {
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "interval_jitter": "0.1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 2,
                "http_health_check": {"path": config.health_path},
            }
        ],
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "outlier_detection": {
            "consecutive_5xx": 5,
            "consecutive_gateway_failure": 5,
            "consecutive_local_origin_failure": 5,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 100,
            "enforcing_consecutive_gateway_failure": 100,
            "successful_active_health_check_uneject_host": False,
        },
    }


def _prediction(config: GatewayConfig) -> Json:
    """A health check that scores a row: TorchServe says that it is ready without a worker. 429 is an answer too."""
    headers = {"content-type": JSON_TYPE, "x-deadline-ms": "2000"}
    return {
        "timeout": "3s",
        "interval": "2s",
        "no_traffic_interval": "2s",
        "interval_jitter": "0.1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {
            "path": predict_paths(config.model)[0],
            "method": "POST",
            "send": {"text": b'{"instances": [{"rows": [{}]}]}'.hex()},
            "request_headers_to_add": [_header(key, value) for key, value in headers.items()],
            "expected_statuses": [{"start": 200, "end": 201}, {"start": 429, "end": 430}],
        },
    }


def _breakers(in_flight: int, few_retries: bool = False) -> Json:
    """Bounds of one cluster. Control has nobody to fall back to: under load its retries would only add to the load, so they are few."""
    names = ("max_connections", "max_pending_requests", "max_requests")
    retries: Json = {"retry_budget": {"budget_percent": {"value": 20.0}}} if few_retries else {"max_retries": in_flight}
    return {"thresholds": [dict.fromkeys(names, in_flight) | retries]}


def _shadow(name: str, clusters: set[str]) -> str:
    cluster = cluster_of(*name.split("/", 1)) if "/" in name else name
    if cluster == CONTROL or cluster not in clusters:
        raise ExperimentError(f"shadow {name!r} is not a treatment: write experiment/arm")
    return f"{cluster}_shadow"


def _seconds(value: float) -> str:
    return f"{value:.3f}s"


def _text(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _bytes(content: Json) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode()

"""Envoy's files from the experiment file: bootstrap (once), clusters (CDS) and routes (RDS), as plain JSON content.

A ramp changes only the routes. This module writes nothing: the gateway writes temporary files and renames them, clusters
first (a route may name a new one), and only after ``route_check`` has passed. Envoy reads YAML 1.1, in which ``n`` is
false, so the files are JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import NO_EXPERIMENT, OVERRIDE, TESTER, BucketLayout, Range, layout_of
from thinktwice.experiment.door import AUTHORIZATION
from thinktwice.experiment.file import BUCKETS, CONTROL, UNIT, ExperimentFile
from thinktwice.experiment.gateway_config import (
    ARM,
    ENROLLED,
    EXPERIMENT,
    HOST_HEADER,
    SALT_HEADER,
    SERVED_ARM,
    UNIT_HEADER,
    Endpoint,
    GatewayConfig,
)
from thinktwice.experiment.ingress import JSON_TYPE, ingress_routes, predict_paths
from thinktwice.files import sha256_text

FORMAT = 2  # of the rendered files; one of another version is refused
METADATA = "thinktwice"  # metadata key with the source of a split and the arm of an endpoint
READY = "control_ready"  # control's replicas, health-checked by a real prediction; no traffic is sent to it
NO_SALT = "none"  # of a gateway without an experiment; reserved
ROUTES, CLUSTERS = "rds.json", "cds.json"
ROUTE_CONFIG = "thinktwice"
REWRITE = "^(.*)$"
GOOD_UNIT = UNIT.pattern
TESTER_CHARACTERS = 60  # of the ids in one route's expression, whose size the proxy limits
OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"
RETRY_ON = "connect-failure,refused-stream,reset,5xx"
Json = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The two files that change, in the order of writing: clusters first.

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
    """Name of an arm's cluster. All experiments share control; names of experiments and arms contain no '_', so cluster
    names are unique."""
    return CONTROL if arm == CONTROL else f"{experiment}_{arm}"


def checked_cluster(cluster: str) -> str:
    """The cluster with the replicas of an arm whose health the gateway checks."""
    return READY if cluster == CONTROL else f"{cluster}_own"


def render(
    experiments: Sequence[ExperimentFile],
    endpoints: Mapping[str, Sequence[Endpoint]],
    config: GatewayConfig,
    serial: int,
    secret: str | None = None,
    tokens: Sequence[str] = (),
) -> Rendered:
    """Clusters and routes of one experiment, of all experiments of one exclusive group, or of none (all requests get control).

    Args:
        endpoints: replicas by cluster (:func:`cluster_of`).
        serial: number of this write, which makes the version unique.
        secret: value that, as ``x-force-arm: <cluster>:<secret>``, chooses an arm for one request; it comes from a separate
            file, never from the experiment file. None disables the header.
        tokens: bearer tokens of which a prediction needs one; they are not passed on. Without any, none is asked for.

    Raises:
        ExperimentError: an arm has no endpoint, or experiments conflict.
    """
    layout = layout_of(experiments) if experiments else _control_only()
    clusters = {CONTROL, *(cluster_of(e.name, arm.name) for e in experiments for arm in e.arms)}
    if missing := sorted(clusters - {name for name, addresses in endpoints.items() if addresses}):
        raise ExperimentError(f"no endpoint for the cluster {missing[0]!r}: give its host and port")
    if unknown := sorted(set(endpoints) - clusters):
        raise ExperimentError(
            f"endpoints for {unknown[0]!r}, which is not a cluster: there are {', '.join(sorted(clusters))}"
        )
    shadows = [_shadow(name, clusters) for name in config.shadow]
    resources = _clusters(endpoints, shadows, config)
    routes = _route_config(layout, experiments, shadows, config, secret, tokens)
    version = f"{FORMAT}-{serial}-{sha256_text(_text(resources), _text(routes))[:12]}"
    return Rendered(
        {"version_info": version, "resources": resources}, {"version_info": version, "resources": [routes]}, version
    )


def _control_only() -> BucketLayout:
    return BucketLayout(NO_SALT, (Range(0, BUCKETS, NO_EXPERIMENT, CONTROL, False),), {})


def _route_config(
    layout: BucketLayout,
    experiments: Sequence[ExperimentFile],
    shadows: list[str],
    config: GatewayConfig,
    secret: str | None,
    tokens: Sequence[str],
) -> Json:
    routes = ingress_routes(config, tokens)
    if secret is not None:
        if not re.fullmatch(r"[!-~]{16,200}", secret):
            raise ExperimentError(
                "the secret that chooses an arm must be 16 to 200 printable ASCII characters without blanks: choose another"
            )
        for cluster in sorted({CONTROL, *(cluster_of(e.name, a.name) for e in experiments for a in e.arms)}):
            routes.append(_override(cluster, secret, config))
    routes += _tester_routes(layout, config)
    missing = {"name": UNIT_HEADER, "present_match": True, "invert_match": True}
    invalid_unit = {"name": UNIT_HEADER, "string_match": {"safe_regex": {"regex": GOOD_UNIT}}, "invert_match": True}
    routes.append(_plain("no-unit", [missing], CONTROL, NO_EXPERIMENT, CONTROL, config))
    routes.append(_plain("bad-unit", [invalid_unit], CONTROL, NO_EXPERIMENT, CONTROL, config))
    routes.append(_split(layout, experiments, shadows, config))
    return {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": ROUTE_CONFIG,
        "validate_clusters": True,
        **({"request_headers_to_remove": [AUTHORIZATION]} if tokens else {}),
        "request_headers_to_add": [
            _header("x-request-start", "t=%START_TIME(%s.%6f)%"),
            _header(SALT_HEADER, layout.salt),
            _header(HOST_HEADER, "%REQ(:AUTHORITY)%"),
        ],
        # If a server does not name its arm, its endpoint does: with an aggregate cluster no field of the log shows which
        # arm answered.
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
                # Requests are buffered until they are answered, for retries.
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
            # Salts are a-z, 0-9 and '-': none of these is special in the rewrite.
            "regex_rewrite": {"pattern": {"regex": REWRITE}, "substitution": f"{layout.salt}:\\1"},
        }
    }
    action = {
        "hash_policy": [policy],
        "weighted_clusters": {"use_hash_policy": True, "clusters": entries},
        **_retry_settings(config),
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
    """Routes of testers by cluster, with as many ids per route as fit into its expression; an id too long for one is
    matched exactly."""
    routes = []
    targets = sorted({(cluster_of(*target), target[1]) for target in layout.testers.values()})
    for cluster, arm in targets:
        units = sorted(u for u, target in layout.testers.items() if (cluster_of(*target), target[1]) == (cluster, arm))
        for number, batch in enumerate(_packed(units)):
            match: Json = {"name": UNIT_HEADER}
            if len(batch) == 1:
                match["string_match"] = {"exact": batch[0]}
            else:
                match["string_match"] = {"safe_regex": {"regex": "|".join(re.escape(u) for u in batch)}}
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
    """A route to one cluster, without enrollment."""
    return {
        "name": name,
        "match": {"prefix": "/", "headers": headers},
        "route": {"cluster": cluster, **_retry_settings(config)},
        "stat_prefix": name.replace("-", "_"),
        "request_headers_to_add": _arm_headers(experiment, arm, False),
    }


def _arm_headers(experiment: str, arm: str, enrolled: bool) -> list[Json]:
    """Always all three headers: one that is not overwritten would pass on a client's value."""
    return [_header(EXPERIMENT, experiment), _header(ARM, arm), _header(ENROLLED, "1" if enrolled else "0")]


def _header(key: str, value: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": OVERWRITE}


def _retry_settings(config: GatewayConfig) -> Json:
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
    clusters = [control, ready]
    for name in sorted(set(endpoints) - {CONTROL}):
        settings = {
            **_replicas(checked_cluster(name), endpoints[name], config, config.max_in_flight),
            **_watched(config),
        }
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
                    "clusters": [checked_cluster(name), CONTROL],
                },
            },
        }
        clusters += [settings, aggregate]
    for shadow in shadows:
        name = shadow.removesuffix("_shadow")
        clusters.append(_replicas(shadow, endpoints[name], config, config.shadow_in_flight))
    return clusters


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
    """Health checks, and outlier ejection that they do not undo: a healthy server that answers 500 stays ejected."""
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
    """A health check that scores a row: TorchServe reports that it is ready even without a worker. 429 counts as healthy."""
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
    """Limits of one cluster. Control has no fallback, and under load its retries would only add load, so they are few."""
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

"""Envoy's bootstrap: listener, header rules, access log, and paths of the files that change. Written once per gateway."""

from __future__ import annotations

from functools import partial

from thinktwice.experiment.door import (
    PROBE_SOCKET,
    inlined_socket,
    is_guarded,
    limit_filters,
    transport_socket,
)
from thinktwice.experiment.gateway_config import OWN_HEADERS, SERVED_ARM, UNIT_HEADER, GatewayConfig
from thinktwice.experiment.ingress import MAX_HEADER_KB, ingress_filters, local_replies
from thinktwice.experiment.routes import CLUSTERS, METADATA, OVERWRITE, READY, ROUTE_CONFIG, ROUTES, Json, Rendered

ACCESS_LOG, PROBE_LOG, ADMIN_SOCKET = "access.log", "probes.log", "admin.sock"
PROBE_HEADER = "x-gateway-probe"
MOST_HEAP = 1 << 30  # bytes; above 95 % of them further requests are refused
# Program size of an expression; the proxy's default of 100 is too small for the length of a unit.
EXPRESSION_SIZE = 4096

#: Fields of a line of the access log, in ``records.access`` by these names.
LOG_FORMAT = {
    "ts": "%START_TIME(%s.%6f)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "experiment": "%REQ(X-EXPERIMENT)%",
    "assigned": "%REQ(X-ARM)%",
    "enrolled": "%REQ(X-ENROLLED)%",
    "route": "%ROUTE_NAME%",
    "host": "%UPSTREAM_HOST%",
    "served": f"%RESP({SERVED_ARM.upper()})%",
    "upstream": f"%UPSTREAM_METADATA({METADATA}:arm)%",
    "code": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "up_ms": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "ms": "%DURATION%",
}


def bootstrap(config: GatewayConfig, node: str = "gateway-1", probe: str | None = None) -> Json:
    """The content of ``bootstrap.json``.

    Client-sent values of our headers, and of headers that control the proxy, are removed before anything reads them. The
    unit becomes one header with one value (the first): otherwise Envoy would hash all values of a repeated header together,
    and a client could choose its arm. Envoy joins a repeated request id into one, ``a,b``.

    Args:
        probe: secret of this gateway; requests that carry it as ``x-gateway-probe`` are logged only in ``probes.log``.
    """
    mutations: list[Json] = [{"remove": name} for name in OWN_HEADERS]
    mutations.append({"remove_on_match": {"key_matcher": {"prefix": "x-envoy-", "ignore_case": True}}})
    unit = {"key": UNIT_HEADER, "value": f"%REQ({config.unit_header.upper()})%"}
    mutations.append({"append": {"header": unit, "append_action": OVERWRITE}})
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": _type("extensions.filters.http.router.v3.Router")},
    }
    manager = {
        "@type": _type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "in",
        "codec_type": "AUTO",
        "http_filters": [*ingress_filters(config, READY, limit_filters(config)), router],
        "local_reply_config": local_replies(config),
        "early_header_mutation_extensions": [
            {
                "name": "envoy.http.early_header_mutation.header_mutation",
                "typed_config": {
                    "@type": _type("extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"),
                    "mutations": mutations,
                },
            }
        ],
        "rds": {
            "route_config_name": ROUTE_CONFIG,
            "config_source": {**_source(config, ROUTES), "initial_fetch_timeout": "5s"},
        },
        "access_log": _access_logs(config, probe),
        "use_remote_address": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": _type("extensions.request_id.uuid.v3.UuidRequestIdConfig"),
                "pack_trace_reason": False,
            }
        },
        "server_header_transformation": "PASS_THROUGH",
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "max_request_headers_kb": MAX_HEADER_KB,
        "common_http_protocol_options": {"idle_timeout": _seconds(config.idle_timeout)},
        "http2_protocol_options": {"max_concurrent_streams": 100},
        "request_headers_timeout": _seconds(config.head_timeout),
        "request_timeout": _seconds(config.request_timeout),
        "stream_idle_timeout": "30s",
    }
    chain: Json = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    if (socket := transport_socket(config, partial(_source, config))) is not None:
        chain["transport_socket"] = socket
    listener: Json = {
        "name": "gateway",
        "address": {"socket_address": {"address": config.listen.host, "port_value": config.listen.port}},
        "enable_reuse_port": False,  # otherwise two gateways could silently share one port
        "per_connection_buffer_limit_bytes": config.max_body_bytes + (1 << 16),
        "filter_chains": [chain],
    }
    listeners = [listener]
    if probe is not None and is_guarded(config):
        listeners.append(_own_listener(listener, config))
    runtime = {"re2.max_program_size.error_level": EXPRESSION_SIZE, "re2.max_program_size.warn_level": EXPRESSION_SIZE}
    return {
        "node": {"id": node, "cluster": "thinktwice"},
        "admin": {"address": {"pipe": {"path": f"{_log_folder(config)}/{ADMIN_SOCKET}", "mode": 0o600}}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
        "overload_manager": _overload(config),
        "static_resources": {"listeners": listeners},
        "dynamic_resources": {"cds_config": _source(config, CLUSTERS)},
    }


def _own_listener(listener: Json, config: GatewayConfig) -> Json:
    """A socket of this user for the gateway's own requests, with everything but TLS and rate limits."""
    network = listener["filter_chains"][0]["filters"][0]
    kept = [*ingress_filters(config, READY), network["typed_config"]["http_filters"][-1]]
    manager = {**network["typed_config"], "http_filters": kept}
    pipe = {"path": f"{_log_folder(config)}/{PROBE_SOCKET}", "mode": 0o600}
    chain = {"filters": [{**network, "typed_config": manager}]}
    return {
        "name": "probes",
        "address": {"pipe": pipe},
        "per_connection_buffer_limit_bytes": listener["per_connection_buffer_limit_bytes"],
        "filter_chains": [chain],
    }


def _access_logs(config: GatewayConfig, probe: str | None) -> list[Json]:
    """One line for every request, except successful answers of the gateway itself (health, lists) and its own probes.

    Input refused before it is a request (not HTTP, headers too large) has no id: Envoy counts it but writes no line,
    because the join could not distinguish it from a broken one.
    """
    is_post: Json = {"header_filter": {"header": {"name": ":method", "string_match": {"exact": "POST"}}}}
    refused: Json = {
        "status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "none"}}}
    }
    named: Json = {"header_filter": {"header": {"name": "x-request-id", "present_match": True}}}
    counted: list[Json] = [{"not_health_check_filter": {}}, named, {"or_filter": {"filters": [is_post, refused]}}]
    if probe is None:
        return [_log(config, ACCESS_LOG, {"and_filter": {"filters": counted}})]
    is_probe = {"name": PROBE_HEADER, "string_match": {"exact": probe}}
    not_probe = {**is_probe, "invert_match": True, "treat_missing_header_as_empty": True}
    counted.append({"header_filter": {"header": not_probe}})
    return [
        _log(config, ACCESS_LOG, {"and_filter": {"filters": counted}}),
        _log(config, PROBE_LOG, {"header_filter": {"header": is_probe}}),
    ]


def _log(config: GatewayConfig, name: str, only: Json) -> Json:
    return {
        "name": "envoy.access_loggers.file",
        "filter": only,
        "typed_config": {
            "@type": _type("extensions.access_loggers.file.v3.FileAccessLog"),
            "path": f"{_log_folder(config)}/{name}",
            "log_format": {"json_format": LOG_FORMAT, "omit_empty_values": False},
        },
    }


def _overload(config: GatewayConfig) -> Json:
    """Limits of the whole process: client connections and memory, because each connection may buffer a large body."""
    connections = {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": _type("extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
            "max_active_downstream_connections": config.max_connections,
        },
    }
    heap = {
        "name": "envoy.resource_monitors.fixed_heap",
        "typed_config": {
            "@type": _type("extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"),
            "max_heap_size_bytes": MOST_HEAP,
        },
    }
    full = {"name": heap["name"], "threshold": {"value": 0.95}}
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [connections, heap],
        "actions": [{"name": "envoy.overload_actions.stop_accepting_requests", "triggers": [full]}],
    }


def inlined(start: Json, rendered: Rendered, config: GatewayConfig | None = None) -> Json:
    """A bootstrap with inline clusters and routes: ``envoy --mode validate`` does not open the files it refers to.

    Args:
        config: whose certificates are checked too; None: they are of another machine.
    """
    listener = start["static_resources"]["listeners"][0]
    network = listener["filter_chains"][0]["filters"][0]
    manager = {key: value for key, value in network["typed_config"].items() if key != "rds"}
    routes = {key: value for key, value in rendered.routes["resources"][0].items() if key != "@type"}
    manager["route_config"] = routes
    chain: Json = {"filters": [{**network, "typed_config": manager}]}
    if config is not None and (socket := inlined_socket(config)) is not None:
        chain["transport_socket"] = socket
    clusters = [{k: v for k, v in c.items() if k != "@type"} for c in rendered.clusters["resources"]]
    return {
        **{key: value for key, value in start.items() if key != "dynamic_resources"},
        "static_resources": {
            "listeners": [{**listener, "filter_chains": [chain]}],
            "clusters": clusters,
        },
    }


def _log_folder(config: GatewayConfig) -> str:
    return config.folder if config.log_folder is None else config.log_folder


def _source(config: GatewayConfig, name: str) -> Json:
    path: Json = {"path": f"{config.folder}/{name}"}
    if config.watch_folder:
        path["watched_directory"] = {"path": config.folder}
    return {"resource_api_version": "V3", "path_config_source": path}


def _seconds(value: float) -> str:
    return f"{value:.3f}s"


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"

"""Envoy's bootstrap: listener, header rules, access log, and where the files that change lie. Written once a gateway."""

from __future__ import annotations

from thinktwice.experiment.gateway_config import OWN_HEADERS, SERVED_ARM, UNIT_HEADER, GatewayConfig
from thinktwice.experiment.routes import CLUSTERS, OVERWRITE, ROUTE_CONFIG, ROUTES, Json, Rendered

ACCESS_LOG, ADMIN_SOCKET = "access.log", "admin.sock"
EXPRESSION_SIZE = 4096  # program size of an expression; the proxy's own limit of 100 does not hold the length of a unit

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
    "code": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "up_ms": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "ms": "%DURATION%",
}


def bootstrap(config: GatewayConfig, node: str = "gateway-1") -> Json:
    """The content of ``bootstrap.json``.

    Client-sent values of our headers are removed before anything reads them, and the unit becomes one header of one value (the
    first): Envoy would otherwise hash all values of a repeated header together, and a client could choose its arm.
    """
    mutations: list[Json] = [{"remove": name} for name in OWN_HEADERS]
    unit = {"key": UNIT_HEADER, "value": f"%REQ({config.unit_header.upper()})%"}
    mutations.append({"append": {"header": unit, "append_action": OVERWRITE}})
    manager = {
        "@type": _type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "in",
        "codec_type": "AUTO",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _type("extensions.filters.http.router.v3.Router")},
            }
        ],
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
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": _type("extensions.access_loggers.file.v3.FileAccessLog"),
                    "path": f"{config.folder}/{ACCESS_LOG}",
                    "log_format": {"json_format": LOG_FORMAT, "omit_empty_values": False},
                },
            }
        ],
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": _type("extensions.request_id.uuid.v3.UuidRequestIdConfig"),
                "pack_trace_reason": False,
            }
        },
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "stream_idle_timeout": "30s",
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    listener = {
        "name": "gateway",
        "address": {"socket_address": {"address": config.listen.host, "port_value": config.listen.port}},
        "enable_reuse_port": False,  # two gateways on one port would share it silently
        "filter_chains": [chain],
    }
    runtime = {"re2.max_program_size.error_level": EXPRESSION_SIZE, "re2.max_program_size.warn_level": EXPRESSION_SIZE}
    return {
        "node": {"id": node, "cluster": "thinktwice"},
        "admin": {"address": {"pipe": {"path": f"{config.folder}/{ADMIN_SOCKET}", "mode": 0o600}}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
        "static_resources": {"listeners": [listener]},
        "dynamic_resources": {"cds_config": _source(config, CLUSTERS)},
    }


def inlined(start: Json, rendered: Rendered) -> Json:
    """A bootstrap that holds clusters and routes itself: ``envoy --mode validate`` does not open the files it names."""
    listener = start["static_resources"]["listeners"][0]
    network = listener["filter_chains"][0]["filters"][0]
    manager = {key: value for key, value in network["typed_config"].items() if key != "rds"}
    routes = {key: value for key, value in rendered.routes["resources"][0].items() if key != "@type"}
    manager["route_config"] = routes
    filters = [{**network, "typed_config": manager}]
    clusters = [{k: v for k, v in c.items() if k != "@type"} for c in rendered.clusters["resources"]]
    return {
        **{key: value for key, value in start.items() if key != "dynamic_resources"},
        "static_resources": {
            "listeners": [{**listener, "filter_chains": [{"filters": filters}]}],
            "clusters": clusters,
        },
    }


def _source(config: GatewayConfig, name: str) -> Json:
    path: Json = {"path": f"{config.folder}/{name}"}
    if config.watch_folder:
        path["watched_directory"] = {"path": config.folder}
    return {"resource_api_version": "V3", "path_config_source": path}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"

"""The door of the gateway: TLS, client certificates, bearer tokens and rate limits, by Envoy's configuration alone.

Certificates are in files that Envoy reads again when one is renamed into their folder. Tokens are routes, so that a reload changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from thinktwice.experiment.gateway_config import GatewayConfig, RateLimit, Tls

Json = dict[str, Any]

SERVER, CLIENTS = "server", "clients"  # names of secrets
PROBE_SOCKET = "probe.sock"
AUTHORIZATION = "authorization"


def is_guarded(config: GatewayConfig) -> bool:
    """Whether the listener may refuse a request of the gateway itself, which then comes by a socket of this user."""
    return any(value is not None for value in (config.tls, config.rate_limit, config.connection_rate_limit))


def secret_files(config: GatewayConfig) -> dict[str, Json]:
    """Contents by name of the files with the paths of certificates, one secret a file as Envoy wants it; none without TLS."""
    if config.tls is None:
        return {}
    kind = _type("extensions.transport_sockets.tls.v3.Secret")
    return {
        secret_name(name): {"version_info": "1", "resources": [{"@type": kind, "name": name, **secret}]}
        for name, secret in _secrets(config.tls, watch=True).items()
    }


def secret_name(secret: str) -> str:
    """Name of the file of a secret."""
    return f"sds-{secret}.json"


def transport_socket(config: GatewayConfig, source: Callable[[str], Json]) -> Json | None:
    """TLS of the listener; None without it.

    Args:
        source: returns Envoy's ``config_source`` of a file.
    """
    if config.tls is None:
        return None
    common: Json = {
        **_tls_basics(),
        "tls_certificate_sds_secret_configs": [{"name": SERVER, "sds_config": source(secret_name(SERVER))}],
    }
    if config.tls.client_ca is not None:
        common["validation_context_sds_secret_config"] = {"name": CLIENTS, "sds_config": source(secret_name(CLIENTS))}
    return _socket(common, config.tls)


def inlined_socket(config: GatewayConfig) -> Json | None:
    """The same with the files themselves, for ``envoy --mode validate``, which opens no secret file."""
    if config.tls is None:
        return None
    secrets = _secrets(config.tls, watch=False)
    common: Json = {**_tls_basics(), "tls_certificates": [secrets[SERVER]["tls_certificate"]]}
    if CLIENTS in secrets:
        common["validation_context"] = secrets[CLIENTS]["validation_context"]
    return _socket(common, config.tls)


def limit_filters(config: GatewayConfig) -> list[Json]:
    """HTTP filters that answer 429 above a rate: of all requests together, and of one connection."""
    limits = (("all", config.rate_limit), ("connection", config.connection_rate_limit))
    return [_limit(name, limit) for name, limit in limits if limit is not None]


def bearers(tokens: Sequence[str]) -> list[str]:
    """Values of the header ``authorization`` that are accepted."""
    return [f"Bearer {token}" for token in tokens]


def _limit(name: str, limit: RateLimit) -> Json:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    bucket = {
        "max_tokens": limit.burst or limit.requests_per_second,
        "tokens_per_fill": limit.requests_per_second,
        "fill_interval": "1s",
    }
    return {
        "name": f"envoy.filters.http.local_ratelimit.{name}",
        "typed_config": {
            "@type": _type("extensions.filters.http.local_ratelimit.v3.LocalRateLimit"),
            "stat_prefix": f"limit_{name}",
            "token_bucket": bucket,
            "filter_enabled": always,
            "filter_enforced": always,
            "local_rate_limit_per_downstream_connection": name == "connection",
        },
    }


def _secrets(tls: Tls, *, watch: bool) -> dict[str, Json]:
    certificate: Json = {
        "certificate_chain": {"filename": tls.certificate},
        "private_key": {"filename": tls.key},
    }
    if watch:
        certificate["watched_directory"] = {"path": str(PurePath(tls.certificate).parent)}
    secrets: dict[str, Json] = {SERVER: {"tls_certificate": certificate}}
    if tls.client_ca is not None:
        context: Json = {"trusted_ca": {"filename": tls.client_ca}}
        if watch:
            context["watched_directory"] = {"path": str(PurePath(tls.client_ca).parent)}
        secrets[CLIENTS] = {"validation_context": context}
    return secrets


def _tls_basics() -> Json:
    return {"tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}, "alpn_protocols": ["h2", "http/1.1"]}


def _socket(common: Json, tls: Tls) -> Json:
    context: Json = {
        "@type": _type("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": common,
    }
    if tls.client_ca is not None:
        context["require_client_certificate"] = True
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"

"""Gateway settings: listener, addresses of the arms, timeouts. Routes are rendered from them and the experiment."""

from __future__ import annotations

import ipaddress
import re
from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from thinktwice.frozen import Frozen, WrittenCount, WrittenNumber


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", value):
        raise ValueError(f"host {value!r} is not an address or name")
    return value


def _header(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,63}", value):
        raise ValueError(f"header {value!r} must be lower-case letters, digits and '-'")
    if value in OWN_HEADERS:
        raise ValueError(f"header {value!r} is set by the gateway, choose another")
    return value


#: Headers that the gateway sets; values from clients are removed.
ARM, ENROLLED, EXPERIMENT, BUCKET, UNIT_HEADER = "x-arm", "x-enrolled", "x-experiment", "x-bucket", "x-ab-unit"
SALT_HEADER = "x-ab-salt"  # of the assignment: predictors compute the bucket with it
HOST_HEADER = "x-ab-host"  # the caller's Host: that of a shadow copy ends with "-shadow", but so may a caller's
OWN_HEADERS = (ARM, ENROLLED, EXPERIMENT, BUCKET, UNIT_HEADER, SALT_HEADER, HOST_HEADER)
SERVED_ARM = "x-served-arm"  # of the answer: the arm that served it


MOST = 2**32 - 1  # that the proxy can count


class Endpoint(Frozen):
    """An address of one replica, or a name that resolves to replicas."""

    host: Annotated[str, AfterValidator(_host)]
    port: int = Field(ge=1, le=65535)

    @property
    def is_address(self) -> bool:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


class RateLimit(Frozen):
    """Most requests per second; ``burst`` more may come at once after a pause (default: those of one second)."""

    requests_per_second: WrittenCount = Field(ge=1, le=10_000_000)
    burst: WrittenCount | None = Field(default=None, ge=1, le=10_000_000)

    @model_validator(mode="after")
    def _consistent(self) -> RateLimit:
        if self.burst is not None and self.burst < self.requests_per_second:
            raise ValueError(f"burst {self.burst} is less than requests_per_second {self.requests_per_second}")
        return self


class Tls(Frozen):
    """TLS of the listener: paths of PEM files as Envoy sees them.

    Attributes:
        certificate, key: chain and private key of the server, in one folder.
        client_ca: authorities of client certificates; with it a client without one is refused in the handshake.
    """

    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)
    client_ca: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Tls:
        if PurePath(self.certificate).parent != PurePath(self.key).parent:
            raise ValueError(
                f"certificate {self.certificate} and key {self.key} must be in one folder, which is watched"
            )
        return self


class GatewayConfig(Frozen):
    """One gateway.

    Attributes:
        folder: folder of its files at run time: ``rds.json``, ``cds.json``.
        log_folder: folder of ``access.log`` and ``admin.sock``; by default the same, which must be writable then.
        model: name of the model in the paths of requests.
        unit_header: header in which clients send the unit.
        watch_folder: watch the folder and not the files: needed if the files are links that change (a ConfigMap).
        timeout, per_try_timeout: seconds; the latter must be well above the control's p99.9, or requests are retried on
            control. A predictor refuses requests beyond its own deadline, one second by default.
        shadow: arms, by experiment and arm as ``experiment/arm``, that receive a copy of the control's requests.
        max_in_flight: requests, connections and retries that one arm may have at once.
        health_path: liveness path of an arm; its answers show whether it predicts.
        max_body_bytes: maximum size of a request's body, as the predictor's setting of the same name.
        max_connections: total number of client connections.
        head_timeout, request_timeout: seconds a client has to send the headers, and the whole request.
        idle_timeout: seconds until a connection without requests is closed.
        rate_limit, connection_rate_limit: of all requests together, and of those of one connection; more are answered 429.
        tls: of the listener; None: plain HTTP.
        token_file: file with the bearer tokens of which a prediction needs one, a line each; None: no token is needed.
    """

    folder: str = "."
    log_folder: str | None = None
    model: str = Field(default="ctr", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    listen: Endpoint = Endpoint(host="127.0.0.1", port=8080)
    unit_header: Annotated[str, AfterValidator(_header)] = "x-experiment-unit"
    watch_folder: bool = False
    connect_timeout: WrittenNumber = Field(default=0.25, gt=0, le=60)
    timeout: WrittenNumber = Field(default=3.0, gt=0, le=600)
    per_try_timeout: WrittenNumber = Field(default=1.0, gt=0, le=600)
    retries: WrittenCount = Field(default=2, ge=0, le=5)
    max_in_flight: WrittenCount = Field(default=1024, ge=1, le=MOST)
    health_path: str = Field(default="/v2/health/ready", pattern=r"^/[!-~]*$")
    shadow: tuple[str, ...] = ()
    shadow_in_flight: WrittenCount = Field(default=50, ge=1, le=MOST)
    max_body_bytes: WrittenCount = Field(default=4 << 20, ge=1024, le=64 << 20)
    max_connections: WrittenCount = Field(default=1024, ge=1, le=MOST)
    head_timeout: WrittenNumber = Field(default=10.0, gt=0, le=600)
    request_timeout: WrittenNumber = Field(default=20.0, gt=0, le=600)
    idle_timeout: WrittenNumber = Field(default=60.0, gt=0, le=3600)
    rate_limit: RateLimit | None = None
    connection_rate_limit: RateLimit | None = None
    tls: Tls | None = None
    token_file: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> GatewayConfig:
        if self.per_try_timeout > self.timeout:
            raise ValueError(f"per_try_timeout {self.per_try_timeout} is longer than timeout {self.timeout}")
        return self

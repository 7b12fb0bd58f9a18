"""Where the gateway listens, where its arms are and how long it waits: what the routes need besides the experiment."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


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


#: Headers that the gateway sets and that a client's own values never reach.
ARM, ENROLLED, EXPERIMENT, BUCKET, UNIT_HEADER = "x-arm", "x-enrolled", "x-experiment", "x-bucket", "x-ab-unit"
OWN_HEADERS = (ARM, ENROLLED, EXPERIMENT, BUCKET, UNIT_HEADER)
SERVED_ARM = "x-served-arm"  # of the answer: who gave it


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Endpoint(_Frozen):
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


class GatewayConfig(_Frozen):
    """One gateway.

    Attributes:
        folder: where its files are at run time: ``rds.json``, ``cds.json``, ``access.log``, ``admin.sock``.
        unit_header: header in which clients send the unit.
        watch_folder: watch the folder and not the files: needed where files are links that change (a ConfigMap).
        timeout, per_try_timeout: seconds; the latter must exceed the control's p99.9 with room, or its retries go back.
        shadow: arms, by experiment and arm as ``experiment/arm``, that get a copy of the control's requests.
        max_in_flight: requests, connections and retries that one arm may have at once.
    """

    folder: str = "."
    listen: Endpoint = Endpoint(host="127.0.0.1", port=8080)
    unit_header: Annotated[str, AfterValidator(_header)] = "x-experiment-unit"
    watch_folder: bool = False
    connect_timeout: float = Field(default=0.25, gt=0, le=60)
    timeout: float = Field(default=2.0, gt=0, le=600)
    per_try_timeout: float = Field(default=0.5, gt=0, le=600)
    retries: int = Field(default=2, ge=0, le=5)
    max_in_flight: int = Field(default=1024, ge=1)
    health_path: str = Field(default="/_health", pattern=r"^/[!-~]*$")
    shadow: tuple[str, ...] = ()
    shadow_in_flight: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> GatewayConfig:
        if self.per_try_timeout > self.timeout:
            raise ValueError(f"per_try_timeout {self.per_try_timeout} is longer than timeout {self.timeout}")
        return self

"""The schema of a rendered route file: all allowed keys, typed. Other keys are refused: Envoy may give them a meaning that
is not checked."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thinktwice.errors import ExperimentError, reason
from thinktwice.experiment.routes import FORMAT, METADATA, ROUTE_CONFIG


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HeaderValue(_Shape):
    key: str
    value: str


class HeaderOption(_Shape):
    header: HeaderValue
    append_action: str


class Entry(_Shape):
    """One range of buckets."""

    name: str
    weight: int = Field(gt=0)
    request_headers_to_add: list[HeaderOption]


class Weighted(_Shape):
    use_hash_policy: bool
    clusters: list[Entry]


class Mirror(_Shape):
    cluster: str
    runtime_fraction: dict[str, Any]


class Action(_Shape):
    cluster: str | None = None
    weighted_clusters: Weighted | None = None
    hash_policy: list[dict[str, Any]] = []
    request_mirror_policies: list[Mirror] = []
    timeout: str
    retry_policy: dict[str, Any]


class RenderedFrom(_Shape):
    format: int
    salt: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
    experiments: dict[str, str]


class Text(_Shape):
    inline_string: str


class DirectResponse(_Shape):
    """A direct answer of the gateway."""

    status: int = Field(ge=200, le=599)
    body: Text


class Metadata(_Shape):
    filter_metadata: dict[str, RenderedFrom]

    @property
    def ours(self) -> RenderedFrom | None:
        return self.filter_metadata.get(METADATA)


class Match(_Shape):
    prefix: str
    headers: list[dict[str, Any]] = []


class Route(_Shape):
    """Routed to an arm, or answered by an ingress rule."""

    name: str
    match: Match
    route: Action | None = None
    direct_response: DirectResponse | None = None
    response_headers_to_add: list[HeaderOption] = []
    typed_per_filter_config: dict[str, Any] = {}
    stat_prefix: str = ""
    request_headers_to_add: list[HeaderOption] = []
    request_headers_to_remove: list[Literal["x-force-arm"]] = []
    metadata: Metadata | None = None


class VirtualHost(_Shape):
    name: str
    domains: list[str]
    include_request_attempt_count: bool
    request_body_buffer_limit: int = Field(gt=0)
    routes: list[Route]


class RouteConfig(_Shape):
    type_: str = Field(alias="@type")
    name: str
    validate_clusters: bool
    request_headers_to_add: list[HeaderOption]
    request_headers_to_remove: list[Literal["authorization"]] = []
    response_headers_to_add: list[HeaderOption]
    virtual_hosts: list[VirtualHost]


class _RouteFile(_Shape):
    version_info: str
    resources: list[RouteConfig]


class Aggregate(_Shape):
    type_: str = Field(alias="@type")
    clusters: list[str]


class ClusterType(_Shape):
    name: str
    typed_config: Aggregate


class Cluster(BaseModel):
    """Only what routes depend on; how replicas are reached is up to the operator."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str
    cluster_type: ClusterType | None = None


class _ClusterFile(_Shape):
    version_info: str
    resources: list[Cluster]


Content = bytes | str | dict[str, Any]
Shape = TypeVar("Shape", _RouteFile, _ClusterFile)


def read_routes(content: Content) -> RouteConfig:
    """The one route configuration of a file.

    Raises:
        ExperimentError: it is not JSON, has another version, or does not match this schema.
    """
    file = _read(_RouteFile, content, "routes")
    if len(file.resources) != 1 or file.resources[0].name != ROUTE_CONFIG:
        names = [r.name for r in file.resources]
        raise ExperimentError(
            f"routes refused: the file contains the configurations {names}, not {ROUTE_CONFIG!r} alone: render the routes again"
        )
    return file.resources[0]


def read_clusters(content: Content) -> list[Cluster]:
    """The clusters of a file.

    Raises:
        ExperimentError: as :func:`read_routes`.
    """
    return _read(_ClusterFile, content, "clusters").resources


def _read(shape: type[Shape], content: Content, what: str) -> Shape:
    if not isinstance(content, dict):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ExperimentError(
                f"{what} refused: the file is not JSON ({type(error).__name__}), render it again"
            ) from None
    version = content.get("version_info") if isinstance(content, dict) else None
    if not isinstance(version, str) or not version.startswith(f"{FORMAT}-"):
        raise ExperimentError(
            f"{what} refused: the file is of version {version!r}; this thinktwice reads {FORMAT}-…, render it again"
        )
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise ExperimentError(f"{what} refused: {reason(error)}") from None

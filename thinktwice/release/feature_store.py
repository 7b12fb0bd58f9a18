"""The content of a feature store folder, and the two checks before a feature store library reads it.

The folder has Feast's format: settings, a registry, tables, optionally the online values. Feast runs code in a registry,
imports classes named in settings or a registry, and substitutes environment variables in settings. Therefore the settings and
the registry are parsed here first, and everything that the materialize step does not write is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from thinktwice.errors import FeatureStoreError, reason
from thinktwice.frozen import Frozen
from thinktwice.hashing import read_plain
from thinktwice.schema import SCHEMA_FILE
from thinktwice.strict_yaml import parse_yaml

if TYPE_CHECKING:
    from google.protobuf.message import Message

FEATURE_STORE = "feature_store"  # folder next to an archive
SETTINGS_FILE = "feature_store.yaml"
INFO_FILE = "feature_store.json"
REGISTRY_FILE = "registry.db"
ONLINE_FILE = "online.db"
ONLINE_SIDE_FILES = frozenset(
    f"{ONLINE_FILE}{end}" for end in ("-wal", "-shm", "-journal")
)  # SQLite's files while the database is open
DATA = "data"  # folder of the tables
PUSHED = f"{DATA}/log_instant.parquet"  # marks a store that feedback updates: its online values change
SMALL_FILES = (SETTINGS_FILE, INFO_FILE, REGISTRY_FILE, SCHEMA_FILE)
MAX_SETTINGS, MAX_REGISTRY = 64 << 10, 8 << 20  # bytes

REDIS_ADDRESS = "THINKTWICE_REDIS_ADDRESS"  # host:port, optionally followed by comma-separated options
REDIS_PASSWORD = "THINKTWICE_REDIS_PASSWORD"  # noqa: S105 - the name of a variable; sent to that address alone
NOT_CONNECTED = {REDIS_ADDRESS: "-", REDIS_PASSWORD: "-"}  # environment of a reader that asks no Redis
REGISTRY_URL = "THINKTWICE_FEAST_REGISTRY"  # of the shared registry, with its password; no predictor reads it
#: Permitted options after the address of a Redis in the settings of a store.
REDIS_OPTIONS = frozenset(
    {
        "db",
        "username",
        "password",
        "ssl",
        "ssl_ca_certs",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_cert_reqs",
        "ssl_check_hostname",
        "socket_timeout",
        "socket_connect_timeout",
        "skip_full_coverage_check",
    }
)
FIX = "materialize the features again"


def is_store_file(name: str) -> bool:
    """Whether the materialize step writes this path within the folder."""
    return name in (*SMALL_FILES, ONLINE_FILE) or re.fullmatch(rf"{DATA}/[A-Za-z0-9_]+\.parquet", name) is not None


class _Registry(Frozen):
    registry_type: Literal["file"]
    path: Literal["registry.db"]
    cache_ttl_seconds: Annotated[int, Field(ge=0, strict=True)] = 0
    serve_features_while_materializing: bool = True


class _Offline(Frozen):
    type: Literal["duckdb", "file"]


class _Sqlite(Frozen):
    type: Literal["sqlite"]
    path: Literal["online.db"]


class _Redis(Frozen):
    type: Literal["redis"]
    connection_string: Annotated[str, Field(repr=False)]  # may contain a password
    redis_type: Literal["redis", "redis_cluster", "redis_sentinel"] = "redis"
    sentinel_master: str = "mymaster"
    key_ttl_seconds: Annotated[int, Field(ge=1, strict=True)] | None = None


class _Materialization(Frozen):
    online_write_batch_size: Annotated[int, Field(ge=1, strict=True)]


class _Auth(Frozen):
    type: Literal["no_auth"]


class StoreSettings(Frozen):
    """Content of ``feature_store.yaml`` after substitution of environment variables."""

    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    provider: Literal["local"]
    registry: _Registry
    online_store: Annotated[_Sqlite | _Redis, Field(discriminator="type")]
    offline_store: _Offline | None = None
    materialization: _Materialization | None = None
    entity_key_serialization_version: Literal[3]
    auth: _Auth | None = None

    def for_feast(self, *, offline: bool) -> dict[str, Any]:
        """Arguments of Feast's configuration; without ``offline``, the offline store is left out, whose packages a predictor
        does not have."""
        return self.model_dump(exclude_unset=True, exclude=None if offline else {"offline_store"})


def read_settings(folder: Path, environment: Mapping[str, str] = os.environ) -> StoreSettings:
    """Read the settings of a store. Only the address and the password of a Redis are taken from the environment.

    Raises:
        FeatureStoreError: they are missing, or contain something that the materialize step does not write; the message names
        it.
    """
    path = folder / SETTINGS_FILE
    try:
        value = parse_yaml(read_plain(path, MAX_SETTINGS).decode("utf-8"))
    except FileNotFoundError:
        raise FeatureStoreError(
            f"{folder} is not a feature store (no {SETTINGS_FILE}): run the materialize step, or correct the path"
        ) from None
    except (OSError, ValueError) as error:
        raise FeatureStoreError(f"{path} cannot be read ({reason(error)}): {FIX}") from error
    try:
        online = value.get("online_store") if isinstance(value, dict) else None
        if isinstance(online, dict) and isinstance(online.get("connection_string"), str):
            connection = online["connection_string"]
            _refuse_variables({**value, "online_store": {**online, "connection_string": ""}})
            value = {
                **value,
                "online_store": {**online, "connection_string": redis_connection(connection, environment)},
            }
        else:
            _refuse_variables(value)
        return StoreSettings.model_validate(value)
    except ValueError as error:
        raise FeatureStoreError(f"{path} is refused ({reason(error)}): {FIX}") from error


def redis_connection(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The connection string of a Redis, with address and password from the environment.

    The password is sent only to the address in the environment, otherwise a store could have it sent anywhere. It is added if
    the settings do not name one.

    Raises:
        ValueError: an unknown variable, option or format.
    """
    address, *options = text.split(",")
    from_environment = address in (f"${REDIS_ADDRESS}", f"${{{REDIS_ADDRESS}}}")
    passwords = (f"password=${REDIS_PASSWORD}", f"password=${{{REDIS_PASSWORD}}}")
    named = [option for option in options if option in passwords]
    for part in [option for option in options if option not in passwords] + [address] * (not from_environment):
        if variables := list(_variables(part)):
            raise ValueError(_unknown_variable(variables[0]))
        name, sign, _ = part.partition("=")
        if sign and name not in REDIS_OPTIONS:
            raise ValueError(f"the connection option {name!r} is unknown, known are {', '.join(sorted(REDIS_OPTIONS))}")
        if not sign and (from_environment or not re.fullmatch(r"[^\s:=]+:[0-9]{1,5}", part)):
            raise ValueError("the address of a Redis is not host:port, with option=value after commas")
    if named and not from_environment:
        raise ValueError(f"{REDIS_PASSWORD} is sent to the address in {REDIS_ADDRESS} alone: name that address too")
    if not from_environment:
        return text
    out = [environment.get(REDIS_ADDRESS, ""), *(option for option in options if option not in passwords)]
    if not out[0]:
        raise ValueError(f"it names the variable {REDIS_ADDRESS}, which is not set: set {REDIS_ADDRESS} to host:port")
    password = environment.get(REDIS_PASSWORD, "")
    if named and not password:
        raise ValueError(f"it names the variable {REDIS_PASSWORD}, which is not set")
    if "," in password:
        raise ValueError(
            f"{REDIS_PASSWORD} contains a comma, which a connection string cannot: choose another password"
        )
    if password and not any(option.startswith("password=") for option in ",".join(out).split(",")):
        out.append(f"password={json.dumps(password)}")  # Feast parses options as JSON: keep digits a string
    return ",".join(out)


def _refuse_variables(value: Any) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse_variables(key)
            _refuse_variables(part)
    elif isinstance(value, list):
        for part in value:
            _refuse_variables(part)
    elif isinstance(value, str):
        for name in _variables(value):
            raise ValueError(_unknown_variable(name))


def _variables(text: str) -> Iterator[str]:
    """Names of apparent environment variables; "" for a dollar sign without a name."""
    for match in re.finditer(r"\$(?:\{([^}]*)\}?|(\w*))", text):
        yield match[1] or match[2] or ""


def _unknown_variable(name: str) -> str:
    return (
        f"it names the variable {name!r} of the environment; only {REDIS_ADDRESS} and {REDIS_PASSWORD} are taken from there, "
        "into online_store.connection_string"
    )


_TIMES = {"created_timestamp", "last_updated_timestamp"}
#: Permitted fields of a registry, by message; all others are refused.
ALLOWED: Mapping[str, frozenset[str]] = {
    name: frozenset(fields)
    for name, fields in {
        "feast.core.Registry": {
            "entities",
            "feature_views",
            "data_sources",
            "feature_services",
            "projects",
            "project_metadata",
            "feature_view_version_history",
            "registry_schema_version",
            "version_id",
            "last_updated",
        },
        "feast.core.Entity": {"spec", "meta"},
        "feast.core.EntitySpecV2": {"name", "project", "value_type", "join_key", "description", "owner", "tags"},
        "feast.core.EntityMeta": _TIMES,
        "feast.core.FeatureView": {"spec", "meta"},
        "feast.core.FeatureViewSpec": {
            "name",
            "project",
            "entities",
            "entity_columns",
            "features",
            "ttl",
            "batch_source",
            "stream_source",
            "online",
            "description",
            "owner",
            "tags",
            "version",
        },
        "feast.core.FeatureViewMeta": {*_TIMES, "materialization_intervals", "state"},
        "feast.core.MaterializationInterval": {"start_time", "end_time"},
        "feast.core.FeatureSpecV2": {"name", "value_type", "description", "tags"},
        "feast.core.DataSource": {
            "name",
            "project",
            "type",
            "data_source_class_type",
            "file_options",
            "batch_source",
            "timestamp_field",
            "created_timestamp_column",
            "description",
            "owner",
            "tags",
            "meta",
        },
        "feast.core.DataSource.FileOptions": {"file_format", "uri"},
        "feast.core.DataSource.SourceMeta": _TIMES,
        "feast.core.FileFormat": {"parquet_format"},
        "feast.core.FileFormat.ParquetFormat": set(),
        "feast.core.FeatureService": {"spec", "meta"},
        "feast.core.FeatureServiceSpec": {"name", "project", "features", "description", "owner", "tags"},
        "feast.core.FeatureServiceMeta": _TIMES,
        "feast.core.FeatureViewProjection": {
            "feature_view_name",
            "feature_columns",
            "batch_source",
            "timestamp_field",
            "created_timestamp_column",
            "view_type",
        },
        "feast.core.FeatureViewVersionHistory": {"records"},
        "feast.core.FeatureViewVersionRecord": {
            "feature_view_name",
            "project_id",
            "feature_view_type",
            "feature_view_proto",
            "created_timestamp",
            "version_id",
        },
        "feast.core.Project": {"spec", "meta"},
        "feast.core.ProjectSpec": {"name"},
        "feast.core.ProjectMeta": _TIMES,
        "feast.core.ProjectMetadata": {"project", "project_uuid"},
        "google.protobuf.Timestamp": {"seconds", "nanos"},
        "google.protobuf.Duration": {"seconds", "nanos"},
    }.items()
}
#: Permitted values of fields that name a class, a file or a kind of object.
VALUES = {
    ("feast.core.DataSource", "type"): r"1|9",  # BATCH_FILE, PUSH_SOURCE: neither contains code
    ("feast.core.DataSource", "data_source_class_type"): (
        r"feast\.infra\.offline_stores\.file_source\.FileSource|feast\.data_source\.PushSource"
    ),
    ("feast.core.DataSource.FileOptions", "uri"): rf"{DATA}/[A-Za-z0-9_]+\.parquet",
    ("feast.core.FeatureViewProjection", "view_type"): r"featureView",
    ("feast.core.FeatureViewVersionRecord", "feature_view_type"): r"feature_view",
}
#: Permitted tags; others may refer to connections. Stores of older versions are tagged with the model version.
TAGS = frozenset({"schema", "feature_version", "model_version", "kind", "definition"})


def read_registry(path: Path, registry: type[Message], view: type[Message]) -> bytes:
    """The bytes of a registry, after a check that it contains only entities, views of files and services, and no code.

    Args:
        registry, view: Feast's message classes of the file, and of a feature view, which the version history contains as bytes.
        Messages are parsed and checked; no Feast objects are created.

    Raises:
        FeatureStoreError: it is missing, damaged, or contains something else; the message names the field.
    """
    try:
        data = read_plain(path, MAX_REGISTRY)
        _check_message(parse_message(registry, data), view, "")
    except (OSError, ValueError) as error:
        raise FeatureStoreError(f"{path} is refused ({reason(error)}): {FIX}") from error
    return data


def parse_message(kind: type[Message], data: bytes) -> Message:
    """Parse a message of this class; raises a ValueError if the bytes are not one."""
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(data)
    except DecodeError:
        raise ValueError(f"it is not a {kind.DESCRIPTOR.full_name} message") from None


def _check_message(message: Message, view: type[Message], path: str) -> None:
    from google.protobuf.unknown_fields import UnknownFieldSet

    kind = message.DESCRIPTOR.full_name
    if kind not in ALLOWED:
        raise ValueError(f"it contains {path or 'a message'} of the kind {kind}")
    if len(UnknownFieldSet(message)):
        raise ValueError(f"it contains a field in {path or kind} that the installed Feast does not know")
    for field, value in message.ListFields():
        field_path = f"{path}.{field.name}" if path else field.name
        if field.name not in ALLOWED[kind]:
            raise ValueError(
                f"it contains {field_path}, which may contain neither code nor transformations nor objects of another kind"
            )
        if field.name == "tags":
            if unknown := sorted(set(value) - TAGS):
                raise ValueError(f"it contains the unknown tag {unknown[0]!r} in {field_path}")
            continue
        if (pattern := VALUES.get((kind, field.name))) and not re.fullmatch(pattern, str(value)):
            raise ValueError(f"{field_path} is {str(value)!r}")
        if field.name == "feature_view_proto":
            _check_message(parse_message(view, value), view, field_path)
        elif field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                _check_message(part, view, field_path)

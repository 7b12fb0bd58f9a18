"""The shared registry: one SQL database in which feature versions are published for discovery and for other consumers.

A predictor never reads it. It reads the registry file in the immutable folder of its release, so a registry that is down, or was changed, does not
reach a served model. Publishing copies the objects of that file: both have the same definitions. Each feature version is a Feast project.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_repo.definitions import OWNER
from feature_repo.sdk import load_sdk
from feature_repo.store import FeatureStoreInfo, open_store, quiet, read_info
from thinktwice.errors import FeatureStoreError, reason
from thinktwice.progress import note
from thinktwice.release.feature_store import DATA, REGISTRY_URL

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

SCHEMES = ("postgresql", "postgresql+psycopg")
TIMEOUT_S = 10
ATTEMPTS = 3  # of publishing, where `feast apply` of another consumer writes at the same time
LOCK_LIMIT_S = 120  # for other publishers to finish
LOCK = 0x74_68_69_6E_6B_32_78  # PostgreSQL's advisory lock of publishers: "think2x"
LOCK_NOT_AVAILABLE = "55P03"  # SQLSTATE


class Published(NamedTuple):
    """A feature version in the shared registry; ``location`` is its folder, with the tables."""

    project: str
    feature_version: str
    feature_service: str
    schema_name: str
    online_store: str
    start: str  # ISO 8601 UTC, the materialized range
    end: str
    location: str


def registry_url(environment: Mapping[str, str] = os.environ) -> str:
    """The address in ``THINKTWICE_FEAST_REGISTRY``; "" if there is no shared registry."""
    return environment.get(REGISTRY_URL, "").strip()


def publish(store_dir: Path | str, url: str, location: str = "") -> Published | None:
    """Publish the definitions of a feature store folder; the folder does not change. Publishing again changes nothing.

    A version counts as published when all of its objects are there, so a publication that was interrupted is not listed, and is completed by the
    next one.

    Args:
        url: of a PostgreSQL database, ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``.
        location: where others find the folder, with a scheme or as a path; the folder itself if empty.

    Returns:
        What was published; None for a log without users and items, which has nothing to look up.

    Raises:
        FeatureStoreError: the folder is not a feature store, or the registry does not respond or refuses.
    """
    store_dir = Path(store_dir)
    info = read_info(store_dir)
    if not info.feature_service:
        return None
    found = Published(
        info.project,
        info.feature_version,
        info.feature_service,
        info.schema_name,
        info.online_store,
        info.start,
        info.end,
        _location(location or str(store_dir)),
    )
    database = _checked(url)
    objects = _objects(store_dir, info, found.location)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _apply(database, found, objects)
            break
        except _Conflict as error:
            if attempt == ATTEMPTS:
                raise FeatureStoreError(
                    f"the registry {_shown(database)} was changed by others while {found.project} was published ({error}): publish again"
                ) from error
    note("materialize", f"{found.feature_service} published in the registry {_shown(database)}")
    return found


def published(url: str) -> list[Published]:
    """The published feature versions, the latest data first. Reads only.

    Raises:
        FeatureStoreError: the registry does not respond or refuses.
    """
    database = _checked(url)
    load_sdk()
    from feast.infra.registry.sql import projects
    from feast.protos.feast.core.Project_pb2 import Project
    from sqlalchemy import create_engine, inspect, select

    with _as_sentences(database):
        engine = create_engine(database, connect_args={"connect_timeout": TIMEOUT_S})
        try:
            with engine.connect() as connection:
                if not inspect(connection).has_table(projects.name):
                    return []
                rows = connection.execute(select(projects.c.project_proto)).scalars().all()
        finally:
            engine.dispose()
    specs = [Project.FromString(row).spec for row in rows]
    ours = [Published(spec.name, **_of_tags(spec.tags)) for spec in specs if spec.owner == OWNER]
    return sorted(ours, key=lambda each: (each.end, each.project), reverse=True)


class _Conflict(Exception):  # noqa: N818 - not an error that anybody sees
    """Another process wrote the same rows or tables."""


def _apply(database: URL, found: Published, objects: Mapping[str, list[Any]]) -> None:
    """Write all objects, the description of the project last."""
    from feast import Project
    from feast.infra.registry.sql import SqlRegistry, SqlRegistryConfig
    from sqlalchemy.exc import IntegrityError, ProgrammingError
    from sqlalchemy.pool import NullPool

    config = SqlRegistryConfig(
        registry_type="sql",
        path=database.render_as_string(hide_password=False),
        cache_ttl_seconds=0,
        # No pool: a registry whose constructor fails leaves no connection open.
        sqlalchemy_config_kwargs={
            "echo": False,
            "connect_args": {"connect_timeout": TIMEOUT_S},
            "poolclass": NullPool,
        },
    )
    project = Project(
        name=found.project,
        description=f"Features of the log {found.schema_name}, version {found.feature_version}.",
        tags=_tags(found),
        owner=OWNER,
    )
    try:
        with _as_sentences(database), _alone(database), quiet():
            registry = SqlRegistry(config, found.project, None)
            for entity in objects["entities"]:
                registry.apply_entity(entity, found.project)
            for source in objects["sources"]:
                registry.apply_data_source(source, found.project)
            for view in objects["views"]:
                registry.apply_feature_view(view, found.project)
            for service in objects["services"]:
                registry.apply_feature_service(service, found.project)
            registry.apply_project(project)
    except (IntegrityError, ProgrammingError) as error:
        raise _Conflict(reason(error)) from error


@contextmanager
def _alone(database: URL) -> Iterator[None]:
    """Hold the lock of publishers: Feast reads and then writes, and creates tables, without one."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.pool import NullPool

    engine = create_engine(database, connect_args={"connect_timeout": TIMEOUT_S}, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_LIMIT_S}s'"))
        # A database may end transactions that wait for their client; this one waits for the publication.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        try:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise FeatureStoreError(
                f"another publication in the registry {_shown(database)} did not end within {LOCK_LIMIT_S} s: publish again when it has ended"
            ) from error
        yield


def _objects(store_dir: Path, info: FeatureStoreInfo, location: str) -> dict[str, list[Any]]:
    """The objects of the folder's registry; their tables are at ``location``."""
    with open_store(store_dir) as store, quiet():
        found: dict[str, list[Any]] = {
            "entities": [entity for entity in store.list_entities() if not entity.name.startswith("__")],
            "sources": store.list_data_sources(),
            "views": store.list_feature_views(),
            "services": [store.get_feature_service(info.feature_service)],
        }
    return {kind: [_moved(each, location) for each in each_kind] for kind, each_kind in found.items()}


def _moved(thing: Any, location: str) -> Any:
    message = thing.to_proto()
    _move(message, location)
    return _class(thing).from_proto(message)


def _class(thing: Any) -> Any:
    from feast.data_source import DataSource

    return DataSource if isinstance(thing, DataSource) else type(thing)


def _move(message: Any, location: str) -> None:
    """Change the paths of all data sources in a message, at any depth."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.name == "FileOptions" and value.uri.startswith(f"{DATA}/"):
            value.uri = f"{location}/{value.uri}"
        elif field.message_type.GetOptions().map_entry:
            continue
        else:
            for each in value if hasattr(value, "add") else [value]:
                _move(each, location)


def _location(text: str) -> str:
    """A place that means the same to everybody: with a scheme, or an absolute path."""
    if "://" not in text:
        return str(Path(text).resolve())
    return text.rstrip("/").replace("minio://", "s3://", 1)  # KFP's scheme for its own store


def _tags(found: Published) -> dict[str, str]:
    return {name: value for name, value in found._asdict().items() if name != "project"}


def _of_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: tags.get(name, "") for name in Published._fields if name != "project"}


def _checked(url: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    form = f"set {REGISTRY_URL} to postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    if not url:
        raise FeatureStoreError(f"no shared registry is named: {form}")
    try:
        database = make_url(url)
    except (ArgumentError, ValueError):
        # Not the text: it may contain a password.
        raise FeatureStoreError(f"the address of the shared registry is not a database URL: {form}") from None
    if database.drivername not in SCHEMES or not database.host or not database.database:
        raise FeatureStoreError(f"the shared registry {_shown(database)} is not a PostgreSQL database: {form}")
    return database.set(drivername="postgresql+psycopg")


def _shown(database: URL) -> str:
    """Without user, password and options."""
    port = f":{database.port}" if database.port else ""
    return f"{database.host or ''}{port}/{database.database or ''}"


@contextmanager
def _as_sentences(database: URL) -> Iterator[None]:
    from sqlalchemy.exc import OperationalError, ProgrammingError

    try:
        yield
    except OperationalError as error:
        raise FeatureStoreError(
            f"the shared registry {_shown(database)} cannot be used ({_first_line(error)}): start it, or correct {REGISTRY_URL}"
        ) from error
    except ProgrammingError as error:
        if "permission denied" not in str(error):
            raise
        raise FeatureStoreError(
            f"the shared registry {_shown(database)} refuses ({_first_line(error)}): publishing needs a user who may create and write "
            "its tables, and a reader one who may select from them"
        ) from error


def _first_line(error: Exception) -> str:
    """The database's own message, without SQL and parameters."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]

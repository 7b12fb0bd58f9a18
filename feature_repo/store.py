"""Feature store of one feature version, as a movable folder: tables, registry, online store, description.

The folder is built in a temporary folder and renamed when it is complete and its online values equal its tables. A predictor that
uses the previous folder keeps its own registry and is not interrupted while the next one is filled.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml

from feature_repo.definitions import define, project_name
from feature_repo.readback import compare_online
from feature_repo.sdk import load_sdk
from feature_repo.tables_engine import feast_engine
from thinktwice.choices import OnlineStoreKind, listed
from thinktwice.data.feature_tables import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    FeatureTables,
    build_feature_tables,
    table_specs,
)
from thinktwice.data.pushed_views import STATE, WATERMARK, instant_views
from thinktwice.errors import FeatureStoreError
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.parquet import write_table
from thinktwice.progress import note, track
from thinktwice.release.feature_store import (
    DATA,
    INFO_FILE,
    NOT_CONNECTED,
    REDIS_ADDRESS,
    REGISTRY_FILE,
    SETTINGS_FILE,
    read_registry,
    read_settings,
    redis_connection,
)
from thinktwice.schema import SCHEMA_FILE, LogSchema, load_schema

if TYPE_CHECKING:
    from feast import FeatureStore

FORMAT = 2
FROM_ENVIRONMENT = f"${{{REDIS_ADDRESS}}}"
WRITE_BATCH = 10_000  # rows per online write; without it Feast builds messages for all cells of a table at once


@dataclass(frozen=True)
class ViewInfo:
    """Description of one feature view."""

    name: str
    entity: str
    join_key: str
    features: tuple[str, ...]
    rows: int  # change points in its table


@dataclass(frozen=True)
class FeatureStoreInfo:
    """The content of ``feature_store.json``. ``feature_service`` is empty for a log without users and items."""

    format: int
    feature_service: str
    project: str
    feature_version: str
    schema_name: str
    online_store: OnlineStoreKind
    join_keys: dict[str, str]  # entity -> key column
    views: tuple[ViewInfo, ...]
    start: str  # ISO 8601 UTC, the materialized range
    end: str
    compared_values: int  # online values that were read back and equal the tables


def build(
    clean_dir: Path | str,
    out_dir: Path | str,
    *,
    feature_version: str,
    online: str = "sqlite",
    redis_address: str = "",
) -> FeatureStoreInfo:
    """Write the feature tables of a clean log, apply the Feast objects, fill the online store and read it back.

    Args:
        clean_dir: clean log with its schema.
        out_dir: folder to write; an existing one is replaced when the new one is complete.
        feature_version: names the feature service; see :func:`thinktwice.data.feature_tables.feature_version`.
        online: ``sqlite`` (a file in the folder) or ``redis``.
        redis_address: ``host:port`` of the Redis server; if empty, ``THINKTWICE_REDIS_ADDRESS`` (and the password in
            ``THINKTWICE_REDIS_PASSWORD``) is read whenever the store is opened.

    Raises:
        FeatureStoreError: Redis does not respond, or the online store returns values that differ from the tables.
        DataError: the clean log is missing or empty.
    """
    clean_dir = Path(clean_dir)
    schema = load_schema(clean_dir / SCHEMA_FILE)
    kind: OnlineStoreKind = "redis" if online == "redis" else "sqlite"
    if online != kind:
        raise FeatureStoreError(f"online store {online!r} is unknown: choose one of {listed(OnlineStoreKind)}")
    if online == "redis":
        _check_redis(_connection(redis_address))
    with atomic_dir(out_dir) as folder:
        tables = build_feature_tables(clean_dir, folder / DATA, schema)
        (folder / SCHEMA_FILE).write_text(schema.to_yaml(), encoding="utf-8")
        compared = 0
        service = ""
        _write_empty_tables(folder / DATA, schema)
        if tables.specs or instant_views(schema):
            write_config(folder, project_name(schema, feature_version), kind, redis_address)
            service, compared = _apply_and_materialize(folder, schema, feature_version, tables)
        info = FeatureStoreInfo(
            format=FORMAT,
            feature_service=service,
            project=project_name(schema, feature_version),
            feature_version=feature_version,
            schema_name=schema.name,
            online_store=kind,
            join_keys={spec.entity: spec.key for spec in tables.specs},
            views=tuple(ViewInfo(s.name, s.entity, s.key, s.features, tables.rows[s.name]) for s in tables.specs),
            start=tables.start.isoformat(),
            end=tables.end.isoformat(),
            compared_values=compared,
        )
        write_json(folder / INFO_FILE, asdict(info))
    return info


def ensure_online(store_dir: Path | str) -> int:
    """Ensure that Redis has the values in the tables of this store; if not, write the tables again.

    A flushed or restarted Redis cannot be detected from the folder alone. The folder is not changed. A store with SQLite has its
    online values in the folder and is skipped.

    Returns:
        Number of compared online values; 0 if no values are stored outside the folder.

    Raises:
        FeatureStoreError: Redis does not respond, or its values still differ after they were written again.
    """
    store_dir = Path(store_dir)
    # Read without `read_info`, because a skipped store may have another format.
    if _description(store_dir).get("online_store") != "redis" or not (info := read_info(store_dir)).feature_service:
        return 0
    online = read_settings(store_dir).for_feast(offline=False)["online_store"]
    _check_redis(online["connection_string"])
    specs = table_specs(load_schema(store_dir / SCHEMA_FILE))
    end = parse_time(info.end)

    def compared() -> int:
        with open_store(store_dir) as store, quiet():
            checked = track(specs, stage="deploy", total=len(specs), label="check of the online store")
            return sum(compare_online(store, spec, store_dir / DATA, end, refreshed=True) for spec in checked)

    try:
        return compared()
    except FeatureStoreError:
        note("deploy", "the online store had lost its rows: written again")
    with over_tables(store_dir, store_dir / DATA) as folder, open_store(folder) as store, feast_engine(folder), quiet():
        _materialize(store, [view.name for view in info.views], parse_time(info.start), end)
    return compared()


@contextlib.contextmanager
def over_tables(store_dir: Path, data_dir: Path) -> Iterator[Path]:
    """A temporary store with the settings and definitions of ``store_dir`` over the tables in ``data_dir``.

    Feast records materializations in the registry, and the registry of a finished store must not change.
    """
    with tempfile.TemporaryDirectory(prefix="thinktwice-online-") as scratch:
        folder = Path(scratch)
        for name in (SETTINGS_FILE, REGISTRY_FILE):
            shutil.copyfile(store_dir / name, folder / name)
        (folder / DATA).symlink_to(data_dir.resolve(), target_is_directory=True)
        yield folder


def _description(store_dir: Path) -> dict[str, Any]:
    path = store_dir / INFO_FILE
    if not path.is_file():
        raise FeatureStoreError(f"{store_dir} is not a feature store (no {INFO_FILE}): run the materialize step first")
    value: dict[str, Any] = read_json(path)
    return value


def read_info(store_dir: Path | str) -> FeatureStoreInfo:
    """Read ``feature_store.json``.

    Raises:
        FeatureStoreError: the folder is not a feature store, or has another format.
    """
    value = _description(Path(store_dir))
    if value.get("format") != FORMAT:
        raise FeatureStoreError(
            f"{Path(store_dir) / INFO_FILE} has format {value.get('format')!r}, this version reads {FORMAT}: materialize again"
        )
    views = tuple(ViewInfo(**{**v, "features": tuple(v["features"])}) for v in value.pop("views"))
    return FeatureStoreInfo(views=views, **value)


def write_config(folder: Path, project: str, online: OnlineStoreKind, redis_address: str) -> None:
    """Write ``feature_store.yaml``; every path in it is relative to the folder."""
    stores: dict[OnlineStoreKind, dict[str, Any]] = {
        "sqlite": {"type": "sqlite", "path": "online.db"},
        # The variable is expanded when the file is read, so the file need not contain an address or password.
        "redis": {"type": "redis", "connection_string": redis_address or FROM_ENVIRONMENT},
    }
    config = {
        "project": project,
        "provider": "local",
        # The folder never changes once it is complete, so a reader reads the registry only once (0 = cache forever).
        "registry": {
            "registry_type": "file",
            "path": REGISTRY_FILE,
            "cache_ttl_seconds": 0,
            # Since 0.64 Feast refuses online reads of a view that is being filled, unless this is set.
            "serve_features_while_materializing": True,
        },
        "offline_store": {"type": "duckdb"},
        "online_store": stores[online],
        "materialization": {"online_write_batch_size": WRITE_BATCH},
        "entity_key_serialization_version": 3,
        "auth": {"type": "no_auth"},
    }
    (folder / SETTINGS_FILE).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


@contextlib.contextmanager
def open_store(folder: Path, *, online: bool = True, overwrite: bool = False) -> Iterator[FeatureStore]:
    """Open the Feast store of a folder; its online connection is closed at the end.

    Args:
        online: False for a reader of the tables alone, which needs neither the address nor the password of a Redis.
        overwrite: a row that is written replaces one of the same or a later time in Redis, which Feast keeps otherwise.

    Raises:
        FeatureStoreError: its settings or registry contain disallowed content.
    """
    settings = read_settings(folder) if online else read_settings(folder, NOT_CONNECTED)
    load_sdk()
    from feast import FeatureStore, RepoConfig
    from feast.protos.feast.core.FeatureView_pb2 import FeatureView
    from feast.protos.feast.core.Registry_pb2 import Registry

    if (folder / REGISTRY_FILE).exists():
        read_registry(folder / REGISTRY_FILE, Registry, FeatureView)
    values = settings.for_feast(offline=True)
    if overwrite:
        values["online_store"]["skip_dedup"] = True
    config = RepoConfig(**values)
    config.repo_path = folder
    store = FeatureStore(repo_path=str(folder), config=config)
    try:
        yield store
    finally:
        # Feast never closes the file of its SQLite store, which causes late errors on a full disk or in a moved folder.
        opened = getattr(store._get_provider(), "online_store", None)
        connection = getattr(opened, "_conn", None)
        if opened is not None and connection is not None:
            connection.close()
            opened._conn = None


def _apply_and_materialize(
    folder: Path, schema: LogSchema, feature_version: str, tables: FeatureTables
) -> tuple[str, int]:
    """Returns the name of the feature service and the number of online values compared with the tables."""
    definitions = define(schema, tables.specs, feature_version, PurePosixPath(DATA))
    with open_store(folder) as store, feast_engine(folder), quiet():
        store.apply(definitions.objects())
        _materialize(store, [view.name for view in definitions.views], tables.start, tables.end)
    # As a predictor does: open the folder again and read through the service.
    with open_store(folder) as store, quiet():
        compared = sum(compare_online(store, spec, folder / DATA, tables.end) for spec in tables.specs)
        if definitions.service is None:
            return "", compared
        store.get_feature_service(definitions.service.name)
    return definitions.service.name, compared


def _write_empty_tables(data_dir: Path, schema: LogSchema) -> None:
    """Write empty tables for the views that only the feedback service fills: Feast requires a batch source for every view."""
    for view in instant_views(schema):
        columns = [pa.field(view.key, pa.string()), pa.field(STATE, pa.binary())]
        columns += [pa.field(WATERMARK, pa.int64())] if view.kind == "log" else []
        columns += [pa.field(name, pa.timestamp("us", "UTC")) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)]
        write_table(pa.schema(columns).empty_table(), data_dir / f"{view.name}.parquet")


def _materialize(store: FeatureStore, views: list[str], start: datetime, end: datetime) -> None:
    for view in track(views, stage="materialize", total=len(views), label="online store"):
        store.materialize(start, end, feature_views=[view])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Feast's output; our progress goes through :mod:`thinktwice.progress`."""
    level = logging.getLogger("feast").level
    logging.getLogger("feast").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.getLogger("feast").setLevel(level)


def _connection(redis_address: str) -> str:
    try:
        return redis_connection(redis_address or FROM_ENVIRONMENT)
    except ValueError as error:
        raise FeatureStoreError(f"the online store redis cannot be used ({error}): correct redis_address") from error


def _check_redis(address: str) -> None:
    """Raise an error before any work if no Redis server responds at ``address``."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    endpoint = address.split(",")[0]
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise FeatureStoreError(f"redis address {endpoint!r} is not host:port: give one such as 127.0.0.1:6379")
    options = dict(part.split("=", 1) for part in address.split(",")[1:] if "=" in part)
    client = redis.Redis(
        host=host,
        port=int(port),
        password=_plain(options.get("password")),
        username=options.get("username"),
        ssl=options.get("ssl", "").lower() == "true",
        socket_connect_timeout=5,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.ping()
    except redis.RedisError as error:
        raise FeatureStoreError(f"no Redis answers at {endpoint} ({error}): start it or correct the address") from error
    finally:
        client.close()


def _plain(option: str | None) -> str | None:
    """An option as parsed by Feast: decoded if it is JSON."""
    try:
        return None if option is None else str(json.loads(option))
    except ValueError:
        return option


def parse_time(text: str) -> datetime:
    """Parse an instant in ``feature_store.json``."""
    return datetime.fromisoformat(text)

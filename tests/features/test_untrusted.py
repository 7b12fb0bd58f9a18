"""A feature store that somebody else may have written: no code of its registry runs, no class of its settings is imported, and no
variable of the environment but the Redis' own gets into them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.store import FROM_ENVIRONMENT, build, open_store, write_config
from serving.feast_source import FeastSource, open_feast
from serving.open_reader import FeatureConfig, open_reader
from tests.features import redis_server
from tests.serving.small import FEATURE_SERVICE, MODEL_VERSION, SCHEMA, clean_log, small
from thinktwice.bundle import load_bundle
from thinktwice.errors import FeatureStoreError
from thinktwice.feature_store import REDIS_ADDRESS, REDIS_PASSWORD, read_settings, redis_connection
from thinktwice.files import write_json

__all__ = ["small"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Feast keeps its connection open as long as it lives
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Registry = Any


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    clean_log().write_parquet(folder / "clean.parquet")
    (folder / "schema.yaml").write_text(SCHEMA.to_yaml())
    write_json(folder / "clean.json", {})
    return folder


@pytest.fixture(scope="module")
def built(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "store"
    build(clean, folder, model_version=MODEL_VERSION)
    return folder


@pytest.fixture(scope="module")
def in_redis(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("redis")
    with redis_server.running(folder) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(REDIS_ADDRESS, address)
        build(clean, folder / "store", model_version=MODEL_VERSION, online="redis")
        yield folder / "store"


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that code in a registry would write."""
    return tmp_path / "canary"


def source(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()\ndef udf(x):\n    return x\n"


class Payload:
    """Unpickles to a written file."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.canary, "w")


def pickled(canary: Path) -> bytes:
    import dill

    found: bytes = dill.dumps(Payload(canary))
    return found


def change_registry(store: Path, change: Callable[[Registry], object]) -> None:
    from feast.protos.feast.core.Registry_pb2 import Registry as Message

    registry = Message.FromString((store / "registry.db").read_bytes())
    change(registry)
    (store / "registry.db").write_bytes(registry.SerializeToString())


def transformed(registry: Registry, canary: Path) -> None:
    udf = registry.feature_views[0].spec.feature_transformation.user_defined_function
    udf.name, udf.mode, udf.body_text, udf.body = "udf", "python", source(canary), pickled(canary)


def on_demand(registry: Registry, canary: Path) -> None:
    view = registry.on_demand_feature_views.add()
    view.spec.name, view.spec.project = "evil", registry.feature_views[0].spec.project
    view.spec.feature_transformation.user_defined_function.body_text = source(canary)
    view.spec.feature_transformation.user_defined_function.body = pickled(canary)


def stream(registry: Registry, canary: Path) -> None:
    view = registry.stream_feature_views.add()
    view.spec.name = "evil"
    view.spec.user_defined_function.body = pickled(canary)


def in_history(registry: Registry, canary: Path) -> None:
    from feast.protos.feast.core.FeatureView_pb2 import FeatureView

    record = registry.feature_view_version_history.records[0]
    view = FeatureView.FromString(record.feature_view_proto)
    view.spec.feature_transformation.user_defined_function.body_text = source(canary)
    record.feature_view_proto = view.SerializeToString()


def custom_source(registry: Registry, canary: Path) -> None:
    found = registry.data_sources[0]
    found.type = 6  # CUSTOM_SOURCE
    found.data_source_class_type = "os.path.Class"


def nested_source(registry: Registry, canary: Path) -> None:
    registry.feature_services[0].spec.features[0].batch_source.data_source_class_type = "antigravity.Class"


def infra(registry: Registry, canary: Path) -> None:
    made = registry.infra.infra_objects.add()
    made.infra_object_class_type = "antigravity.Class"


def unknown(registry: Registry, canary: Path) -> None:
    registry.MergeFromString(b"\xfa\x3f\x02hi")  # field 1023


def unknown_within(registry: Registry, canary: Path) -> None:
    registry.feature_views[1].spec.MergeFromString(b"\xfa\x3f\x02hi")


def dataset(registry: Registry, canary: Path) -> None:
    registry.saved_datasets.add().spec.name = "x"


def validation(registry: Registry, canary: Path) -> None:
    registry.validation_references.add().name = "x"


def permission(registry: Registry, canary: Path) -> None:
    registry.permissions.add().spec.name = "x"


REGISTRIES: dict[str, tuple[Callable[[Registry, Path], object], str]] = {
    "transformation": (transformed, "it holds feature_views.spec.feature_transformation"),
    "on demand": (on_demand, "it holds on_demand_feature_views"),
    "stream": (stream, "it holds stream_feature_views"),
    "history": (
        in_history,
        "it holds feature_view_version_history.records.feature_view_proto.spec.feature_transformation",
    ),
    "source class": (custom_source, "data_sources.type is '6'|data_sources.data_source_class_type"),
    "nested class": (nested_source, "batch_source.data_source_class_type is 'antigravity.Class'"),
    "infrastructure": (infra, "it holds infra"),
    "unknown field": (unknown, "it holds a field in feast.core.Registry that the installed Feast does not know"),
    "unknown field within": (
        unknown_within,
        "it holds a field in feature_views.spec that the installed Feast does not",
    ),
    "dataset": (dataset, "it holds saved_datasets"),
    "validation": (validation, "it holds validation_references"),
    "permission": (permission, "it holds permissions"),
    "tag": (
        lambda r, c: r.data_sources[0].tags.update({"feast.connection": "x"}),
        "the unknown tag 'feast.connection'",
    ),
    "file elsewhere": (
        lambda r, c: setattr(r.data_sources[0].file_options, "uri", "s3://other/x.parquet"),
        "uri is 's3://other/x.parquet'",
    ),
    "file above": (
        lambda r, c: setattr(r.data_sources[0].file_options, "uri", "data/../../x.parquet"),
        r"uri is 'data/\.\./\.\./x.parquet'",
    ),
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_a_registry_with_code_or_other_objects_is_refused(store: Path, canary: Path, name: str) -> None:
    change, words = REGISTRIES[name]
    change_registry(store, lambda registry: change(registry, canary))
    with pytest.raises(FeatureStoreError, match=rf"registry\.db is refused .*({words})") as caught:
        open_feast(store, FEATURE_SERVICE)
    assert "\n" not in str(caught.value)
    with pytest.raises(FeatureStoreError, match=r"registry\.db is refused"), open_store(store):
        raise AssertionError("the pipeline opened it")
    assert not canary.exists()


def test_without_the_check_the_code_would_run(store: Path, canary: Path) -> None:
    """What the tests above prove is worth something only if Feast does run it."""
    from feast import FeatureStore

    change_registry(store, lambda registry: transformed(registry, canary))
    feast = FeatureStore(repo_path=str(store))
    with pytest.raises(Exception, match=r".*") as caught:  # after it ran, Feast may stumble over the rest
        feast.get_feature_view("user_attributes")
        raise RuntimeError("it went well")
    assert caught.value is not None
    assert canary.exists()


@pytest.mark.server
@pytest.mark.parametrize("reader", ["snapshot", "feast", "redis"])
def test_no_reader_of_a_real_redis_runs_code(
    in_redis: Path, small: Path, tmp_path: Path, canary: Path, reader: str
) -> None:
    shutil.copytree(in_redis, tmp_path / "store")
    encoder = load_bundle(small / "bundle").encoder
    config = FeatureConfig.model_validate({"reader": reader, "timeout_ms": 10_000})
    good = open_reader(tmp_path / "store", FEATURE_SERVICE, SCHEMA, encoder, config)
    assert good.read("u3", ["i5"]).user["gender"] is not None
    good.close()
    change_registry(tmp_path / "store", lambda registry: transformed(registry, canary))
    with pytest.raises(FeatureStoreError, match=r"registry\.db is refused"):
        open_reader(tmp_path / "store", FEATURE_SERVICE, SCHEMA, encoder, config)
    assert not canary.exists()


def test_a_registry_that_is_exchanged_later_is_not_read(store: Path, canary: Path) -> None:
    """Feast reads its registry again when the file is newer than what it knows."""
    feast, service = open_feast(store, FEATURE_SERVICE)
    found = FeastSource(feast, service, SCHEMA)
    before = found.fetch("user", ["u1"])
    change_registry(store, lambda registry: transformed(registry, canary))
    later = (store / "registry.db").stat().st_mtime + 1000
    os.utime(store / "registry.db", (later, later))
    feast.refresh_registry()
    assert found.fetch("user", ["u1"]) == before
    assert not canary.exists()
    found.close()


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"not a registry at all", b"\n\x04\n\x02hi\xff"])
def test_a_damaged_registry_is_named(store: Path, content: bytes) -> None:
    (store / "registry.db").write_bytes(content)
    with pytest.raises(FeatureStoreError) as caught:
        open_feast(store, FEATURE_SERVICE)
    assert "\n" not in str(caught.value)
    (store / "registry.db").unlink()
    os.mkfifo(store / "registry.db")
    with pytest.raises(FeatureStoreError, match=r"registry\.db is refused .it is not a plain file"):
        open_feast(store, FEATURE_SERVICE)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_no_damage_of_a_registry_ends_in_anything_but_a_sentence(data: st.DataObject, built: Path) -> None:
    from feast.protos.feast.core.FeatureView_pb2 import FeatureView
    from feast.protos.feast.core.Registry_pb2 import Registry as Message

    from thinktwice.feature_store import read_registry

    content = bytearray((built / "registry.db").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "drop", "insert"])):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "drop":
                del content[place : place + data.draw(st.integers(1, 8))]
            case _:
                content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    changed = built.parent / "changed.db"
    changed.write_bytes(bytes(content))
    try:
        assert read_registry(changed, Message, FeatureView) == bytes(content)
    except FeatureStoreError as error:
        assert "\n" not in str(error)


def with_settings(store: Path, **change: Any) -> Path:
    path = store / "feature_store.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    return store


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"online_store": {"type": "my.module.Class"}}, r"online_store: .*'my\.module\.Class'.*'sqlite', 'redis'"),
        ({"online_store": {"type": "postgres", "host": "x"}}, "online_store: .*'postgres'"),
        (
            {"online_store": {"type": "sqlite", "path": "/etc/passwd"}},
            "path: Input should be 'online.db', not '/etc/passwd'",
        ),
        (
            {"online_store": {"type": "sqlite", "path": "online.db", "vector_enabled": True}},
            "vector_enabled: Extra inputs",
        ),
        ({"online_store": "sqlite"}, "online_store: "),
        ({"provider": "my.module.Provider"}, r"provider: Input should be 'local', not 'my\.module\.Provider'"),
        ({"provider": "gcp"}, "provider: Input should be 'local', not 'gcp'"),
        ({"registry": "registry.db"}, "registry: "),
        ({"registry": {"registry_type": "sql", "path": "x"}}, "registry_type: Input should be 'file', not 'sql'"),
        (
            {"registry": {"registry_type": "a.b.C", "path": "x"}},
            r"registry_type: Input should be 'file', not 'a\.b\.C'",
        ),
        (
            {"registry": {"registry_type": "file", "path": "s3://x"}},
            "registry.path: Input should be 'registry.db', not 's3://x'",
        ),
        (
            {"registry": {"registry_type": "file", "path": "registry.db", "registry_store_type": "a.B"}},
            "registry_store_type: Extra inputs",
        ),
        (
            {"offline_store": {"type": "a.b.Store"}},
            r"offline_store.type: Input should be 'duckdb' or 'file', not 'a\.b\.Store'",
        ),
        ({"batch_engine": {"type": "a.b.Engine"}}, "batch_engine: Extra inputs"),
        ({"feature_server": {"type": "local"}}, "feature_server: Extra inputs"),
        ({"auth": {"type": "oidc", "token": "x"}}, "auth.type: Input should be 'no_auth', not 'oidc'"),
        ({"flags": {}}, "flags: Extra inputs"),
        ({"entity_key_serialization_version": 2}, "entity_key_serialization_version: Input should be 3, not 2"),
        ({"project": "a-b"}, "project: String should match"),
        ({"project": "$HOME"}, "it names the variable 'HOME'"),
        ({"project": f"${REDIS_PASSWORD}"}, f"it names the variable '{REDIS_PASSWORD}'"),
        ({"openlineage": {"enabled": True}}, "openlineage: Extra inputs"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(store: Path, change: dict[str, Any], words: str) -> None:
    with_settings(store, **change)
    for open_it in (lambda: open_feast(store, FEATURE_SERVICE), lambda: open_store(store).__enter__()):
        with pytest.raises(FeatureStoreError, match=rf"feature_store\.yaml is refused .*{words}") as caught:
            open_it()
        assert "\n" not in str(caught.value) and "pydantic.dev" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"[", b"- a", b"\xff", b"a: 1\na: 2", b"x" * 100_000, b"[" * 30_000, b"a: !!python/name:os.system"]
)
def test_settings_that_are_none_are_named(store: Path, content: bytes) -> None:
    (store / "feature_store.yaml").write_bytes(content)
    with pytest.raises(FeatureStoreError, match=r"feature_store\.yaml (cannot be read|is refused)") as caught:
        open_feast(store, FEATURE_SERVICE)
    assert "\n" not in str(caught.value)


def redis(connection: str) -> dict[str, Any]:
    return {"type": "redis", "connection_string": connection}


ENVIRONMENT = {
    REDIS_ADDRESS: "redis.features:6379,db=1",
    REDIS_PASSWORD: 's3"cret\\',
    "THINKTWICE_LOG_SALT": "topsecret-salt",
}


@settings(max_examples=80, derandomize=True)
@given(
    name=st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,30}", fullmatch=True), braces=st.booleans(), place=st.integers(0, 4)
)
def test_no_other_variable_is_read(name: str, braces: bool, place: int) -> None:
    """Whatever is in the environment: it must not be sent to an address that the settings of a store name."""
    variable = f"${{{name}}}" if braces else f"${name}"
    text = [
        f"127.0.0.1:6379,password={variable}",
        f"{variable}:6379",
        f"{FROM_ENVIRONMENT},username={variable}",
        f"127.0.0.1:6379,{variable}=x",
        f"{variable},password=x",
    ][place]
    if name == REDIS_ADDRESS and place == 4:
        return
    with pytest.raises(ValueError, match=r"names the variable|is not host:port") as caught:
        redis_connection(text, {name: "topsecret-salt", **ENVIRONMENT})
    assert "topsecret" not in str(caught.value) and "s3" not in str(caught.value)


@pytest.mark.parametrize("connection", ["h:1,password=$", "h:1,password=${", "h:1,password=${}", "$", "${", "h:$1"])
def test_a_dollar_sign_is_never_taken_for_text(connection: str) -> None:
    with pytest.raises(ValueError, match="it names the variable"):
        redis_connection(connection, ENVIRONMENT)


def test_the_address_and_its_password_come_from_the_environment() -> None:
    expected = 'redis.features:6379,db=1,password="s3\\"cret\\\\"'
    named = f"{FROM_ENVIRONMENT},password=${{{REDIS_PASSWORD}}}"
    for text in (FROM_ENVIRONMENT, f"${REDIS_ADDRESS}", named):
        assert redis_connection(text, ENVIRONMENT) == expected
    assert redis_connection(FROM_ENVIRONMENT, {REDIS_ADDRESS: "h:1"}) == "h:1"
    with_own = {REDIS_ADDRESS: "h:1,password=own", REDIS_PASSWORD: "other"}
    assert redis_connection(FROM_ENVIRONMENT, with_own) == "h:1,password=own"
    assert redis_connection("h:1,db=2,ssl=true", ENVIRONMENT) == "h:1,db=2,ssl=true"


def test_the_password_goes_to_no_other_address() -> None:
    with pytest.raises(ValueError, match=f"{REDIS_PASSWORD} is sent to the address in {REDIS_ADDRESS} alone"):
        redis_connection(f"127.0.0.1:27666,password=${{{REDIS_PASSWORD}}}", ENVIRONMENT)
    assert redis_connection("127.0.0.1:27666", ENVIRONMENT) == "127.0.0.1:27666"


@pytest.mark.parametrize(
    ("connection", "environment", "words"),
    [
        (FROM_ENVIRONMENT, {}, f"{REDIS_ADDRESS}, which is not set"),
        (
            f"{FROM_ENVIRONMENT},password=${REDIS_PASSWORD}",
            {REDIS_ADDRESS: "h:1"},
            f"{REDIS_PASSWORD}, which is not set",
        ),
        (FROM_ENVIRONMENT, {REDIS_ADDRESS: "h:1", REDIS_PASSWORD: "a,b"}, "holds a comma"),
        ("h:1,connection_class=x", {}, "the connection option 'connection_class' is unknown"),
        ("h", {}, "is not host:port"),
        ("", {}, "is not host:port"),
        (f"{FROM_ENVIRONMENT},other:1", {REDIS_ADDRESS: "h:1"}, "is not host:port"),
    ],
)
def test_other_forms_of_a_connection_are_refused(connection: str, environment: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        redis_connection(connection, environment)


def test_what_materialize_writes_is_accepted(tmp_path: Path) -> None:
    write_config(tmp_path, "p", "sqlite", "")
    assert read_settings(tmp_path).for_feast(offline=True)["offline_store"] == {"type": "duckdb"}
    assert "offline_store" not in read_settings(tmp_path).for_feast(offline=False)
    for address in ("", "127.0.0.1:6379,db=3"):
        write_config(tmp_path, "p", "redis", address)
        found = read_settings(tmp_path, ENVIRONMENT).for_feast(offline=False)["online_store"]
        assert found["connection_string"] == address or found["connection_string"].startswith("redis.features:6379")


@pytest.mark.server
def test_a_real_redis_with_a_password(
    clean: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled and read with the password of the environment, which stands in no file."""
    import redis as client

    password = '12345"\\ =é'
    with redis_server.running(tmp_path) as address:
        host, port = address.split(":")
        with client.Redis(host=host, port=int(port)) as admin:
            admin.config_set("requirepass", password)
        monkeypatch.setenv(REDIS_ADDRESS, address)
        with pytest.raises(FeatureStoreError, match="no Redis answers"):
            build(clean, tmp_path / "store", model_version=MODEL_VERSION, online="redis")
        monkeypatch.setenv(REDIS_PASSWORD, password)
        build(clean, tmp_path / "store", model_version=MODEL_VERSION, online="redis")
        encoder = load_bundle(small / "bundle").encoder
        for reader in ("redis", "feast"):
            config = FeatureConfig.model_validate({"reader": reader, "timeout_ms": 10_000})
            found = open_reader(tmp_path / "store", FEATURE_SERVICE, SCHEMA, encoder, config)
            assert found.read("u3", ["i5"]).user["gender"] is not None
            found.close()
    for path in (tmp_path / "store").rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes()

"""Settings of a feature store that somebody else may have written: no class of theirs is imported, and no variable of the
environment but the Redis' own gets into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.store import FROM_ENVIRONMENT, build, open_store, write_config
from serving.features.feast_source import open_feast
from serving.features.open_reader import FeatureConfig, open_reader
from tests.features import redis_server
from tests.features.test_untrusted import built, clean, pytestmark, small, store
from tests.serving.small import FEATURE_SERVICE, MODEL_VERSION, SCHEMA
from thinktwice.errors import FeatureStoreError
from thinktwice.release.bundle import load_bundle
from thinktwice.release.feature_store import REDIS_ADDRESS, REDIS_PASSWORD, read_settings, redis_connection

__all__ = ["built", "clean", "pytestmark", "small", "store"]


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
        (FROM_ENVIRONMENT, {REDIS_ADDRESS: "h:1", REDIS_PASSWORD: "a,b"}, "contains a comma"),
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
            build(clean, tmp_path / "store", feature_version=MODEL_VERSION, online="redis")
        monkeypatch.setenv(REDIS_PASSWORD, password)
        build(clean, tmp_path / "store", feature_version=MODEL_VERSION, online="redis")
        encoder = load_bundle(small / "bundle").encoder
        for reader in ("redis", "feast"):
            config = FeatureConfig.model_validate({"reader": reader, "timeout_ms": 10_000})
            found = open_reader(tmp_path / "store", FEATURE_SERVICE, SCHEMA, encoder, config)
            assert found.read("u3", ["i5"]).user["gender"] is not None
            found.close()
    for path in (tmp_path / "store").rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes()

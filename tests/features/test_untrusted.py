"""A registry that somebody else may have written: no code in it runs, whichever reader opens it and whenever it was exchanged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.store import build, open_store
from serving.features.feast_source import FeastSource, open_feast
from serving.features.open_reader import FeatureConfig, open_reader
from tests.features import redis_server
from tests.serving.small import FEATURE_SERVICE, MODEL_VERSION, SCHEMA, clean_log, small
from thinktwice.errors import FeatureStoreError
from thinktwice.files import write_json
from thinktwice.release.bundle import load_bundle
from thinktwice.release.feature_store import REDIS_ADDRESS

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
    build(clean, folder, feature_version=MODEL_VERSION)
    return folder


@pytest.fixture(scope="module")
def in_redis(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("redis")
    with redis_server.running(folder) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(REDIS_ADDRESS, address)
        build(clean, folder / "store", feature_version=MODEL_VERSION, online="redis")
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
    "transformation": (transformed, "it contains feature_views.spec.feature_transformation"),
    "on demand": (on_demand, "it contains on_demand_feature_views"),
    "stream": (stream, "it contains stream_feature_views"),
    "history": (
        in_history,
        "it contains feature_view_version_history.records.feature_view_proto.spec.feature_transformation",
    ),
    "source class": (custom_source, "data_sources.type is '6'|data_sources.data_source_class_type"),
    "nested class": (nested_source, "batch_source.data_source_class_type is 'antigravity.Class'"),
    "infrastructure": (infra, "it contains infra"),
    "unknown field": (unknown, "it contains a field in feast.core.Registry that the installed Feast does not know"),
    "unknown field within": (
        unknown_within,
        "it contains a field in feature_views.spec that the installed Feast does not",
    ),
    "dataset": (dataset, "it contains saved_datasets"),
    "validation": (validation, "it contains validation_references"),
    "permission": (permission, "it contains permissions"),
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

    from thinktwice.release.feature_store import read_registry

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

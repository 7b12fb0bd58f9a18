"""Model versions in an object store: exactly a predictor's files, written once, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from components.deployment.model_store import model_files, parse_place, upload_model
from pipelines.cli import app
from tests.components.object_store import listed
from tests.serving.small import MODEL_VERSION
from thinktwice.errors import BundleError, PipelineError, ResourceError, ThinktwiceError
from thinktwice.release.release import verify_release, write_release
from thinktwice.release.signing import make_keys

pytestmark = pytest.mark.server

STORE_FILES = ["feature_store/feature_store.json", "feature_store/feature_store.yaml", "feature_store/online.db"]
FILES = ["ctr.mar", *STORE_FILES, "release.json"]
TO = f"s3://models/ctr/{MODEL_VERSION}/"


@pytest.fixture
def model(deployed: Path, tmp_path: Path) -> Path:
    """A model folder of one's own."""
    return Path(shutil.copytree(deployed / "out" / "model", tmp_path / "model"))


@pytest.mark.parametrize("place", ["state/champion", "out/model"])
def test_exactly_a_predictors_files_are_uploaded(deployed: Path, store: Any, place: str) -> None:
    uri, keys = upload_model(str(deployed / place), "s3://models/ctr")
    assert (uri, keys) == (TO, FILES)
    assert listed(store) == [f"ctr/{MODEL_VERSION}/{key}" for key in FILES]
    body = store.get_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/ctr.mar")["Body"].read()
    assert body == (deployed / place / "ctr.mar").read_bytes()


def test_both_places_of_a_deployment_hold_the_same_files(deployed: Path) -> None:
    champion, model = (model_files(deployed / place) for place in ("state/champion", "out/model"))
    assert list(champion) == list(model)
    assert all(champion[key].read_bytes() == model[key].read_bytes() for key in model)


def test_a_signature_travels_with_what_it_signs(model: Path, store: Any, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "keys")
    write_release(model, private)
    _, keys = upload_model(str(model), "s3://models/ctr")
    assert keys == sorted([*FILES, "release-signature.json"])
    for key in keys:
        target = tmp_path / "mounted" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        store.download_file("models", f"ctr/{MODEL_VERSION}/{key}", str(target))
    assert verify_release(tmp_path / "mounted", trusted=[public]).key_id


def test_a_new_file_of_a_version_is_shipped_without_being_named(model: Path, store: Any) -> None:
    (model / "notes.json").write_text("{}")
    assert upload_model(str(model), "s3://models/ctr")[1] == sorted([*FILES, "notes.json"])


def test_the_command_uploads_the_champion_and_tells_the_uri(deployed: Path, store: Any) -> None:
    done = CliRunner().invoke(app, ["upload", "--to", "s3://models/ctr/", "--state", str(deployed / "state")])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [*(f"  {key}" for key in FILES), f"storageUri: {TO}"]
    assert len(listed(store)) == len(FILES)


def test_a_version_is_copied_from_another_bucket(model: Path, store: Any) -> None:
    store.create_bucket(Bucket="mlpipeline")
    for key, path in model_files(model).items():
        store.upload_file(str(path), "mlpipeline", f"v2/artifacts/run/deploy/model/{key}")
    uri, keys = upload_model("minio://mlpipeline/v2/artifacts/run/deploy/model", "s3://models/ctr")
    assert (uri, keys, len(listed(store))) == (TO, FILES, len(FILES))


def test_a_killed_upload_has_no_archive_and_is_finished_by_the_next(
    model: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.deployment import model_store

    put, calls = model_store._put, []

    def dies(client: Any, version: Any, key: str, *rest: Any) -> None:
        calls.append(key)
        if key == "ctr.mar":
            raise KeyboardInterrupt
        put(client, version, key, *rest)

    monkeypatch.setattr(model_store, "_put", dies)
    with pytest.raises(KeyboardInterrupt):
        upload_model(str(model), "s3://models/ctr")
    assert calls[-1] == "ctr.mar" and len(listed(store)) == len(FILES) - 1
    monkeypatch.undo()
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, {"AWS_ENDPOINT_URL": store.meta.endpoint_url}.get(name, "us-east-1"))
    assert upload_model(str(model), "s3://models/ctr") == (TO, FILES)
    assert upload_model(str(model), "s3://models/ctr") == (TO, FILES), "a third time changes nothing"


@pytest.mark.parametrize("key", ["ctr.mar", "feature_store/online.db", "feature_store/feature_store.yaml"])
def test_a_versions_folder_never_changes(model: Path, store: Any, key: str) -> None:
    store.put_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/{key}", Body=b"another")
    with pytest.raises(BundleError, match="differs"):
        upload_model(str(model), "s3://models/ctr")
    assert store.get_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/{key}")["Body"].read() == b"another"


def test_what_another_tool_uploaded_is_taken_when_it_is_the_same(model: Path, store: Any) -> None:
    for key, path in model_files(model).items():
        store.upload_file(str(path), "models", f"ctr/{MODEL_VERSION}/{key}")
    assert upload_model(str(model), "s3://models/ctr") == (TO, FILES)
    path = model / "feature_store" / "online.db"
    path.write_bytes(path.read_bytes()[::-1])
    write_release(model)
    with pytest.raises(BundleError, match=r"online\.db is there and differs"):
        upload_model(str(model), "s3://models/ctr")


def test_of_two_uploads_at_a_time_the_second_must_be_the_same(
    model: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw an empty folder; the other wrote in between."""
    from components.deployment import model_store

    monkeypatch.setattr(model_store, "_keys", lambda *_: [])
    assert upload_model(str(model), "s3://models/ctr")[1] == FILES
    assert upload_model(str(model), "s3://models/ctr")[1] == FILES
    (model / "feature_store" / "online.db").write_bytes(b"others")
    write_release(model)
    with pytest.raises(BundleError, match="differs"):
        upload_model(str(model), "s3://models/ctr")
    key = f"ctr/{MODEL_VERSION}/feature_store/online.db"
    assert store.get_object(Bucket="models", Key=key)["Body"].read() == b"values"


def test_a_store_that_knows_no_conditions(model: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put, asked = BaseClient._make_api_call, []

    def old(self: Any, name: str, parameters: dict[str, Any]) -> Any:
        if name == "PutObject":
            asked.append("IfNoneMatch" in parameters)
            if asked[-1]:
                raise ClientError(
                    {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}, name
                )
        return put(self, name, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", old)
    assert upload_model(str(model), "s3://models/ctr") == (TO, FILES)
    assert asked == [True, False] * len(FILES) and len(listed(store)) == len(FILES)
    (model / "feature_store" / "online.db").write_bytes(b"others")
    write_release(model)
    with pytest.raises(BundleError, match="differs"):
        upload_model(str(model), "s3://models/ctr")


def test_what_lies_in_the_folder_beside_the_model_would_be_served_with_it(model: Path, store: Any) -> None:
    store.put_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/data/users.parquet", Body=b"rows")
    with pytest.raises(BundleError, match=r"contains data/users\.parquet"):
        upload_model(str(model), "s3://models/ctr")
    assert len(listed(store)) == 1


def cut(model: Path) -> None:
    archive = model / "ctr.mar"
    archive.write_bytes(archive.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda m: (m / "ctr.mar").unlink(), "contains no ctr.mar"),
        (lambda m: shutil.rmtree(m / "feature_store"), "contains no feature_store/feature_store.yaml"),
        (cut, "bytes instead of the .* of its release"),
        (lambda m: (m / "ctr.mar").write_bytes(b""), "has 0 bytes instead of the .* of its release"),
        (lambda m: (m / "release.json").unlink(), "contains no release.json"),
        (lambda m: (m / "feature_store" / "online.db").write_bytes(b"others"), "online.db has SHA-256 .* instead of"),
    ],
)
def test_half_a_model_is_not_uploaded(model: Path, store: Any, damage: Callable[[Path], Any], said: str) -> None:
    damage(model)
    with pytest.raises(BundleError, match=said):
        upload_model(str(model), "s3://models/ctr")
    assert listed(store) == []


def test_a_champion_that_was_changed_is_not_uploaded(deployed: Path, store: Any, tmp_path: Path) -> None:
    shutil.copytree(deployed / "state", tmp_path / "state", symlinks=True)
    with (tmp_path / "state" / "champion" / "ctr.mar").open("ab") as file:
        file.write(b"more")
    done = CliRunner().invoke(app, ["upload", "--to", "s3://models/ctr", "--state", str(tmp_path / "state")])
    assert isinstance(done.exception, BundleError) and "of its release" in str(done.exception)
    assert listed(store) == []


@pytest.mark.parametrize("source", ["s3://models/nothing/here", "s3://no-such-bucket/x"])
def test_a_source_that_is_not_there(store: Any, source: str) -> None:
    with pytest.raises(ThinktwiceError, match=r"contains nothing|NoSuchBucket"):
        upload_model(source, "s3://models/ctr")


def test_a_store_that_does_not_answer_or_knows_no_bucket(
    model: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match="NoSuchBucket"):
        upload_model(str(model), "s3://no-such-bucket/ctr")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="AWS_ENDPOINT_URL"):
        upload_model(str(model), "s3://models/ctr")


@pytest.mark.parametrize(
    "to", ["models/ctr", "/models", "s3://", "s3:///ctr", "https://models/ctr", "s3://models/ctr?x=1"]
)
def test_a_place_that_is_none(model: Path, to: str) -> None:
    with pytest.raises(PipelineError, match="s3://BUCKET/FOLDER"):
        upload_model(str(model), to)


@given(
    parts=st.lists(st.from_regex(r"[a-zA-Z0-9._-]+", fullmatch=True), max_size=4),
    slash=st.sampled_from(["", "/", "//"]),
)
def test_places_are_written_with_or_without_slashes(parts: list[str], slash: str) -> None:
    place = parse_place("s3://bucket/" + "/".join(parts) + slash)
    assert place.prefix == "".join(f"{part}/" for part in parts)
    assert place.uri == "s3://bucket/" + place.prefix


def test_a_key_that_leaves_the_folder_is_refused(model: Path, store: Any) -> None:
    try:
        store.put_object(Bucket="models", Key="in/../../escape", Body=b"x")
    except ClientError:
        pytest.skip("this store takes no such key")
    store.put_object(Bucket="models", Key="in/ctr.mar", Body=b"x")
    with pytest.raises(ThinktwiceError):
        upload_model("s3://models/in", "s3://models/ctr")

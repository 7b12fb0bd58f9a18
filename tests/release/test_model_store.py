"""Model versions in an object store: exactly a predictor's files, written once, whole or not at all."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.components.object_store import deployed, listed, server, store
from tests.serving.small import MODEL_VERSION
from tests.storage.servers import Bucket, environment, seaweedfs
from thinktwice.errors import BundleError, StorageError, ThinktwiceError
from thinktwice.release import model_store
from thinktwice.release.cli import bundle
from thinktwice.release.model_store import list_versions, model_files, pull_model, push_model, version_folder
from thinktwice.release.release import verify_release, write_release
from thinktwice.release.signing import make_keys

__all__ = ["deployed", "server", "store"]  # fixtures

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
    uri, keys = push_model(str(deployed / place), "s3://models/ctr")
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
    _, keys = push_model(str(model), "s3://models/ctr")
    assert keys == sorted([*FILES, "release-signature.json"])
    for key in keys:
        target = tmp_path / "mounted" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        store.download_file("models", f"ctr/{MODEL_VERSION}/{key}", str(target))
    assert verify_release(tmp_path / "mounted", trusted=[public]).key_id


def test_a_new_file_of_a_version_is_shipped_without_being_named(model: Path, store: Any) -> None:
    (model / "notes.json").write_text("{}")
    assert push_model(str(model), "s3://models/ctr")[1] == sorted([*FILES, "notes.json"])


def test_the_command_uploads_the_champion_and_tells_the_uri(deployed: Path, store: Any) -> None:
    done = CliRunner().invoke(bundle, ["push", "--to", "s3://models/ctr/", "--state", str(deployed / "state")])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [*(f"  {key}" for key in FILES), f"storageUri: {TO}"]
    assert len(listed(store)) == len(FILES)


def test_a_folder_is_a_store_too(deployed: Path, tmp_path: Path) -> None:
    """A mounted volume, for a `storageUri` that names it."""
    to = tmp_path / "models"
    done = CliRunner().invoke(bundle, ["push", "--to", str(to), "--state", str(deployed / "state")])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"storageUri: {(to / MODEL_VERSION).as_uri()}/"
    assert verify_release(to / MODEL_VERSION).release.model_version == MODEL_VERSION
    assert [(v.name, v.state, v.signed) for v in list_versions(str(to))] == [(MODEL_VERSION, "complete", False)]


def test_a_version_is_copied_from_another_bucket(model: Path, store: Any) -> None:
    store.create_bucket(Bucket="mlpipeline")
    for key, path in model_files(model).items():
        store.upload_file(str(path), "mlpipeline", f"v2/artifacts/run/deploy/model/{key}")
    uri, keys = push_model("minio://mlpipeline/v2/artifacts/run/deploy/model", "s3://models/ctr")
    assert (uri, keys, len(listed(store))) == (TO, FILES, len(FILES))


def test_a_killed_upload_has_no_archive_and_is_finished_by_the_next(
    model: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, calls = model_store._put, []

    def dies(to: Any, key: str, *rest: Any) -> None:
        calls.append(key)
        if key == "ctr.mar":
            raise KeyboardInterrupt
        put(to, key, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_store, "_put", dies)
        push_model(str(model), "s3://models/ctr")
    assert (calls[0], calls[-1]) == ("release.json", "ctr.mar") and len(listed(store)) == len(FILES) - 1
    assert [version.state for version in list_versions("s3://models/ctr")] == ["incomplete"]
    with pytest.raises(BundleError, match="the upload was not finished"):
        pull_model(TO, model.parent / "pulled")
    assert not (model.parent / "pulled").exists()
    assert push_model(str(model), "s3://models/ctr") == (TO, FILES)
    assert push_model(str(model), "s3://models/ctr") == (TO, FILES), "a third time changes nothing"
    assert [version.state for version in list_versions("s3://models/ctr")] == ["complete"]


@pytest.mark.parametrize("key", ["ctr.mar", "feature_store/online.db", "feature_store/feature_store.yaml"])
def test_a_versions_folder_never_changes(model: Path, store: Any, key: str) -> None:
    store.put_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/{key}", Body=b"another")
    with pytest.raises(BundleError, match="differs"):
        push_model(str(model), "s3://models/ctr")
    assert store.get_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/{key}")["Body"].read() == b"another"


def test_what_another_tool_uploaded_is_taken_when_it_is_the_same(model: Path, store: Any) -> None:
    for key, path in model_files(model).items():
        store.upload_file(str(path), "models", f"ctr/{MODEL_VERSION}/{key}")
    assert push_model(str(model), "s3://models/ctr") == (TO, FILES)
    path = model / "feature_store" / "online.db"
    path.write_bytes(path.read_bytes()[::-1])
    write_release(model)
    with pytest.raises(BundleError, match=r"release\.json exists and differs"):
        push_model(str(model), "s3://models/ctr")


def test_of_two_uploads_at_a_time_the_second_must_be_the_same(
    model: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw an empty folder; the other wrote in between. The second writes nothing."""
    monkeypatch.setattr("thinktwice.storage.s3.S3Store.entries", lambda *_: iter(()))
    assert push_model(str(model), "s3://models/ctr")[1] == FILES
    assert push_model(str(model), "s3://models/ctr")[1] == FILES
    (model / "feature_store" / "online.db").write_bytes(b"others")
    (model / "feature_store" / "feature_store.json").write_text("{}")
    write_release(model)
    with pytest.raises(BundleError, match=r"release\.json exists and differs"):
        push_model(str(model), "s3://models/ctr")
    key = f"ctr/{MODEL_VERSION}/feature_store/online.db"
    assert store.get_object(Bucket="models", Key=key)["Body"].read() == b"values"


def test_two_different_models_of_one_version_are_never_mixed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several writers at once against a store whose conditions hold: one owns the version, whole; the others say so."""
    models = [Path(shutil.copytree(model, tmp_path / f"writer-{number}")) for number in range(4)]
    for number, each in enumerate(models):
        (each / "feature_store" / "online.db").write_bytes(b"values of writer %d" % number)
        write_release(each)
    said: list[str] = []
    barrier = threading.Barrier(len(models))

    def push(folder: Path) -> None:
        barrier.wait(60)
        try:
            said.append(push_model(str(folder), "s3://races/ctr")[0])
        except BundleError as error:
            said.append(str(error))

    with seaweedfs(tmp_path) as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        Bucket(address, "races", "seaweedfs")
        threads = [threading.Thread(target=push, args=(folder,)) for folder in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pull_model(f"s3://races/ctr/{MODEL_VERSION}", tmp_path / "pulled")
    assert sum(text.startswith("s3://") and text.endswith("/") for text in said) == 1, said
    assert sum("exists and differs" in text or "not a file of this model" in text for text in said) == 3, said


def test_what_lies_in_the_folder_beside_the_model_would_be_served_with_it(model: Path, store: Any) -> None:
    store.put_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/data/users.parquet", Body=b"rows")
    with pytest.raises(BundleError, match=r"contains data/users\.parquet"):
        push_model(str(model), "s3://models/ctr")
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
        push_model(str(model), "s3://models/ctr")
    assert listed(store) == []


def test_a_champion_that_was_changed_is_not_uploaded(deployed: Path, store: Any, tmp_path: Path) -> None:
    shutil.copytree(deployed / "state", tmp_path / "state", symlinks=True)
    with (tmp_path / "state" / "champion" / "ctr.mar").open("ab") as file:
        file.write(b"more")
    done = CliRunner().invoke(bundle, ["push", "--to", "s3://models/ctr", "--state", str(tmp_path / "state")])
    assert isinstance(done.exception, BundleError) and "of its release" in str(done.exception)
    assert listed(store) == []


@pytest.mark.parametrize("source", ["s3://models/nothing/here", "s3://no-such-bucket/x"])
def test_a_source_that_is_not_there(store: Any, source: str) -> None:
    with pytest.raises(ThinktwiceError, match=r"contains nothing|NoSuchBucket"):
        push_model(source, "s3://models/ctr")


def test_a_store_that_does_not_answer_or_knows_no_bucket(
    model: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="NoSuchBucket"):
        push_model(str(model), "s3://no-such-bucket/ctr")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        push_model(str(model), "s3://models/ctr")


@pytest.mark.parametrize("to", ["s3://", "s3:///ctr", "https://models/ctr", "s3://models/ctr?x=1", "s3://models/../x"])
def test_a_location_that_is_none(model: Path, to: str) -> None:
    for act in (lambda: push_model(str(model), to), lambda: list_versions(to), lambda: pull_model(to, model / "x")):
        with pytest.raises(StorageError, match="s3://BUCKET/FOLDER"):
            act()
    assert not (model / "x").exists()


def test_a_key_that_leaves_the_folder_is_refused(model: Path, store: Any) -> None:
    try:
        store.put_object(Bucket="models", Key="in/../../escape", Body=b"x")
    except ClientError:
        pytest.skip("this store takes no such key")
    store.put_object(Bucket="models", Key="in/ctr.mar", Body=b"x")
    with pytest.raises(ThinktwiceError):
        push_model("s3://models/in", "s3://models/ctr")


# Back from the store.


def pushed(model: Path, key: Path | None = None) -> str:
    write_release(model, key)
    return push_model(str(model), "s3://models/ctr")[0]


def test_what_is_pulled_is_what_was_pushed(model: Path, store: Any, tmp_path: Path) -> None:
    uri = pushed(model)
    pulled = pull_model(uri, tmp_path / "pulled")
    assert pulled.model_version == MODEL_VERSION
    assert {p.relative_to(tmp_path / "pulled").as_posix() for p in (tmp_path / "pulled").rglob("*") if p.is_file()} == {
        *FILES
    }
    assert all((tmp_path / "pulled" / key).read_bytes() == (model / key).read_bytes() for key in FILES)


def test_the_command_pulls_and_lists(model: Path, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = make_keys(tmp_path / "keys")
    uri = pushed(model, private)
    monkeypatch.setenv("THINKTWICE_TRUSTED_KEYS", str(public))
    done = CliRunner().invoke(bundle, ["pull", uri, "--to", str(tmp_path / "pulled")])
    assert done.exit_code == 0 and "signature and hashes are right" in done.output
    monkeypatch.delenv("THINKTWICE_TRUSTED_KEYS")
    done = CliRunner().invoke(bundle, ["pull", uri, "--to", str(tmp_path / "again")])
    assert done.exit_code == 0 and "the signature was not checked" in done.output
    done = CliRunner().invoke(bundle, ["list", "s3://models/ctr"])
    assert done.exit_code == 0 and MODEL_VERSION in done.output and "yes" in done.output and "complete" in done.output
    done = CliRunner().invoke(bundle, ["list", "s3://models/elsewhere"])
    assert done.exit_code == 0 and "no model version in s3://models/elsewhere" in done.output


def test_a_signature_is_checked_before_anything_else_is_read(
    model: Path, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_keys(tmp_path / "keys")
    uri = pushed(model)
    read: list[str] = []
    fetch = model_store._fetch
    monkeypatch.setattr(model_store, "_fetch", lambda store, key, path: (read.append(key), fetch(store, key, path)))
    with pytest.raises(BundleError, match=rf"{re.escape(uri.rstrip('/'))} is not signed"):
        pull_model(uri, tmp_path / "pulled", [public])
    _, another = make_keys(tmp_path / "others")
    store.delete_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/release.json")
    uri = pushed(model, private)
    with pytest.raises(BundleError):
        pull_model(uri, tmp_path / "pulled", [another])
    assert read == [] and not (tmp_path / "pulled").exists()
    pull_model(uri, tmp_path / "pulled", [public])
    assert sorted(read) == [key for key in FILES if key != "release.json"]


@pytest.mark.parametrize("key", FILES)
@pytest.mark.parametrize("how", ["missing", "truncated", "longer", "changed"])
def test_a_damaged_version_never_appears(model: Path, store: Any, tmp_path: Path, key: str, how: str) -> None:
    uri = pushed(model)
    full = {"Bucket": "models", "Key": f"ctr/{MODEL_VERSION}/{key}"}
    body = store.get_object(**full)["Body"].read()
    store.delete_object(**full)
    if how != "missing":
        changed = {"truncated": body[:-9], "longer": body + b"}", "changed": bytes([body[0] ^ 1]) + body[1:]}[how]
        store.put_object(**full, Body=changed)
    with pytest.raises(BundleError) as raised:
        pull_model(uri, tmp_path / "pulled")
    assert str(raised.value).count(uri.rstrip("/")) == 1 and ".part" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir() if "pulled" in path.name] == []
    (version,) = list_versions("s3://models/ctr") or [None]
    if how in ("missing", "truncated", "longer"):
        assert version is not None and version.state in ("incomplete", "damaged")


def test_files_that_the_release_does_not_name_are_left_in_the_store(model: Path, store: Any, tmp_path: Path) -> None:
    uri = pushed(model)
    for key in ("run.py", "feature_store/more.db", "a/../../escape"):
        with suppress(ClientError):
            store.put_object(Bucket="models", Key=f"ctr/{MODEL_VERSION}/{key}", Body=b"x")
    pull_model(uri, tmp_path / "pulled")
    assert {p.relative_to(tmp_path / "pulled").as_posix() for p in (tmp_path / "pulled").rglob("*") if p.is_file()} == {
        *FILES
    }


def test_a_folder_that_exists_is_not_replaced(model: Path, store: Any, tmp_path: Path) -> None:
    uri = pushed(model)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("x")
    with pytest.raises(BundleError, match="exists and is not the release"):
        pull_model(uri, tmp_path / "home")
    assert (tmp_path / "home" / "thesis").read_text() == "x"
    pull_model(uri, tmp_path / "pulled")
    pull_model(uri, tmp_path / "pulled")
    (tmp_path / "pulled" / "ctr.mar").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"ctr\.mar has 1 bytes"):
        pull_model(uri, tmp_path / "pulled")


def test_a_pull_that_breaks_leaves_nothing(
    model: Path, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = pushed(model)
    fetch = model_store._fetch

    def breaks(store: Any, key: str, path: Path) -> None:
        fetch(store, key, path)
        raise StorageError("gone")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="gone"):
        patch.setattr(model_store, "_fetch", breaks)
        pull_model(uri, tmp_path / "pulled")
    assert [path.name for path in tmp_path.iterdir() if "pulled" in path.name] == []
    pull_model(uri, tmp_path / "pulled")


def test_the_list_is_by_time_and_shows_what_is_damaged(model: Path, store: Any, tmp_path: Path) -> None:
    pushed(model)
    for name, body in (("zzz", b"{"), ("big", b"x" * (1 << 20) + b"xx")):
        store.put_object(Bucket="models", Key=f"ctr/{name}/release.json", Body=body)
    store.put_object(Bucket="models", Key="ctr/old/ctr.mar", Body=b"x")
    store.put_object(Bucket="models", Key="ctr/notes/readme.txt", Body=b"x")
    assert [(v.name, v.state) for v in list_versions("s3://models/ctr")] == [
        (MODEL_VERSION, "complete"),
        ("zzz", "damaged"),
        ("old", "damaged"),
        ("big", "damaged"),
    ]


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_different_versions_have_different_folders(one: str, other: str) -> None:
    assert version_folder(one) != version_folder(other) or one == other
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", version_folder(one))

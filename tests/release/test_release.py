"""Releases: what was deployed is served, and nothing that was changed, exchanged, added or left out; no key shows anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from io import BufferedReader
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from components.deployment.deploy.deployment import deploy_model
from tests.release.conftest import Keys, install
from tests.serving.releases import rezip
from tests.serving.small import bless, identity
from thinktwice.errors import BundleError, FeatureStoreError
from thinktwice.files import json_bytes, read_json, write_json
from thinktwice.hashing import FileEntry
from thinktwice.release import archive as archive_module
from thinktwice.release.bundle import FORMAT, MANIFEST_FILE, Manifest, bundle_files, bundle_hash, load_bundle
from thinktwice.release.champion import Champion, read_champion, verify_archive
from thinktwice.release.release import (
    RELEASE_FILE,
    SIGNATURE_FILE,
    Release,
    ReleasePolicy,
    open_staged,
    stage,
    verify_release,
    write_release,
)
from thinktwice.release.signing import (
    SIGNING_KEY,
    key_id,
    signed_bytes,
)

ANY = ReleasePolicy()
NOW = datetime(2026, 2, 1, 12, tzinfo=timezone.utc)


def staged(release: Path, tmp_path: Path, *trusted: Path, policy: ReleasePolicy = ANY) -> Path:
    folder = tmp_path / f"staged-{len(list(tmp_path.iterdir()))}"
    return stage(release / "ctr.mar", release / "feature_store", folder, policy, trusted).folder


def test_the_bytes_that_are_hashed_and_signed_are_frozen() -> None:
    """A changed constant, name or serialization makes every release that was ever signed worthless: it must not pass unseen."""
    assert (RELEASE_FILE, SIGNATURE_FILE, MANIFEST_FILE) == ("release.json", "release-signature.json", "manifest.json")
    always, _ = bundle_files()
    files = {n: FileEntry(sha256=hashlib.sha256(n.encode()).hexdigest(), size=len(n)) for n in sorted(always)}
    manifest = json_bytes(Manifest(**identity().model_dump(), files=files).model_dump(mode="json"))
    assert hashlib.sha256(manifest).hexdigest() == "c5ead6199541c6bc2a48192b0a8e0d6d89bf9b21b2824db6903bdc926c35ce86"
    release = Release(
        created="2026-02-01T12:00:00+00:00",
        model_version="small-ä-1",
        feature_service="ctr_small",
        bundle="1" * 64,
        archive=FileEntry(sha256="2" * 64, size=12345),
        torchserve={"model-config.yaml": FileEntry(sha256="4" * 64, size=7)},
        feature_store={"feature_store.yaml": FileEntry(sha256="3" * 64, size=1)},
        not_covered=("the values in Redis",),
    )
    data = json_bytes(release.model_dump(mode="json"))
    assert hashlib.sha256(data).hexdigest() == "7c5483494e28fa2e8d8af40f754e49f16cce5766b8aeaeb2e15131ddbf03c27d"
    assert signed_bytes(data).hex() == (
        b"thinktwice release 1\0".hex() + "7c5483494e28fa2e8d8af40f754e49f16cce5766b8aeaeb2e15131ddbf03c27d"
    )
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    assert key_id(key.public_key()) == "56475aa75463474c"
    assert (
        base64.b64encode(key.sign(signed_bytes(data))).decode()
        == "qjYhwXgipHIL8Iktqa2J5B0ZPpgJvn1mmRoG3hAXfeQvMbksgCRQA0QSUbZWJIuzKMkmZjGTzhzoxVATDhh9Bg=="
    )


def test_a_signed_release_is_served_from_a_private_copy(release: Path, keys: Keys, tmp_path: Path) -> None:
    folder = staged(release, tmp_path, keys[1])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert load_bundle(folder / "bundle").hash == read_json(release / RELEASE_FILE)["bundle"]
    found = open_staged(folder, ANY, [keys[1]])
    assert found.feature_store is not None
    assert {p.name for p in found.feature_store.iterdir()} == {
        "data",
        "feature_store.json",
        "feature_store.yaml",
        "online.db",
        "registry.db",
    }
    # What could run code is a copy; only tables and online values are read where they lie.
    copies = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink()} == {
        "feature_store/online.db",
        "feature_store/data/user_attributes.parquet",
    }
    before = {p: p.read_bytes() for p in copies}
    for path in release.rglob("*"):
        if path.is_file():
            path.write_bytes(b"changed after the check")
    assert before == {p: p.read_bytes() for p in copies}


@pytest.mark.parametrize("what", ["model-config.yaml", "bundle/weights.safetensors"])
def test_an_archive_that_changes_after_its_hash_was_taken_is_refused(
    release: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Written over in place, between the check of the whole file and the reading of its parts."""

    def exchange(files: dict[str, bytes]) -> None:
        data = bytearray(files[what])
        data[-2] ^= 1
        files[what] = b"minWorkers: 3\n" if what.endswith(".yaml") else bytes(data)

    other = rezip(release / "ctr.mar", tmp_path / "other.mar", exchange).read_bytes()
    check = archive_module._check_directory

    def late(path: Path, file: BufferedReader) -> None:
        path.write_bytes(other)
        check(path, file)

    monkeypatch.setattr(archive_module, "_check_directory", late)
    words = (
        r"TorchServe's files in the archive differ from those it names"
        if what.endswith(".yaml")
        else "weights.safetensors has SHA-256"
    )
    with pytest.raises(BundleError, match=words):
        staged(release, tmp_path, keys[1])


def covered(signed: Champion) -> list[str]:
    return [p.relative_to(signed.folder).as_posix() for p in signed.folder.rglob("*") if p.is_file()]


def test_every_byte_that_is_deployed_is_covered(signed: Champion, keys: Keys, tmp_path: Path) -> None:
    """One bit of any file, and its absence: only ``champion.json``, which no server reads, may differ."""
    names = sorted(covered(signed))
    assert {"ctr.mar", "feature_store/registry.db", "feature_store/online.db", "bundle/weights.safetensors"} <= {*names}
    verify_release(signed.folder, ANY, [keys[1]])
    for name in names:
        for change in ("flip", "gone"):
            folder = tmp_path / f"{name.replace('/', '-')}-{change}"
            shutil.copytree(signed.folder, folder)
            data = bytearray((folder / name).read_bytes())
            data[len(data) // 2] ^= 1
            (folder / name).write_bytes(bytes(data)) if change == "flip" else (folder / name).unlink()
            if name == "champion.json":
                verify_release(folder, ANY, [keys[1]])
                continue
            with pytest.raises(BundleError) as caught:
                verify_release(folder, ANY, [keys[1]])
            assert "\n" not in str(caught.value)
            if not name.startswith("bundle/"):  # a server takes the bundle out of the archive
                with pytest.raises(BundleError):
                    staged(folder, folder, keys[1])


def add(name: str) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        (release / "feature_store" / name).parent.mkdir(exist_ok=True)
        (release / "feature_store" / name).write_bytes(b"x")

    return change


def link_out(release: Path) -> None:
    path = release / "feature_store" / "registry.db"
    path.rename(release.parent / "registry.db")
    path.symlink_to(release.parent / "registry.db")


def pipe(release: Path) -> None:
    (release / "feature_store" / "feature_store.yaml").unlink()
    os.mkfifo(release / "feature_store" / "feature_store.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add("online.db-wal"), r"online\.db-wal is not in the manifest"),
        (add("handler.py"), r"handler\.py is not in the manifest"),
        (add("data/more.parquet"), r"data/more\.parquet is not in the manifest"),
        (lambda r: (r / "feature_store" / "empty").mkdir(), "empty is not in the manifest"),
        (link_out, r"registry\.db is a link"),
        (pipe, r"feature_store\.yaml is not a plain file"),
        (lambda r: (r / SIGNATURE_FILE).unlink(), "is not signed, and THINKTWICE_TRUSTED_KEYS requires a signature"),
        (lambda r: (r / RELEASE_FILE).unlink(), "is not signed"),
        (lambda r: (r / SIGNATURE_FILE).write_text("{"), "its signature is damaged"),
        (lambda r: (r / SIGNATURE_FILE).write_bytes(b"[" * 4000), "its signature is damaged .it is nested too deeply"),
        (lambda r: (r / SIGNATURE_FILE).write_text(" " * 5000), "has more than 4096 bytes"),
        (lambda r: (r / RELEASE_FILE).write_text(" " * (2 << 20)), "has more than 1048576 bytes"),
        (lambda r: (r / RELEASE_FILE).write_text((r / RELEASE_FILE).read_text() + " "), "does not match its manifest"),
        (lambda r: shutil.rmtree(r / "feature_store"), "cannot be read|is missing"),
    ],
)
def test_what_was_added_exchanged_or_left_out_is_refused(
    release: Path, keys: Keys, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    change(release)
    with pytest.raises(BundleError, match=words) as caught:
        staged(release, tmp_path, keys[1])
    assert "\n" not in str(caught.value)


def test_the_parts_of_two_signed_releases_do_not_mix(
    small: Path, packed: Path, release: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are signed; the store of one with the archive of the other is not."""
    shutil.copytree(packed, tmp_path / "packed")
    (tmp_path / "packed" / "store" / "online.db").write_bytes(b"values of another day")
    monkeypatch.setenv(SIGNING_KEY, str(keys[0]))
    other = install(small, tmp_path / "packed", tmp_path / "state")
    verify_release(other.folder, ANY, [keys[1]])
    shutil.rmtree(release / "feature_store")
    shutil.copytree(other.feature_store_dir, release / "feature_store")
    with pytest.raises(BundleError, match=r"online\.db has .* instead of"):
        staged(release, tmp_path, keys[1])


def test_a_release_without_a_store_does_not_serve_a_model_that_needs_one(
    packed: Path, keys: Keys, tmp_path: Path
) -> None:
    """What packaging signs covers the archive alone: with any store beside it, that store would be nobody's word."""
    shutil.copytree(packed, tmp_path / "alone")
    write_release(tmp_path / "alone" / "archive", keys[0])
    archive, store = tmp_path / "alone" / "archive" / "ctr.mar", tmp_path / "alone" / "store"
    with pytest.raises(BundleError, match="does not cover a feature store and the model needs one: deploy"):
        stage(archive, store, tmp_path / "staged", ANY, [keys[1]])
    assert stage(archive, store, tmp_path / "unsigned", ANY, []).feature_store == store


def test_a_model_that_needs_a_store_is_not_served_without_the_signed_one(
    release: Path, keys: Keys, tmp_path: Path
) -> None:
    """A server would take the one that the environment names."""
    with pytest.raises(BundleError, match="is served without a feature store and the model needs one"):
        stage(release / "ctr.mar", None, tmp_path / "staged", ANY, [keys[1]])
    folder = staged(release, tmp_path, keys[1])
    shutil.rmtree(folder / "feature_store")
    with pytest.raises(BundleError, match="is served without its feature store"):
        open_staged(folder, ANY, [keys[1]])
    assert open_staged(folder, ANY, []).feature_store is None


def test_values_outside_the_folder_are_named(packed: Path, small: Path, keys: Keys, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    settings = tmp_path / "packed" / "store" / "feature_store.yaml"
    text = settings.read_text().replace("type: sqlite", "type: redis")
    settings.write_text(text.replace("path: online.db", "connection_string: ${THINKTWICE_REDIS_ADDRESS}"))
    (tmp_path / "packed" / "store" / "online.db").unlink()
    champion = install(small, tmp_path / "packed", tmp_path / "state")
    assert read_json(champion.folder / RELEASE_FILE)["not_covered"] == ["the values in Redis"]
    assert verify_release(champion.folder).release.not_covered == ("the values in Redis",)


def test_both_layouts_of_the_deployment_are_signed(
    small: Path, packed: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGNING_KEY, str(keys[0]))
    deploy_model(
        packed / "archive",
        small / "bundle",
        packed / "store",
        bless(tmp_path / "blessing", bundle_hash(small / "bundle")),
        target="manifest",
        state_dir=tmp_path / "state",
        out_dir=tmp_path / "out",
    )
    for folder in (tmp_path / "out" / "model", tmp_path / "state" / "champion"):
        assert verify_release(folder.resolve(), ANY, [keys[1]]).key_id
    # A cluster gets no tables; of those that are there, none may be missing or others.
    model = tmp_path / "out" / "model"
    assert not (model / "feature_store" / "data").exists()
    found = stage(model / "ctr.mar", model / "feature_store", tmp_path / "staged", ANY, [keys[1]]).feature_store
    assert found is not None and not (found / "data").exists()
    for name in ("user_attributes.parquet", "others.parquet"):
        (model / "feature_store" / "data").mkdir(exist_ok=True)
        (model / "feature_store" / "data" / name).write_bytes(b"other rows")
        with pytest.raises(BundleError, match=r"\.parquet (has|is not in the manifest)"):
            stage(model / "ctr.mar", model / "feature_store", tmp_path / name, ANY, [keys[1]])
    # And a signed input stays what it is: packaging had no key.
    assert not (packed / "archive" / SIGNATURE_FILE).exists()


def test_an_older_release_is_refused_where_the_settings_say_so(release: Path, keys: Keys, tmp_path: Path) -> None:
    old, new = tmp_path / "old", release
    shutil.copytree(release, old)
    write_release(old, keys[0], created=NOW - timedelta(days=1))
    written = write_release(new, keys[0], created=NOW)
    policy = ReleasePolicy(oldest=NOW)
    staged(old, tmp_path, keys[1])  # its signature is good
    staged(new, tmp_path, keys[1], policy=policy)
    with pytest.raises(
        BundleError, match=r"was written at 2026-01-31T12:00:00\+00:00 and the settings accept none before"
    ):
        staged(old, tmp_path, keys[1], policy=policy)
    with pytest.raises(BundleError, match="accept none before"):
        staged(old, tmp_path, policy=policy)
    folder = staged(old, tmp_path, keys[1])
    with pytest.raises(BundleError, match="accept none before"):  # the worker looks again
        open_staged(folder, policy, [keys[1]])
    hash_ = hashlib.sha256((new / RELEASE_FILE).read_bytes()).hexdigest()
    staged(new, tmp_path, keys[1], policy=ReleasePolicy(pinned=(hash_,)))
    staged(old, tmp_path, keys[1], policy=ReleasePolicy(pinned=(written.bundle,)))
    with pytest.raises(BundleError, match="is not one of the pinned ones"):
        staged(old, tmp_path, keys[1], policy=ReleasePolicy(pinned=(hash_,)))


def test_a_policy_asks_for_a_release(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed / "archive", tmp_path / "archive")
    (tmp_path / "archive" / RELEASE_FILE).unlink()
    archive = tmp_path / "archive" / "ctr.mar"
    assert stage(archive, None, tmp_path / "staged", ANY, []).bundle.is_dir()
    for policy in (ReleasePolicy(oldest=NOW), ReleasePolicy(pinned=("0" * 64,))):
        with pytest.raises(BundleError, match=r"has no release\.json, and the settings require"):
            stage(archive, None, tmp_path / "again", policy, [])


@pytest.mark.parametrize(
    "change",
    [
        {"format": True},
        {"format": 1.0},
        {"format": 2},
        {"created": "2026-02-01T12:00:00"},
        {"created": "soon"},
        {"bundle": "x"},
        {"archive": {"sha256": "0" * 64, "size": -1}},
        {"feature_store": []},
        {"feature_store": {"../../evil": {"sha256": "0" * 64, "size": 1}}},
        {"feature_store": {"/etc/passwd": {"sha256": "0" * 64, "size": 1}}},
        {"feature_store": {"data/../x.parquet": {"sha256": "0" * 64, "size": 1}}},
        {"pickle": "x"},
    ],
)
def test_a_wrong_description_is_named(release: Path, tmp_path: Path, change: dict[str, object]) -> None:
    write_json(release / RELEASE_FILE, read_json(release / RELEASE_FILE) | change)
    with pytest.raises(BundleError, match=r"release\.json is damaged") as caught:
        staged(release, tmp_path)
    assert "errors.pydantic.dev" not in str(caught.value)


def test_unknown_files_are_not_deployed(small: Path, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    (tmp_path / "packed" / "store" / "sitecustomize.py").write_text("")
    with pytest.raises(FeatureStoreError, match=r"contains the unknown file sitecustomize\.py: remove it"):
        install(small, tmp_path / "packed", tmp_path / "state")
    assert read_champion(tmp_path / "state") is None


def test_a_bundle_folder_is_copied_where_a_release_is_asked_for(release: Path, keys: Keys, tmp_path: Path) -> None:
    found = stage(release / "bundle", release / "feature_store", tmp_path / "staged", ANY, [keys[1]])
    assert found.bundle == tmp_path / "staged" / "bundle"
    weights = release / "bundle" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"weights\.safetensors has SHA-256"):
        stage(release / "bundle", release / "feature_store", tmp_path / "again", ANY, [keys[1]])


def test_a_champion_of_an_earlier_version_is_read_and_not_served(small: Path, release: Path, tmp_path: Path) -> None:
    """Its bundle is what the next model is compared with; its archive holds code."""
    for name in (RELEASE_FILE, SIGNATURE_FILE):
        (release / name).unlink()

    def as_before(files: dict[str, bytes]) -> None:
        manifest = json.loads(files["MAR-INF/MANIFEST.json"])
        manifest["model"]["handler"] = "handler.py"
        files["MAR-INF/MANIFEST.json"] = json.dumps(manifest).encode()
        files["handler.py"] = b"from serving.adapters.torchserve_handler import CTRHandler as _CTRHandler\n"

    rezip(release / "ctr.mar", release / "old.mar", as_before)
    (release / "old.mar").replace(release / "ctr.mar")
    write_json(release / "champion.json", read_json(release / "champion.json") | {"archive_sha256": "0" * 64})
    (tmp_path / "champion").symlink_to(release)
    champion = read_champion(tmp_path)
    assert champion is not None and champion.info.bundle_hash == bundle_hash(small / "bundle")
    with pytest.raises(
        BundleError, match=r"contains code \('handler\.py'\): archives of earlier versions .* package the model"
    ):
        verify_archive(champion)
    with pytest.raises(BundleError, match="package the model again"):
        staged(release, tmp_path)


def test_a_signed_bundle_of_an_earlier_version_still_loads(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "bundle", tmp_path / "bundle")
    (tmp_path / "bundle" / "signature.json").write_text("{}")
    assert load_bundle(tmp_path / "bundle").hash == bundle_hash(small / "bundle")
    assert read_json(tmp_path / "bundle" / MANIFEST_FILE)["format"] == FORMAT == 1

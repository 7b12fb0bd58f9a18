"""Signatures: what is signed loads, what was changed, exchanged or never signed does not, and no key shows anywhere."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from components.deployment.package.archive import write_archive
from serving.archive import extract_bundle
from tests.serving.small import bless
from thinktwice.bundle import MANIFEST_FILE, SIGNATURE_FILE, bundle_hash, load_bundle, verify_bundle
from thinktwice.bundle_cli import app
from thinktwice.champion import install_champion
from thinktwice.errors import BundleError, ThinktwiceError
from thinktwice.signing import (
    PUBLIC_FILE,
    SIGNING_KEY,
    TRUSTED_KEYS,
    make_keys,
    sign_bundle,
    trusted_keys,
    verify_signature,
)


@pytest.fixture
def bundle(small: Path, tmp_path: Path) -> Path:
    shutil.copytree(small / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys"))


def test_a_signed_bundle_loads(bundle: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    before = bundle_hash(bundle)
    signature = sign_bundle(bundle, private)
    assert verify_signature(bundle, [public]) == signature.key_id
    verify_bundle(bundle)
    assert load_bundle(bundle).hash == before, "a signature does not change the name of a bundle"
    assert json.loads((bundle / SIGNATURE_FILE).read_text()).keys() == {"algorithm", "key_id", "signature"}


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "keys")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(BundleError, match="never overwritten"):
        make_keys(tmp_path / "keys")
    assert (private.read_bytes(), public.read_bytes()) == before


def change_manifest(bundle: Path) -> None:
    text = (bundle / MANIFEST_FILE).read_text()
    (bundle / MANIFEST_FILE).write_text(text.replace("small-2026", "evil-2026"))


def change_signature(bundle: Path) -> None:
    value = json.loads((bundle / SIGNATURE_FILE).read_text())
    value["signature"] = value["signature"][:-4] + "AAA="
    (bundle / SIGNATURE_FILE).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_manifest, "does not fit its manifest"),
        (change_signature, "does not fit its manifest|is damaged"),
        (lambda b: (b / SIGNATURE_FILE).unlink(), "is not signed, and only signed ones are accepted"),
        (lambda b: (b / SIGNATURE_FILE).write_text("{"), "is damaged"),
        (lambda b: (b / SIGNATURE_FILE).write_text(json.dumps({"key_id": "x"})), "is damaged"),
        (lambda b: (b / SIGNATURE_FILE).write_text(" " * 5000), "is damaged"),
        (lambda b: (b / MANIFEST_FILE).unlink(), "is no bundle"),
    ],
)
def test_what_was_changed_is_refused(bundle: Path, keys: tuple[Path, Path], change, words: str) -> None:  # type: ignore[no-untyped-def]
    sign_bundle(bundle, keys[0])
    change(bundle)
    with pytest.raises(BundleError, match=words):
        verify_signature(bundle, [keys[1]])


def test_changed_weights_fit_the_signature_but_not_the_manifest(bundle: Path, keys: tuple[Path, Path]) -> None:
    sign_bundle(bundle, keys[0])
    with (bundle / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    verify_signature(bundle, [keys[1]])
    with pytest.raises(BundleError, match="it is damaged"):
        verify_bundle(bundle)


def test_the_signature_of_another_bundle_does_not_pass(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "other")
    change_manifest(tmp_path / "other")
    sign_bundle(tmp_path / "other", keys[0])
    shutil.copyfile(tmp_path / "other" / SIGNATURE_FILE, bundle / SIGNATURE_FILE)
    with pytest.raises(BundleError, match="does not fit"):
        verify_signature(bundle, [keys[1]])


def test_a_key_that_is_not_trusted_and_a_change_of_keys(
    bundle: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_private, new_public = make_keys(tmp_path / "new")
    signature = sign_bundle(bundle, new_private)
    with pytest.raises(
        BundleError, match=rf"key {signature.key_id}, which is not trusted here \(trusted: [0-9a-f]{{16}}\)"
    ):
        verify_signature(bundle, [keys[1]])
    folder = tmp_path / "trusted"
    folder.mkdir()
    shutil.copyfile(keys[1], folder / "old.pem")
    shutil.copyfile(new_public, folder / "new.pem")
    monkeypatch.setenv(TRUSTED_KEYS, str(folder))
    assert verify_signature(bundle, trusted_keys()) == signature.key_id
    sign_bundle(bundle, keys[0])
    assert verify_signature(bundle, trusted_keys()) != signature.key_id


def test_a_mistake_in_the_settings_does_not_turn_the_check_off(tmp_path: Path) -> None:
    assert trusted_keys({}) == ()
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="where no key is"):
            trusted_keys({TRUSTED_KEYS: str(place)})


def test_errors_show_no_key(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    secret = "".join(private.read_text().splitlines()[1:-1])
    broken = tmp_path / "broken.pem"
    broken.write_text(private.read_text().replace(secret[:8], "????????"))
    sign_bundle(bundle, private)
    for act in (
        lambda: sign_bundle(bundle, broken),
        lambda: sign_bundle(bundle, public),
        lambda: sign_bundle(bundle, tmp_path / "none"),
        lambda: verify_signature(bundle, [private]),
        lambda: verify_signature(bundle, [broken]),
    ):
        with pytest.raises(ThinktwiceError) as caught:
            act()
        assert secret[8:24] not in str(caught.value) and "keygen" in str(caught.value)
        assert caught.value.__suppress_context__


def test_packaging_signs_and_the_champion_carries_it(
    small: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small / "bundle"
    blessing = bless(tmp_path / "blessing", bundle_hash(source))
    write_archive(source, blessing, tmp_path / "unsigned")
    monkeypatch.setenv(SIGNING_KEY, str(keys[0]))
    write_archive(source, blessing, tmp_path / "signed")
    assert not (source / SIGNATURE_FILE).exists(), "the input of the step stays as it is"
    inside = extract_bundle(tmp_path / "signed" / "ctr.mar", tmp_path / "out")
    assert verify_signature(inside, [keys[1]])
    with pytest.raises(BundleError, match="is not signed"):
        verify_signature(extract_bundle(tmp_path / "unsigned" / "ctr.mar", tmp_path / "out2"), [keys[1]])
    (tmp_path / "store").mkdir()
    champion = install_champion(
        tmp_path / "state",
        bundle_dir=source,
        archive=tmp_path / "signed" / "ctr.mar",
        feature_store_dir=tmp_path / "store",
    )
    assert verify_signature(champion.bundle_dir, [keys[1]])
    verify_bundle(champion.bundle_dir)


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "a.mar").write_bytes(b"no zip")
    with pytest.raises(BundleError, match="cannot be read"):
        extract_bundle(tmp_path / "a.mar", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "b.mar", "w") as file:
        file.writestr("handler.py", "")
    with pytest.raises(BundleError, match="holds no bundle"):
        extract_bundle(tmp_path / "b.mar", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "c.mar", "w") as file:
        file.writestr("bundle/../../evil", "")
    with pytest.raises(BundleError, match="holds the path"):
        extract_bundle(tmp_path / "c.mar", tmp_path / "out")
    assert not (tmp_path.parent / "evil").exists()


def test_the_command_line(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(app, typer.Typer)
    monkeypatch.delenv(TRUSTED_KEYS, raising=False)

    def run(*arguments: str) -> str:
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False).output

    assert "keep it secret" in run("keygen", "--out", str(tmp_path / "k"))
    assert "its signature was not checked" in run("verify", str(bundle))
    assert "signed with the key" in run("sign", str(bundle), "--key", str(tmp_path / "k" / "signing-key.pem"))
    out = run("verify", str(bundle), "--key", str(tmp_path / "k" / PUBLIC_FILE))
    assert "whole, bundle" in out and "signed with the key" in out
    (bundle / "weights.safetensors").unlink()
    with pytest.raises(BundleError, match="is missing"):
        run("verify", str(bundle))

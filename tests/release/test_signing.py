"""Keys and signatures: made once, shown nowhere, changed without a moment in which nothing is served."""

from __future__ import annotations

import hashlib
import shutil
import stat
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from tests.release.conftest import Keys
from thinktwice.errors import BundleError, ThinktwiceError
from thinktwice.files import read_json
from thinktwice.release import cli as release_cli
from thinktwice.release.release import RELEASE_FILE, ReleasePolicy, verify_release, write_release
from thinktwice.release.signing import PUBLIC_FILE, TRUSTED_KEYS, make_keys, sign, trusted_keys, verify_signature

ANY = ReleasePolicy()


def test_a_signature_file_of_a_known_key_is_frozen(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    s = serialization
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    content = sign(b"{}\n", private)
    assert hashlib.sha256(content).hexdigest() == "4ecdbf320935ad61773f5600029aae074adc26f6d2e2621fcd0b6588a5cabb41"
    assert verify_signature("it", b"{}\n", content, [public]) == "56475aa75463474c"


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "keys")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(BundleError, match="never overwritten"):
        make_keys(tmp_path / "keys")
    assert (private.read_bytes(), public.read_bytes()) == before


def test_a_key_that_is_not_trusted_and_a_change_of_keys(
    release: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_private, new_public = make_keys(tmp_path / "new")
    write_release(release, new_private)
    with pytest.raises(
        BundleError, match=r"signed with the key [0-9a-f]{16}, which is not trusted here \(trusted: [0-9a-f]{16}\)"
    ):
        verify_release(release, ANY, [keys[1]])
    folder = tmp_path / "trusted"
    folder.mkdir()
    shutil.copyfile(keys[1], folder / "old.pem")
    shutil.copyfile(new_public, folder / "new.pem")
    monkeypatch.setenv(TRUSTED_KEYS, str(folder))
    first = verify_release(release, ANY, trusted_keys()).key_id
    write_release(release, keys[0])
    assert verify_release(release, ANY, trusted_keys()).key_id != first
    (folder / "old.pem").unlink()
    with pytest.raises(BundleError, match="not trusted here"):
        verify_release(release, ANY, trusted_keys())
    write_release(release)
    with pytest.raises(BundleError, match="is not signed"):
        verify_release(release, ANY, trusted_keys())


def test_a_mistake_in_the_settings_does_not_turn_the_check_off(tmp_path: Path) -> None:
    assert trusted_keys({}) == ()
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="contains no key"):
            trusted_keys({TRUSTED_KEYS: str(place)})


def test_errors_show_no_key(release: Path, keys: Keys, tmp_path: Path) -> None:
    private, public = keys
    secret = "".join(private.read_text().splitlines()[1:-1])
    broken = tmp_path / "broken.pem"
    broken.write_text(private.read_text().replace(secret[:8], "????????"))
    for act in (
        lambda: write_release(release, broken),
        lambda: write_release(release, public),
        lambda: write_release(release, tmp_path / "none"),
        lambda: verify_release(release, ANY, [private]),
        lambda: verify_release(release, ANY, [broken]),
    ):
        with pytest.raises(ThinktwiceError) as caught:
            act()
        assert secret[8:24] not in str(caught.value) and "keygen" in str(caught.value)
        assert caught.value.__suppress_context__
    verify_release(release, ANY, [public])  # a key that cannot sign leaves the release as it was


def test_the_command_line(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(release_cli.release, typer.Typer)
    monkeypatch.delenv(TRUSTED_KEYS, raising=False)

    def run(*arguments: str, app: typer.Typer = release_cli.release) -> str:
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False).output

    assert "keep it secret" in run("keygen", "--out", str(tmp_path / "k"))
    assert "its signature was not checked" in run("verify", str(release))
    assert "signed, with everything" in run("sign", str(release), "--key", str(tmp_path / "k" / "signing-key.pem"))
    public = str(tmp_path / "k" / PUBLIC_FILE)
    out = run("verify", str(release), "--key", public)
    assert "whole, signed with the key" in out and read_json(release / RELEASE_FILE)["bundle"] in out
    with pytest.raises(BundleError, match="accept none before"):
        run("verify", str(release), "--key", public, "--oldest", "2999-01-01")
    assert "whole, bundle" in run("verify", str(release / "bundle"), app=release_cli.bundle)
    (release / "bundle" / "weights.safetensors").unlink()
    with pytest.raises(BundleError, match="is missing"):
        run("verify", str(release / "bundle"), app=release_cli.bundle)
    for arguments in (["sign", str(tmp_path / "x"), "--key", public], ["verify", str(tmp_path / "x")]):
        with pytest.raises(BundleError, match=r"is not a folder|is not a release"):
            run(*arguments)

"""Signatures of releases: ed25519 over the bytes of ``release.json``, which lists every covered file by hash.

They protect against an attacker who can write to the object store or the network but does not have the signing key. They do not
protect against an attacker with the key; remove a leaked key from ``THINKTWICE_TRUSTED_KEYS``.

Keys are PEM files (PKCS8 and SubjectPublicKeyInfo). The private key is named by ``THINKTWICE_SIGNING_KEY_FILE``, for the steps
that package and deploy a model; the public keys by ``THINKTWICE_TRUSTED_KEYS``, a file or a folder of ``*.pem``, for
predictors. Several keys may be trusted, so that keys can be rotated without downtime.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from thinktwice.errors import BundleError, reason
from thinktwice.files import json_bytes, parse_json
from thinktwice.frozen import Frozen

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY = "THINKTWICE_SIGNING_KEY_FILE"
TRUSTED_KEYS = "THINKTWICE_TRUSTED_KEYS"
PRIVATE_FILE, PUBLIC_FILE = "signing-key.pem", "trusted-key.pem"
DOMAIN = b"thinktwice release 1\0"  # domain separation: signatures of other data are not valid for a release


class Signature(Frozen):
    """Content of a signature file."""

    algorithm: Literal["ed25519"] = "ed25519"
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    signature: Annotated[str, Field(max_length=128)]  # base64


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Write a new key pair to ``folder``; only the owner can read the private file.

    Raises:
        BundleError: a key exists already; keys are never overwritten.
    """
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / PRIVATE_FILE, folder / PUBLIC_FILE
    for path in (private, public):
        if path.exists():
            raise BundleError(f"{path} exists and is never overwritten: use another folder")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def signing_key(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The file of the private key that the environment names; None if it names none."""
    named = environment.get(SIGNING_KEY)
    return Path(named) if named else None


def trusted_keys(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Files of the public keys that the environment trusts; empty if it requires no signature.

    Raises:
        BundleError: it names a path without keys: a typo must not turn the check off.
    """
    named = environment.get(TRUSTED_KEYS)
    if not named:
        return ()
    path = Path(named)
    files = tuple(sorted(path.glob("*.pem"))) if path.is_dir() else (path,) if path.is_file() else ()
    if not files:
        raise BundleError(f"{TRUSTED_KEYS} is set to {path}, which contains no key: add public keys as *.pem")
    return files


def sign(manifest: bytes, private: Path) -> bytes:
    """The content of the signature file of a manifest.

    Raises:
        BundleError: there is no key in the file.
    """
    key = _private(private)
    signature = base64.b64encode(key.sign(signed_bytes(manifest))).decode()
    return json_bytes(Signature(key_id=key_id(key.public_key()), signature=signature).model_dump())


def verify_signature(what: str, manifest: bytes, signature: bytes, trusted: Sequence[Path]) -> str:
    """Check that one of the trusted keys signed a manifest; returns the id of the key.

    Args:
        what: name of the signed object in errors.

    Raises:
        BundleError: the signature is damaged, of an unknown key, or of other data.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        parsed = Signature.model_validate(parse_json(signature))
        raw = base64.b64decode(parsed.signature, validate=True)
    except ValueError as error:
        raise BundleError(f"{what}: its signature is damaged ({reason(error)}): get it again") from error
    keys = {key_id(key): key for key in map(_public, trusted)}
    if parsed.key_id not in keys:
        raise BundleError(
            f"{what} is signed with the key {parsed.key_id}, which is not trusted here (trusted: {', '.join(sorted(keys))}): "
            f"get it from its maker, or add the key to {TRUSTED_KEYS}"
        )
    try:
        keys[parsed.key_id].verify(raw, signed_bytes(manifest))
    except InvalidSignature:
        raise BundleError(f"{what}: its signature does not match its manifest: download it again") from None
    return parsed.key_id


def signed_bytes(manifest: bytes) -> bytes:
    """The bytes that the key signs for a manifest."""
    return DOMAIN + hashlib.sha256(manifest).digest()


def key_id(key: Ed25519PublicKey) -> str:
    """16 hex digits that identify a public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _private(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):  # the library's message may quote the file
        raise BundleError(f"{path} contains no private key: create one with 'thinktwice release keygen'") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(
            f"{path} contains a key of another type than ed25519: create one with 'thinktwice release keygen'"
        )
    return key


def _public(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError):
        raise BundleError(f"{path} contains no public key: use {PUBLIC_FILE} of 'thinktwice release keygen'") from None
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(
            f"{path} contains a key of another type than ed25519: create one with 'thinktwice release keygen'"
        )
    return key

"""A bundle as the start of a training on a later log."""

from __future__ import annotations

import hashlib
from pathlib import Path

from thinktwice.data.encoder import ENCODER_FILE, VOCABULARY_FILE, Encoder
from thinktwice.data.warm_start import Start, different_fields
from thinktwice.errors import DataError
from thinktwice.models.store import MODEL_FILES, described_model
from thinktwice.release.bundle import MANIFEST_FILE, MAX_MANIFEST, bundle_hash, verify_bundle
from thinktwice.schema import SCHEMA_FILE, LogSchema, load_schema
from thinktwice.storage.location import is_remote
from thinktwice.storage.open import open_store

FROM_SCRATCH = "train from scratch, or continue from another bundle"
FILES = (MANIFEST_FILE, SCHEMA_FILE, ENCODER_FILE, VOCABULARY_FILE, *MODEL_FILES)


def start_of(bundle: Path | str, schema: LogSchema, version: str = "") -> Start:
    """The start of a training on a log of ``schema``.

    Args:
        version: hash that the bundle must have; "" for any.

    Raises:
        DataError: the bundle is of another schema, cannot be continued, or is another than ``version``; the message says what differs.
        BundleError: it is damaged.
    """
    folder = Path(bundle)
    verify_bundle(folder)
    if version and (found := bundle_hash(folder)) != version:
        raise DataError(
            f"bundle {folder} is now {found[:12]} and was {version[:12]} when the run began: start the run again"
        )
    encoder = Encoder.load(folder)
    if different := different_schema(schema, load_schema(folder / SCHEMA_FILE), encoder):
        raise DataError(f"bundle {folder} is of another schema than the log ({different}): {FROM_SCRATCH}")
    if encoder.widens:
        raise DataError(f"bundle {folder} is of a version that read narrow floats in another way: {FROM_SCRATCH}")
    if described_model(folder).fields.counters is not None:
        raise DataError(
            f"the model of bundle {folder} reads counters, which a training cannot continue: {FROM_SCRATCH}"
        )
    return Start(folder, FILES)


def bundle_version(place: str) -> str:
    """The hash of a bundle in a folder, or at ``s3://BUCKET/FOLDER``.

    Raises:
        BundleError: there is no manifest. StorageError: the store cannot be used.
    """
    if not is_remote(place):
        return bundle_hash(place)
    with open_store(place) as store, store.open(MANIFEST_FILE) as file:
        return hashlib.sha256(file.read(MAX_MANIFEST)).hexdigest()


def different_schema(schema: LogSchema, earlier: LogSchema, encoder: Encoder) -> str:
    """What differs between the schema of a log and that of an earlier model, as far as its weights depend on it; "" if nothing."""
    if schema.name != earlier.name:
        return f"its name is {earlier.name!r} and not {schema.name!r}"
    if different := different_fields(schema, encoder):
        return different
    for part in ("label", "entities", "sequences", "statistics"):
        if getattr(schema, part) != getattr(earlier, part):
            return f"{part!r} differs"
    return ""

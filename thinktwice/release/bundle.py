"""The bundle: one immutable, hashed folder per model version. Training writes it and serving reads it; they share nothing else.

``manifest.json`` lists every other file with its size and SHA-256, so the hash of the manifest identifies the whole bundle.
Loading first verifies all hashes, validates the content of every file, and unpickles nothing.

Each part of a bundle defines the names of its files. The parts import torch, so they are imported where they are used.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from thinktwice.errors import BundleError, ThinktwiceError, reason
from thinktwice.files import parse_json, read_json
from thinktwice.frozen import Frozen
from thinktwice.hashing import FileEntry, check_folder, copy_folder, read_plain
from thinktwice.schema import SCHEMA_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinktwice.data.encoder import Encoder
    from thinktwice.data.evidence import Evidence
    from thinktwice.models.backbone import Backbone
    from thinktwice.models.backends import MakeBackend
    from thinktwice.models.fields import FieldSpace
    from thinktwice.models.store import ModelInfo
    from thinktwice.schema import LogSchema
    from thinktwice.testtime.engine import Engine
    from thinktwice.testtime.store import TestTime

FORMAT = 1
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST = 1 << 20  # bytes
REPORT = "report"  # folder of the next two files
EVALUATION_FILE, REPORT_FILE = "evaluation.json", "report.html"
REPORT_FILES = (f"{REPORT}/{EVALUATION_FILE}", f"{REPORT}/{REPORT_FILE}")
OLD_SIGNATURE_FILE = "signature.json"  # may exist in bundles of older versions; a signature now covers a whole release
FIX = "get the bundle again"

PROBED_ROWS = 32  # random rows that are scored when a bundle is loaded

logger = logging.getLogger(__name__)


@cache
def bundle_files() -> tuple[frozenset[str], frozenset[str]]:
    """Names of required files, and of optional files of a bundle; each part defines the names of its files."""
    from thinktwice.data.encoder import ENCODER_FILE, VOCABULARY_FILE
    from thinktwice.models.backends.onnx import ONNX_FILE
    from thinktwice.models.backends.store import BACKEND_FILES
    from thinktwice.models.store import MODEL_FILES
    from thinktwice.release.profile import PROFILE_FILE
    from thinktwice.testtime.cost import COST_FILE
    from thinktwice.testtime.store import EXTRA_FILES, MEMBER_FOLDERS, TEST_TIME_FILES

    always = (SCHEMA_FILE, ENCODER_FILE, VOCABULARY_FILE, *MODEL_FILES, *TEST_TIME_FILES, *REPORT_FILES)
    members = (f"{folder}/{ONNX_FILE}" for folder in MEMBER_FOLDERS)
    return frozenset(always), frozenset((PROFILE_FILE, COST_FILE, *BACKEND_FILES, *EXTRA_FILES, *members))


class BundleIdentity(Frozen):
    """Identity of a model. ``created`` is an argument, not the current time: the same inputs give the same bytes."""

    model_version: str = Field(min_length=1)
    feature_service: str  # "" for a log without entities: such a model reads raw rows only
    schema_name: str
    snapshot_id: str
    package_version: str
    created: str  # ISO 8601
    train_window: tuple[str, str]  # first and last instant of the train part, ISO 8601


class Manifest(BundleIdentity):
    """Content of ``manifest.json``."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT, strict=True)] = FORMAT
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        always, sometimes = bundle_files()
        if (missing := sorted(always - set(self.files))) or (extra := sorted(set(self.files) - always - sometimes)):
            problem = f"does not list {missing[0]}" if missing else f"lists the unknown file {extra[0]}"
            raise ValueError(f"'files' {problem}")
        return self


@dataclass(frozen=True)
class Bundle:
    """A verified and loaded bundle. ``hash`` is the hash of its manifest."""

    folder: Path
    manifest: Manifest
    hash: str
    schema: LogSchema
    encoder: Encoder
    model: Backbone
    engine: Engine

    @property
    def reads_counters(self) -> bool:
        """Whether its scores depend on counters up to the instant of a request (``statistics.instant`` of its schema)."""
        return self.engine.reads_counters


def bundle_hash(folder: Path | str) -> str:
    """SHA-256 of the manifest, which identifies the whole bundle.

    Raises:
        BundleError: there is no manifest.
    """
    return hashlib.sha256(_manifest_bytes(Path(folder))).hexdigest()


def read_manifest(folder: Path | str) -> Manifest:
    """Read ``manifest.json`` without reading other files.

    Raises:
        BundleError: it is missing, damaged, of another format, or has unknown keys.
    """
    return parse_manifest(_manifest_bytes(Path(folder)), f"bundle {folder}")


def parse_manifest(data: bytes, what: str) -> Manifest:
    """Parse the content of ``manifest.json``; ``what`` names the bundle in errors.

    Raises:
        BundleError: it is damaged, of another format, or has unknown keys.
    """
    try:
        value = parse_json(data)
    except ValueError as error:
        raise BundleError(f"{what}: {MANIFEST_FILE} is damaged ({reason(error)}): {FIX}") from error
    if isinstance(value, dict) and type(version := value.get("format")) is int and version != FORMAT:
        raise BundleError(
            f"{what} has format {version}, this version of thinktwice reads format {FORMAT}: "
            "install the version that wrote it, or train again"
        )
    try:
        return Manifest.model_validate(value)
    except ValueError as error:
        raise BundleError(f"{what}: {MANIFEST_FILE} is wrong ({reason(error)}): {FIX}") from error


def _manifest_bytes(folder: Path) -> bytes:
    try:
        return read_plain(folder / MANIFEST_FILE, MAX_MANIFEST)
    except OSError as error:
        raise BundleError(
            f"{folder} is not a bundle ({MANIFEST_FILE}: {reason(error)}): use a bundle folder"
        ) from error


def verify_bundle(folder: Path | str) -> Manifest:
    """Check the manifest, the set of files, every size and every hash.

    Raises:
        BundleError: anything differs; the message names the file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    also = [name for name in (MANIFEST_FILE, OLD_SIGNATURE_FILE) if (folder / name).is_file()]
    check_folder(f"bundle {folder}", folder, manifest.files, FIX, also=also)
    return manifest


def copy_bundle(folder: Path | str, target: Path) -> Manifest:
    """Copy a bundle to ``target`` (a new folder), verified like :func:`verify_bundle` in the same single read.

    Raises:
        BundleError: anything differs; the message names the file.
    """
    folder = Path(folder)
    data = _manifest_bytes(folder)
    manifest = parse_manifest(data, f"bundle {folder}")
    also = [name for name in (MANIFEST_FILE, OLD_SIGNATURE_FILE) if (folder / name).is_file()]
    copy_folder(f"bundle {folder}", folder, target, manifest.files, FIX, also=also)
    (target / MANIFEST_FILE).write_bytes(data)
    return manifest


def load_bundle(folder: Path | str, checked: Manifest | None = None) -> Bundle:
    """Verify a bundle and load it, ready to score.

    Args:
        checked: its manifest, if this process has just verified or written the folder and only this user can write to it; the
        files are then not hashed again.

    Raises:
        ThinktwiceError: it is damaged or incomplete, its parts do not fit each other, or its scores are not finite; the message
        names the file.
    """
    folder = Path(folder)
    manifest = checked or verify_bundle(folder)
    try:
        return _load(folder, manifest)
    except ThinktwiceError:
        raise
    except Exception as error:  # unforeseen content must not stop a server with a stack trace
        logger.debug("bundle %s", folder, exc_info=error)
        raise BundleError(
            f"bundle {folder} cannot be loaded ({type(error).__name__}: {reason(error)}): its files do not fit each other, {FIX}"
        ) from error


def _load(folder: Path, manifest: Manifest) -> Bundle:
    from thinktwice.data.encoder import ENCODER_FILE, Encoder
    from thinktwice.data.warm_start import different_fields
    from thinktwice.models.fields import FieldSpace
    from thinktwice.models.store import WEIGHTS_FILE, load_model
    from thinktwice.schema import load_schema
    from thinktwice.testtime.store import load_test_time

    schema = load_schema(folder / SCHEMA_FILE)
    encoder = Encoder.load(folder)
    if different := different_fields(schema, encoder):
        raise BundleError(
            f"bundle {folder}: {SCHEMA_FILE} and {ENCODER_FILE} describe different fields ({different}): "
            "train and package again"
        )
    model, info = load_model(folder, fields=FieldSpace.of(schema, encoder))
    test_time = load_test_time(folder, model)
    if test_time.weights and test_time.weights != manifest.files[WEIGHTS_FILE].sha256:
        raise BundleError(
            f"bundle {folder}: its counts were taken for other weights ({test_time.weights[:12]}...): counts that are newer or "
            "older than the weights would call untrained values reliable, fit the test-time parameters again"
        )
    _check_counters(folder, schema, model.fields, test_time)
    _check_metadata(folder, manifest, encoder)
    engine = _engine(folder, model, info, test_time)
    _check_scores(folder, engine)
    return Bundle(folder, manifest, bundle_hash(folder), schema, encoder, model, engine)


def _check_counters(folder: Path, schema: LogSchema, fields: FieldSpace, test_time: TestTime) -> None:
    """Refuse a model or a correction trained on other counters than the schema defines, or neighbours of another item key."""
    from thinktwice.data.instant.definition import definition_of
    from thinktwice.testtime.opinions.config import Retrieve

    config, network = test_time.config, test_time.extras.correction
    definition = definition_of(schema)
    definition_hash = None if definition is None else definition.hash
    number = 0 if definition is None else len(definition.names)
    if fields.counters is not None and (
        fields.counters.definition != definition_hash or len(fields.counters.means) != number
    ):
        raise BundleError(
            f"bundle {folder}: its model was trained on {len(fields.counters.means)} instant statistics of another definition than the "
            f"{number} of {SCHEMA_FILE}: train and package again"
        )
    if config.correction is None or network is None:
        return
    if config.correction.definition not in (None, definition_hash) or network.num_counters != number:
        raise BundleError(
            f"bundle {folder}: its correction was trained on {network.num_counters} instant statistics of another definition than the "
            f"{number} of {SCHEMA_FILE}: train and package again"
        )
    look = config.second_look
    if look is not None and isinstance(look.opinion, Retrieve) and look.opinion.item_field != schema.key_of("item"):
        raise BundleError(
            f"bundle {folder}: its retrieved evidence is of {look.opinion.item_field!r} and the items' key is "
            f"{schema.key_of('item')!r}: train and package again"
        )


def _check_metadata(folder: Path, manifest: Manifest, encoder: Encoder) -> None:
    """Check the files that no score depends on: the profile, and the evaluation."""
    from thinktwice.release.profile import PROFILE_FILE, check_profile, read_profile

    name = PROFILE_FILE
    try:
        if PROFILE_FILE in manifest.files:
            check_profile(read_profile(folder), encoder)
        name = REPORT_FILES[0]
        if not isinstance(read_json(folder / name), dict):
            raise ValueError("it is not an object")
        name = REPORT_FILES[1]
        (folder / name).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {folder}: {name} is damaged ({reason(error)}): {FIX}") from error


def _check_scores(folder: Path, engine: Engine) -> None:
    """Score rows with the largest weights, and random rows: finite weights may still overflow in products."""
    import numpy as np

    from thinktwice.models.backends.backend import largest_rows, random_rows

    for rows in (largest_rows(engine.model), random_rows(engine.model, PROBED_ROWS)):
        scored = engine.score(rows, evidence=_extreme_evidence(engine, len(rows)))
        if not (np.isfinite(scored.logit).all() and np.isfinite(scored.uncertainty).all()):
            raise BundleError(
                f"bundle {folder}: its weights or calibrations are so large that a row has no finite score: train again"
            )


def _extreme_evidence(engine: Engine, rows: int) -> Evidence | None:
    """Counters of the largest magnitude of either sign, and a history of at most one outcome per item, for a model that reads
    evidence."""
    import numpy as np

    from thinktwice.data.evidence import Evidence, History

    correction, retrieval = engine.extras.correction, engine.extras.retrieval
    if not engine.reads_counters:
        return None
    read = engine.model.fields.counters
    number = len(read.means) if read is not None else correction.num_counters if correction is not None else 0
    counters = np.full((rows, number), np.finfo(np.float32).max)
    counters[1::2] *= -1
    if retrieval is None:
        return Evidence(counters)
    items = np.arange(len(retrieval.neighbours.rates), dtype=np.int32)
    return Evidence(counters, lambda: History.of_user(items, np.ones(len(items), bool), rows))


def _engine(folder: Path, model: Backbone, info: ModelInfo, test_time: TestTime) -> Engine:
    """The engine with the packaged backend, or with eager torch if the backend gives different scores on this machine."""
    from thinktwice.models.backends import Eager, open_backend, open_member, parity_of, verify_sizes
    from thinktwice.testtime.engine import Engine
    from thinktwice.testtime.store import MEMBER_FOLDERS

    def made(make_backend: MakeBackend, make_members: Sequence[MakeBackend] = ()) -> Engine:
        parts = (test_time.reliability.resized(model.num_fields), test_time.config, info.calibration, test_time.extras)
        return Engine(model, *parts, make_backend, make_members)

    make_backend = open_backend(folder)
    try:
        members = [open_member(folder / name) for name in MEMBER_FOLDERS if (folder / name).is_dir()]
        engine = made(make_backend, [make for make in members if make is not None])
    except ValueError as error:
        raise BundleError(f"bundle {folder}: its backend cannot score this model ({reason(error)}): {FIX}") from error
    for backend in (engine.backend, *engine.member_backends):
        if backend.name == "eager":
            continue
        parity = parity_of(backend)
        if not (parity.holds and verify_sizes(backend)):
            logger.warning(
                "backend %s is not used, eager torch scores: on this machine it differs by %.2g in probability, swaps %d pairs, "
                "or gives a row other bits at another place",
                backend.name,
                parity.difference,
                parity.swapped,
            )
            engine = made(Eager)
            break
    for backend in (engine.backend, *engine.member_backends):
        if backend.name == "eager" and not verify_sizes(backend):
            logger.warning("on this machine the bits of a row's score depend on its place in the request")
    return engine

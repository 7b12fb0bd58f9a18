"""One immutable, hashed folder per model version: training writes it, serving reads it, nothing else passes between them.

``manifest.json`` names every other file with its size and SHA-256, so the hash of the manifest names the whole bundle.
Loading verifies everything first and unpickles nothing.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from thinktwice.data.encoder import ENCODER_FILE, VOCABULARY_FILE
from thinktwice.errors import BundleError
from thinktwice.files import atomic_dir, sha256_file, write_json

if TYPE_CHECKING:
    from thinktwice.data.encoder import Encoder
    from thinktwice.models.backbone import Backbone
    from thinktwice.models.backends import MakeBackend
    from thinktwice.models.store import ModelInfo
    from thinktwice.schema import LogSchema
    from thinktwice.testtime.engine import Engine
    from thinktwice.testtime.store import TestTime

FORMAT: Literal[1] = 1
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "signature.json"  # signs the manifest, so the manifest cannot name it
SCHEMA_FILE = "schema.yaml"
TRAINING_SET_FILES = (SCHEMA_FILE, ENCODER_FILE, VOCABULARY_FILE)
MODEL_FILES = ("model.json", "weights.safetensors")
TEST_TIME_FILES = ("test_time.json", "counts.safetensors")
PROFILE_FILE = "profile.json"  # what drift is measured against; bundles of older versions have none
# How the scores are computed; bundles of older versions have none, and eager torch computes theirs.
BACKEND_FILES = ("backend.json", "backend.onnx")
# What some test-time modes need besides; a bundle holds those that its own configuration needs.
EXTRA_FILES = (
    "combinations.safetensors",
    "heads.safetensors",
    *(f"members/{place}/{name}" for place in (0, 1) for name in MODEL_FILES),
)
REPORT_FILES = ("evaluation.json", "report.html")  # under report/
BUNDLE_FILES = frozenset((*TRAINING_SET_FILES, *MODEL_FILES, *TEST_TIME_FILES, *(f"report/{n}" for n in REPORT_FILES)))

logger = logging.getLogger(__name__)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleIdentity(_Frozen):
    """Which model this is. ``created`` is given, not taken from the clock: the same inputs give the same bytes."""

    model_version: str = Field(min_length=1)
    feature_service: str  # "" for a log without entities: such a model takes raw rows only
    schema_name: str
    snapshot_id: str
    package_version: str
    created: str  # ISO 8601
    train_window: tuple[str, str]  # first and last instant of the train part, ISO 8601


class FileEntry(_Frozen):
    sha256: Sha256
    size: int = Field(ge=0)  # bytes


class Manifest(BundleIdentity):
    """Content of ``manifest.json``."""

    format: Literal[1] = FORMAT
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        if (missing := sorted(BUNDLE_FILES - set(self.files))) or (
            extra := sorted(set(self.files) - BUNDLE_FILES - {PROFILE_FILE, *BACKEND_FILES, *EXTRA_FILES})
        ):
            what = f"does not list {missing[0]}" if missing else f"lists the unknown file {extra[0]}"
            raise ValueError(f"'files' {what}")
        return self


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, loaded. ``hash`` is that of its manifest."""

    folder: Path
    manifest: Manifest
    hash: str
    schema: LogSchema
    encoder: Encoder
    model: Backbone
    engine: Engine


def write_bundle(
    out_dir: Path | str,
    *,
    training_set_dir: Path | str,
    model_dir: Path | str,
    test_time_dir: Path | str,
    evaluation_dir: Path | str,
    identity: BundleIdentity,
) -> Manifest:
    """Collect the parts of a model version into one folder, atomically; an older folder of that name is replaced.

    Raises:
        BundleError: a part lacks one of its files.
    """
    from thinktwice.testtime.store import needed_files, read_config

    parts = (
        (Path(training_set_dir), TRAINING_SET_FILES, ""),
        (Path(model_dir), MODEL_FILES, ""),
        (Path(test_time_dir), needed_files(read_config(test_time_dir)), ""),
        (Path(evaluation_dir), REPORT_FILES, "report/"),
    )
    with atomic_dir(out_dir) as folder:
        entries = {}
        for source, names, prefix in parts:
            for name in names:
                if not (source / name).is_file():
                    raise BundleError(f"{source} holds no {name}, a bundle needs it: run the step that writes it again")
                target = folder / (prefix + name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)
                entries[prefix + name] = FileEntry(sha256=sha256_file(target), size=target.stat().st_size)
        _write_derived(folder, Path(training_set_dir))
        for name in (PROFILE_FILE, *BACKEND_FILES):
            if (target := folder / name).is_file():
                entries[name] = FileEntry(sha256=sha256_file(target), size=target.stat().st_size)
        manifest = Manifest(**identity.model_dump(), files=entries)
        write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest


def _write_derived(folder: Path, training_set_dir: Path) -> None:
    """What only the parts together give: the profile of the scores, and the backend that computes them."""
    from thinktwice.data.encoder import Encoder
    from thinktwice.data.training_set import load_training_set
    from thinktwice.models.backends import save_choice
    from thinktwice.models.store import load_model
    from thinktwice.monitor.profile import profile_of
    from thinktwice.testtime.engine import Engine
    from thinktwice.testtime.store import load_test_time

    data = load_training_set(training_set_dir)
    model, info = load_model(folder)
    test_time = load_test_time(folder, model)
    engine = Engine(model, test_time.reliability, test_time.config, info.calibration, test_time.extras)
    profile = profile_of(data, Encoder.load(folder), engine)
    write_json(folder / PROFILE_FILE, profile.model_dump(mode="json"))
    choice = save_choice(folder, engine.backend)
    logger.info("backend %s", choice.name)


def bundle_hash(folder: Path | str) -> str:
    """SHA-256 of the manifest, the name of the whole bundle.

    Raises:
        BundleError: there is no manifest.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        return sha256_file(path)
    except OSError as error:
        raise BundleError(f"{folder} is no bundle ({MANIFEST_FILE}: {error.strerror}): give a bundle folder") from error


def read_manifest(folder: Path | str) -> Manifest:
    """Read ``manifest.json`` without looking at the other files.

    Raises:
        BundleError: it is missing, damaged, of another format, or has unknown keys.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{folder} is no bundle ({MANIFEST_FILE}: {error.strerror}): give a bundle folder") from error
    except ValueError as error:
        raise BundleError(f"bundle {folder}: {MANIFEST_FILE} is damaged ({error}): get the bundle again") from error
    if isinstance(value, dict) and value.get("format") != FORMAT:
        raise BundleError(
            f"bundle {folder} has format {value.get('format')!r}, this version of thinktwice reads format {FORMAT}: "
            "install the version that wrote it, or train again"
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"]) or "the file"
        reason = first["msg"].removeprefix("Value error, ")
        raise BundleError(
            f"bundle {folder}: {MANIFEST_FILE} is wrong at {place} ({reason}): get the bundle again"
        ) from error


def verify_bundle(folder: Path | str) -> Manifest:
    """Check the manifest, the set of files, every size and every hash.

    Raises:
        BundleError: anything differs; the message names the file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise BundleError(
                f"bundle {folder}: {name} is a link, a bundle holds plain files only: get the bundle again"
            )
        if path.is_file() and name not in (MANIFEST_FILE, SIGNATURE_FILE) and name not in manifest.files:
            raise BundleError(f"bundle {folder}: {name} is not in the manifest: remove it or get the bundle again")
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"bundle {folder}: {name} is missing: get the bundle again")
        if (size := path.stat().st_size) != entry.size:
            raise BundleError(
                f"bundle {folder}: {name} has {size} bytes instead of {entry.size}, it is damaged: get the bundle again"
            )
        if (found := sha256_file(path)) != entry.sha256:
            raise BundleError(
                f"bundle {folder}: {name} has SHA-256 {found[:12]}... instead of {entry.sha256[:12]}..., "
                "it is damaged: get the bundle again"
            )
    return manifest


def load_bundle(folder: Path | str) -> Bundle:
    """Verify a bundle and load it, ready to score.

    Raises:
        BundleError: it is damaged, incomplete, or its parts do not fit each other.
    """
    from thinktwice.data.encoder import Encoder
    from thinktwice.models.store import load_model
    from thinktwice.schema import load_schema
    from thinktwice.testtime.store import load_test_time

    folder = Path(folder)
    manifest = verify_bundle(folder)
    schema = load_schema(folder / SCHEMA_FILE)
    encoder = Encoder.load(folder)
    model, info = load_model(folder)
    if encoder.num_values != model.fields.num_values or [f.name for f in encoder.fields] != list(model.fields.names):
        raise BundleError(f"bundle {folder}: encoder and model describe other fields: train and package again")
    test_time = load_test_time(folder, model)
    if test_time.weights and test_time.weights != manifest.files["weights.safetensors"].sha256:
        raise BundleError(
            f"bundle {folder}: its counts were taken for other weights ({test_time.weights[:12]}...): counts that are newer or "
            "older than the weights would call untrained values reliable, fit the test-time parameters again"
        )
    engine = _engine(folder, model, info, test_time)
    return Bundle(folder, manifest, bundle_hash(folder), schema, encoder, model, engine)


def _engine(folder: Path, model: Backbone, info: ModelInfo, test_time: TestTime) -> Engine:
    """The engine with the packaged backend, or with eager torch where that one gives other scores on this machine."""
    from thinktwice.models.backends import Eager, open_backend, parity_of, verify_sizes
    from thinktwice.testtime.engine import Engine

    def made(make_backend: MakeBackend) -> Engine:
        parts = (test_time.reliability, test_time.config, info.calibration, test_time.extras)
        return Engine(model, *parts, make_backend)

    engine = made(open_backend(folder))
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

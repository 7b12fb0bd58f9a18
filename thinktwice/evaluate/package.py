"""The candidate bundle: the model and configuration chosen on validation, with the evaluation of them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from thinktwice.choices import MAX_COST
from thinktwice.data.feature_tables import feature_service_name
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import load_training_set
from thinktwice.errors import BundleError
from thinktwice.evaluate import STAGE
from thinktwice.evaluate.compare import EvaluatedRun
from thinktwice.files import atomic_dir, sha256_text, write_json
from thinktwice.hashing import FileEntry
from thinktwice.progress import counter
from thinktwice.release.bundle import EVALUATION_FILE, MANIFEST_FILE, REPORT, REPORT_FILE, BundleIdentity, Manifest
from thinktwice.release.profile import PROFILE_FILE, profile_of
from thinktwice.schema import SCHEMA_FILE, LogSchema
from thinktwice.testtime.store import COUNTER_FOLDER, MEMBER_FOLDERS


def model_version(
    schema: LogSchema,
    feature_version: str,
    *,
    split: SplitSpec,
    recipe: str,
    mode: str,
    seed: int,
    max_cost: float = MAX_COST,
) -> str:
    """Name of the model given by features, split, recipe, test-time mode with its limit of cost, and training seed, e.g.
    ``ml-1m-3f2a9c01d4e7``."""
    search = mode if mode != "lean" or max_cost == MAX_COST else f"{mode} {max_cost!r}"
    return f"{schema.name}-{sha256_text(feature_version, split.model_dump_json(), recipe, search, str(seed))[:12]}"


logger = logging.getLogger(__name__)


def write_candidate(
    out_dir: Path | str,
    *,
    evaluation: EvaluatedRun,
    evaluation_dir: Path | str,
    training_set_dir: Path | str,
    model_dirs: Mapping[str, Path | str],
    test_time_dir: Path | str,
    snapshot_id: str,
    model_version: str,
    feature_version: str,
    package_version: str,
) -> Manifest:
    """Write the bundle of the chosen trunk (a key of ``model_dirs``). Its date is the end of its data, so that the same inputs
    give the same hash."""
    data = load_training_set(training_set_dir)
    last = data.info.parts["test"].window[1]
    identity = BundleIdentity(
        model_version=model_version,
        feature_service=feature_service_name(data.schema, feature_version),
        schema_name=data.schema.name,
        snapshot_id=snapshot_id,
        package_version=package_version,
        created=last,
        train_window=data.train_window,
    )
    return write_bundle(
        out_dir,
        training_set_dir=training_set_dir,
        model_dir=model_dirs[evaluation.content.trunk],
        test_time_dir=test_time_dir,
        evaluation_dir=evaluation_dir,
        identity=identity,
    )


def write_bundle(
    out_dir: Path | str,
    *,
    training_set_dir: Path | str,
    model_dir: Path | str,
    test_time_dir: Path | str,
    evaluation_dir: Path | str,
    identity: BundleIdentity,
) -> Manifest:
    """Collect the parts of a model version in one folder, atomically; an existing folder of that name is replaced.

    In the mode ``counters`` the model is the trunk with counters of ``test_time_dir``, and ``model_dir`` is not read.

    Raises:
        BundleError: a part lacks one of its files.
    """
    from thinktwice.data.encoder import ENCODER_FILE, VOCABULARY_FILE
    from thinktwice.models.backends.onnx import ONNX_FILE
    from thinktwice.models.backends.store import BACKEND_FILES
    from thinktwice.models.store import MODEL_FILES
    from thinktwice.testtime.cost import COST_FILE
    from thinktwice.testtime.store import needed_files, read_config

    config = read_config(test_time_dir)
    if config.mode == "counters":
        model_dir = Path(test_time_dir) / COUNTER_FOLDER
    measured = (COST_FILE,) if (Path(test_time_dir) / COST_FILE).is_file() else ()
    parts = (
        (Path(training_set_dir), (SCHEMA_FILE, ENCODER_FILE, VOCABULARY_FILE), ""),
        (Path(model_dir), MODEL_FILES, ""),
        (Path(test_time_dir), (*needed_files(config), *measured), ""),
        (Path(evaluation_dir), (EVALUATION_FILE, REPORT_FILE), f"{REPORT}/"),
    )
    with atomic_dir(out_dir) as folder:
        entries = {}
        for source, names, prefix in parts:
            for name in names:
                if not (source / name).is_file():
                    raise BundleError(
                        f"{source} contains no {name}, a bundle needs it: run the step that writes it again"
                    )
                target = folder / (prefix + name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)
                entries[prefix + name] = FileEntry.of(target)
        _write_derived(folder, Path(training_set_dir))
        for name in (PROFILE_FILE, *BACKEND_FILES, *(f"{member}/{ONNX_FILE}" for member in MEMBER_FOLDERS)):
            if (target := folder / name).is_file():
                entries[name] = FileEntry.of(target)
        manifest = Manifest(**identity.model_dump(), files=entries)
        write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest


def _write_derived(folder: Path, training_set_dir: Path) -> None:
    """Files that depend on all parts: the profile of the scores, and the backend that computes them."""
    from thinktwice.data.encoder import Encoder
    from thinktwice.data.training_set import load_training_set
    from thinktwice.models.backends import save_choice, save_member
    from thinktwice.models.store import load_model
    from thinktwice.testtime.engine import Engine
    from thinktwice.testtime.store import load_test_time

    data = load_training_set(training_set_dir)
    model, info = load_model(folder)
    test_time = load_test_time(folder, model)
    reliability = test_time.reliability.resized(model.num_fields)
    engine = Engine(model, reliability, test_time.config, info.calibration, test_time.extras)
    members = list(zip(MEMBER_FOLDERS, test_time.extras.members, strict=False))
    advance = counter(stage=STAGE, total=2 + len(members), label="bundle")
    profile = profile_of(data, Encoder.load(folder), engine)
    write_json(folder / PROFILE_FILE, profile.model_dump(mode="json"))
    advance(1)
    choice = save_choice(folder, engine.backend)
    advance(1)
    for name, member in members:
        save_member(folder / name, member, choice)
        advance(1)
    logger.info("backend %s", choice.name)

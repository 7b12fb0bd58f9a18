"""The public Python API: from a log to a served model and its scores, by the functions that the pipeline's steps call.

Folders in, folders out: every function writes aside and renames, so a kill leaves the old result or the new one. Errors are
:class:`thinktwice.errors.ThinktwiceError`; the message names the thing, the value and the fix.
"""

from __future__ import annotations

import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from thinktwice import __version__, recipes
from thinktwice.choices import RecipeName, SearchMode, SplitKind
from thinktwice.data.feature_tables import feature_version
from thinktwice.data.ingest import Snapshot, ingest
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set
from thinktwice.errors import BundleError, DataError, reason
from thinktwice.evaluate.bundles import recorded_evaluation
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.package import model_version, write_candidate
from thinktwice.files import read_json, sha256_text
from thinktwice.frozen import Frozen
from thinktwice.pretrain.pretrain import pretrain
from thinktwice.recipes import Recipe
from thinktwice.release.bundle import REPORT, REPORT_FILE, Bundle, load_bundle
from thinktwice.schema import SCHEMA_FILE, LogSchema, load_schema
from thinktwice.selection.config import search
from thinktwice.selection.fit import fit_test_time
from thinktwice.train.finetune import finetune
from thinktwice.validate.judge import BrokenRule, broken_rules
from thinktwice.validate.profile import profile_log, read_reference
from thinktwice.validate.split import split_log


class Validation(Frozen):
    """What became of the rows of a log. ``rows_in`` is the sum of ``rows_clean`` and ``rows_quarantined``."""

    passed: bool  # no critical rule is broken
    broken: tuple[BrokenRule, ...]  # critical ones first
    rows_in: int
    rows_clean: int
    rows_quarantined: int
    clean_dir: Path  # clean.parquet and its schema
    quarantine_dir: Path  # bad rows with all their reasons and their original columns


class Report(Frozen):
    """The evaluation that a bundle carries.

    ``metrics``: column (``plain``, ``pretrained``, ``test_time``) -> metric (``auc``, ``logloss``, ``ece``, ...) -> its value on
    test rows, None where it is not defined. ``shipped`` is the column that the bundle holds.
    """

    verdict: tuple[str, ...]  # sentences, the summary first
    metrics: dict[str, dict[str, float | None]]
    shipped: str
    mode: str  # test-time mode, "off" where every row is scored once
    rows: int  # test rows
    html: Path  # the same as a page that opens offline


class Training(Frozen):
    """A trained model version."""

    bundle_dir: Path
    training_set_dir: Path
    model_version: str
    report: Report


def ingest_log(
    path: Path | str | None,
    out_dir: Path | str,
    *,
    schema: LogSchema | Path | str | None = None,
    source: str = "parquet",
    limit: int = 0,
    seed: int = 0,
) -> Snapshot:
    """Read a log into a raw log folder: its columns untouched, a row id before them, every broken record kept.

    Args:
        path: file or folder of the log; None for sources that need none.
        out_dir: folder to write, replaced as a whole.
        schema: a loaded schema, or a schema file; None where the source has its own.
        source: name of a source, see ``thinktwice data list``.
        limit: read only the first so many records; 0 reads all.
        seed: for the source ``sim``.

    Raises:
        DataError: unknown source, missing, empty or damaged input. SchemaError: the schema does not fit the input.
    """
    return ingest(source, path, schema, out_dir, limit, seed)


def validate_log(
    raw_dir: Path | str,
    out_dir: Path | str,
    *,
    as_of: datetime | None = None,
    reference: Path | str | None = None,
) -> Validation:
    """Split a raw log into clean and quarantined rows, and apply the rules of its schema.

    Args:
        raw_dir: from :func:`ingest_log`.
        out_dir: gets the folders ``clean`` and ``quarantine``.
        as_of: later impressions are from the future and quarantined; default now.
        reference: ``profile_reference.json`` of an earlier validation, to measure drift against.

    Raises:
        DataError: the log is missing, damaged or empty. SchemaError: the schema does not fit the log.
        RowsLostError: rows in and rows out differ.
    """
    raw, out = Path(raw_dir), Path(out_dir)
    now = datetime.now(timezone.utc)
    earlier = None if reference is None else read_reference(reference)
    split = split_log(
        raw,
        out / "clean",
        out / "quarantine",
        run_id=f"{_snapshot_id(raw / 'snapshot.json')}@{__version__}",
        as_of=as_of or now,
        ingested_at=now,
    )
    broken = broken_rules(
        split, profile_log(out / "clean", reference=earlier), load_schema(out / "clean" / SCHEMA_FILE)
    )
    return Validation(
        passed=all(found.severity != "critical" for found in broken),
        broken=broken,
        rows_in=split.rows_in,
        rows_clean=split.rows_clean,
        rows_quarantined=split.rows_quarantined,
        clean_dir=out / "clean",
        quarantine_dir=out / "quarantine",
    )


def train_model(
    clean_dir: Path | str,
    out_dir: Path | str,
    *,
    recipe: RecipeName | Recipe = "default",
    split: SplitKind | SplitSpec = "time",
    test_time: SearchMode = "lean",
    seed: int = 0,
) -> Training:
    """Train, evaluate and package a model: point-in-time features, pre-training, fine-tuning, test-time parameters, bundle.

    The same inputs give the same bundle. The bundle is not blessed or deployed: the pipeline does that.

    Args:
        clean_dir: clean log from :func:`validate_log`.
        out_dir: gets the folders ``training_set`` and ``bundle``.
        recipe: name of a recipe (``default``, ``dcnv2``, ``autoint``, ``ml-1m``, ``ml-100k``, ``tiny``), or settings of your own.
        split: how rows are divided into train, validation and test.
        test_time: which extra work may ship if validation proves a gain: ``lean`` (any at next to no cost), or one mode.
        seed: of weights, batches and a random split.

    Raises:
        DataError: the clean log is missing or too small. PipelineError: unknown recipe or mode.
    """
    clean, out = Path(clean_dir), Path(out_dir)
    if not (clean / SCHEMA_FILE).is_file():
        raise DataError(f"{clean} is not a clean log (no {SCHEMA_FILE}): give the clean_dir of a validation")
    settings = recipes.get(recipe) if isinstance(recipe, str) else recipe
    search_settings = search(test_time, settings.testtime)
    try:
        spec = split if isinstance(split, SplitSpec) else SplitSpec.model_validate({"kind": split, "seed": seed})
    except ValidationError as error:
        raise DataError(f"split {split!r} is unknown ({reason(error)}): use time or random") from error
    schema = load_schema(clean / SCHEMA_FILE)
    snapshot_id = _snapshot_id(clean / "clean.json")
    features = feature_version(schema, snapshot_id, __version__)
    name = recipe if isinstance(recipe, str) else sha256_text(settings.model_dump_json())
    version = model_version(schema, features, split=spec, recipe=name, mode=test_time, seed=seed)
    training_set, bundle = out / "training_set", out / "bundle"
    out.mkdir(parents=True, exist_ok=True)
    build_training_set(training_rows(clean, schema), schema, training_set, spec)
    with tempfile.TemporaryDirectory(prefix=".training-", dir=out) as folder:
        work = Path(folder)
        pretrain(training_set, work / "trunk", settings.model, settings.pretrain, seed=seed)
        finetune(training_set, work / "plain", settings.model, settings.finetune, seed=seed)
        finetune(
            training_set, work / "pretrained", settings.model, settings.finetune, seed=seed, init_dir=work / "trunk"
        )
        fit_test_time(training_set, work / "plain", work / "pretrained", work / "test_time", search_settings)
        evaluation = evaluate(
            training_set, work / "plain", work / "pretrained", work / "test_time", work / "evaluation"
        )
        write_candidate(
            bundle,
            evaluation=evaluation,
            evaluation_dir=work / "evaluation",
            training_set_dir=training_set,
            model_dirs={"plain": work / "plain", "pretrained": work / "pretrained"},
            test_time_dir=work / "test_time",
            snapshot_id=snapshot_id,
            model_version=version,
            feature_version=features,
            package_version=__version__,
        )
    return Training(bundle_dir=bundle, training_set_dir=training_set, model_version=version, report=read_report(bundle))


def open_bundle(path: Path | str) -> Bundle:
    """Verify a bundle (every name, size and hash) and load it, ready for :func:`thinktwice.score_table`.

    Nothing is unpickled and no code comes with a bundle. This checks that the bundle is whole, not who made it: signatures
    cover deployed releases (``thinktwice release verify``).

    Raises:
        BundleError: it is damaged, incomplete, of another format, or its parts do not fit each other.
    """
    return load_bundle(path)


def read_report(bundle: Bundle | Path | str) -> Report:
    """The evaluation that a bundle carries: what was measured on test rows when it was made.

    Raises:
        BundleError: it is missing, or not that of a training run.
    """
    folder = bundle.folder if isinstance(bundle, Bundle) else Path(bundle)
    content: dict[str, Any] = recorded_evaluation(folder)
    try:
        return Report(
            verdict=tuple(content["verdict"]),
            metrics={column["key"]: column["metrics"] for column in content["columns"]},
            shipped=content["shipped"],
            mode=content["mode"],
            rows=content["rows"],
            html=folder / REPORT / REPORT_FILE,
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise BundleError(
            f"the evaluation in {folder / REPORT} cannot be read ({reason(error)}): train and package the model again"
        ) from error


def _snapshot_id(path: Path) -> str:
    try:
        value = read_json(path)
        return str(value["snapshot_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({reason(error)}): ingest and validate the log again") from error

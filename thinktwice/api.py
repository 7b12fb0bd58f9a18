"""The public Python API: ingest and validate a log, train a model, open a bundle. The pipeline's steps call the same functions.

Functions read and write folders. They write to a temporary folder and rename it, so a kill leaves either the old or the new result.
Errors are :class:`thinktwice.errors.ThinktwiceError`; the message names the thing, the value and the fix.
"""

from __future__ import annotations

import tempfile
from datetime import datetime, timezone
from pathlib import Path

from thinktwice import __version__, recipes
from thinktwice.choices import MAX_COST, SearchMode
from thinktwice.data.feature_tables import feature_version
from thinktwice.data.ingest import Snapshot, ingest
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.split_spec import SplitSpec, parse_split
from thinktwice.data.training_set import build_training_set
from thinktwice.errors import DataError, reason
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.evaluation import recorded_evaluation
from thinktwice.evaluate.package import model_version, write_candidate
from thinktwice.files import read_json, sha256_text
from thinktwice.frozen import Frozen
from thinktwice.models.absent import write_absent
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
    """Result of :func:`validate_log`. ``rows_in`` is the sum of ``rows_clean`` and ``rows_quarantined``."""

    passed: bool  # whether all critical rules are met
    broken: tuple[BrokenRule, ...]  # critical ones first
    rows_in: int
    rows_clean: int
    rows_quarantined: int
    clean_dir: Path  # clean.parquet and its schema
    quarantine_dir: Path  # invalid rows with all reasons and their original columns


class Report(Frozen):
    """The evaluation stored in a bundle.

    ``metrics``: column (``plain``, ``pretrained``, ``test_time``) -> metric (``auc``, ``logloss``, ``ece``, ...) -> value on
    test rows, None if undefined. ``shipped`` is the column of the model in the bundle.
    """

    verdict: tuple[str, ...]  # sentences, the summary first
    metrics: dict[str, dict[str, float | None]]
    shipped: str
    mode: str  # test-time mode; "off": one forward pass per row
    rows: int  # test rows
    html: Path  # the report as an offline page


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
    """Read a log into a raw log folder: columns unchanged, a row id added, broken records kept in a separate file.

    Args:
        path: file or folder of the log; None for sources without one.
        out_dir: folder to write; an existing one is replaced.
        schema: a schema or a schema file; None for sources with a built-in schema.
        source: name of a source, see ``thinktwice data list``.
        limit: maximum number of records; 0 reads all.
        seed: random seed for the source ``sim``.

    Raises:
        DataError: the source is unknown, or the input is missing, empty or damaged. SchemaError: the schema does not fit the input.
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
        out_dir: folder for ``clean`` and ``quarantine``.
        as_of: impressions after this time are quarantined; default now.
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
        passed=all(rule.severity != "critical" for rule in broken),
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
    recipe: str | Recipe = "default",
    split: str | SplitSpec = "time",
    log_dir: Path | str | None = None,
    test_time: SearchMode = "lean",
    max_cost: float = MAX_COST,
    seed: int = 0,
) -> Training:
    """Train, evaluate and package a model: point-in-time features, pre-training, fine-tuning, test-time parameters, bundle.

    The same inputs give the same bundle but for its measured costs (``cost.json``). The bundle is not blessed or deployed; use the pipeline for that.

    Args:
        clean_dir: clean log from :func:`validate_log`.
        out_dir: folder for ``training_set`` and ``bundle``.
        recipe: name of a recipe (``default``, ``dcnv2``, ``autoint``, ``ml-1m``, ``ml-100k``, ``tiny``), the text of a recipe file, or a
            :class:`thinktwice.Recipe`.
        split: how rows are divided into train, validation and test: ``time``, ``random``, ``days:7``, ``dates:2024-03-01,2024-03-08``
            or ``column:NAME``, as in ``thinktwice pipeline run --split``.
        log_dir: raw log folder from :func:`ingest_log`; required for a split by column.
        test_time: test-time work that may ship if it passes the acceptance test: ``lean`` (any method within ``max_cost``), or the
            name of one mode.
        max_cost: limit for ``lean``: measured time of a request relative to the plain model.
        seed: random seed for weights, batches and a random split.

    Raises:
        DataError: the clean log is missing or too small. PipelineError: unknown recipe or mode.
    """
    clean, out = Path(clean_dir), Path(out_dir)
    if not (clean / SCHEMA_FILE).is_file():
        raise DataError(f"{clean} is not a clean log (no {SCHEMA_FILE}): give the clean_dir of a validation")
    settings = recipes.get(recipe) if isinstance(recipe, str) else recipe
    search_settings = search(test_time, settings.testtime, max_cost)
    spec = split if isinstance(split, SplitSpec) else parse_split(split, seed)
    schema = load_schema(clean / SCHEMA_FILE)
    snapshot_id = _snapshot_id(clean / "clean.json")
    features = feature_version(schema, snapshot_id, __version__)
    name = recipe if isinstance(recipe, str) else sha256_text(settings.model_dump_json())
    version = model_version(schema, features, split=spec, recipe=name, mode=test_time, seed=seed, max_cost=max_cost)
    training_set, bundle = out / "training_set", out / "bundle"
    out.mkdir(parents=True, exist_ok=True)
    build_training_set(training_rows(clean, schema), schema, training_set, spec, log_dir)
    with tempfile.TemporaryDirectory(prefix=".training-", dir=out) as folder:
        work = Path(folder)
        finetune(training_set, work / "plain", settings.model, settings.finetune, seed=seed)
        if settings.pretraining == "none":
            write_absent(work / "pretrained", "the recipe has no pre-training")
        else:
            pretrain(
                training_set,
                work / "trunk",
                settings.model,
                settings.pretrain,
                seed=seed,
                kind=settings.pretraining,
            )
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
    """Verify a bundle (all names, sizes and hashes) and load it for :func:`thinktwice.score_table`.

    Nothing is unpickled, and a bundle contains no code. This checks integrity, not origin: signatures cover deployed releases
    (``thinktwice release verify``).

    Raises:
        BundleError: the bundle is damaged, incomplete or of another format, or its parts do not match.
    """
    return load_bundle(path)


def read_report(bundle: Bundle | Path | str) -> Report:
    """Read the evaluation stored in a bundle, measured on test rows when it was made.

    Raises:
        BundleError: the evaluation is missing or was not written by a training run.
    """
    folder = bundle.folder if isinstance(bundle, Bundle) else Path(bundle)
    content = recorded_evaluation(folder)
    return Report(
        verdict=content.verdict,
        metrics={column.key: column.metrics.model_dump() for column in content.columns},
        shipped=content.shipped,
        mode=content.mode,
        rows=content.rows,
        html=folder / REPORT / REPORT_FILE,
    )


def _snapshot_id(path: Path) -> str:
    try:
        value = read_json(path)
        return str(value["snapshot_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({reason(error)}): ingest and validate the log again") from error

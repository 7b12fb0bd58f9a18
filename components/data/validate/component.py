"""Pipeline step ``validate``: split a raw log into clean and quarantined rows, and judge it."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components.step import step


@step
def validate(
    log: Input[Dataset],
    code_version: str,
    clean: Output[Dataset],
    quarantine: Output[Dataset],
    report: Output[HTML],
    metrics: Output[Metrics],
    verdict_file: Output[Artifact],
) -> bool:
    """True when the log passed. The step succeeds either way: a gate after it stops the run, so the report is never lost."""
    from datetime import datetime, timezone
    from pathlib import Path

    from components.data.validate.run import validate_log
    from thinktwice.files import read_json

    snapshot = read_json(Path(log.path) / "snapshot.json")
    run_id = f"{snapshot['snapshot_id']}@{code_version}"
    now = datetime.now(timezone.utc)
    verdict = validate_log(
        log.path,
        clean.path,
        quarantine.path,
        report.path,
        verdict_file.path,
        run_id=run_id,
        as_of=now,
        ingested_at=now,
    )
    for name, value in verdict.metrics.items():
        metrics.log_metric(name, value)
    clean.metadata["rows"] = verdict.split.rows_clean
    quarantine.metadata["rows"] = verdict.split.rows_quarantined
    verdict_file.metadata["headline"] = verdict.headline
    return verdict.passed

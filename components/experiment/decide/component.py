"""Pipeline step: the decision of a look, and the report."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from components.step import step


@step
def decide(
    logs: Input[Artifact],
    evidence: Input[Artifact],
    records_dir: str,
    code_version: str,
    report: Output[HTML],
    metrics: Output[Metrics],
) -> str:
    """Append the decision to the record. Returns its action: hold, ramp, promote or roll_back.

    Args:
        records_dir: folder of the records of all experiments.
        report: the whole experiment up to this look, one file that opens offline.
    """
    from pathlib import Path

    from thinktwice.experiment.record import RECORD, read_record
    from thinktwice.experiment.report import report_of
    from thinktwice.experiment.report_page import render_report
    from thinktwice.experiment.snapshot import decide_on

    record = decide_on(logs.path, evidence.path, records_dir)
    path = Path(records_dir) / record.file.name / RECORD
    Path(report.path).write_text(render_report(report_of(read_record(path))), encoding="utf-8")
    for result in record.verdict.primary:
        for name in ("relative", "relative_low", "relative_high"):
            if (value := getattr(result, name)) is not None:
                metrics.log_metric(f"{name}_{result.arm}", value)
    return record.verdict.decision.action

"""Pipeline step: the evidence of a look."""

from kfp.dsl import Artifact, Input, Metrics, Output

from components.step import step


@step
def analyse(
    logs: Input[Artifact],
    joined: Input[Artifact],
    code_version: str,
    evidence: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Moments of every arm: all that a decision is based on, small enough to keep for ever."""
    from pathlib import Path

    from thinktwice.experiment.snapshot import evidence_of_snapshot

    found = evidence_of_snapshot(logs.path, joined.path)
    Path(evidence.path).write_text(found.model_dump_json(), encoding="utf-8")
    metrics.log_metric("days", found.days)
    for arm in found.arms:
        metrics.log_metric(f"units_{arm.arm}", float(arm.units))

"""Pipeline step ``bless``: may the candidate bundle take the champion's place?"""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.step import step


@step
def bless(
    training_set: Input[Dataset],
    bundle: Input[Model],
    state_dir: str,
    code_version: str,
    blessing: Output[Artifact],
    metrics: Output[Metrics],
) -> bool:
    """Paired test against ``state_dir/champion/bundle`` on the same rows; the graph decides what a "no" stops."""
    from pathlib import Path

    from thinktwice.bless import bless as judge

    verdict = judge(training_set.path, bundle.path, Path(state_dir) / "champion" / "bundle", blessing.path)
    blessing.metadata.update(blessed=verdict.blessed, reasons="; ".join(verdict.reasons))
    metrics.log_metric("blessed", float(verdict.blessed))
    for name, change in verdict.content.get("changes", {}).items():
        if change["value"] is not None:
            metrics.log_metric(f"{name}_change_against_champion", change["value"])
    return verdict.blessed

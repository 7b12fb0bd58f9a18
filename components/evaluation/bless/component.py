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
    """Paired test against the champion of ``state_dir`` on the same rows; the graph decides what a "no" stops."""
    from thinktwice.evaluate.bless import bless as judge
    from thinktwice.release.champion import read_champion

    champion = read_champion(state_dir)  # a damaged one is an error, only none at all is a first run
    opponent = None if champion is None else champion.bundle_dir
    verdict = judge(training_set.path, bundle.path, opponent, blessing.path)
    blessing.metadata.update(blessed=verdict.blessed, reasons="; ".join(verdict.reasons))
    metrics.log_metric("blessed", float(verdict.blessed))
    for name, change in (verdict.changes or {}).items():
        if change.value is not None:
            metrics.log_metric(f"{name}_change_against_champion", change.value)
    return verdict.blessed

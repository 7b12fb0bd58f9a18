"""Pipeline step ``fit_test_time``: choose the trunk and the test-time configuration on validation rows."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.step import step


@step
def fit_test_time(
    training_set: Input[Dataset],
    plain: Input[Model],
    pretrained: Input[Model],
    recipe: str,
    mode: str,
    code_version: str,
    test_time: Output[Artifact],
    metrics: Output[Metrics],
    max_cost: float = 2.0,
) -> None:
    """Fit on the earlier half of validation, accept on the later half; ``off`` ships when nothing proves a gain.

    ``mode`` says what may ship: ``lean`` (any mode that takes at most ``max_cost`` times the time of the plain model) or one mode
    by name, whatever it costs.
    """
    from thinktwice import recipes
    from thinktwice.selection.config import search
    from thinktwice.selection.fit import fit_test_time as fit

    settings = search(mode, recipes.get(recipe).testtime, max_cost)
    found = fit(training_set.path, plain.path, pretrained.path, test_time.path, settings)
    test_time.metadata.update(mode=found.config.mode, trunk=found.trunk, sentence=found.sentence)
    metrics.log_metric("test_time_work_ships", float(found.config.mode != "off"))
    metrics.log_metric("pretrained_trunk_ships", float(found.trunk == "pretrained"))
    for candidate in found.report.candidates:
        name = candidate.name.replace(", ", "_")
        metrics.log_metric(f"logloss_change_{name}", candidate.change.value)
        metrics.log_metric(f"passes_{name}", candidate.passes)
        if found.test_time.costs is not None:
            metrics.log_metric(f"cost_{name}", found.test_time.costs.candidates[candidate.name].value)

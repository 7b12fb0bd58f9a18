"""Pipeline step: exposures and outcomes from the logs."""

from kfp.dsl import Artifact, Input, Metrics, Output

from components.step import step


@step
def join(
    logs: Input[Artifact],
    window_seconds: float,
    records_dir: str,
    code_version: str,
    joined: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Join what is new in access log, prediction log and clicks; sums by user and arm. Everything is counted, nothing is dropped silently.

    Args:
        window_seconds: seconds after an exposure within which a click counts.
        records_dir: folder of the records of all experiments; what the next look needs is kept there.
    """
    from thinktwice.experiment.outcomes import Window
    from thinktwice.experiment.snapshot import join_snapshot

    counts = join_snapshot(logs.path, joined.path, records_dir, Window(seconds=window_seconds))
    for name in ("requests", "joined", "lost", "unexplained", "units_in_two_arms"):
        metrics.log_metric(name, float(getattr(counts.exposures, name)))
    for name in ("final", "open", "matched", "late", "unmatched"):
        metrics.log_metric(f"outcomes_{name}", float(getattr(counts.outcomes, name)))
    metrics.log_metric("damaged_files", float(counts.damaged))

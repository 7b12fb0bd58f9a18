"""Pipeline step: what a look at a running experiment is about."""

from kfp.dsl import Artifact, Output

from components.step import step


@step
def collect(
    name: str,
    records_dir: str,
    access_logs: str,
    prediction_logs: str,
    clicks: str,
    settle_seconds: float,
    code_version: str,
    logs: Output[Artifact],
) -> None:
    """Fix the state of the experiment and the time up to which its logs are complete; what follows goes by these.

    Args:
        name: of the experiment.
        records_dir: folder of the records of all experiments.
        access_logs: folder of the gateway's access logs.
        prediction_logs: folder of prediction logs, with any subfolders.
        clicks: folder of parquet files of clicks (``request_id``, ``item_id``, ``at``, ``received_at``).
        settle_seconds: seconds until every log has the rows of a request; later requests are left to the next look.
    """
    from thinktwice.experiment.snapshot import take_snapshot

    snapshot = take_snapshot(
        logs.path,
        name,
        records_dir=records_dir,
        access_logs=access_logs,
        prediction_logs=prediction_logs,
        clicks=clicks,
        settle_seconds=settle_seconds,
    )
    logs.metadata.update(experiment=name, at=snapshot.at.isoformat(), coverage=snapshot.state.file.coverage)

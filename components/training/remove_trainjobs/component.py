"""Pipeline step ``remove_trainjobs``: the exit handler of runs with TrainJobs."""

from components.step import step


@step
def remove_trainjobs(run_id: str) -> None:
    """Delete the TrainJobs of this run, finished or not: their models are artifacts of the run."""
    from components.training.launch_trainjob.api import connect
    from components.training.launch_trainjob.launch import remove_jobs

    remove_jobs(run_id, connect(), lambda line: print(line, flush=True))  # noqa: T201

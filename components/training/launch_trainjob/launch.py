"""Start a TrainJob, or find the one that an earlier attempt has started, and wait for its end.

A job that failed in an earlier attempt is replaced: otherwise a step that is tried again would only report its end again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from components.cluster.client import Json
from components.training.launch_trainjob.api import Cluster
from components.training.launch_trainjob.objects import SETTINGS_ANNOTATION, JobSettings, train_job
from thinktwice.errors import PipelineError

LOG_LINES = 200  # of a pod, per look
STARTING = ("ContainerCreating", "PodInitializing")  # reasons to wait that pass
SHOWN_EVENTS, SHOWN_LINES = 5, 20  # in the message for a failure


def launch(
    settings: JobSettings,
    cluster: Cluster,
    *,
    wait_s: float,
    poll_s: float = 10.0,
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Create the TrainJob or attach to it, and wait until it is complete. Its log lines, and why its pods wait, are passed to ``tell``.

    Args:
        wait_s: seconds until the job is given up and deleted, waiting in a queue included.

    Returns:
        The name of the job.

    Raises:
        PipelineError: the job failed, was deleted, is not complete in time, or the API refuses; the message has the reasons.
    """
    wanted = train_job(settings)
    name, deadline = wanted["metadata"]["name"], clock() + wait_s
    job = cluster.create(wanted)
    tell(f"TrainJob {name} in namespace {cluster.namespace}: {'found again' if job is None else 'created'}")
    if job is None:
        found = cluster.get(name)
        _check_own(found, wanted)
        if found is not None and _ended(found)[0] == "Failed":
            tell(f"TrainJob {name} failed before ({_ended(found)[1]}): it is deleted and created anew")
            _delete(cluster, name, lambda: clock() < deadline, poll_s)
            cluster.create(wanted)
    seen: dict[str, str] = {}
    shown: set[str] = set()
    state = ""
    while True:
        job = cluster.get(name)
        if job is None:
            raise PipelineError(f"TrainJob {name} was deleted while it ran: run the step again")
        pods = cluster.pods(name)
        for line in _new_lines(cluster, pods, seen):
            tell(line)
        for line in dict.fromkeys(_waits(pods)):
            if line not in shown:
                shown.add(line)
                tell(line)
        ended, reason = _ended(job)
        if ended == "Complete":
            return name
        if ended == "Failed":
            raise PipelineError(f"TrainJob {name} failed ({reason}){_causes(cluster, name)}")
        if (now := "waits in the queue" if _is(job, "Suspended") else "runs") != state:
            state = now
            tell(f"TrainJob {name} {state}")
        if clock() >= deadline:
            causes = _causes(cluster, name)
            cluster.delete(name)
            raise PipelineError(
                f"TrainJob {name} {state} and is not complete after {wait_s:.0f} s, so it was deleted{causes}"
            )
        cluster.api.sleep(poll_s)


def _delete(cluster: Cluster, name: str, in_time: Callable[[], bool], poll_s: float) -> None:
    """Delete a job and wait until it is gone, with its pods: its name is then free."""
    cluster.delete(name)
    while cluster.get(name) is not None:
        if not in_time():
            raise PipelineError(f"TrainJob {name} is being deleted and does not go: delete it and run the step again")
        cluster.api.sleep(poll_s)


def remove_jobs(run: str, cluster: Cluster, tell: Callable[[str], None]) -> None:
    """Delete all TrainJobs of a run, e.g. after it was cancelled."""
    for name in cluster.jobs_of(run):
        cluster.delete(name)
        tell(f"TrainJob {name}: deleted")


def _check_own(job: Json | None, wanted: Json) -> None:
    """An object of the same name must have been made from the same settings."""
    if job is None:
        return  # it ended and was removed in between; the first look reports it
    found = job["metadata"].get("annotations", {}).get(SETTINGS_ANNOTATION)
    if found != wanted["metadata"]["annotations"][SETTINGS_ANNOTATION]:
        raise PipelineError(
            f"TrainJob {wanted['metadata']['name']} exists and is not of this step: delete it and run again"
        )


def _conditions(job: Json) -> list[Json]:
    return list(job.get("status", {}).get("conditions", []))


def _is(job: Json, kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in _conditions(job))


def _ended(job: Json) -> tuple[str, str]:
    for each in _conditions(job):
        if each["type"] in ("Complete", "Failed") and each["status"] == "True":
            return each["type"], ": ".join(part for part in (each.get("reason", ""), each.get("message", "")) if part)
    return "", ""


def _waits(pods: list[Json]) -> list[str]:
    """Why pods do not run: a node or an image that is not there does not fail a job, and it would wait for hours."""
    found = []
    for pod in pods:
        own, status = pod["metadata"]["name"], pod.get("status", {})
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                found.append(f"{own}: no node yet ({condition.get('message')})")
        for container in status.get("containerStatuses", []):
            waiting = container["state"].get("waiting") or {}
            if waiting.get("reason", STARTING[0]) not in STARTING:
                found.append(f"{own}: {waiting['reason']}: {waiting.get('message')}")
    return found


def _new_lines(cluster: Cluster, pods: list[Json], seen: dict[str, str]) -> list[str]:
    """Log lines since the last look, without their times. A line is known by its time, which the log is sorted by."""
    new = []
    for pod in pods:
        own = pod["metadata"]["name"]
        known = seen.get(own, "")
        for line in cluster.log(own, LOG_LINES):
            at, _, text = line.partition(" ")
            if at > known:
                new.append(text)
                seen[own] = at
    return new


def _causes(cluster: Cluster, name: str) -> str:
    """Warnings, states of containers and the end of the logs, for a message; what cannot be read is left out."""
    parts: list[str] = []
    try:
        parts += cluster.events(name)[-SHOWN_EVENTS:]
        for pod in cluster.pods(name):
            own = pod["metadata"]["name"]
            for status in pod.get("status", {}).get("containerStatuses", []):
                waiting, ended = status["state"].get("waiting"), status["state"].get("terminated")
                if waiting is not None:
                    parts.append(f"{own}: {waiting.get('reason')}: {waiting.get('message')}")
                if ended is not None and ended["exitCode"] != 0:
                    parts.append(f"{own}: exit {ended['exitCode']}, {ended.get('reason')}")
            lines = [line.partition(" ")[2] for line in cluster.log(own, SHOWN_LINES)]
            parts += [f"{own}: {line}" for line in lines[-3:]]
    except PipelineError as error:
        parts.append(str(error))
    return "; " + "; ".join(parts) if parts else ""

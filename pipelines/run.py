"""Local runs of the training pipeline."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

import pipelines
from pipelines.arguments import RunArguments
from pipelines.check import check_arguments
from pipelines.local_remains import remove_unfinished
from pipelines.versions import code_version, data_version, read_files
from thinktwice import progress
from thinktwice.console.events import EventTail
from thinktwice.console.options import LAST_RUN
from thinktwice.console.output import shown
from thinktwice.console.processes import python_command, running
from thinktwice.errors import PipelineError
from thinktwice.files import full_disk_named, read_json, write_json
from thinktwice.threads import thread_environment

POLL = 0.1  # seconds between checks of a running pipeline
LOCK_TRIES = 3  # before a work folder counts as taken
QUARANTINE = "quarantine.json"  # in the quarantine folder
REPORTS = {"validate": "data.html", "evaluate": "model.html"}  # below work_dir/reports
MAX_REASONS = 3  # maximum reasons of a refusal in the message; the report has all of them

Event = dict[str, Any]


class TaskResult(BaseModel):
    """Result of one task of a run. `outputs` has paths of artifacts and values of parameters by output name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["SUCCESS", "FAILURE"]
    reused: bool
    exit_status: int | None  # of the process of the task; None: no process, as for a reused task
    seconds: float
    outputs: dict[str, Any]


class RunResult(BaseModel):
    """Result of a successful run. `blessed` is whether the new model was deployed; `blessing` contains the reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blessed: bool
    quarantine: Path
    training_set: Path
    bundle: Path
    blessing: Path
    data_report: Path
    model_report: Path
    state_dir: Path
    log: Path
    tasks: dict[str, TaskResult]


def run_local(
    arguments: RunArguments,
    *,
    work_dir: Path,
    state_dir: Path,
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunResult:
    """Run the pipeline in a separate process, reusing results of earlier runs under `work_dir`.

    The output of the run goes to ``work_dir/runs/<time>/run.log``. Ctrl-C stops the process and its children, removes unfinished
    outputs and is raised again; the next run continues from there.

    Raises:
        DataError, PipelineError: the arguments are invalid (see `check_arguments`).
        PipelineError: a step failed (with its own message), or the log was refused by the validation.
        ResourceError: the disk is full.
    """
    check_arguments(arguments)
    work_dir, state_dir = work_dir.absolute(), state_dir.absolute()
    start_time = time.time()
    run_dir = work_dir / "runs" / datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%S-%f")
    with full_disk_named(run_dir), only_run(work_dir):
        request_file = _write_request(arguments, work_dir, state_dir, run_dir)
        progress_file, log = run_dir / "progress.jsonl", run_dir / "run.log"
        environment = {
            **os.environ,
            progress.VARIABLE: str(progress_file),
            # The steps must find the same code from any folder, installed or not.
            "PYTHONPATH": os.pathsep.join(
                [str(Path(pipelines.__path__[0]).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "PYTHONUNBUFFERED": "1",
            **thread_environment(),
            # KFP leaves a folder per step in the temporary folder, which is therefore removed after the run.
            "TMPDIR": str(run_dir / "tmp"),
        }
        tail, record = EventTail(progress_file), None
        with log.open("wb") as output:
            command = python_command("pipelines.local_runner", str(request_file))
            try:
                with running(command, environment=environment, output=output) as process:
                    while process.poll() is None:
                        record = _watched(tail, on_event) or record
                        time.sleep(POLL)
            finally:
                shutil.rmtree(run_dir / "tmp", ignore_errors=True)
                remove_unfinished(work_dir / "pipeline", since=start_time)
        record = _watched(tail, on_event) or record
        result_file = run_dir / "result.json"
        if process.returncode != 0 or not result_file.exists():
            raise PipelineError(why_it_failed(result_file, record, process.returncode, log))
        result = _result(read_json(result_file), work_dir, state_dir, log)
        write_json(work_dir / LAST_RUN, result.model_dump(mode="json"))
    return result


def _watched(tail: EventTail, on_event: Callable[[Event], None]) -> Event | None:
    """Pass on new events. Returns the last error event among them."""
    record = None
    for event in tail.read():
        on_event(event)
        if event["event"] == "error":
            record = event
    return record


@contextlib.contextmanager
def only_run(work_dir: Path) -> Iterator[None]:
    """Lock a work folder: two runs in it would remove each other's unfinished steps."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "lock").open("w") as handle:
        for last in (*[False] * LOCK_TRIES, True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    raise PipelineError(
                        f"another run works in {work_dir}: wait for it, or give --work another folder"
                    ) from None
                time.sleep(POLL)  # `thinktwice runs` takes it for an instant, to see whether a run is active
        yield


def _write_request(arguments: RunArguments, work_dir: Path, state_dir: Path, run_dir: Path) -> Path:
    from thinktwice.data.sources.paths import SEPARATOR, joined
    from thinktwice.release.warm_start import bundle_version
    from thinktwice.storage.location import is_remote

    for folder in (run_dir / "tmp", work_dir / "pipeline", work_dir / "reuse", state_dir):
        folder.mkdir(parents=True, exist_ok=True)
    paths = {
        name: joined([part if is_remote(part) else str(Path(part).absolute()) for part in value.split(SEPARATOR)])
        for name in ("source_path", "schema_path")
        if (value := getattr(arguments, name))
    }
    request = {
        "arguments": {
            **arguments.parameters(
                code_version(),
                data_version(*read_files(arguments.source, paths.get("source_path", ""), paths.get("schema_path", ""))),
                bundle_version(arguments.continue_from) if arguments.continue_from else "",
            ),
            **paths,
            "state_dir": str(state_dir),
        },
        "pipeline_root": str(work_dir / "pipeline"),
        "cache_root": str(work_dir / "reuse"),
        "workspace_root": str(run_dir / "tmp" / "workspace"),
        "result_file": str(run_dir / "result.json"),
        "reports": {task: str(work_dir / "reports" / name) for task, name in REPORTS.items()},
    }
    write_json(run_dir / "request.json", request)
    return run_dir / "request.json"


def why_it_failed(result_file: Path, record: Event | None, exit_status: int, log: Path) -> str:
    """Message about a failed run, one sentence.

    Args:
        result_file: results of the tasks, written by the runner; may not exist.
        record: the error recorded by a step or the runner, see `thinktwice.progress.recorded`; None if there is none.
        exit_status: of the runner.
        log: output of the run.
    """
    tasks = read_json(result_file)["tasks"] if result_file.exists() else {}
    failed = [(name, task) for name, task in tasks.items() if task["status"] == "FAILURE"]
    step = f"step {failed[0][0]}" if failed else "the pipeline"
    if record is not None and record["own"]:
        return f"{record['message']} ({step}, log: {log})"
    if record is not None:
        detail = f": {record['message']}" if record["message"] else ""
        return f"{step} failed with {record['type']}{detail}; what led to it is in {log}"
    return f"{step} {how_it_ended(failed[0][1].get('exit_status') if failed else exit_status)}: read {log}"


def how_it_ended(exit_status: int | None) -> str:
    """Description of the exit status of a process that recorded no error."""
    # A shell exits with 128 + signal number if its process was ended by a signal.
    number = -exit_status if exit_status and exit_status < 0 else (exit_status or 0) - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = ""
    if name == "SIGKILL":
        return "was killed (SIGKILL), which the system does when memory runs out"
    if name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"):
        return f"was ended from outside ({name})"
    if name:
        return f"crashed ({name})"
    return "ended without a message" + (f" (exit status {exit_status})" if exit_status else "")


def _result(raw: dict[str, Any], work_dir: Path, state_dir: Path, log: Path) -> RunResult:
    tasks = {name: TaskResult.model_validate(task) for name, task in raw["tasks"].items()}
    checked = tasks["validate"].outputs
    reports = {task: work_dir / "reports" / name for task, name in REPORTS.items()}
    if not checked["Output"]:
        raise PipelineError(refusal(Path(checked["verdict_file"]), reports["validate"], Path(checked["quarantine"])))
    return RunResult(
        blessed=bool(tasks["bless"].outputs["Output"]),
        quarantine=Path(checked["quarantine"]),
        training_set=Path(tasks["build-training-set"].outputs["training_set"]),
        bundle=Path(tasks["evaluate"].outputs["bundle"]),
        blessing=Path(tasks["bless"].outputs["blessing"]),
        data_report=reports["validate"],
        model_report=reports["evaluate"],
        state_dir=state_dir,
        log=log,
        tasks=tasks,
    )


def reasons_of(verdict: Path) -> list[str]:
    """The reasons in the verdict of the validation: a JSON file, or a folder that contains one."""
    files = sorted(verdict.rglob("*.json")) if verdict.is_dir() else [verdict]
    for file in files:
        content = read_json(file)
        if isinstance(content, dict) and "reasons" in content:
            reasons = content["reasons"]
            return [str(reason) for reason in reasons] if isinstance(reasons, list) else [str(reasons)]
    return []


def refusal(verdict: Path, report: Path, quarantine: Path) -> str:
    """Message for a log that was refused by the validation."""
    all_reasons = reasons_of(verdict)
    omitted = f" (and {len(all_reasons) - MAX_REASONS} more)" if len(all_reasons) > MAX_REASONS else ""
    reasons = ("; ".join(all_reasons[:MAX_REASONS]) or "see the report") + omitted
    set_aside = read_json(quarantine / QUARANTINE)["rows_quarantined"]
    quarantined = f"; the {set_aside:,} quarantined rows are in {shown(quarantine)}" if set_aside else ""
    return f"the log was refused by the validation: {reasons}; open {shown(report)} and repair the log or its schema{quarantined}"

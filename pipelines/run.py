"""Run the training pipeline on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import pipelines
from pipelines.check import check_arguments
from pipelines.local_remains import remove_unfinished
from pipelines.versions import code_version, data_version
from thinktwice import progress
from thinktwice.console.events import EventTail
from thinktwice.console.options import LAST_RUN
from thinktwice.console.processes import python_command, start, stop
from thinktwice.errors import PipelineError
from thinktwice.files import atomic_file, full_disk_named, read_json, write_json
from thinktwice.threads import thread_environment

POLL = 0.1  # seconds between two looks at a running pipeline
MAX_REASONS = 3  # of a refusal, in one sentence; the report has them all

Event = dict[str, Any]


class RunArguments(BaseModel):
    """What one run of the pipeline is asked to do; the fields are those of the graph (`ctr_training.py`).

    `seed` is the one seed of a run: each step is given it where the step depends on it, so that another seed repeats no more
    than it must.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "ml-1m"
    source_path: str = ""
    schema_path: str = ""
    limit: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    split: Literal["time", "random"] = "time"
    recipe: str = "default"
    test_time_mode: str = "lean"
    online_store: Literal["sqlite", "redis"] = "sqlite"
    redis_address: str = ""
    target: Literal["local", "manifest"] = "local"


class TaskResult(BaseModel):
    """What one task of a run gave: `outputs` holds paths of artifacts and values of parameters by output name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["SUCCESS", "FAILURE"]
    reused: bool
    seconds: float
    outputs: dict[str, Any]


class RunResult(BaseModel):
    """A run that ended well. `blessed` tells whether the new model was deployed; the reasons lie in `blessing`."""

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
    """Run the pipeline in a process of its own, and reuse what an earlier run under `work_dir` has already computed.

    Everything the run prints goes to ``work_dir/runs/<time>/run.log``. Ctrl-C ends the process and its children, removes
    what they left unfinished and is raised again; the next run goes on where this one stood.

    Raises:
        DataError, PipelineError: the arguments cannot lead to a run (see `check_arguments`).
        PipelineError: a step failed (its own sentence is the message), or the log was refused by the validation.
        ResourceError: the disk is full.
    """
    check_arguments(arguments)
    work_dir, state_dir = work_dir.absolute(), state_dir.absolute()
    began = time.time()
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
            # KFP leaves a folder in the temporary one for every step; this one is removed with them in it.
            "TMPDIR": str(run_dir / "tmp"),
        }
        tail = EventTail(progress_file)
        with log.open("wb") as output:
            process = start(
                python_command("pipelines.local_runner", str(request_file)), environment=environment, output=output
            )
            try:
                while process.poll() is None:
                    for event in tail.read():
                        on_event(event)
                    time.sleep(POLL)
            finally:
                stop(process)
                shutil.rmtree(run_dir / "tmp", ignore_errors=True)
                remove_unfinished(work_dir / "pipeline", since=began)
        for event in tail.read():
            on_event(event)
        result_file = run_dir / "result.json"
        if process.returncode != 0 or not result_file.exists():
            raise PipelineError(why_it_failed(log, result_file))
        result = _result(read_json(result_file), work_dir, state_dir, log)
        write_json(work_dir / LAST_RUN, result.model_dump(mode="json"))
    return result


@contextlib.contextmanager
def only_run(work_dir: Path) -> Iterator[None]:
    """Hold the lock of a work folder: two runs in it would remove each other's unfinished steps."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(
                f"another run works in {work_dir}: wait for it, or give --work another folder"
            ) from None
        yield


def _write_request(arguments: RunArguments, work_dir: Path, state_dir: Path, run_dir: Path) -> Path:
    from thinktwice.data.sources.registry import source_named

    for folder in (run_dir / "tmp", work_dir / "pipeline", work_dir / "reuse", state_dir):
        folder.mkdir(parents=True, exist_ok=True)
    paths = {
        name: str(Path(value).absolute())
        for name in ("source_path", "schema_path")
        if (value := getattr(arguments, name))
    }
    request = {
        "arguments": {
            **arguments.model_dump(),
            **paths,
            "data_seed": arguments.seed if source_named(arguments.source).seeded else 0,
            "split_seed": arguments.seed if arguments.split == "random" else 0,
            "state_dir": str(state_dir),
            "code_version": code_version(),
            "data_version": data_version(*paths.values()),
        },
        "pipeline_root": str(work_dir / "pipeline"),
        "cache_root": str(work_dir / "reuse"),
        "workspace_root": str(run_dir / "tmp" / "workspace"),
        "result_file": str(run_dir / "result.json"),
    }
    write_json(run_dir / "request.json", request)
    return run_dir / "request.json"


OWN_ERROR = re.compile(r"^\s*thinktwice\.errors\.\w+: (?P<message>.+)$")
ANY_ERROR = re.compile(r"^\s*(?P<message>(?:[\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)\b.*)$")
NO_SPACE = ("No space left on device", "database or disk is full")  # the second is SQLite's


def why_it_failed(log: Path, result_file: Path) -> str:
    """One sentence about a failed run: the step's own when it raised one of ours, else the last line of its traceback."""
    tasks = read_json(result_file)["tasks"] if result_file.exists() else {}
    failed = [name for name, task in tasks.items() if task["status"] == "FAILURE"]
    step = f"step {failed[0]}" if failed else "the pipeline"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for pattern in (OWN_ERROR, ANY_ERROR):
        found = [match["message"].strip() for line in lines if (match := pattern.match(line))]
        if not found:
            continue
        if pattern is OWN_ERROR:
            return f"{found[-1]} ({step}, log: {log})"
        if any(words in found[-1] for words in NO_SPACE):
            return f"no space left on the disk in {step}: free some disk space and run again (log: {log})"
        return f"{step} failed with {found[-1]}: read {log}"
    return f"{step} was killed without a word, often for lack of memory: read {log}"


def _result(raw: dict[str, Any], work_dir: Path, state_dir: Path, log: Path) -> RunResult:
    tasks = {name: TaskResult.model_validate(task) for name, task in raw["tasks"].items()}
    checked = tasks["validate"].outputs
    # KFP names a report without an ending, and a browser shows such a file as text: hand out a copy with one.
    data_report = _copy(Path(checked["report"]), work_dir / "reports" / "data.html")
    if not checked["Output"]:
        raise PipelineError(refusal(Path(checked["verdict_file"]), data_report))
    return RunResult(
        blessed=bool(tasks["bless"].outputs["Output"]),
        quarantine=Path(checked["quarantine"]),
        training_set=Path(tasks["build-training-set"].outputs["training_set"]),
        bundle=Path(tasks["evaluate"].outputs["bundle"]),
        blessing=Path(tasks["bless"].outputs["blessing"]),
        data_report=data_report,
        model_report=_copy(Path(tasks["evaluate"].outputs["report"]), work_dir / "reports" / "model.html"),
        state_dir=state_dir,
        log=log,
        tasks=tasks,
    )


def _copy(source: Path, target: Path) -> Path:
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def reasons_of(verdict: Path) -> list[str]:
    """The reasons in a verdict or a blessing: a JSON file, or a folder that holds one."""
    files = sorted(verdict.rglob("*.json")) if verdict.is_dir() else [verdict]
    for file in files:
        content = read_json(file)
        if isinstance(content, dict) and "reasons" in content:
            reasons = content["reasons"]
            return [str(reason) for reason in reasons] if isinstance(reasons, list) else [str(reasons)]
    return []


def refusal(verdict: Path, report: Path) -> str:
    """The sentence for a log the validation has refused."""
    found = reasons_of(verdict)
    more = f" (and {len(found) - MAX_REASONS} more)" if len(found) > MAX_REASONS else ""
    reasons = ("; ".join(found[:MAX_REASONS]) or "see the report") + more
    return f"the log was refused by the validation: {reasons}; open {report} and repair the log or its schema"

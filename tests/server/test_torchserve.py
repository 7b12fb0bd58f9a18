"""The real TorchServe: both protocols, bad bodies, a busy port, a damaged bundle, the same bytes after a restart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from serving.local.torchserve_process import TorchServe, check_port, manage, running, stop
from tests.server.conftest import free_port, post
from tests.serving.releases import pack, rehash, with_tensor
from tests.serving.small import MODEL_VERSION
from thinktwice.errors import ServerError
from thinktwice.release.champion import Champion

pytestmark = pytest.mark.server

CONTEXT = {"slot": "s1", "bid": 0.5, "timestamp": "2026-01-06T10:00:00Z"}
ONE = {"user_id": "u1", "candidates": ["i1", "i2", "never seen"], "context": CONTEXT}
ITEMS = [f"i{i % 60}" if i % 10 else f"cold{i}" for i in range(500)]
MANY = {"user_id": "u1", "candidates": ITEMS, "context": CONTEXT}


FORM = b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nv\r\n'
COLD = {"user_id": "nobody", "candidates": [f"cold{i}" for i in range(1000)], "context": CONTEXT}


def items(reply: tuple[int, dict[str, str], bytes]) -> list[dict[str, Any]]:
    assert reply[0] == 200, reply
    out: list[dict[str, Any]] = json.loads(reply[2])["predictions"][0]["items"]
    return out


def test_v1(server: TorchServe) -> None:
    status, headers, body = post(server.predict_url, {"instances": [ONE, {"rows": [{}]}]})
    assert (status, headers["content-type"]) == (200, "application/json")
    first, second = json.loads(body)["predictions"]
    assert [item["item_id"] for item in first["items"]] == ONE["candidates"]
    assert [item["cold"] for item in first["items"]] == [False, False, True]
    assert all(0 < item["probability"] < 1 for item in first["items"])
    assert first["model_version"] == second["model_version"] == MODEL_VERSION
    assert {entry["model_version"] for entry in (*first["items"], *second["rows"])} == {MODEL_VERSION}
    assert not first["cold_user"]


def test_v2(server: TorchServe) -> None:
    tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [json.dumps(ONE)]}
    status, headers, body = post(f"{server.url}/v2/models/ctr/infer", {"id": "q1", "inputs": [tensor]})
    assert (status, headers["content-type"]) == (200, "application/json")
    answer = json.loads(body)
    assert (answer["id"], answer["model_version"]) == ("q1", MODEL_VERSION)
    outputs = {o["name"]: o["data"] for o in answer["outputs"]}
    assert outputs["model_version"] == [MODEL_VERSION] * 3
    expected = items(post(server.predict_url, {"instances": [ONE]}))
    assert outputs["item_id"] == ONE["candidates"]
    assert outputs["probability"] == [item["probability"] for item in expected]
    assert outputs["uncertainty"] == [item["uncertainty"] for item in expected]


def test_a_row_scores_the_same_alone_or_among_500(server: TorchServe) -> None:
    """To the last bit, with every limit as shipped."""
    reply = post(server.predict_url, {"instances": [MANY]})
    assert json.loads(reply[2])["predictions"][0]["paths_capped"] is False
    together = items(reply)
    assert len({item["num_paths"] for item in together}) > 1
    for place in (0, 127, 128, 490, 499):
        (alone,) = items(post(server.predict_url, {"instances": [{**MANY, "candidates": [ITEMS[place]]}]}))
        assert {**alone, "rank": 0} == {**together[place], "rank": 0}


def test_a_request_that_wants_too_many_paths_is_told(server: TorchServe) -> None:
    reply, again = (post(server.predict_url, {"instances": [COLD]}) for _ in range(2))
    assert reply[2] == again[2]
    assert json.loads(reply[2])["predictions"][0]["paths_capped"] is True
    together = items(reply)
    assert sum(item["num_paths"] - 1 for item in together) <= 1024
    assert {item["num_paths"] for item in together} > {1}


@pytest.mark.parametrize(
    ("body", "content_type", "field"),
    [
        (b"", "application/json", "body"),
        (b"{", "application/json", "body"),
        (b"\xff\xfe", "application/json", "body"),
        (b"[" * 5000, "application/json", "body"),
        (b"1" * 6000, "application/json", "body"),
        (b'{"instances": [{"user_id": NaN, "candidates": ["a"]}]}', "application/json", "body"),
        (b'{"instances": [{"user_id": "u", "candidates": []}]}', "application/json", "instances[0].candidates"),
        ({"instances": [{**ONE, "candidates": ["i"] * 100_000}]}, "application/json", "instances[0].candidates"),
        ({"inputs": [{"name": "x"}]}, "application/json", "inputs[0].datatype"),
        (b"hello", "text/plain", "body"),
        (b"a=b", "application/x-www-form-urlencoded", "body"),
        (b"a&" * 20_000, "application/x-www-form-urlencoded", "body"),
        (b"a=1&bb=22&" * 5_000, "application/x-www-form-urlencoded; charset=utf-8", "body"),
        (FORM * 3_000 + b"--x--\r\n", "multipart/form-data; boundary=x", "body"),
        (FORM.replace(b'"f"', b'"body"') + b"--x--\r\n", "multipart/form-data; boundary=x", "body"),
        (b"\x00\x01", "application/octet-stream", "body"),
    ],
)
def test_bad_bodies_get_a_json_error_and_the_worker_lives(
    server: TorchServe, body: Any, content_type: str, field: str
) -> None:
    status, headers, answer = post(server.predict_url, body, content_type)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert json.loads(answer)["field"] == field
    assert post(server.predict_url, {"instances": [ONE]})[0] == 200


def test_good_requests_beside_bad_ones(server: TorchServe) -> None:
    good = post(server.predict_url, {"instances": [ONE]})[2]
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(lambda i: post(server.predict_url, {"instances": [ONE if i % 2 else {"rows": 1}]}), range(40))
        )
    assert [r[0] for r in replies] == [400, 200] * 20
    found = {r[2] for r in replies[1::2]}
    # Those that had to wait got base passes alone, and say so; all of these are the same too.
    waited = [json.loads(body)["predictions"][0] for body in found - {good}]
    assert len(waited) <= 1 and all(one["paths_capped"] for one in waited)
    assert all(item["num_paths"] == 1 for one in waited for item in one["items"])


def test_no_other_model_can_be_loaded(server: TorchServe) -> None:
    status, _ = manage(server, "POST", "/models?url=http://example.org/x.mar")
    assert status == 405


def test_a_busy_port_is_one_sentence(server: TorchServe, state: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "thinktwice", "serve", "--state", str(state), "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"port {server.port} of 127.0.0.1 cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def command(state: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``thinktwice serve`` as a user starts it."""
    arguments = ["serve", "--state", str(state), "--port", str(free_port()), "--log", str(tmp_path / "log")]
    with (tmp_path / "stderr").open("wb") as error:
        process = subprocess.Popen(
            [sys.executable, "-m", "thinktwice", *arguments],
            stdout=subprocess.PIPE,
            stderr=error,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_serve_answers_the_same_bytes_after_a_restart_and_ends_with_ctrl_c(
    server: TorchServe, command: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert command.stdout is not None
    word, url = command.stdout.readline().split()
    assert word == "ready"
    for body in ({"instances": [ONE]}, {"instances": [MANY]}, {"instances": [{**MANY, "k": 7}, ONE]}):
        assert post(url, body)[2] == post(server.predict_url, body)[2]
    children = psutil.Process(command.pid).children(recursive=True)
    assert any("java" in child.name() for child in children)
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=60) == 130
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert {p.name for p in tmp_path.iterdir()} == {"log", "stderr"}


def test_sigterm_while_it_starts_leaves_nothing(command: subprocess.Popen[str], tmp_path: Path) -> None:
    children: list[psutil.Process] = []
    while not any("org.pytorch.serve.ModelServer" in _command_line(child) for child in children):
        assert command.poll() is None
        children = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(signal.SIGTERM)
    assert command.wait(timeout=60) == 130
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert {p.name for p in tmp_path.iterdir()} <= {"log", "stderr"}


def test_a_killed_command_takes_the_server_along(command: subprocess.Popen[str]) -> None:
    children: list[psutil.Process] = []
    while not any("org.pytorch.serve.ModelServer" in _command_line(child) for child in children):
        assert command.poll() is None
        children = psutil.Process(command.pid).children(recursive=True)
    command.kill()
    command.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    for process in alive:
        process.kill()
    assert alive == []


def test_a_server_that_dies_ends_the_command_with_its_sentence(command: subprocess.Popen[str], tmp_path: Path) -> None:
    assert command.stdout is not None
    assert command.stdout.readline().startswith("ready ")
    children = psutil.Process(command.pid).children(recursive=True)
    (java,) = [child for child in children if child.name() == "java"]
    assert any("model_service_worker" in " ".join(_command_line(child)) for child in children)
    java.kill()
    assert command.wait(timeout=60) == 1
    error = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert error.startswith("thinktwice: TorchServe was ended by SIGKILL: was memory short?: see ")
    assert str(tmp_path / "log") in error
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_damaged_bundle_is_refused_with_its_sentence(
    champion: Champion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing stays behind: a mark in the environment finds every process of this server, orphans too."""
    mark = f"{tmp_path}-{uuid.uuid4()}"
    monkeypatch.setenv("THINKTWICE_TEST_MARK", mark)
    found: list[list[psutil.Process]] = []

    def stop_and_look(server: TorchServe) -> None:
        found.append(_marked(mark))
        stop(server)

    monkeypatch.setattr("serving.local.torchserve_process.stop", stop_and_look)
    port = free_port()
    shutil.copytree(champion.bundle_dir, tmp_path / "bundle")
    with_tensor(tmp_path / "bundle" / "weights.safetensors", "bias", lambda found: found * np.nan)
    rehash(tmp_path / "bundle")  # what only a worker finds when it loads the model
    damaged = pack(tmp_path / "bundle", tmp_path / "packed")
    with (
        pytest.raises(
            ServerError, match=r"cannot be served: .*weights\.safetensors contains numbers in 'bias' that are not"
        ),
        running(damaged, feature_store=champion.feature_store_dir, port=port, log=tmp_path / "log") as server,
    ):
        pytest.fail(f"{server.url} answers")
    (before,) = found
    assert len(before) >= 2  # the launcher and Java: the mark does find them
    assert [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    # A worker that Java was starting just then ends by itself when it finds Java gone.
    psutil.wait_procs(_marked(mark), timeout=30)
    assert _marked(mark) == []
    check_port(port)


def _marked(mark: str) -> list[psutil.Process]:
    """Living processes that were started with this mark in their environment."""
    out = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get("THINKTWICE_TEST_MARK") == mark:
                out.append(process)
    return out


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []

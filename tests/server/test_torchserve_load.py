"""The real TorchServe under load and faults: forms, a scorer that dies, a queue whose time no header tells."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from serving.local.torchserve_process import TorchServe
from tests.contract.test_contract import V1, Reply, ask
from tests.server.test_torchserve import FORM, ONE

pytestmark = pytest.mark.server

BODY = {"instances": [ONE]}
FORMS = {
    "application/x-www-form-urlencoded": b"a&" * 50_000,
    "application/x-www-form-urlencoded;charset=x": b"a=b&cc=&" * 20_000,
    "multipart/form-data; boundary=x": FORM * 20_000 + b"--x--\r\n",
}


def child(server: TorchServe, module: str) -> psutil.Process:
    """The process that runs a module of ours below the server."""
    for _ in range(400):
        for process in psutil.Process(server.process.pid).children(recursive=True):
            try:
                if module in process.cmdline():
                    return process
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    raise AssertionError(module)


def until_scored(server: TorchServe) -> None:
    for _ in range(1200):
        if ask(server.url, V1, BODY).status == 200:
            return
        time.sleep(0.05)
    raise AssertionError(server.log.read_text()[-2000:])


def neighbours(server: TorchServe, meanwhile: Callable[[], object], callers: int = 3) -> list[Reply]:
    """What callers get who never stop asking while something else goes on."""
    over = threading.Event()
    replies: list[Reply] = []

    def call() -> None:
        while not over.is_set():
            replies.append(ask(server.url, V1, BODY, {"X-Deadline-Ms": "60000"}))

    with ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(call) for _ in range(callers)]
        try:
            meanwhile()
        finally:
            over.set()
        for done in calls:
            done.result()
    return replies


@pytest.mark.parametrize("kind", FORMS)
def test_a_form_holds_no_worker(server: TorchServe, kind: str) -> None:
    """It is refused, the worker and its scorer live, and whoever asks meanwhile is answered."""
    before = [child(server, f"serving.adapters.torchserve_{name}").pid for name in ("worker", "scorer")]
    found: list[Reply] = []
    replies = neighbours(server, lambda: found.append(ask(server.url, V1, FORMS[kind], {"Content-Type": kind})))
    assert (found[0].status, found[0].json["field"]) == (400, "body")
    assert Counter(reply.status for reply in replies) == {200: len(replies)}
    assert [child(server, f"serving.adapters.torchserve_{name}").pid for name in ("worker", "scorer")] == before


def test_while_no_scorer_is_there_everybody_is_refused_and_told_when_to_come_again(server: TorchServe) -> None:
    scorer = child(server, "serving.adapters.torchserve_scorer")

    def kill_and_wait() -> None:
        os.kill(scorer.pid, signal.SIGKILL)
        until_scored(server)

    replies = neighbours(server, kill_and_wait, callers=10)
    counts = Counter(reply.status for reply in replies)
    assert set(counts) <= {200, 500, 503}
    assert counts[500] <= 1, "the request it died of"
    assert counts[503] > 10
    for reply in replies:
        if reply.status == 503:
            assert reply.headers["retry-after"] == "5" and "is being loaded" in reply.json["error"]
    assert "the scorer was ended by SIGKILL" in server.log.read_text()


def test_a_killed_worker_is_replaced(server: TorchServe) -> None:
    """The front end itself answers for the request under way; those behind it wait for the next worker, which refuses them."""
    worker, scorer = (
        child(server, "serving.adapters.torchserve_worker"),
        child(server, "serving.adapters.torchserve_scorer"),
    )

    def kill_and_wait() -> None:
        os.kill(worker.pid, signal.SIGKILL)
        until_scored(server)

    replies = neighbours(server, kill_and_wait, callers=10)
    counts = Counter(reply.status for reply in replies)
    assert counts[500] + counts[507] <= 1 and set(counts) <= {200, 500, 503, 507}
    assert all("retry-after" in reply.headers for reply in replies if reply.status == 503)
    _, alive = psutil.wait_procs([scorer], timeout=30)
    assert not alive


def test_time_in_the_queue_counts_although_no_header_tells_it(server: TorchServe) -> None:
    """The front end says how long a request waited when it has been answered, so the next ones are known to be late."""
    until_scored(server)
    scorer = child(server, "serving.adapters.torchserve_scorer")
    with ThreadPoolExecutor(12) as pool:
        scorer.suspend()
        try:
            calls = [pool.submit(ask, server.url, V1, BODY, {"X-Deadline-Ms": "700"}) for _ in range(12)]
            time.sleep(2.0)
        finally:
            scorer.resume()
        replies = [call.result() for call in calls]
    counts = Counter(reply.status for reply in replies)
    assert counts[200] <= 2, "the first was at work, and that the second waited is not known yet"
    assert counts[503] >= 10
    late = [reply for reply in replies if reply.status == 503]
    assert all(reply.json["error"].startswith("no time is left before the deadline") for reply in late)
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in late)
    time.sleep(0.1)  # who comes just behind a long queue may be taken for one of it
    patient = ask(server.url, V1, BODY, {"X-Deadline-Ms": "700"})
    assert patient.status == 200, "an idle server has no queue"


def test_requests_on_one_connection_are_answered_in_their_order(server: TorchServe) -> None:
    body = json.dumps(BODY).encode()
    head = f"POST {V1} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    message = b"".join(f"{head}X-Request-Id: r{i}\r\n\r\n".encode() + body for i in range(20))
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(message)
        while found.count(b'"bundle_hash"') < 20:
            part = connection.recv(1 << 16)
            assert part, found
            found += part
    names = [line.split(b": ")[1] for line in found.split(b"\r\n") if line.lower().startswith(b"x-ctr-request-id: ")]
    assert names == [b"r%d" % i for i in range(20)]

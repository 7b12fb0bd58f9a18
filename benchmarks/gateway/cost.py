"""Added latency on loopback, and CPU time of Envoy per request."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.experiment.files import experiment
from tests.gateway.gateways import declare, gateway

#: The shipped settings; those of the tests have longer timeouts.
SHIPPED = {"per_try_timeout": 1.0, "timeout": 3.0}
BODY = b'{"instances": [{"user_id": "u", "candidates": ["' + b"i" * 1990 + b'"]}]}'  # 2 KB


def message(number: int) -> bytes:
    return (
        b"POST /v1/models/ctr:predict HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\nx-experiment-unit: user-%d\r\n"
        b"content-length: %d\r\n\r\n%s" % (number, len(BODY), BODY)
    )


def cost(folder: Path, rounds: int, requests: int, seconds: float) -> dict[str, Any]:
    """p50 and p99 in ms, direct and through the gateway, in alternating rounds; CPU of Envoy per request in us, at 1 and at 16
    connections."""
    with ExitStack() as stack:
        ports = [stack.enter_context(arm()) for _ in range(2)]
        declared = declare({"control": ports[0], "exp1/t1": ports[1]}, [experiment("exp1", coverage=0.5)], **SHIPPED)
        live = stack.enter_context(gateway(folder, declared))
        (envoy,) = [p for p in psutil.Process(live.process.pid).children(recursive=True) if p.name() == "envoy"]
        for port in (*ports, live.port):
            latencies(port, 200)
        latencies_ms: dict[str, list[np.ndarray]] = {"direct": [], "gateway": []}
        cpu = 0.0
        for _ in range(rounds):
            latencies_ms["direct"].append(latencies(ports[0], requests))
            before = spent(envoy)
            latencies_ms["gateway"].append(latencies(live.port, requests))
            cpu += spent(envoy) - before
        before = spent(envoy)
        answered, wall = asyncio.run(closed_loop(live.port, 16, seconds))
        cpu_16 = spent(envoy) - before
        memory = envoy.memory_info().rss
    p50 = {name: [float(np.percentile(round_ms, 50)) for round_ms in many] for name, many in latencies_ms.items()}
    return {
        "p50_ms": {name: min(values) for name, values in p50.items()},
        "p50_ms_by_round": p50,
        "p99_ms": {
            name: min(float(np.percentile(round_ms, 99)) for round_ms in many) for name, many in latencies_ms.items()
        },
        "added_p50_ms": min(p50["gateway"]) - min(p50["direct"]),
        "added_p50_ms_by_round": [b - a for a, b in zip(p50["direct"], p50["gateway"], strict=True)],
        "cpu_us_one_connection": 1e6 * cpu / (rounds * requests),
        "cpu_us_16_connections": 1e6 * cpu_16 / answered,
        "requests_a_second_and_core": answered / cpu_16,
        "requests_a_second_seen": answered / wall,
        "memory_mib": memory / 2**20,
    }


@contextmanager
def arm() -> Iterator[int]:
    """A minimal arm in a separate process; yields its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gateway.arm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.communicate(timeout=10)


def latencies(port: int, requests: int) -> np.ndarray:
    """Milliseconds [requests] of requests one after the other over one connection."""
    out = np.empty(requests)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(requests):
            sent = message(number)
            began = time.perf_counter()
            connection.sendall(sent)
            answer = connection.recv(1 << 16)
            while not answer.endswith(b"}"):
                answer += connection.recv(1 << 16)
            out[number] = 1000 * (time.perf_counter() - began)
            assert answer.startswith(b"HTTP/1.1 200"), answer
    return out


def spent(process: psutil.Process) -> float:
    """Seconds of CPU so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def closed_loop(port: int, connections: int, seconds: float) -> tuple[int, float]:
    """Answers, and seconds, of callers that wait for each answer."""
    answered = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            writer.write(message(number))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            size = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(size)
            answered += 1
            number += connections
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(connections)))
    return answered, time.perf_counter() - began

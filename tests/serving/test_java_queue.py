"""The wait in the queue of TorchServe's front end, estimated from that of the request before."""

from __future__ import annotations

import socket

import pytest

from serving.adapters.java_queue import IDLE, LONGEST_IDLE, JavaQueue, QueueWait
from serving.local.processes import free_ports
from tests.serving.conftest import Lines
from tests.serving.test_admission import Clock


def test_the_line_of_the_request_before_is_read_from_the_network() -> None:
    clock, (port,) = Clock(), free_ports(1, socket.SOCK_DGRAM)
    queue = JavaQueue(port, clock)
    assert queue.came() == QueueWait(0.0, 0.0, True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as java:
        for text in (b"nonsense", b"Waiting time ns: 300000000, Backend time ns: 5000000"):
            java.sendto(text, ("127.0.0.1", port))
        clock.now += 0.05
        queue.answered()
        clock.now += 0.001
        assert queue.came() == QueueWait(0.3, pytest.approx(0.351), False)
        java.sendto(b"Waiting time ns: x", ("127.0.0.1", port))
        assert queue.came().likely == 0.3
        java.sendto(b"Waiting time ns: 99999999999999999999999, ", ("127.0.0.1", port))
        assert queue.came().likely == 3600.0
    queue.close()


@pytest.mark.parametrize(
    ("waited", "gap", "idle"),
    [
        (0.0, IDLE * 1.01, True),
        (0.0, IDLE * 0.99, False),
        (1.0, LONGEST_IDLE * 1.01, True),
        (1.0, LONGEST_IDLE * 0.99, False),
        (0.01, 0.006, True),
        (0.01, 0.004, False),
    ],
)
def test_after_a_pause_the_queue_was_empty(waited: float, gap: float, idle: bool) -> None:
    clock = Clock()
    queue = JavaQueue(None, clock)
    queue.came()
    queue.waited = waited
    clock.now += 0.005
    queue.answered()
    clock.now += gap
    found = queue.came()
    assert found.idle == idle
    assert found.likely == (0.0 if idle else waited)
    assert found.at_most == pytest.approx(0.0 if idle or waited == 0.0 else waited + 0.005 + gap)


def test_a_caller_that_never_pauses_does_not_wait() -> None:
    """His next request comes just behind the answer; the one before found the queue empty, so this one did too."""
    clock = Clock()
    queue = JavaQueue(None, clock)
    for _ in range(10):
        queue.came()
        clock.now += 0.005
        queue.answered()
        queue.waited = 0.0001
        clock.now += 0.0005
        assert queue.came().at_most == 0.0001


def test_a_port_that_is_taken_is_told_and_waits_are_unknown(lines: Lines) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        queue = JavaQueue(port)
        assert queue.came().at_most == 0.0
    assert [f"UDP port {port}" in line["message"] for line in lines] == [True]


@pytest.mark.parametrize("text", ["", "x", "-1", "٣"])
def test_without_a_port_waits_are_unknown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKTWICE_QUEUE_PORT", text)
    assert JavaQueue.from_environment().came().likely == 0.0

"""Readiness probe: checks whether TorchServe in this container can score; exit status 0 means yes. Standard library only, to start fast.

TorchServe's own ``/ping`` and ``/v2/health/ready`` report ready while no model is loaded. This probe checks the management listener
(loopback) for a worker, and sends one prediction to the port of the callers. A refusal because of load counts as ready, because
removing a pod under load only increases the load of the others; with ``--score`` it does not, so that a start ends with a score.

    probe.py [--score]

With ``--drain`` it waits before a stop, as a preStop hook: first until no more requests arrive, then until the queue is empty.
When TorchServe is stopped, it closes the connections of unanswered requests.

    probe.py --drain
"""

import http.client
import json
import sys
import time

MODEL = "ctr"
# An empty row is a valid request to any model.
QUESTION = b'{"instances": [{"rows": [{}]}]}'
TIMEOUT_S = 8.0
PATIENCE_MS = "6000"
NOT_LOADED = b"is being loaded"  # from the worker's response while no model is loaded
LEAVE_S = 5.0  # seconds until all gateways know that this pod is stopping
DRAIN_S = 20.0


def ask(method: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send a request to a listener of this container. Returns status and body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/json", "X-Deadline-Ms": PATIENCE_MS}
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def why_not_ready(score: bool) -> str:
    """Empty if the model can score, else the reason in one sentence."""
    try:
        status, answer = ask("GET", 8081, f"/models/{MODEL}")
        if status != 200:
            return f"the server does not know model {MODEL} (status {status})"
        workers = [worker["status"] for version in json.loads(answer) for worker in version["workers"]]
        if "READY" not in workers:
            return f"no worker of {MODEL} is READY (they are {workers})"
        status, answer = ask("POST", 8080, f"/v1/models/{MODEL}:predict", QUESTION)
        busy = status in (429, 503) and NOT_LOADED not in answer
        if status != 200 and (score or not busy):
            return f"{MODEL} answered a prediction with status {status}: {answer[:200]!r}"
    except (OSError, http.client.HTTPException) as error:
        return f"the server does not answer: {error}"
    except (ValueError, KeyError, TypeError) as error:
        return f"the server answered something unexpected: {error!r}"
    return ""


def pending() -> int:
    """Number of requests in the queue; 0 if unknown."""
    try:
        _, answer = ask("GET", 8081, f"/models/{MODEL}")
        return sum(version["jobQueueStatus"]["pendingRequests"] for version in json.loads(answer))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return 0


def drain() -> None:
    """Wait until this pod has answered all requests."""
    time.sleep(LEAVE_S)
    end = time.monotonic() + DRAIN_S
    while pending() and time.monotonic() < end:
        time.sleep(0.1)
    why_not_ready(score=True)  # it is answered after all requests in progress


def main(arguments: list[str]) -> int:
    """Entry point; see the module docstring for the arguments."""
    if "--drain" in arguments:
        drain()
        return 0
    reason = why_not_ready("--score" in arguments)
    if reason:
        sys.stderr.write(f"{reason}\n")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

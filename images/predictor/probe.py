"""Asks the TorchServe of this container whether it can score; exit 0 means yes. Standard library only, so that it starts fast.

TorchServe's own ``/ping`` and ``/v2/health/ready`` say yes while no model is loaded. This asks the management listener (loopback)
for a worker, and sends one prediction through the same door the callers use. A refusal for load is as good as an answer, for a
pod that is taken out under load only adds to that of the others; with ``--score`` it is not, so that a start ends with a score.

    probe.py [--score]

With ``--drain`` it waits before a stop, as a preStop hook: first until nobody sends requests here any more, then until the queue is
empty. TorchServe itself ends the connections of requests that are not answered yet when it is told to stop.

    probe.py --drain
"""

import http.client
import json
import sys
import time

MODEL = "ctr"
# A row with nothing in it is a valid question to any model.
QUESTION = b'{"instances": [{"rows": [{}]}]}'
TIMEOUT_S = 8.0
PATIENCE_MS = "6000"
NOT_LOADED = b"is being loaded"  # the worker stands in for a model that is not there
LEAVE_S = 5.0  # until the last gateway has heard that this pod is going
DRAIN_S = 20.0


def ask(method: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request to a listener of this container: status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/json", "X-Deadline-Ms": PATIENCE_MS}
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def why_not_ready(score: bool) -> str:
    """Empty when the model can score, else the reason in one sentence."""
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
    """Requests that wait in the queue; 0 when the server does not say."""
    try:
        _, answer = ask("GET", 8081, f"/models/{MODEL}")
        return sum(version["jobQueueStatus"]["pendingRequests"] for version in json.loads(answer))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return 0


def drain() -> None:
    """Wait until this pod has nothing left to answer."""
    time.sleep(LEAVE_S)
    end = time.monotonic() + DRAIN_S
    while pending() and time.monotonic() < end:
        time.sleep(0.1)
    why_not_ready(score=True)  # what comes after a request that is at work is answered after it


def main(arguments: list[str]) -> int:
    """Entry point; see the module's text for the arguments."""
    if "--drain" in arguments:
        drain()
        return 0
    reason = why_not_ready("--score" in arguments)
    if reason:
        sys.stderr.write(f"{reason}\n")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

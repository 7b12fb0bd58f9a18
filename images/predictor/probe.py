"""Asks the TorchServe of this container whether it can score; exit 0 means yes. Standard library only, so that it starts fast.

TorchServe's own ``/ping`` says Healthy while no worker is ready. This asks the management listener (loopback) for a READY
worker, and with ``--score`` also sends one prediction through the same door the callers use.

    probe.py [--score]
"""

import http.client
import json
import sys

MODEL = "ctr"
# A row with nothing in it is a valid question to any model.
QUESTION = b'{"instances": [{"rows": [{}]}]}'
TIMEOUT_S = 8.0


def ask(method: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request to a listener of this container: status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
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
        if score:
            status, answer = ask("POST", 8080, f"/v1/models/{MODEL}:predict", QUESTION)
            if status != 200:
                return f"{MODEL} answered a prediction with status {status}: {answer[:200]!r}"
    except (OSError, http.client.HTTPException) as error:
        return f"the server does not answer: {error}"
    except (ValueError, KeyError, TypeError) as error:
        return f"the server answered something unexpected: {error!r}"
    return ""


def main(arguments: list[str]) -> int:
    """Entry point; see the module's text for the arguments."""
    reason = why_not_ready("--score" in arguments)
    if reason:
        sys.stderr.write(f"{reason}\n")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Asks the TorchServe of this container whether it can score; exit 0 means yes. Standard library only, so that it starts fast.

TorchServe's own ``/ping`` says Healthy while no worker is ready. This asks the management listener (loopback) for a READY
worker, and with ``--score`` also sends one prediction through the same door the callers use.

    probe.py [--score BODY.json] [--model ctr]
"""

import http.client
import json
import sys

TIMEOUT_S = 4.0


def ask(method: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request to a listener of this container: status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def why_not_ready(model: str, body: bytes | None) -> str:
    """Empty when the model can score, else the reason in one sentence."""
    try:
        status, answer = ask("GET", 8081, f"/models/{model}")
        if status != 200:
            return f"the server does not know model {model} (status {status})"
        workers = [worker["status"] for version in json.loads(answer) for worker in version["workers"]]
        if "READY" not in workers:
            return f"no worker of {model} is READY (they are {workers})"
        if body is not None:
            status, answer = ask("POST", 8080, f"/v1/models/{model}:predict", body)
            if status != 200:
                return f"{model} answered a prediction with status {status}: {answer[:200]!r}"
    except (OSError, http.client.HTTPException) as error:
        return f"the server does not answer: {error}"
    except (ValueError, KeyError, TypeError) as error:
        return f"the server answered something unexpected: {error!r}"
    return ""


def main(arguments: list[str]) -> int:
    """Entry point; see the module's text for the arguments."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    body = None
    if "--score" in options:
        with open(options["--score"], "rb") as file:
            body = file.read()
    reason = why_not_ready(options.get("--model", "ctr"), body)
    if reason:
        sys.stderr.write(f"{reason}\n")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

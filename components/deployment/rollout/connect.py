"""Opens a session of a roll-out: the connection, with the sentences of its errors, and the test request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from components.cluster.client import connect
from components.deployment.rollout.probe import EMPTY_ROW
from components.deployment.rollout.target import Session
from components.deployment.rollout.waiting import Waiting
from thinktwice.errors import RolloutError, reason
from thinktwice.files import parse_json

MAX_REQUEST = 100_000  # bytes: the body is in the environment of a pod
ROLE = "manifests/components/rollout-access"


def open_session(
    service: str,
    namespace: str,
    waiting: Waiting,
    *,
    take_over: bool = False,
    request: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
    patience_s: float = 120.0,
) -> Session:
    """Connect to the cluster of KUBECONFIG, or to that of the pod.

    Args:
        request: file with the body of the test request; None for a row without features.
        patience_s: seconds for which an API server that does not answer is asked again.

    Raises:
        PipelineError: there is no cluster. RolloutError: the request cannot be read.
    """
    body = EMPTY_ROW
    if request is not None:
        try:
            content = request.read_bytes()
            parse_json(content)
        except (OSError, ValueError) as error:
            raise RolloutError(
                f"{request} is not a request ({reason(error)}): give a JSON file as for `:predict`"
            ) from error
        if len(content) > MAX_REQUEST:
            raise RolloutError(
                f"{request} has {len(content):,} bytes, and a test request at most {MAX_REQUEST:,}: use fewer candidates"
            )
        body = content.decode()
    api = connect(namespace)
    api.patience_s, api.error, api.role = patience_s, RolloutError, ROLE
    api.who, api.again = "this account", "nothing is lost, the old version serves on; the same command continues"
    return Session(api=api, service=service, waiting=waiting, body=body, take_over=take_over, tell=tell)

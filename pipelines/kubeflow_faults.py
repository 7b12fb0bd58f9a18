"""Errors of the API of Kubeflow Pipelines as sentences: what was refused, why, and what to do. They never contain a token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3
from kfp_server_api.exceptions import ApiException, ApiTypeError, ApiValueError

from thinktwice.errors import PipelineError, reason

TOKEN = "THINKTWICE_KFP_TOKEN"  # noqa: S105 - the name of a variable
COOKIES = "THINKTWICE_KFP_COOKIES"
SIGN_IN = f"set {TOKEN} to a token of the cluster, or {COOKIES} to the cookies of a signed-in browser"
_BUSY = ("cannot answer now", "look at the pod ml-pipeline and try again")
#: Reason and fix by status.
REFUSALS = {
    400: ("does not accept the request", "correct what it names"),
    401: ("does not know who asks", SIGN_IN),
    403: (
        "denies access",
        "ask for the rights to create pipelines and runs in this namespace, or give another --namespace",
    ),
    404: (
        "does not have what was asked for",
        "check --host, which is the address of the API or of its UI, and --namespace",
    ),
    409: ("already has another object of this name", "give another name"),
    413: ("does not accept a request of this size", "give shorter arguments"),
    429: _BUSY,
    500: _BUSY,
    502: _BUSY,
    503: _BUSY,
    504: _BUSY,
}


@contextmanager
def as_sentences(host: str, action: str) -> Iterator[None]:
    """Turn errors of the API into a PipelineError about ``host`` and the action, which reads like "the run was not created"."""
    try:
        yield
    except ApiException as error:
        raise PipelineError(refusal(host, int(error.status or 0), error.body or error.reason or "", action)) from error
    except urllib3.exceptions.HTTPError as error:
        if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
            error = error.reason  # type: ignore[assignment]
        if isinstance(error, urllib3.exceptions.SSLError):
            why, fix = "has no trusted certificate", "give the address with a trusted one, or set SSL_CERT_FILE"
        elif isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(
            error, urllib3.exceptions.NewConnectionError
        ):
            why, fix = "does not answer in time", "check --host and the pod ml-pipeline, and try again"
        elif isinstance(error, urllib3.exceptions.LocationValueError):
            why, fix = "is not an address", "use http://HOST:PORT or https://HOST"
        else:
            why, fix = "cannot be reached", "check --host; with `kubectl port-forward`, check that it still runs"
        raise PipelineError(f"{host} {why} ({_clean(reason(error))}), so {action}: {fix}") from error
    except (ApiTypeError, ApiValueError, ValueError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"{host} answers in another form than Kubeflow Pipelines 2 ({_clean(reason(error))}), so {action}: check --host"
        ) from error


def refusal(host: str, status: int, body: str | bytes, action: str) -> str:
    """The sentence for an answer with an error status."""
    why, fix = REFUSALS.get(status, ("refuses the request", "check --host"))
    told = _message(body)
    shown = f"{status}: {told}" if told else str(status)
    return f"{host} {why} ({shown}), so {action}: {fix}"


def _message(body: str | bytes) -> str:
    text = body.decode("utf-8", errors="replace") if isinstance(body, bytes) else str(body)
    try:
        value = json.loads(text)
    except ValueError:
        return "" if "<" in text else _clean(text)  # the page of a proxy says nothing that a person could use
    if isinstance(value, dict):
        return _clean(str(value.get("message") or value.get("error") or ""))
    return _clean(text)


def _clean(text: str) -> str:
    return " ".join(text.split())[:300]

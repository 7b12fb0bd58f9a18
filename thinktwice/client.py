"""A small client of a predictor or of the gateway in front of it: one connection, and the headers that experiments and deadlines need.

>>> with Client("http://127.0.0.1:8080") as client:                                    # doctest: +SKIP
...     answer = client.predict({"user_id": "u1", "candidates": ["i1", "i2"]}, unit="u1", deadline_ms=200)
...     answer.predictions, answer.request_id, answer.served_arm
"""

from __future__ import annotations

import http.client
import json
import math
import ssl
import urllib.parse
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from thinktwice.errors import OverloadedError, RequestError, ServerError

UNIT, REQUEST_ID, DEADLINE, SERVED_ARM = "x-experiment-unit", "x-request-id", "x-deadline-ms", "x-served-arm"
MARGIN = 1.0  # seconds allowed for the network beyond the deadline
WITHOUT_DEADLINE = 60.0  # seconds


@dataclass(frozen=True)
class Reply:
    """The answer to a request.

    Attributes:
        predictions: one per instance, in the form of the protocol.
        request_id: id under which the gateway and the predictor logged the request; store it with the impression.
        served_arm: arm that answered; None without a gateway and an arm.
    """

    predictions: list[dict[str, Any]]
    request_id: str
    served_arm: str | None


class Client:
    """A client with one persistent connection. Not thread-safe.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        model: name of the model in the path.
        unit_header: header of the unit, as the gateway file names it.
        token: bearer token of the gateway.
        tls: trusted authorities and the client's certificate; default: those of the system, and none.
    """

    def __init__(
        self,
        url: str,
        model: str = "ctr",
        unit_header: str = UNIT,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url} is not an address: give http://HOST:PORT")
        if parts.scheme == "https":
            context = ssl.create_default_context() if tls is None else tls
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port)
        self._url, self._unit_header, self._token = url, unit_header, token
        self._path = f"{parts.path.rstrip('/')}/v1/models/{model}:predict"

    def predict(
        self,
        *instances: Mapping[str, Any],
        unit: str | None = None,
        request_id: str | None = None,
        deadline_ms: float | None = None,
    ) -> Reply:
        """Request predictions.

        Args:
            instances: in the form of the protocol, for example ``{"user_id": ..., "candidates": [...]}``.
            unit: the experiment's unit, usually the user id, which always gets the same arm; without one the request is
                served by control and not counted.
            request_id: 1 to 128 printable ASCII characters; default a new one.
            deadline_ms: milliseconds until the answer is no longer needed; default: that of the predictor.

        Raises:
            RequestError: the request cannot be sent as it is, or was refused (4xx).
            OverloadedError: no server could answer in time (429, 503, 504).
            ServerError: the server does not answer, or failed.
        """
        request_id = uuid.uuid4().hex if request_id is None else request_id
        headers = {"content-type": "application/json", REQUEST_ID: request_id}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        if unit is not None:
            headers[self._unit_header] = unit
        if deadline_ms is not None:
            if not math.isfinite(deadline_ms):
                raise RequestError(
                    f"the deadline must be a number of milliseconds, not {deadline_ms}", field="deadline_ms"
                )
            headers[DEADLINE] = f"{deadline_ms:.6f}".rstrip("0").rstrip(".")
        limit = WITHOUT_DEADLINE if deadline_ms is None else max(deadline_ms, 0.0) / 1000 + MARGIN
        body = json.dumps({"instances": instances}, allow_nan=False).encode()
        status, answered, content = self._send(body, {k: _sendable(k, v) for k, v in headers.items()}, limit)
        if status != 200:
            raise _error(status, content, answered)
        try:
            predictions = json.loads(content)["predictions"]
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(
                f"{self._url} did not return predictions, so it is not a predictor: give the URL that `thinktwice serve` prints"
            ) from error
        return Reply(predictions, answered.get(REQUEST_ID, request_id), answered.get(SERVED_ARM))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, body: bytes, headers: dict[str, bytes], limit: float) -> tuple[int, dict[str, str], bytes]:
        reused = self._connection.sock is not None
        try:
            return self._once(body, headers, limit)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            if not reused:
                raise ServerError(f"{self._url} does not answer ({error}): start it, or correct the URL") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self._url} does not answer ({error}): start it, or correct the URL") from error
        try:  # the connection was reused, and the server had closed it in the meantime
            return self._once(body, headers, limit)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self._url} does not answer ({error}): start it, or correct the URL") from error

    def _once(self, body: bytes, headers: dict[str, bytes], limit: float) -> tuple[int, dict[str, str], bytes]:
        connection = self._connection
        try:
            connection.timeout = limit
            if connection.sock is not None:
                connection.sock.settimeout(limit)
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        except BaseException:
            connection.close()  # the rest of a half-read answer would be read as the next answer
            raise


def _sendable(name: str, value: str) -> bytes:
    """The bytes of a header.

    Raises:
        RequestError: it contains a control character, which ends or breaks a header.
    """
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise RequestError(
            f"{name} {value[:40]!r} contains a control character, which a header must not contain", field=name
        )
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} {value[:40]!r} is not valid Unicode and cannot be sent in a header", field=name
        ) from error


def _error(status: int, content: bytes, headers: Mapping[str, str]) -> Exception:
    message, field = content[:200].decode("utf-8", "replace"), ""
    try:
        payload = json.loads(content)
        message, field = str(payload["error"]), str(payload.get("field") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    if status in (429, 503, 504):
        retry_after = headers.get("retry-after", "1")
        return OverloadedError(message, retry_after=float(retry_after) if retry_after.isdigit() else 1.0, status=status)
    if 400 <= status < 500:
        return RequestError(message, field=field, status=status)
    return ServerError(f"the server failed with status {status} ({message}): see its log")

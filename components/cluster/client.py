"""Requests to the Kubernetes API with retries, and its refusals as sentences with the next command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinktwice.errors import PipelineError, ThinktwiceError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT_S = 30.0  # of one request
LONGEST_PAUSE_S = 30.0
TRANSIENT = (429, 500, 502, 503, 504)
APPLY = "application/apply-patch+yaml"

Json = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind of object in a namespace, as the API addresses it.

    Attributes:
        install: what to do where the cluster does not know the kind.
    """

    group: str
    version: str
    plural: str
    kind: str
    install: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        """Path of one object, of a part of it (``log``), or of all objects of a namespace."""
        pieces = ("apis" if self.group else "api", self.api_version, "namespaces", namespace, self.plural, name, part)
        return "/" + "/".join(piece for piece in pieces if piece)


@dataclass(frozen=True)
class Answer:
    """Answer of the API server.

    Attributes:
        body: the object; a text for a log; for a refusal, the server's own description of it.
    """

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        return self.status < 300


class UnreachableError(PipelineError):
    """The API server does not answer."""


@dataclass
class Api:
    """Connection to one namespace.

    Attributes:
        client: a ``kubernetes.client.ApiClient``.
        patience_s: seconds for which an API server that does not answer is asked again.
        error: type of the errors for refusals.
        role: file of the Role that has all verbs the caller needs.
        again: what a caller does after the API server is back.
        who: who makes the requests, for messages.
    """

    client: Any
    namespace: str
    patience_s: float = 300.0
    sleep: Callable[[float], None] = time.sleep
    error: type[ThinktwiceError] = PipelineError
    role: str = ""
    again: str = "run the command again"
    who: str = "the service account"

    def get(self, resource: Resource, name: str) -> Json | None:
        """An object; None if there is none."""
        answer = self.ask("GET", resource, name, allow=(404,))
        return answer.body if answer.ok else None

    def list(self, resource: Resource, **query: str) -> list[Json]:
        """Objects of the namespace; ``query`` has ``labelSelector`` or ``fieldSelector``."""
        return list(self.ask("GET", resource, query=query).body.get("items", []))

    def create(self, resource: Resource, value: Json) -> Json | None:
        """Create an object; None if one of its name exists."""
        answer = self.ask("POST", resource, body=value, allow=(409,))
        return answer.body if answer.ok else None

    def delete(self, resource: Resource, name: str, propagation: str = "Foreground") -> bool:
        """Delete an object. Returns whether there was one."""
        return self.ask("DELETE", resource, name, query={"propagationPolicy": propagation}, allow=(404,)).ok

    def ask(
        self,
        method: str,
        resource: Resource,
        name: str = "",
        *,
        part: str = "",
        body: Json | None = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        allow: Collection[int] = (),
    ) -> Answer:
        """Send a request. A server that is busy or gone is asked again for ``patience_s``.

        Args:
            allow: statuses that are an answer and no error; 404 for an object, not for a kind or a namespace.

        Raises:
            UnreachableError: there is no answer. ThinktwiceError (``error``): a refusal, as a sentence.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        path = resource.path(self.namespace, name, part)
        verb = _verb(method, name)
        shown = f"{resource.plural}/{part}" if part else resource.plural
        spent, pause = 0.0, 0.5
        while True:
            try:
                value = self.client.call_api(
                    path,
                    method,
                    query_params=list((query or {}).items()),
                    header_params={
                        "Accept": "text/plain, application/json" if part == "log" else "application/json",
                        "Content-Type": content_type,
                    },
                    body=body,
                    response_type="str" if part == "log" else "object",
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _request_timeout=TIMEOUT_S,
                )
                return Answer(200, value)
            except ApiException as error:
                if error.status in allow and not _missing_kind(error):
                    return Answer(error.status, _body(error))
                if error.status not in TRANSIENT:
                    raise self.error(self._refusal(verb, shown, resource, error)) from error
                why = f"{error.status} {told(error)}"
            except (HTTPError, ConnectionError) as error:
                why = type(error).__name__
            if spent >= self.patience_s:
                raise UnreachableError(
                    f"the Kubernetes API does not answer {verb} {shown} in namespace {self.namespace} ({why}, for {spent:.0f} s): "
                    f"check the API server; {self.again}"
                )
            self.sleep(pause)
            spent, pause = spent + pause, min(2 * pause, LONGEST_PAUSE_S)

    def _refusal(self, verb: str, shown: str, resource: Resource, error: Any) -> str:
        text, kind = told(error), resource.kind
        if error.status == 403 and "exceeded quota" in text:
            return (
                f"namespace {self.namespace} has no quota left for the {kind} ({text}): raise the quota, or use a queue"
            )
        if error.status == 403 and "admission webhook" not in text and "violates PodSecurity" not in text:
            return (
                f"{self.who} may not {verb} {shown} in namespace {self.namespace} ({text}): add to its Role "
                f'{{apiGroups: ["{resource.group}"], resources: [{shown}], verbs: [{verb}]}} ({self.role})'
            )
        if error.status == 401:
            return (
                f"the Kubernetes API does not accept the credentials ({text}): check the service account, or KUBECONFIG"
            )
        if error.status == 404 and 'namespaces "' in text:
            return f"namespace {self.namespace} does not exist ({text}): create it, or give another"
        if error.status == 404 and _missing_kind(error):
            return f"the cluster does not know {kind}s: {resource.install or 'install what defines them'}"
        return (
            f"the Kubernetes API refuses to {verb} {shown} in namespace {self.namespace} ({error.status}: {text}): "
            "correct what it names"
        )


def _verb(method: str, name: str) -> str:
    """The verb of a Role for a request."""
    if method == "GET":
        return "get" if name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]


def _missing_kind(error: Any) -> bool:
    """Whether a 404 is about the kind or the namespace and not about the object."""
    return error.status == 404 and ("page not found" in str(error.body) or 'namespaces "' in told(error))


def _body(error: Any) -> Json:
    try:
        value = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def told(error: Any) -> str:
    """The message of the API server, in one line."""
    text = str(_body(error).get("message") or error.body or error.reason)
    return " ".join(text.split())[:500]


def connect(namespace: str = "") -> Api:
    """Connect from inside a pod, or by KUBECONFIG.

    Raises:
        PipelineError: there is neither.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        if NAMESPACE_FILE.is_file():
            config.load_incluster_config(client_configuration=settings)
            namespace = namespace or NAMESPACE_FILE.read_text(encoding="utf-8").strip()
        else:
            config.load_kube_config(client_configuration=settings)
            _, current = config.list_kube_config_contexts()
            namespace = namespace or current["context"].get("namespace", "default")
    except config.ConfigException as error:
        raise PipelineError(
            f"no Kubernetes cluster ({' '.join(str(error).split())}): run this step in a cluster, or set KUBECONFIG"
        ) from error
    settings.retries = False  # retries are ours, with a bound in time
    return Api(client.ApiClient(settings), namespace)

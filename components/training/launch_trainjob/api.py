"""The calls to the Kubernetes API that a TrainJob needs, with retries, and their errors as sentences."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.training.launch_trainjob.objects import GROUP, PLURAL, RUN_LABEL, VERSION, run_label
from thinktwice.errors import PipelineError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT_S = 30.0  # of one request
LONGEST_PAUSE_S = 30.0
TRANSIENT = (429, 500, 502, 503, 504)

Json = dict[str, Any]


@dataclass
class Cluster:
    """Connection to one namespace.

    Attributes:
        patience_s: seconds for which an API server that does not answer is asked again.
    """

    custom: Any
    core: Any
    namespace: str
    patience_s: float = 300.0
    sleep: Callable[[float], None] = time.sleep

    def create(self, job: Json) -> Json | None:
        """Create a TrainJob; None if one of its name exists."""
        return self._ask(
            "create",
            409,
            lambda: self.custom.create_namespaced_custom_object(*self._jobs(), job, _request_timeout=TIMEOUT_S),
        )

    def get(self, name: str) -> Json | None:
        """A TrainJob; None if there is none."""
        return self._ask(
            "get",
            404,
            lambda: self.custom.get_namespaced_custom_object(*self._jobs(), name, _request_timeout=TIMEOUT_S),
        )

    def delete(self, name: str) -> None:
        """Delete a TrainJob with its pods; one that does not exist is fine."""
        self._ask(
            "delete",
            404,
            lambda: self.custom.delete_namespaced_custom_object(
                *self._jobs(), name, propagation_policy="Foreground", _request_timeout=TIMEOUT_S
            ),
        )

    def jobs_of(self, run: str) -> list[str]:
        """Names of the TrainJobs of a run."""
        selector = f"{RUN_LABEL}={run_label(run)}"
        found = self._ask(
            "list",
            0,
            lambda: self.custom.list_namespaced_custom_object(
                *self._jobs(), label_selector=selector, _request_timeout=TIMEOUT_S
            ),
        )
        return sorted(item["metadata"]["name"] for item in (found or {}).get("items", []))

    def pods(self, name: str) -> list[Any]:
        """Pods of a TrainJob."""
        selector = f"jobset.sigs.k8s.io/jobset-name={name}"
        listed = self._ask(
            "list",
            0,
            lambda: self.core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=TIMEOUT_S),
            "pods",
        )
        return list(listed.items)

    def log(self, pod: str, lines: int) -> list[str]:
        """Last lines of a pod's log, each with its time first; none while the container has not started."""
        text = self._ask(
            "get",
            404,
            lambda: self.core.read_namespaced_pod_log(
                pod, self.namespace, container="node", timestamps=True, tail_lines=lines, _request_timeout=TIMEOUT_S
            ),
            "pods/log",
            also=400,
        )
        return (text or "").splitlines()

    def events(self, name: str) -> list[str]:
        """Reasons and messages of the warnings about a TrainJob and its pods."""
        listed = self._ask(
            "list",
            0,
            lambda: self.core.list_namespaced_event(
                self.namespace, field_selector="type=Warning", _request_timeout=TIMEOUT_S
            ),
            "events",
        )
        own = [event for event in listed.items if (event.involved_object.name or "").startswith(name)]
        return [f"{event.reason}: {event.message}" for event in own]

    def _jobs(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, PLURAL

    def _ask(self, verb: str, absent: int, call: Callable[[], Any], resource: str = PLURAL, also: int = 0) -> Any:
        """The answer of a call; None for the status ``absent`` (or ``also``). A server that is busy or gone is asked again."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        spent, pause = 0.0, 0.5
        while True:
            try:
                return call()
            except ApiException as error:
                if error.status in (absent, also) and not _missing_kind(error):
                    return None
                if error.status not in TRANSIENT:
                    raise PipelineError(self._refusal(verb, resource, error)) from error
                why = f"{error.status} {error.reason}"
            except HTTPError as error:
                why = type(error).__name__
            if spent >= self.patience_s:
                raise PipelineError(
                    f"the Kubernetes API does not answer {verb} {resource} in namespace {self.namespace} ({why}, for {spent:.0f} s): "
                    "check the API server; a retry of this step finds the TrainJob again"
                )
            self.sleep(pause)
            spent, pause = spent + pause, min(2 * pause, LONGEST_PAUSE_S)

    def _refusal(self, verb: str, resource: str, error: Any) -> str:
        told = _told(error)
        if error.status == 403 and "exceeded quota" in told:
            return f"namespace {self.namespace} has no quota left for the TrainJob ({told}): raise the quota, or use a queue"
        if error.status == 403:
            group = GROUP if resource == PLURAL else ""
            return (
                f"the service account may not {verb} {resource} in namespace {self.namespace} ({told}): add to its Role "
                f'{{apiGroups: ["{group}"], resources: [{resource}], verbs: [{verb}]}} (manifests/components/trainer-access)'
            )
        if error.status == 401:
            return f"the Kubernetes API does not accept the credentials ({told}): check the service account of the step, or KUBECONFIG"
        if error.status == 404 and "namespaces" in told:
            return f"namespace {self.namespace} does not exist ({told}): create it, or give another"
        if error.status == 404:
            return "the cluster does not know TrainJobs: install Kubeflow Trainer 2.3 or later"
        return f"the Kubernetes API refuses to {verb} {resource} in namespace {self.namespace} ({error.status}: {told}): correct what it names"


def _missing_kind(error: Any) -> bool:
    """Whether a 404 is about the kind or the namespace and not about the object."""
    return error.status == 404 and ("page not found" in str(error.body) or 'namespaces "' in _told(error))


def _told(error: Any) -> str:
    """The message of the API server, in one line."""
    try:
        text = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        text = str(error.body or error.reason)
    return " ".join(text.split())[:500]


def connect(namespace: str = "") -> Cluster:
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
    api = client.ApiClient(settings)
    return Cluster(client.CustomObjectsApi(api), client.CoreV1Api(api), namespace)

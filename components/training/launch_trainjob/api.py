"""The requests to the Kubernetes API that a TrainJob needs."""

from __future__ import annotations

from dataclasses import dataclass

from components.cluster.client import Api, Json, Resource
from components.cluster.client import connect as connect_api
from components.training.launch_trainjob.objects import GROUP, PLURAL, RUN_LABEL, VERSION, run_label

JOBS = Resource(GROUP, VERSION, PLURAL, "TrainJob", install="install Kubeflow Trainer 2.3 or later")
PODS = Resource("", "v1", "pods", "Pod")
EVENTS = Resource("", "v1", "events", "Event")


@dataclass
class Cluster:
    """Connection to the namespace of the TrainJobs."""

    api: Api

    @property
    def namespace(self) -> str:
        return self.api.namespace

    def create(self, job: Json) -> Json | None:
        """Create a TrainJob; None if one of its name exists."""
        return self.api.create(JOBS, job)

    def get(self, name: str) -> Json | None:
        """A TrainJob; None if there is none."""
        return self.api.get(JOBS, name)

    def delete(self, name: str) -> None:
        """Delete a TrainJob with its pods; one that does not exist is fine."""
        self.api.delete(JOBS, name)

    def jobs_of(self, run: str) -> list[str]:
        """Names of the TrainJobs of a run."""
        found = self.api.list(JOBS, labelSelector=f"{RUN_LABEL}={run_label(run)}")
        return sorted(item["metadata"]["name"] for item in found)

    def pods(self, name: str) -> list[Json]:
        """Pods of a TrainJob."""
        return self.api.list(PODS, labelSelector=f"jobset.sigs.k8s.io/jobset-name={name}")

    def log(self, pod: str, lines: int) -> list[str]:
        """Last lines of a pod's log, each with its time first; none while the container has not started."""
        query = {"container": "node", "timestamps": "true", "tailLines": str(lines)}
        answer = self.api.ask("GET", PODS, pod, part="log", query=query, allow=(400, 404))
        return str(answer.body).splitlines() if answer.ok else []

    def events(self, name: str) -> list[str]:
        """Reasons and messages of the warnings about a TrainJob and its pods."""
        listed = self.api.list(EVENTS, fieldSelector="type=Warning")
        own = [event for event in listed if (event.get("involvedObject", {}).get("name") or "").startswith(name)]
        return [f"{event.get('reason')}: {event.get('message')}" for event in own]


def connect(namespace: str = "") -> Cluster:
    """Connect from inside a pod, or by KUBECONFIG.

    Raises:
        PipelineError: there is neither.
    """
    api = connect_api(namespace)
    api.role = "manifests/components/trainer-access"
    api.again = "a retry of this step finds the TrainJob again"
    return Cluster(api)

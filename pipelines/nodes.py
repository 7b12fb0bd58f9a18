"""Node pools: the labels and taints of each platform, and what is common to pods of KFP and of Kubeflow Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from components.choices import Platform
from thinktwice.errors import PipelineError
from thinktwice.frozen import Frozen
from thinktwice.strict_yaml import first_fault, read_mapping

POOL_LABEL = "thinktwice.dev/pool"
GPU_RESOURCE = "nvidia.com/gpu"
ACCELERATORS = (
    "THINKTWICE_ACCELERATORS"  # read by thinktwice.train.device, which this file does not import: torch takes seconds
)
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
_NAME = r"^$|^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$"
_KEY = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
#: Label with the name of a node pool.
POOL_NAME: Mapping[Platform, str] = {
    "gke": "cloud.google.com/gke-nodepool",
    "eks": "karpenter.sh/nodepool",
    "aks": "kubernetes.azure.com/agentpool",
}
#: Label of a spot node, and whether the platform puts a taint of the same name on it.
SPOT: Mapping[Platform, tuple[str, str, bool]] = {
    "gke": ("cloud.google.com/gke-spot", "true", True),
    "eks": ("karpenter.sh/capacity-type", "spot", False),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot", True),
}


class Requirement(Frozen):
    """What a label of a node must be, as in ``matchExpressions`` of a node affinity.

    Attributes:
        values: of the label; one of them for ``In``, none of them for ``NotIn``, one number for ``Gt`` and ``Lt``.
    """

    key: str = Field(pattern=_KEY)
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    values: tuple[Annotated[str, Field(pattern=_VALUE)], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.operator in ("In", "NotIn") and not self.values:
            raise ValueError(f"{self.key} with {self.operator} needs values")
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            raise ValueError(f"{self.key} with {self.operator} has no values")
        if self.operator in ("Gt", "Lt") and (len(self.values) != 1 or not self.values[0].isdigit()):
            raise ValueError(f"{self.key} with {self.operator} needs one whole number in quotes")
        return self

    def to_json(self) -> dict[str, str | list[str]]:
        """As in the spec of a pod."""
        return {"key": self.key, "operator": self.operator, **({"values": list(self.values)} if self.values else {})}


class Nodes(Frozen):
    """Which nodes a cluster has for training.

    Attributes:
        platform: whose labels the nodes have: ``pool`` is our own label, ``nvidia`` that of NVIDIA's feature discovery, ``eks`` those of Karpenter.
        gpu_pool, cpu_pool: names of the node pools; on gke, eks and aks the first is required.
        spot: train on spot nodes, with more retries.
        queue: Kueue's LocalQueue for training; "" for none.
        priority: Kueue's WorkloadPriorityClass for training; "" for none.
        gpu_affinity, cpu_affinity: what else the nodes of training, and of all other steps, must be; all of it.
    """

    platform: Platform = "pool"
    gpu_pool: str = Field(default="", pattern=_NAME)
    cpu_pool: str = Field(default="", pattern=_NAME)
    spot: bool = False
    queue: str = Field(default="", pattern=_NAME)
    priority: str = Field(default="", pattern=_NAME)
    gpu_affinity: tuple[Requirement, ...] = ()
    cpu_affinity: tuple[Requirement, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.platform in POOL_NAME and not self.gpu_pool:
            raise ValueError(f"platform {self.platform} needs the name of the node pool: --gpu-pool NAME")
        if self.platform not in POOL_NAME and (self.gpu_pool or self.cpu_pool):
            raise ValueError(f"platform {self.platform} has no names of node pools: use gke, eks or aks")
        if self.spot and self.platform not in SPOT:
            raise ValueError(f"platform {self.platform} has no label for spot nodes: use gke, eks or aks")
        if self.priority and not self.queue:
            raise ValueError("a priority needs a queue, because Kueue applies it: --queue NAME")
        return self


@dataclass(frozen=True)
class Toleration:
    """A taint that a pod tolerates; without a value, whatever the value."""

    key: str
    value: str = ""

    def to_json(self) -> dict[str, str]:
        """As in the spec of a pod."""
        matched = {"operator": "Equal", "value": self.value} if self.value else {"operator": "Exists"}
        return {"key": self.key, **matched, "effect": "NoSchedule"}


@dataclass(frozen=True)
class Where:
    """Where a pod may run."""

    selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    affinity: tuple[Requirement, ...] = ()


def load_nodes(path: Path) -> Nodes:
    """The nodes in a YAML file with the fields of :class:`Nodes`.

    Raises:
        PipelineError: it cannot be read, or names what no cluster has.
    """
    content = read_mapping(path, "nodes file", PipelineError)
    try:
        return Nodes.model_validate(content)
    except ValidationError as error:
        place, fault = first_fault(error, Nodes, "nodes")
        raise PipelineError(f"nodes file {path}: {place}: {fault}") from error


def gpu_nodes(nodes: Nodes) -> Where:
    """Nodes with a GPU. KFP and Trainer only add the GPU to the limits of a container: selector and tolerations are up to us."""
    selector = {
        "pool": {POOL_LABEL: "gpu"},
        "nvidia": {f"{GPU_RESOURCE}.present": "true"},
    }.get(nodes.platform) or {POOL_NAME[nodes.platform]: nodes.gpu_pool}
    tolerations = [Toleration(GPU_RESOURCE)]
    if nodes.platform == "aks":
        tolerations.append(Toleration("sku", "gpu"))
    if nodes.spot:
        label, value, tainted = SPOT[nodes.platform]
        selector = {**selector, label: value}
        if tainted:
            tolerations.append(Toleration(label, value))
    return Where(selector, tuple(tolerations), nodes.gpu_affinity)


def cpu_nodes(nodes: Nodes) -> Where:
    """Nodes for everything else. Without the name of a pool any node will do: GPU nodes keep pods away by their taint."""
    if nodes.platform == "pool":
        selector = {POOL_LABEL: "cpu"}
    else:
        selector = {POOL_NAME[nodes.platform]: nodes.cpu_pool} if nodes.cpu_pool else {}
    return Where(selector, affinity=nodes.cpu_affinity)


def queue_labels(nodes: Nodes) -> dict[str, str]:
    """Labels by which Kueue queues a workload."""
    labels = {QUEUE_LABEL: nodes.queue, PRIORITY_LABEL: nodes.priority}
    return {key: value for key, value in labels.items() if value}

"""The TrainJob of a training step as a pure function of its settings (Kubeflow Trainer v2, ``trainer.kubeflow.org/v1alpha1``)."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from components.choices import TrainingStep
from thinktwice.files import sha256_text
from thinktwice.frozen import Frozen

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME = "thinktwice-train"  # manifests/components/trainer
CONTAINER = JOB = "node"
RUN_LABEL, STEP_LABEL = "thinktwice.dev/run", "thinktwice.dev/step"
SETTINGS_ANNOTATION = "thinktwice.dev/settings"  # hash of what the job was made from
MANAGER = "thinktwice.dev/pipeline"
GPU = "nvidia.com/gpu"
S3_SECRET = "thinktwice-s3"  # noqa: S105  (a name)
S3_KEYS = {
    "access-key-id": "AWS_ACCESS_KEY_ID",
    "secret-access-key": "AWS_SECRET_ACCESS_KEY",
    "endpoint-url": "AWS_ENDPOINT_URL",
    "region": "AWS_DEFAULT_REGION",
}


class JobPlacement(Frozen):
    """Where the pods of a job run, and what they may use."""

    labels: dict[str, str] = Field(default_factory=dict)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, str], ...] = ()
    affinity: tuple[dict[str, str | list[str]], ...] = ()  # what the labels of the node must be, all of it
    gpus: int = Field(default=1, ge=0)
    cpu: str = "4"
    memory: str = "16Gi"
    memory_limit: str = "32Gi"


class JobSettings(Frozen):
    """What a TrainJob is made from.

    Attributes:
        run: id of the pipeline run. Settings with the same run and content have the same job.
        step, training_set, pretrained, recipe, backbone, pretraining, checkpoints, seed: of the training step; the folders are URIs that the pods can read.
        out: URI of the folder that the pods write.
        image: of the pods.
        deadline_s: seconds that the job may run, waiting in a queue not included.
    """

    run: str = Field(min_length=1)
    step: TrainingStep
    training_set: str
    pretrained: str = ""
    out: str
    recipe: str
    backbone: str = ""
    checkpoints: str = ""
    pretraining: str = ""
    seed: int
    code_version: str
    image: str
    placement: JobPlacement = JobPlacement()
    deadline_s: int = Field(default=12 * 3600, ge=1)


def settings_hash(settings: JobSettings) -> str:
    """Hash of everything that decides what a job does."""
    return sha256_text(json.dumps(settings.model_dump(mode="json"), sort_keys=True))


def run_label(run: str) -> str:
    """The id of a run as a label value."""
    return sha256_text(run)[:32]


def job_name(settings: JobSettings) -> str:
    """Name of the job: a step that is tried again, or whose pod was evicted, finds the job that it has started."""
    return f"tt-{settings.step}-{settings_hash(settings)[:16]}"


def train_job(settings: JobSettings) -> dict[str, Any]:
    """The TrainJob object, without a namespace."""
    placement = settings.placement
    resources = {"cpu": placement.cpu, "memory": placement.memory}
    gpus = {GPU: str(placement.gpus)} if placement.gpus else {}
    pod: dict[str, Any] = {}
    if placement.node_selector:
        pod["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in placement.tolerations]
    if placement.affinity:
        term = {"matchExpressions": [dict(requirement) for requirement in placement.affinity]}
        pod["affinity"] = {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        }
    patch = {"name": JOB, "template": {"spec": {"template": {"spec": pod}}}}
    job_spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": RUNTIME},
        "activeDeadlineSeconds": settings.deadline_s,
        "trainer": {
            "image": settings.image,
            "command": ["python", "-P", "-m", "components.training.launch_trainjob.worker"],
            "args": worker_arguments(settings),
            "numNodes": 1,
            "resourcesPerNode": {
                "requests": {**resources, **gpus},
                "limits": {"memory": placement.memory_limit, **gpus},
            },
            "env": [{"name": "THINKTWICE_ACCELERATORS", "value": str(placement.gpus)}, *_keys()],
        },
    }
    if pod:
        job_spec["runtimePatches"] = [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patch]}}}}
        ]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(settings),
            "labels": {
                "app.kubernetes.io/part-of": "thinktwice",
                RUN_LABEL: run_label(settings.run),
                STEP_LABEL: settings.step,
                **placement.labels,
            },
            "annotations": {SETTINGS_ANNOTATION: settings_hash(settings)},
        },
        "spec": job_spec,
    }


def worker_arguments(settings: JobSettings) -> list[str]:
    """Arguments of :mod:`components.training.launch_trainjob.worker`."""
    options = {
        "--step": settings.step,
        "--training-set": settings.training_set,
        "--pretrained": settings.pretrained,
        "--out": settings.out,
        "--recipe": settings.recipe,
        "--backbone": settings.backbone,
        "--checkpoints": settings.checkpoints,
        "--pretraining": settings.pretraining,
        "--seed": str(settings.seed),
    }
    return [word for name, value in options.items() if value for word in (name, value)]


def _keys() -> list[dict[str, Any]]:
    """The keys of the object store. Optional: a cluster with pod identities has no such secret."""
    return [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": S3_SECRET, "key": key, "optional": True}}}
        for key, variable in S3_KEYS.items()
    ]

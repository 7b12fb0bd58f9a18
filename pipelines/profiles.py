"""Profiles: all Kubernetes settings of the pipeline, by profile and by role of the task.

Roles: `train` (uses the accelerator), `cpu` (all other tasks that only write their outputs) and `effect` (has an effect
outside its outputs, so it is neither cached nor retried), `launch` (waits for a TrainJob, or removes it: not cached, because the id of the
run, by which its jobs are found and removed, is part of KFP's cache key) and `rollout` (starts a canary: neither cached nor retried, because a version that was taken back would be tried again).
Profiles: `local` sets only caching, because the local runner ignores all other settings, some with a warning;
`cpu-pool` runs everything on CPU nodes; `gpu-single` runs each training step on one GPU of a GPU node pool;
`gpu-trainjob` runs them as TrainJobs of Kubeflow Trainer, and the steps only wait for these.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask

from components.choices import DeployTarget, Profile
from pipelines.nodes import ACCELERATORS, GPU_RESOURCE, Nodes, Where, cpu_nodes, gpu_nodes, queue_labels
from thinktwice.release.feature_store import REDIS_ADDRESS, REDIS_PASSWORD, REGISTRY_URL

Role = Literal["train", "cpu", "launch", "effect", "rollout"]
PROFILES: tuple[Profile, ...] = get_args(Profile)

DEFAULT_TARGET: dict[Profile, DeployTarget] = {
    profile: "local" if profile == "local" else "manifest" for profile in PROFILES
}
STATE_MOUNT = "/var/lib/thinktwice"
DEFAULT_STATE_DIR: dict[Profile, str] = {
    profile: ".thinktwice/state" if profile == "local" else f"{STATE_MOUNT}/state" for profile in PROFILES
}
DEFAULT_RECORDS_DIR: dict[Profile, str] = {
    profile: ".thinktwice/experiments" if profile == "local" else f"{STATE_MOUNT}/experiments" for profile in PROFILES
}
DEFAULT_ROLLOUT_DIR: dict[Profile, str] = {
    profile: f"{folder}/rollout" for profile, folder in DEFAULT_STATE_DIR.items()
}

# Labels and names that a cluster must provide; `manifests/README.md` and `manifests/examples/` use the same ones.
STATE_CLAIM = "thinktwice-state"
S3_SECRET = "thinktwice-s3"  # noqa: S105  (a name)
S3_SECRET_KEYS = {
    "access-key-id": "AWS_ACCESS_KEY_ID",
    "secret-access-key": "AWS_SECRET_ACCESS_KEY",
    "endpoint-url": "AWS_ENDPOINT_URL",
    "region": "AWS_DEFAULT_REGION",
}
ONLINE_SECRET = "ctr-feature-store"  # noqa: S105  (a name)
ONLINE_SECRET_KEYS = {"redis-address": REDIS_ADDRESS, "redis-password": REDIS_PASSWORD}
REGISTRY_SECRET = "thinktwice-feast-registry"  # noqa: S105  (a name)
REGISTRY_SECRET_KEYS = {"url": REGISTRY_URL}
USER_ID = 1000  # the unprivileged user of the image

# requests of cpu and memory, limit of memory, longest run in seconds
LAUNCH_SIZE = ("250m", "512Mi", "2Gi", 25 * 3600)  # waits in a queue as well
ROLLOUT_SIZE = ("250m", "512Mi", "2Gi", 2 * 3600)
CPU_SIZE = ("2", "6Gi", "12Gi", 2 * 3600)
TRAIN_SIZE = ("4", "16Gi", "32Gi", 12 * 3600)
RETRIES, SPOT_RETRIES = 2, 6
DAY = 24 * 3600
# Seconds for which the cluster keeps the objects of a finished run (its record and artifacts stay), and a run's longest time:
# training twice in a row, and all other steps.
TTL_SUCCESS, TTL_FAILURE = 3 * DAY, 14 * DAY
DEADLINE: dict[Profile, int] = {"local": 0, "cpu-pool": 2 * DAY, "gpu-single": 2 * DAY, "gpu-trainjob": 4 * DAY}


DEFAULT_NODES = Nodes()


def check_profile(profile: str) -> None:
    """Raise a ValueError with the known profiles if `profile` is unknown."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: use one of {', '.join(PROFILES)}")


def pipeline_config(profile: Profile) -> dsl.PipelineConfig:
    """The settings of a whole run; the local runner has none.

    Raises:
        ValueError: the profile is unknown.
    """
    check_profile(profile)
    if profile == "local":
        return dsl.PipelineConfig()
    return dsl.PipelineConfig(
        ttl_seconds_after_success=TTL_SUCCESS,
        ttl_seconds_after_failure=TTL_FAILURE,
        active_deadline_seconds=DEADLINE[profile],
    )


def with_online_store(task: PipelineTask, profile: Profile) -> PipelineTask:
    """Give a task the address and the password of the online store, which are no parameters of a run: those are shown to all."""
    if profile != "local":
        kubernetes.use_secret_as_env(task, ONLINE_SECRET, ONLINE_SECRET_KEYS, optional=True)
    return task


def with_registry(task: PipelineTask, profile: Profile) -> PipelineTask:
    """Give a task the address of the shared registry of features, with its password."""
    if profile != "local":
        kubernetes.use_secret_as_env(task, REGISTRY_SECRET, REGISTRY_SECRET_KEYS, optional=True)
    return task


def apply_profile(
    task: PipelineTask, role: Role, profile: Profile, image: str, nodes: Nodes = DEFAULT_NODES
) -> PipelineTask:
    """Configure `task` for its `role` under `profile`, with `image`. The only Kubernetes-specific code of the pipeline.

    Raises:
        ValueError: the profile is unknown.
    """
    check_profile(profile)
    task.set_container_image(image)
    task.set_caching_options(role in ("train", "cpu"))
    if profile == "local":
        return task

    cpu, memory, memory_limit, timeout = {"train": TRAIN_SIZE, "launch": LAUNCH_SIZE, "rollout": ROLLOUT_SIZE}.get(
        role, CPU_SIZE
    )
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory_limit)
    kubernetes.set_timeout(task, seconds=timeout)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.set_security_context(task, run_as_user=USER_ID, run_as_group=USER_ID, run_as_non_root=True)
    # Optional: a cluster with pod identities has no such secret.
    kubernetes.use_secret_as_env(task, S3_SECRET, S3_SECRET_KEYS, optional=True)

    on_gpu = role == "train" and profile == "gpu-single"
    _place(task, gpu_nodes(nodes) if on_gpu else cpu_nodes(nodes))
    if on_gpu:
        task.set_accelerator_type(GPU_RESOURCE).set_accelerator_limit(1)
        # Without it, a step that gets no GPU after all would train on the CPU for days, and say nothing.
        task.set_env_variable(ACCELERATORS, "1")
        for label, value in queue_labels(nodes).items():
            kubernetes.add_pod_label(task, label, value)
    if role == "train":
        # Loader processes pass tensors in shared memory; with a container's default of 64 MB they are killed by SIGBUS.
        kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit="8Gi")  # noqa: S108

    if role == "effect":
        # The champion outlives the run: it is stored on a volume claim, not in the pod.
        kubernetes.mount_pvc(task, pvc_name=STATE_CLAIM, mount_path=STATE_MOUNT)
    elif role != "rollout":
        # For evicted pods and transient errors of object stores. A retry is safe because outputs are written from scratch.
        retries = SPOT_RETRIES if on_gpu and nodes.spot else RETRIES
        task.set_retry(num_retries=retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="300s")
    return task


def job_placement(nodes: Nodes) -> dict[str, Any]:
    """The placement of TrainJobs, a parameter of the step ``launch_trainjob``."""
    where = gpu_nodes(nodes)
    cpu, memory, memory_limit, _ = TRAIN_SIZE
    return {
        "labels": queue_labels(nodes),
        "node_selector": where.selector,
        "tolerations": [taint.to_json() for taint in where.tolerations],
        **({"affinity": [each.to_json() for each in where.affinity]} if where.affinity else {}),
        "gpus": 1,
        "cpu": cpu,
        "memory": memory,
        "memory_limit": memory_limit,
    }


def _place(task: PipelineTask, where: Where) -> None:
    for label, value in where.selector.items():
        kubernetes.add_node_selector(task, label, value)
    for taint in where.tolerations:
        kubernetes.add_toleration(task, **taint.to_json())
    if where.affinity:
        kubernetes.add_node_affinity(task, match_expressions=[each.to_json() for each in where.affinity])

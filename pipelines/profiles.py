"""Profiles: all Kubernetes settings of the pipeline, by profile and by role of the task.

Roles: `train` (uses the accelerator), `cpu` (all other tasks that only write their outputs) and `effect` (has an effect
outside its outputs, so it is neither cached nor retried).
Profiles: `local` sets only caching, because the local runner ignores all other settings, some with a warning;
`gpu-single` runs each training step on one GPU of a GPU node pool and all other steps on a CPU pool.
"""

from __future__ import annotations

from typing import Literal, get_args

from kfp import kubernetes
from kfp.dsl import PipelineTask

from components.choices import DeployTarget, Profile

Role = Literal["train", "cpu", "effect"]
PROFILES: tuple[Profile, ...] = get_args(Profile)

DEFAULT_TARGET: dict[Profile, DeployTarget] = {"local": "local", "gpu-single": "manifest"}
STATE_MOUNT = "/var/lib/thinktwice"
DEFAULT_STATE_DIR: dict[Profile, str] = {"local": ".thinktwice/state", "gpu-single": f"{STATE_MOUNT}/state"}
DEFAULT_RECORDS_DIR: dict[Profile, str] = {
    "local": ".thinktwice/experiments",
    "gpu-single": f"{STATE_MOUNT}/experiments",
}
DEFAULT_ROLLOUT_DIR: dict[Profile, str] = {
    profile: f"{folder}/rollout" for profile, folder in DEFAULT_STATE_DIR.items()
}

# Labels and names that a cluster must provide; `manifests/README.md` and `manifests/examples/` use the same ones.
POOL_LABEL = "thinktwice.dev/pool"
GPU_RESOURCE = "nvidia.com/gpu"
STATE_CLAIM = "thinktwice-state"
S3_SECRET = "thinktwice-s3"  # noqa: S105  (a name)
S3_SECRET_KEYS = {
    "access-key-id": "AWS_ACCESS_KEY_ID",
    "secret-access-key": "AWS_SECRET_ACCESS_KEY",
    "endpoint-url": "AWS_ENDPOINT_URL",
    "region": "AWS_DEFAULT_REGION",
}
USER_ID = 1000  # the unprivileged user of the image

# requests of cpu and memory, limit of memory, longest run in seconds
CPU_SIZE = ("2", "6Gi", "12Gi", 2 * 3600)
TRAIN_SIZE = ("4", "16Gi", "32Gi", 12 * 3600)


def check_profile(profile: str) -> None:
    """Raise a ValueError with the known profiles if `profile` is unknown."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: use one of {', '.join(PROFILES)}")


def apply_profile(task: PipelineTask, role: Role, profile: Profile, image: str) -> PipelineTask:
    """Configure `task` for its `role` under `profile`, with `image`. The only Kubernetes-specific code of the pipeline.

    Raises:
        ValueError: the profile is unknown.
    """
    check_profile(profile)
    task.set_container_image(image)
    task.set_caching_options(role != "effect")
    if profile == "local":
        return task

    cpu, memory, memory_limit, timeout = TRAIN_SIZE if role == "train" else CPU_SIZE
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory_limit)
    kubernetes.set_timeout(task, seconds=timeout)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.set_security_context(task, run_as_user=USER_ID, run_as_group=USER_ID, run_as_non_root=True)
    # Optional: a cluster with pod identities has no such secret.
    kubernetes.use_secret_as_env(task, S3_SECRET, S3_SECRET_KEYS, optional=True)

    if role == "train":
        # KFP only adds the accelerator to the resource limits: the node selector and the toleration that place the pod
        # in the GPU pool must be added here.
        task.set_accelerator_type(GPU_RESOURCE).set_accelerator_limit(1)
        kubernetes.add_node_selector(task, POOL_LABEL, "gpu")
        kubernetes.add_toleration(task, key=GPU_RESOURCE, operator="Exists", effect="NoSchedule")
        # Loader processes pass tensors in shared memory; with a container's default of 64 MB they are killed by SIGBUS.
        kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit="8Gi")  # noqa: S108
    else:
        kubernetes.add_node_selector(task, POOL_LABEL, "cpu")

    if role == "effect":
        # The champion outlives the run: it is stored on a volume claim, not in the pod.
        kubernetes.mount_pvc(task, pvc_name=STATE_CLAIM, mount_path=STATE_MOUNT)
    else:
        # For evicted pods and transient errors of object stores. A retry is safe because outputs are written from scratch.
        task.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="300s")
    return task

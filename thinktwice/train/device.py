"""The device of training: the machine's GPU if it has one. Models enter and leave training on the CPU."""

from __future__ import annotations

import os

import torch

from thinktwice.data.encoded import Batch
from thinktwice.errors import ResourceError

ACCELERATORS = (
    "THINKTWICE_ACCELERATORS"  # environment variable: number of GPUs that whoever started this process has promised
)


def training_device() -> torch.device:
    """The GPU if torch can use one, else the CPU.

    All random draws are made on the CPU, so both see the same batches and masks; only on the CPU are sums, and therefore
    weights, identical from run to run.

    Raises:
        ResourceError: fewer GPUs are usable than ``THINKTWICE_ACCELERATORS`` promises.
    """
    promised, usable = os.environ.get(ACCELERATORS, "0") or "0", torch.cuda.device_count()
    if not promised.isascii() or not promised.isdigit():
        raise ResourceError(f"{ACCELERATORS} is {promised!r}: set it to the number of GPUs")
    if usable < int(promised):
        cause = (
            f"torch {torch.__version__} is built without CUDA: use an image with a CUDA build"
            if torch.version.cuda is None
            else "torch finds no more: check the limit nvidia.com/gpu of the container and the driver of the node"
        )
        raise ResourceError(f"{promised} GPU(s) were promised to this step and {usable} are usable; {cause}")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with all its tensors on ``device``; tensors already on it are not copied."""
    return Batch(
        batch.ids.to(device),
        {k: v.to(device) for k, v in batch.sequences.items()},
        {k: v.to(device) for k, v in batch.vectors.items()},
        None if batch.counters is None else batch.counters.to(device),
        {k: v.to(device) for k, v in batch.weights.items()},
    )

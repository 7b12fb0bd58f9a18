"""The device of training: the machine's GPU if it has one. Models enter and leave training on the CPU."""

from __future__ import annotations

import torch

from thinktwice.data.encoded import Batch


def training_device() -> torch.device:
    """The GPU if torch can use one, else the CPU.

    All random draws are made on the CPU, so both see the same batches and masks; only on the CPU are sums, and therefore
    weights, identical from run to run.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with all its tensors on ``device``; tensors already on it are not copied."""
    return Batch(
        batch.ids.to(device),
        {k: v.to(device) for k, v in batch.sequences.items()},
        {k: v.to(device) for k, v in batch.vectors.items()},
        None if batch.counters is None else batch.counters.to(device),
    )

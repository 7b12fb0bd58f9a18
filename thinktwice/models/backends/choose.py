"""The backend that a model is packaged with: the first suitable one whose scores equal the eager ones.

The choice changes bits of scores, so it is part of the bundle and must not depend on a timing: the same model gives the same
choice on the same kind of processor, however busy the machine is. `make bench-backends` measures whether the order below is
still the order of their speeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Backend, Eager, MakeBackend, random_rows, verify_sizes
from thinktwice.models.backends.folded import can_fold
from thinktwice.models.blocks import one_thread

PARITY_ROWS = 512
TOLERANCE = {"eager": 1e-5, "folded": 1e-5, "onnx": 1e-5, "bfloat16": 2e-3}  # of a probability
WIDE = 250_000  # multiplications per row in linear layers above which bfloat16 instructions beat float32
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # the last on ARM


@dataclass(frozen=True)
class Parity:
    """Agreement with eager torch. ``difference``: largest difference of a probability; ``swapped``: pairs of rows whose order
    differs although the eager scores differ by more than the tolerance; ``holds``: whether both are acceptable."""

    difference: float
    swapped: int
    holds: bool


@dataclass(frozen=True)
class Choice:
    """The chosen backend, and the ``parity`` of all that were tried."""

    name: str
    parity: Mapping[str, Parity]


def parity_of(backend: Backend, seed: int = 0) -> Parity:
    """Compare a backend with eager torch on random rows."""
    batch = random_rows(backend.model, PARITY_ROWS, seed)
    eager = Eager(backend.model, backend.table, backend.fill)
    with torch.inference_mode(), one_thread():
        expected = eager.logits(eager.read(batch)).double().sigmoid()
        probability = backend.logits(backend.read(batch)).double().sigmoid()
    tolerance = TOLERANCE[backend.name]
    difference = float((probability - expected).abs().max())
    apart = expected[:, None] - expected[None] > tolerance
    swapped = int((apart & (probability[:, None] <= probability[None])).sum())
    return Parity(difference, swapped, math.isfinite(difference) and difference <= tolerance and swapped == 0)


def suitable(model: Backbone, *, bfloat16: bool) -> tuple[str, ...]:
    """Backends that are faster than eager torch for this model, the fastest first.

    Args:
        bfloat16: whether the processor has instructions for it.
    """
    if can_fold(model):
        return ("folded",)
    if bfloat16 and multiplications(model) >= WIDE and not model.many_small_operations:
        return ("bfloat16", "onnx")
    return ("onnx",)


def multiplications(model: Backbone) -> int:
    """Multiplications per row in the linear layers of the trunk."""
    embedding = set(model.embedding.modules())
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m not in embedding)


def has_bfloat16() -> bool:
    """Whether this processor has instructions that multiply bfloat16 matrices."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_INSTRUCTIONS)


def choose_backend(candidates: Mapping[str, MakeBackend], eager: Backend) -> Choice:
    """The first of ``candidates`` that reproduces the scores of ``eager`` and gives every row the same bits in any request;
    eager torch if none does."""
    parity: dict[str, Parity] = {}
    with torch.inference_mode(), one_thread():
        for name, make in candidates.items():
            backend = make(eager.model, eager.table, eager.fill)
            parity[name] = parity_of(backend)
            if parity[name].holds and verify_sizes(backend):
                return Choice(name, parity)
    return Choice("eager", parity)

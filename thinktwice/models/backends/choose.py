"""Which backend a model is packaged with: the first of those that suit its architecture and size whose scores are the eager ones.

The choice changes bits of scores, so it is part of the bundle, and what is in the bundle must not depend on a stopwatch:
the same model gives the same choice on the same kind of processor, however busy the machine is. `make bench-backends`
measures whether the order below is still the order of their speeds.
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
WIDE = 250_000  # multiplications of a row in linear layers, from which bfloat16 beats float32 where it has instructions
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # the last on ARM


@dataclass(frozen=True)
class Parity:
    """``difference``: the largest of a probability; ``swapped``: pairs of rows in another order though the eager scores differ
    by more than the tolerance; ``holds``: whether both are in order."""

    difference: float
    swapped: int
    holds: bool


@dataclass(frozen=True)
class Choice:
    """The backend, and the ``parity`` of those that were tried."""

    name: str
    parity: Mapping[str, Parity]


def parity_of(backend: Backend, seed: int = 0) -> Parity:
    """Compare a backend with eager torch on random rows."""
    batch = random_rows(backend.model, PARITY_ROWS, seed)
    eager = Eager(backend.model, backend.table, backend.fill)
    with torch.inference_mode(), one_thread():
        expected = eager.logits(eager.read(batch)).double().sigmoid()
        found = backend.logits(backend.read(batch)).double().sigmoid()
    tolerance = TOLERANCE[backend.name]
    difference = float((found - expected).abs().max())
    apart = expected[:, None] - expected[None] > tolerance
    swapped = int((apart & (found[:, None] <= found[None])).sum())
    return Parity(difference, swapped, math.isfinite(difference) and difference <= tolerance and swapped == 0)


def suitable(model: Backbone, *, bfloat16: bool) -> tuple[str, ...]:
    """Backends that are faster than eager torch for such a model, the fastest first.

    Args:
        bfloat16: whether the processor has instructions for it.
    """
    if can_fold(model):
        return ("folded",)
    if model.config.name == "autoint":  # many small operations, which ONNX Runtime joins
        return ("onnx",)
    return ("bfloat16",) if bfloat16 and multiplications(model) >= WIDE else ()


def multiplications(model: Backbone) -> int:
    """Multiplications of a row in the linear layers of the trunk."""
    embedding = set(model.embedding.modules())
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m not in embedding)


def has_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 by instructions of its own."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BFLOAT16_INSTRUCTIONS)


def choose_backend(candidates: Mapping[str, MakeBackend], eager: Backend) -> Choice:
    """The first of ``candidates`` that gives the scores of ``eager``, and every row the same bits in any request; eager
    torch where none does."""
    parity: dict[str, Parity] = {}
    with torch.inference_mode(), one_thread():
        for name, make in candidates.items():
            backend = make(eager.model, eager.table, eager.fill)
            parity[name] = parity_of(backend)
            if parity[name].holds and verify_sizes(backend):
                return Choice(name, parity)
    return Choice("eager", parity)
